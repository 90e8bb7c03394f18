"""Faults of public audit code, by their number in our ledger: each test shows that our function is right where the faulty formula, written out here, is not.

D3 and D12 have more tests in test_svc_mia.py, test_signals.py and test_rmia.py; the leave-one-out leak is in test_lira.py.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

import oracles
from expunge.audits import LossThreshold, lira, rmia, rmia_leave_one_out, rmia_log_ratio
from expunge.audits.ruli import ruli_efficacy, ruli_privacy, ruli_scores
from expunge.audits.svc_mia import SVCMIA, copied_modified_entropy
from expunge.audits.views import predictions_over_views
from expunge.data.images import Augment, ImageData
from expunge.metrics import auc, logit_margin, modified_entropy
from expunge.training.inference import logits_of
from oracles import halves
from toys import toy_net


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def area(scores: torch.Tensor, member: torch.Tensor) -> float:
    return auc(scores[member], scores[~member]).value


def groups(shadow, included) -> tuple[list[np.ndarray], list[np.ndarray]]:
    columns = range(shadow.shape[1])
    return [shadow[included[:, i], i].numpy() for i in columns], [shadow[~included[:, i], i].numpy() for i in columns]


@pytest.fixture
def memorising() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Target and shadow margins: models that trained on a sample are higher and agree more. Every other sample is a member of the target."""
    n, included = 2000, halves(32, 2000)
    member, easy = torch.arange(n) % 2 == 0, 3 * noise(n)
    draws = noise(33, n, seed=1) * torch.where(torch.cat([included, member[None]]), 0.5, 3.0)
    draws += easy + 1.5 * torch.cat([included, member[None]])
    return draws[-1], draws[:-1], included, member


def test_d1_fixed_variance_takes_each_deviation_from_its_own_scores(memorising):
    target, shadow, included, member = memorising
    inside, outside = groups(shadow, included)
    sd = np.mean([np.var(g) for g in inside]) ** 0.5  # the fault: also used for OUT
    copied = [
        -((float(x) - i.mean()) ** 2) / (2 * sd**2) + (float(x) - o.mean()) ** 2 / (2 * sd**2)
        for x, i, o in zip(target, inside, outside, strict=True)
    ]
    assert area(lira(target, shadow, included, "fixed"), member) > area(torch.tensor(copied), member) + 0.05


def test_d1_and_d10_offline_scores_are_one_sided_and_higher_for_members(memorising):
    target, shadow, included, member = memorising
    target = target + 3 * member
    outside = groups(shadow, included)[1]
    two_sided = torch.tensor(
        [-((float(x) - o.mean()) ** 2) / (2 * o.var()) - math.log(o.std()) for x, o in zip(target, outside, strict=True)]
    )
    ours = area(lira(target, shadow, included, online=False), member)
    assert ours > 0.8
    assert area(-two_sided, member) < ours - 0.05  # D1: the density also takes low margins for members'
    assert area(two_sided, member) < 0.5  # D10: and not negated, the density of non-members is higher for non-members


def test_d2_a_score_does_not_depend_on_batch_mates_as_it_does_in_training_mode(digits):
    model = toy_net().eval()
    data = digits[1].subset(range(64))
    alone = torch.cat([logits_of(model, data.subset([i])) for i in range(4)])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.testing.assert_close(logits_of(model.train(), data)[:4], alone, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    images = next(iter(data.batches(64)))[0]
    with torch.no_grad():
        in_training_mode = model(images)
        assert (in_training_mode[:4] - model(images[:8])[:4]).abs().max() > 1e-2
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())  # and it moved the running statistics


def test_d3_modified_entropy_is_of_the_own_label():
    rng, labels = torch.Generator().manual_seed(0), torch.arange(500) % 10
    logits = 3 * torch.randn(500, 10, generator=rng)
    slow = torch.tensor([oracles.modified_entropy(row.numpy(), int(y)) for row, y in zip(logits, labels, strict=True)]).double()
    copied = copied_modified_entropy(logits.softmax(1), labels)
    torch.testing.assert_close(modified_entropy(logits.double(), labels), slow, rtol=1e-6, atol=1e-6)
    assert torch.corrcoef(torch.stack([copied.double(), slow]))[0, 1] < 0.8
    assert torch.equal(copied, copied_modified_entropy(logits.softmax(1), labels.flip(0)))  # labels exchanged: the same values


def test_d3_the_published_feature_of_one_class_is_not_the_one_that_the_machine_learnt():
    """A forget set of one class that looks like the test set: the right feature says so, the copied one says nothing of the kind."""
    rng, labels = torch.Generator().manual_seed(0), torch.arange(600) % 10
    seen, unseen = (torch.randn(600, 10, generator=rng) + s * nn.functional.one_hot(labels, 10) for s in (7, 4))
    forget = unseen[labels == 3], labels[labels == 3]
    right = SVCMIA()((seen, labels), (unseen, labels), forget, ["modified_entropy"]).efficacy["modified_entropy"]
    whole = SVCMIA()((seen, labels), (unseen, labels), (unseen, labels), ["modified_entropy"]).efficacy["modified_entropy"]
    copied = [SVCMIA(compatible=True)((seen, labels), (unseen, labels), f, ["modified_entropy"]) for f in ((unseen, labels), forget)]
    assert right.low < whole.value < right.high
    drift = copied[1].efficacy["modified_entropy"].value - copied[0].efficacy["modified_entropy"].value
    assert abs(drift) > 0.15


def test_d7_the_loss_attack_is_not_negated():
    rng, labels, member = torch.Generator().manual_seed(0), torch.arange(2000) % 4, torch.arange(2000) < 1000
    logits = torch.randn(2000, 4, generator=rng) + 0.5 * member[:, None] * nn.functional.one_hot(labels, 4)
    ours = area(LossThreshold()(logits, labels), member)
    negated = -logits.softmax(1).gather(1, labels[:, None]).squeeze(1)  # the signals are probabilities already, not losses
    assert ours > 0.58 and area(negated, member) == pytest.approx(1 - ours, abs=1e-6)


def test_d8_population_samples_are_measured_like_all_others():
    """Non-members score 0.5 in the median against a population of non-members; with the k largest of 2k references for the population they do not."""
    n, k = 2000, 4
    x, z = (-torch.nn.functional.softplus(-(1.5 * noise(1, n, seed=s) + noise(2 * k + 1, n, seed=s + 1))) for s in (0, 2))
    out = halves(2 * k, n)
    ratio_z = rmia_log_ratio(z[-1], z[:-1], torch.zeros(2 * k, n).bool(), online=False, offline_a=1.0)
    ours = rmia(x[-1], x[:-1], ~out, online=False, gamma=1.0, population=ratio_z, offline_a=1.0)
    largest = z[:-1].exp().sort(0, descending=True).values[:k].mean(0)
    copied = rmia(x[-1], x[:-1], ~out, online=False, gamma=1.0, population=z[-1] - largest.log(), offline_a=1.0)
    assert ours.median().item() == pytest.approx(0.5, abs=0.03) and copied.median() > 0.6


def test_d11_margins_are_not_clipped():
    """Two groups beyond a margin of 13.8, four apart: clipped at a probability of 1e-6 from 1, all are alike."""
    n, forgotten = 400, torch.arange(400) % 2 == 0
    logits = torch.zeros(n, 2, dtype=torch.float64)
    logits[:, 0] = noise(n) + 20 + 4 * forgotten
    target, shadows = logit_margin(logits, torch.zeros(n).long()), (noise(8, n, seed=1) + 24, noise(8, n, seed=2) + 20)
    assert ruli_privacy(target, forgotten, *shadows).auc.value > 0.98

    def clipped(margins: torch.Tensor) -> torch.Tensor:
        p = margins.sigmoid().clamp(1e-6, 1 - 1e-6)
        return (p / (1 - p)).log()

    assert clipped(target).max() < 13.9
    assert ruli_privacy(clipped(target), forgotten, *map(clipped, shadows)).auc.value == pytest.approx(0.5, abs=1e-9)


def test_d11_the_bandwidth_follows_the_data():
    """Easy and hard samples, spread 0.1 and 30, each with a trace of 1.5 deviations: a bandwidth of 1 is too wide for one and too narrow for the other."""
    n, forgotten = 3000, torch.arange(3000) % 2 == 0
    for spread in (0.1, 30.0):
        target = spread * (noise(n) + 1.5 * forgotten)
        shadows = spread * (noise(16, n, seed=1) + 1.5), spread * noise(16, n, seed=2)
        ours, fixed = (area(ruli_scores(target, *shadows, bandwidth=h), forgotten) for h in (None, 1.0))
        ideal = 0.5 * (1 + math.erf(0.75))
        assert ours == pytest.approx(ideal, abs=0.03), spread
        if spread > 1:
            assert fixed < ours - 0.03
    mixed = torch.where(torch.arange(n) % 4 < 2, 0.1, 30.0)
    target, shadows = mixed * (noise(n) + 1.5 * forgotten), (mixed * (noise(16, n, seed=1) + 1.5), mixed * noise(16, n, seed=2))
    spreads = [mixed == s for s in (0.1, 30.0)]
    ours, fixed = ([ruli_scores(target[w], *(s[:, w] for s in shadows), bandwidth=h).abs().median() for w in spreads] for h in (None, 1.0))
    assert fixed[0] < 0.05 and ours[0] > 0.5  # what the narrow samples say is lost


def test_d11_efficacy_is_measured_against_the_retrained_model():
    """A perfect unlearner: like retraining, and unlike the original model, with which the public code compares it."""
    n = 1000
    unlearned, retrained, original = noise(n), noise(n, seed=1), noise(n, seed=2) + 3
    shadows = noise(16, n, seed=3), noise(16, n, seed=4)
    ours = ruli_efficacy(unlearned, retrained, *shadows).auc
    assert ours.low < 0.5 < ours.high and abs(ours.value - 0.5) < 0.04
    leaky = noise(n, seed=5) + 3, (noise(16, n, seed=3) + 3, noise(16, n, seed=4))
    assert ruli_efficacy(leaky[0], retrained, *leaky[1]).auc.low > 0.9
    wrong = area(torch.cat([ruli_scores(x, *leaky[1]) for x in (leaky[0], original)]), torch.arange(2 * n) < n)
    assert wrong == pytest.approx(0.5, abs=0.05)  # a model that has forgotten nothing looks perfect


def test_d12_the_vectorised_score_is_the_pairwise_loop():
    n, included = 60, halves(6, 60)
    target, shadow = -noise(n).abs(), -noise(6, n, seed=1).abs()
    ratios = np.exp(oracles.rmia_log_ratio(target.numpy(), shadow.numpy(), included.numpy()))
    loop = [np.mean([ratios[i] / ratios[j] >= 2 for j in range(n) if j != i]) for i in range(n)]
    assert rmia(target, shadow, included).tolist() == pytest.approx(loop, abs=1e-12)


def test_d12_it_is_the_target_that_is_left_out_of_its_references():
    """A list that is filtered and then indexed by its own length leaves out another model: the target is then compared with itself."""
    included, shadow = halves(6, 40), -noise(6, 40, seed=1).abs()
    ours = rmia_leave_one_out(shadow, included, drop_mates=False)
    for t in range(6):
        others, filtered = [m for m in range(6) if m != t], list(range(5))  # the last one is left out, whoever the target is
        right, wrong = (rmia_log_ratio(shadow[t], shadow[rows], included[rows]) for rows in (others, filtered))
        torch.testing.assert_close(ours[t], right, rtol=1e-9, atol=1e-9)
        assert t == 5 or not torch.allclose(ours[t], wrong)


def test_d15_query_views_are_the_same_for_every_model_and_every_time():
    pixels = torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = ImageData(pixels, torch.arange(40) % 2, ("a", "b"), augment=Augment(pad=2, flip=True))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    model[1].weight.data = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    model[1].bias.data.zero_()
    state = torch.get_rng_state()
    first, plain = predictions_over_views(model, data), logits_of(model, data)
    torch.rand(7)  # whatever was drawn in between
    assert torch.equal(predictions_over_views(model, data), first) and torch.equal(logits_of(model, data), plain)
    torch.set_rng_state(state)
    # A view of a sample does not depend on the samples asked along; unseeded crops do, and are others for the next model.
    assert torch.equal(predictions_over_views(model, data.subset([5, 30])), first[:, [5, 30]])

    def unseeded(images: torch.Tensor) -> torch.Tensor:
        down, right = (int(x) for x in torch.randint(0, 5, (2,)))
        with torch.no_grad():
            return model(nn.functional.pad(images, (2,) * 4)[..., down : down + 8, right : right + 8])

    images = next(iter(data.batches(64)))[0]
    assert len({tuple(unseeded(images).flatten().tolist()) for _ in range(12)}) > 1
    torch.set_rng_state(state)
