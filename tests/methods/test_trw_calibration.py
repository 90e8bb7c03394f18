import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from expunge.data.images import ImageData
from expunge.data.split import forget_classes
from expunge.errors import ConfigError, DataError, MissingError
from expunge.methods import TRW, calibrate_trw, trw_calibration, trw_target
from expunge.methods.trw_calibration import energy_distance
from expunge.training.inference import logits_of
from toys import Watched

N_CLASSES, N_EACH = 5, 40  # of class 0, whose request is to come, the calibration must know nothing
SMALL = {"betas": (-2.0, -1.0, 1.0, 3.0), "temperatures": (0.5, 0.7, 2.0)}


class Lookup(nn.Module):
    """A fixed row for each image, whose pixels are its position; remembers which it was asked for."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.asked = nn.Parameter(rows), set()

    def forward(self, images):
        positions = (images[:, 0, 0, 0] * 255).round().long()
        self.asked.update(positions.tolist())
        return self.rows[positions]


@pytest.fixture
def train():
    pixels = torch.arange(N_CLASSES * N_EACH, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).contiguous()
    return ImageData(pixels, torch.arange(N_CLASSES).repeat_interleave(N_EACH), tuple("abcde"))


@pytest.fixture
def model(train):
    """A last linear layer over fixed features, in clouds around the layer's rows."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(8, N_CLASSES)
    with torch.no_grad():
        head.weight.copy_(torch.randn(N_CLASSES, 8, generator=generator)), head.bias.zero_()
        features = head.weight[train.labels] + torch.randn(len(train.labels), 8, generator=generator)
    return nn.Sequential(Lookup(features), head)


def retrained(model, train, k, method, spread=0.0, seed=0):
    """A model that answers images of class k as TRW teaches them with these settings, up to some noise."""
    split = forget_classes(train, [k])
    logits = logits_of(model, split.forget)
    similarity = method.similarity_of(model, split, logits, [split.retain])[k]
    q = trw_target(logits, [k], similarity, method.beta, method.temperature)
    rows = torch.zeros(len(train.labels), N_CLASSES)
    rows[train.labels == k] = q.log().clamp(min=-100)
    return Lookup(rows + spread * torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed)))


def planted(model, train, method, classes=(1, 2)):
    return {k: retrained(model, train, k, method) for k in classes}


# The distance.


def slow_energy_distance(a, b):
    def mean(x, y):
        return sum(float((p - q).norm()) for p, q in itertools.product(x.double(), y.double())) / (len(x) * len(y))

    return 2 * mean(a, b) - mean(a, a) - mean(b, b)


def clouds(seed, n, m, k):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=generator).softmax(1), (2 * torch.randn(m, k, generator=generator)).softmax(1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 8), st.integers(1, 4))
def test_the_energy_distance_is_that_of_the_formula_symmetric_and_not_negative(seed, n, m, k):
    a, b = clouds(seed, n, m, k)
    assert energy_distance(a, b) == pytest.approx(slow_energy_distance(a, b), abs=1e-12)
    assert energy_distance(a, b) == pytest.approx(energy_distance(b, a), abs=1e-12) and energy_distance(a, b) >= 0


@pytest.mark.parametrize("n", [5, 60])  # torch measures distances in another way from 25 points on
def test_equal_clouds_in_whatever_order_are_at_distance_zero_and_others_are_not(n):
    a, b = clouds(0, n, n, 4)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    assert energy_distance(a, a) == 0 and 0 <= energy_distance(a, a[order]) < 1e-8
    assert energy_distance(a, a.repeat(3, 1)) < 1e-8 and energy_distance(a, b) > 1e-3


def test_clouds_of_one_mean_and_different_sharpness_are_apart():
    sharp, soft = torch.eye(2), torch.full((2, 2), 0.5)
    # 2 · √½ − ½ √2 − 0
    assert energy_distance(sharp, soft) == pytest.approx(2**0.5 / 2)


# The choice.


@pytest.mark.parametrize(
    "settings",
    [
        {"similarity": "weights", "beta": 3.0},
        {"similarity": "features", "beta": -2.0, "temperature": 0.7},
        {"similarity": "answers", "beta": 1.0, "temperature": 2.0},
        {"similarity": "weights", "temperature": 0.5},
        {"similarity": "weights"},
    ],
    ids=str,
)
def test_settings_that_the_retrained_models_follow_are_found(model, train, settings):
    truth = TRW(**settings)
    found = calibrate_trw(model, train, planted(model, train, truth), **SMALL)
    assert found.method == truth
    assert found.distance < 1e-6 and found.floor is None
    rwft = [
        slow_energy_distance(q, r)
        for q, r in (
            (trw_target(logits, [k], torch.zeros(N_CLASSES), 0.0), trw_target(logits, [k], s, truth.beta, truth.temperature))
            for k in (1, 2)
            for split in [forget_classes(train, [k])]
            for logits in [logits_of(model, split.forget)]
            for s in [truth.similarity_of(model, split, logits, [split.retain])[k]]
        )
    ]
    assert found.before == pytest.approx(sum(rwft) / 2, abs=1e-6)


def test_where_classes_disagree_the_mean_distance_decides(model, train):
    development = {1: retrained(model, train, 1, TRW(beta=3.0)), 2: retrained(model, train, 2, TRW(beta=-2.0))}
    options = {"similarities": ["weights"], "betas": (-2.0, 1.0, 3.0), "temperatures": ()}
    found = calibrate_trw(model, train, development, **options)
    alone = [calibrate_trw(model, train, {k: m}, **options) for k, m in development.items()]
    assert [a.method.beta for a in alone] == [3.0, -2.0]
    assert 0 < found.distance <= found.before == pytest.approx(sum(a.before for a in alone) / 2)


def test_classes_that_are_not_named_are_never_looked_at(model, train):
    watched = Watched(train, forbidden=tuple(range(N_EACH)))
    development = planted(model, train, TRW(beta=3.0))
    model[0].asked.clear()
    calibrate_trw(model, watched, development, similarities=["weights", "answers"], **SMALL)
    images = {k: set(range(k * N_EACH, (k + 1) * N_EACH)) for k in (1, 2)}
    assert watched.read == model[0].asked == images[1] | images[2]
    assert all(development[k].asked == images[k] for k in (1, 2))


def test_of_a_large_class_some_images_are_taken_from_the_first_to_the_last(model, train, monkeypatch):
    monkeypatch.setattr(trw_calibration, "MOST_IMAGES", 4)
    development = planted(model, train, TRW(beta=3.0))
    assert calibrate_trw(model, train, development, **SMALL).method == TRW(beta=3.0)
    assert development[1].asked == {40, 53, 66, 79}


def test_several_models_of_a_class_give_the_floor(model, train):
    three = [retrained(model, train, 1, TRW(beta=3.0), spread=0.3, seed=seed) for seed in range(3)]
    found = calibrate_trw(model, train, {1: three, 2: retrained(model, train, 2, TRW(beta=3.0))}, **SMALL)
    answers = [logits_of(m, forget_classes(train, [1]).forget).softmax(1) for m in three]
    assert found.floor == pytest.approx(sum(slow_energy_distance(a, b) for a, b in itertools.combinations(answers, 2)) / 3, abs=1e-9)
    assert found.floor > 0 and found.method.beta == 3.0
    # each class counts once, however many models it comes with
    each = [calibrate_trw(model, train, {1: m}, **SMALL).before for m in three]
    other = calibrate_trw(model, train, {2: retrained(model, train, 2, TRW(beta=3.0))}, **SMALL).before
    assert found.before == pytest.approx((sum(each) / 3 + other) / 2)


def test_all_other_settings_are_those_of_the_start(model, train):
    start = TRW(epochs=3, lr=0.5, similarity_temperature=0.3, beta=7.0, temperature=4.0)
    truth = TRW(epochs=3, lr=0.5, similarity_temperature=0.3, beta=1.0, temperature=2.0)
    assert calibrate_trw(model, train, planted(model, train, truth), start=start, **SMALL).method == truth


def test_without_retain_data_similarities_that_need_them_are_left_out(model, train):
    start = TRW(use_retain=False)
    watched = Watched(train, forbidden=tuple(range(N_EACH)))
    development = planted(model, train, TRW(similarity="features", beta=3.0))
    found = calibrate_trw(model, watched, development, start=start, **SMALL)
    assert found.method.similarity in ("weights", "answers") and not found.method.use_retain and 0 < found.distance <= found.before
    with pytest.raises(
        ConfigError, match=r"at least one similarity.*\(features, logits\) with use_retain=False. Choose 'weights' or 'answers'"
    ):
        calibrate_trw(model, train, development, start=start, similarities=["features", "logits"])
    with pytest.raises(ConfigError, match="at least one similarity"):
        calibrate_trw(model, train, development, similarities=[])


def test_no_tilt_is_always_tried(model, train):
    found = calibrate_trw(model, train, planted(model, train, TRW()), betas=(5.0,), temperatures=(2.0,))
    assert found.method == TRW() and found.distance == pytest.approx(found.before)


def test_a_development_class_must_be_given_exist_and_have_a_model(model, train):
    with pytest.raises(DataError, match=r"at least one development class.*got none. Pass \{class: model\}"):
        calibrate_trw(model, train, {})
    with pytest.raises(DataError, match="got none for 'b'"):
        calibrate_trw(model, train, {"b": []})
    with pytest.raises(MissingError, match="zebra"):
        calibrate_trw(model, train, {"zebra": model})


def test_names_do_as_well_as_numbers_and_the_answer_is_always_the_same(model, train):
    development = {k: retrained(model, train, k, TRW(beta=1.0), spread=0.5, seed=k) for k in (1, 2)}
    state = torch.get_rng_state()
    first = calibrate_trw(model, train, development, **SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert calibrate_trw(model, train, {"b": development[1], "c": [development[2]]}, **SMALL) == first


def test_a_calibration_prints_what_was_chosen_and_how_far_it_is(model, train):
    two = [retrained(model, train, 1, TRW(beta=3.0, temperature=0.7), seed=seed) for seed in (0, 1)]
    text = str(calibrate_trw(model, train, {1: two}, **SMALL))
    assert text.startswith(
        "similarity='weights', beta=3, temperature=0.7: energy distance 0.0000 to retraining on the development classes, RWFT 0."
    )
    assert text.endswith("; retrained models are 0.0000 from one another")
    assert "from one another" not in str(calibrate_trw(model, train, {1: two[0]}, **SMALL))
