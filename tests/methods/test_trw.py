import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from expunge.data.images import ImageData, relabel
from expunge.data.split import forget_classes, forget_only, forget_samples
from expunge.errors import ConfigError, DataError, ModelError
from expunge.methods import DELETE, TRW, trw_target
from expunge.rng import draw_seed, fork
from expunge.training import until
from expunge.training.inference import logits_of
from expunge.training.loop import sgd
from expunge.training.objectives import cross_entropy
from expunge.training.schedules import Step
from toys import Watched, spy_on_sgd

QUICK = {"epochs": 2, "batch_size": 16}
SIMILARITIES = ("weights", "features", "logits", "answers")


@pytest.fixture
def trained_on(monkeypatch):
    """What TRW and DELETE hand to the training loop: filled in while they run."""
    return spy_on_sgd(monkeypatch, until)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def problem(seed, n=6, k=7, scale=5.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator) * scale, torch.rand(k, generator=generator)


# The target.


@given(st.integers(0, 10**6), st.floats(-30, 30), st.sets(st.integers(0, 6), min_size=1, max_size=6), st.floats(0.2, 5))
def test_the_target_sums_to_one_is_zero_on_forgotten_classes_and_is_the_masked_softmax(seed, beta, forget, temperature):
    logits, s = problem(seed)
    q = trw_target(logits, sorted(forget), s, beta, temperature)
    assert (q[:, sorted(forget)] == 0).all() and torch.allclose(q.sum(1), torch.ones(6))
    remaining = [k for k in range(7) if k not in forget]
    weight = (logits.double() / temperature + beta * s.double())[:, remaining].softmax(1)
    assert torch.allclose(q[:, remaining].double(), weight, atol=1e-5)


@given(st.integers(0, 10**6), st.lists(st.floats(-40, 40), min_size=2, max_size=2))
def test_the_expected_similarity_never_falls_as_beta_grows(seed, betas):
    logits, s = problem(seed)
    low, high = (trw_target(logits.double(), [2], s.double(), beta) @ s.double() for beta in sorted(betas))
    assert (high >= low - 1e-12).all()


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.floats(-5, 5))
def test_the_target_is_the_i_projection_of_the_renormalised_answers(seed, beta):
    # No distribution on the remaining classes with the same expected similarity is nearer in KL to p̃.
    logits, s = (t.double() for t in problem(seed, n=1, scale=1.0))
    q, p = trw_target(logits, [0], s, beta)[0, 1:], trw_target(logits, [0], s, 0.0)[0, 1:]
    moves = torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    constraints = torch.linalg.qr(torch.stack([torch.ones(6, dtype=torch.float64), s[1:]]).T).Q
    moves -= moves @ constraints @ constraints.T  # keeps the sum and the expected similarity
    room = (-q / moves).where(moves < 0, torch.inf).min(1, keepdim=True).values
    others = q + moves * room * torch.rand(200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).clamp(max=0.99)
    assert torch.allclose(others @ s[1:], q @ s[1:]) and torch.allclose(others.sum(1), torch.ones(200, dtype=torch.float64))
    assert (kl(others, p) >= kl(q, p) - 1e-12).all()


def kl(q, p):
    return torch.xlogy(q, q / p).sum(-1)


def test_a_large_beta_gives_the_nearest_class_alone():
    logits, s = problem(0)
    s[4] = 2.0
    assert torch.equal(trw_target(logits, [1], s, 1e4), nn.functional.one_hot(torch.full((6,), 4), 7).float())


def test_memorised_samples_have_a_target_although_the_rest_of_their_probability_rounds_to_zero():
    logits = torch.tensor([[200.0, 1.0, 0.0]])
    assert logits.softmax(1)[0, 0] == 1
    assert trw_target(logits, [0], torch.zeros(3), 0.0)[0, 1:].tolist() == pytest.approx([0.7311, 0.2689], abs=1e-4)


@pytest.mark.parametrize("forget", [[], [0, 1, 2], [3], [-1], [0, 7]], ids=str)
def test_a_target_needs_a_class_to_forget_and_one_to_remain(forget):
    with pytest.raises(DataError, match="at least one and not all of the classes 0 … 2"):
        trw_target(torch.zeros(1, 3), forget, torch.zeros(3), 1.0)


def test_shapes_and_temperature_of_the_target_are_checked():
    with pytest.raises(DataError, match="similarity"):
        trw_target(torch.zeros(2, 3), [0], torch.zeros(2), 1.0)
    with pytest.raises(ConfigError, match="temperature must be a number > 0; got 0"):
        trw_target(torch.zeros(2, 3), [0], torch.zeros(3), 1.0, temperature=0)


# The method.


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_without_tilt_trw_is_rwft_bit_for_bit(memorised_class, similarity):
    model, split, _ = memorised_class
    rwft = copy.deepcopy(model)
    masked = logits_of(model, split.forget)
    masked[:, 3] = -torch.inf
    with fork(5):
        sgd(
            rwft, [relabel(split.forget, masked.softmax(1)), split.retain], cross_entropy, seed=draw_seed(),
            epochs=2, lr=0.01, batch_size=16, weight_decay=5e-4, schedule=Step(every=5, gamma=0.1),
        )  # fmt: skip
    assert same(TRW(**QUICK, beta=0.0, similarity=similarity)(model, split, seed=5, device="cpu"), rwft)


@pytest.mark.parametrize("classes", [[3], [3, 5]], ids=str)
def test_without_tilt_the_target_is_that_of_delete_bit_for_bit(memorised_class, trained_on, classes):
    model, split, _ = memorised_class
    split = forget_classes(split.train, classes)
    TRW(**QUICK, beta=0.0)(model, split)
    DELETE(epochs=1, until=None)(model, split)
    (rwft, _), (distilled, _) = trained_on
    assert torch.equal(rwft[0].labels, distilled.labels)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_sample_has_the_similarities_of_its_own_class(memorised_class, trained_on, similarity):
    model, split, _ = memorised_class
    split = forget_classes(split.train, [3, 5])
    TRW(**QUICK, beta=10.0, similarity=similarity)(model, split)
    target, logits = trained_on[0][0][0].labels, logits_of(model, split.forget)
    untilted = trw_target(logits, [3, 5], torch.zeros(10), 0.0)
    remaining = [k for k in range(10) if k not in (3, 5)]
    tilt = ((target / untilted).log() / 10)[:, remaining]  # s up to a constant for each sample
    tilt = (tilt - tilt.mean(1, keepdim=True)).where((target[:, remaining] > 1e-20) & (untilted[:, remaining] > 1e-20), torch.nan)
    rows = {k: tilt[split.forget.labels == k] for k in (3, 5)}
    assert (target[:, [3, 5]] == 0).all()
    for row in rows.values():
        assert torch.nanmean((row - row[:1]).abs()) < 1e-3
    assert torch.nanmean((rows[3][0] - rows[5][0]).abs()) > 1e-3


def test_similarity_of_weights_is_the_softmax_of_cosines_between_centred_rows(memorised_class):
    model, split, _ = memorised_class
    w = model[-1].weight.detach()
    w = w - w.mean(0)
    cosines = torch.stack([torch.cosine_similarity(w[3], row, dim=0) for row in w]) / 0.1
    cosines[3] = -torch.inf
    ours = TRW().similarity_of(model, split, logits_of(model, split.forget), [])
    assert torch.allclose(ours[3], cosines.softmax(0), atol=1e-5)


def test_similarity_of_answers_is_the_mean_of_the_renormalised_answers(memorised_class):
    model, split, _ = memorised_class
    logits = logits_of(model, split.forget)
    ours = TRW(similarity="answers").similarity_of(model, split, logits, [])
    assert torch.allclose(ours[3], trw_target(logits, [3], torch.zeros(10), 0.0).mean(0), atol=1e-6)


def test_similar_classes_are_those_whose_images_are_alike(digits, memorised_class):
    # Two classes that are one and the same digit under two names: each is the other's nearest.
    model, split, _ = memorised_class
    sevens = (split.train.labels == 7).nonzero().flatten()
    labels = split.train.labels.clone()
    labels[sevens[::2]] = 8
    labels[split.train.labels == 8] = 7
    twins = copy.deepcopy(model)
    train = ImageData(split.train.images, labels, split.train.classes)
    sgd(twins, train, epochs=5, lr=0.05, batch_size=16, seed=0)
    split = forget_classes(train, [8])
    logits = logits_of(twins, split.forget)
    for similarity in SIMILARITIES:
        s = TRW(similarity=similarity).similarity_of(twins, split, logits, [split.retain])[8]
        assert s.argmax() == 7 and s[8] == 0 and float(s.sum()) == pytest.approx(1), similarity


def test_fewer_principal_directions_change_the_cosines_and_enough_do_not(memorised_class):
    model, split, _ = memorised_class
    logits = logits_of(model, split.forget)
    whole, nine, two = (TRW(n_components=n).similarity_of(model, split, logits, []) for n in (50, 9, 2))
    assert torch.allclose(whole, nine, atol=1e-5) and not torch.allclose(whole, two, atol=1e-2)


def test_classes_without_a_retain_sample_have_no_similarity_by_features(memorised_class):
    model, split, _ = memorised_class
    split = forget_classes(split.train.subset((split.train.labels != 6).nonzero().flatten()), [3])
    logits = logits_of(model, split.forget)
    for similarity in ("features", "logits"):
        s = TRW(similarity=similarity).similarity_of(model, split, logits, [split.retain])
        assert s[3].isfinite().all() and s[3, 6] == s[3, 3] == 0 and float(s[3].sum()) == pytest.approx(1)


def test_with_a_share_of_the_retain_data_each_class_gives_its_share_and_the_rest_is_never_read(memorised_class, trained_on):
    model, split, _ = memorised_class
    watched = Watched(split.train)
    TRW(**QUICK, beta=1.0, retain_ratio=0.2, similarity="features")(model, forget_classes(watched, [3]))
    retain = trained_on[0][0][1]
    assert watched.read == set(retain.ids.tolist()) | set(split.forget.ids.tolist())
    for k in retain.labels.unique():
        n = int((split.retain.labels == k).sum())
        assert int((retain.labels == k).sum()) == -(-n // 5)
    TRW(**QUICK, retain_ratio=0.2)(model, split, seed=1)
    assert not torch.equal(trained_on[1][0][1].ids, retain.ids)


def test_without_retain_data_batchnorm_keeps_its_statistics(memorised_class, trained_on):
    model, split, _ = memorised_class
    unlearned = TRW(**QUICK, use_retain=False)(model, forget_only(split.forget, [3]))
    assert torch.equal(unlearned[1].running_mean, model[1].running_mean)
    assert [options["lr"] for _, options in trained_on] == [1e-5 * 2**k for k in range(len(trained_on))] and len(trained_on) > 1
    assert not (logits_of(unlearned, split.forget).argmax(1) == 3).any()
    trained_on.clear()
    TRW(**QUICK)(model, split)
    ((_, options),) = trained_on
    assert options["batchnorm"] == "train" and options["lr"] == 0.01
    with pytest.raises(ConfigError, match="similarity='logits' compares classes by their retain samples"):
        TRW(use_retain=False, similarity="logits")


def test_the_forgotten_class_is_no_longer_answered_and_the_others_are(memorised_class):
    model, split, _ = memorised_class
    unlearned = TRW(epochs=5, batch_size=16)(model, split)
    assert not (logits_of(unlearned, split.forget).argmax(1) == 3).any()
    assert float((logits_of(unlearned, split.retain).argmax(1) == split.retain.labels).float().mean()) > 0.95


def test_a_part_of_a_class_is_refused_and_the_message_tells_why(memorised_class):
    model, split, _ = memorised_class
    with pytest.raises(DataError, match=r"samples of the same class that stay would be lost.*forget_classes\(train"):
        TRW()(model, forget_samples(split.train, split.forget_indices[:3]))


def test_a_last_layer_that_is_not_linear_is_named_with_the_remedy_and_answers_do_without_it(memorised_class):
    model, split, _ = memorised_class
    scaled = nn.Sequential(model, nn.Softplus())
    with pytest.raises(ModelError, match=r"nn.Linear layer.*Softplus.*similarity='answers'"):
        TRW(**QUICK, beta=1.0)(scaled, split)
    TRW(**QUICK, beta=1.0, similarity="answers")(scaled, split)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_without_tilt_no_last_linear_layer_is_needed_and_the_similarity_makes_no_difference(memorised_class, similarity):
    model, split, _ = memorised_class
    scaled = nn.Sequential(model, nn.Softplus())
    assert same(TRW(**QUICK, similarity=similarity)(scaled, split), TRW(**QUICK, beta=0.0)(scaled, split))
