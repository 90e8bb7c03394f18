import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy, wasserstein_distance

from expunge.audits.klom import gaussian_kl, histogram_kl, klom, wasserstein
from expunge.errors import ConfigError, DataError, MissingError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_numpy(a, b, n_bins: int = 20) -> float:
    a, b = np.clip(a, -100, 100), np.clip(b, -100, 100)
    edges = np.linspace(min(*a, *b), max(*a, *b), n_bins + 1)
    p, q = (np.histogram(x, edges)[0] / len(x) for x in (a, b))
    return sum(x * math.log(x / max(y, 1e-5)) for x, y in zip(p, q, strict=True) if x > 0)


def without_the_maximum(a, b, n_bins: int = 20) -> tuple[float, int]:
    """The copied histogram: bins are half open, and the largest of all margins is in none (D6). Also how many of a it counts."""
    low, high = min(*a, *b), max(*a, *b)
    inside = [[x for x in group if math.floor((x - low) / (high - low) * n_bins) < n_bins] for group in (a, b)]
    p, q = (
        [sum(math.floor((x - low) / (high - low) * n_bins) == k for x in group) / len(group) for k in range(n_bins)] for group in inside
    )
    return sum(x * math.log(x / max(y, 1e-5)) for x, y in zip(p, q, strict=True) if x > 0), len(inside[0])


@pytest.mark.parametrize(("n_a", "n_b", "scale"), [(10, 10, 1), (30, 7, 3), (12, 25, 300)])
def test_values_are_those_of_plain_histograms(n_a, n_b, scale):
    a, b = scale * noise(n_a, 25, seed=1), scale * noise(n_b, 25, seed=2)
    expected = [by_numpy(a[:, s].numpy(), b[:, s].numpy()) for s in range(25)]
    np.testing.assert_allclose(histogram_kl(a, b), expected, atol=1e-9)


def test_the_largest_margin_is_counted():
    """100 margins, one of them far above all others: a histogram that leaves it out sees 99, and no difference."""
    a, b = torch.linspace(0, 1, 100, dtype=torch.float64), torch.linspace(0, 1, 100, dtype=torch.float64)
    a[-1] = 50.0
    faulty, counted = without_the_maximum(a.tolist(), b.tolist())
    assert counted == 99 and faulty == pytest.approx(0, abs=1e-12)
    assert histogram_kl(a[:, None], b[:, None]).item() == pytest.approx(0.99 * math.log(0.99) + 0.01 * math.log(0.01 / 1e-5))


def test_the_direction_is_the_one_asked_for():
    """Swapped arguments (D6) exchange "unlearned models go where none is" and "unlearned models miss what is there": 0.9 against 4.6 nats here."""
    narrow, wide = noise(500, 100, seed=1) / 4, noise(500, 100, seed=2)
    there, back = (klom(narrow, wide, direction=d, replicates=2).mean.value for d in ("unlearned to retrained", "retrained to unlearned"))
    assert there == histogram_kl(narrow, wide).mean() and back == histogram_kl(wide, narrow).mean()
    assert back > 3 * there
    gaussian = klom(narrow, wide, measure="gaussian", direction="retrained to unlearned", replicates=2)
    assert gaussian.mean.value == gaussian_kl(wide, narrow).mean()


@pytest.mark.parametrize(("n_models", "null"), [(20, 3.07), (50, 0.88), (100, 0.326), (200, 0.144), (500, 0.050), (2000, 0.011)])
def test_the_null_is_that_of_the_specification(n_models, null):
    n = 2000 if n_models < 1000 else 300
    assert histogram_kl(noise(n_models, n, seed=1), noise(n_models, n, seed=2)).mean() == pytest.approx(null, rel=0.1)


@pytest.mark.parametrize("measure", ["histogram", "gaussian", "wasserstein"])
def test_retrained_models_have_no_excess_and_others_have(measure):
    covered = 0
    for seed in range(12):
        u, r = (noise(40, 30, seed=10 * seed + k) + 0.5 * noise(40, 1, seed=10 * seed + k + 5) for k in range(2))
        found = klom(u, r, measure=measure, replicates=15, seed=seed)
        covered += (found.excess_mean.low <= 0 <= found.excess_mean.high) + (found.excess_tail.low <= 0 <= found.excess_tail.high)
        assert found.mean.value > 0 and found.null_mean.value > 0 and found.null_size == 20
    assert covered >= 22  # of 24
    assert klom(noise(40, 30, seed=1) + 3, noise(40, 30, seed=2), measure=measure, replicates=15).excess_mean.low > 0


def test_the_null_of_halves_would_be_too_large_for_a_value_of_all_models():
    """The reason why the excess is between groups of equal size."""
    found = klom(noise(100, 200, seed=1), noise(100, 200, seed=2), replicates=5)
    assert found.null_mean.value > found.mean.value + 0.3
    assert found.excess_mean.value == pytest.approx(0, abs=0.1)


def test_further_retrained_models_give_a_null_of_full_size():
    u, r, second = (noise(60, 40, seed=k) for k in range(3))
    found = klom(u, r, second, replicates=5)
    assert found.null_size == 60
    assert found.null_mean.value == pytest.approx(float(histogram_kl(second, r).mean()))
    assert found.excess_mean.value == pytest.approx(found.mean.value - found.null_mean.value)


def test_the_gaussian_measure_knows_the_truth_and_the_transport_its_distance():
    a, b = noise(4000, 20, seed=1) * 2 + 1, noise(4000, 20, seed=2)
    assert gaussian_kl(a, b).mean() == pytest.approx(math.log(1 / 2) + (4 + 1) / 2 - 0.5, rel=0.03)
    assert wasserstein(noise(4000, 20, seed=1) + 3, b).mean() == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize(("n_a", "n_b"), [(9, 9), (9, 14)])
def test_transport_equals_scipy(n_a, n_b):
    a, b = noise(n_a, 12, seed=1).round(decimals=1), noise(n_b, 12, seed=2).round(decimals=1)
    expected = [wasserstein_distance(a[:, s], b[:, s]) for s in range(12)]
    np.testing.assert_allclose(wasserstein(a, b), expected, atol=1e-12)


def test_constants_and_far_margins():
    zero = torch.zeros(5, 1, dtype=torch.float64)
    assert histogram_kl(zero, zero).item() == gaussian_kl(zero, zero).item() == wasserstein(zero, zero).item() == 0
    assert histogram_kl(zero, zero + 1).item() == pytest.approx(math.log(1e5))  # the most it can be
    assert gaussian_kl(noise(5, 1), zero).item() == gaussian_kl(zero + 1, zero).item() == math.inf
    assert histogram_kl(zero + 150, zero + 1000).item() == 0  # both clipped
    assert not klom(zero + 1, zero, measure="gaussian", replicates=2).mean.supported


def test_results_are_plain_values_and_do_not_depend_on_the_order_of_samples():
    u, r = noise(12, 7, seed=1), noise(12, 7, seed=2)
    state = torch.get_rng_state()
    found = klom(u, r, replicates=3, seed=4)
    assert json.loads(json.dumps(found.to_dict())) == klom(u, r, replicates=3, seed=4).to_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(klom(u.flip(1), r.flip(1), replicates=2).values, found.values.flip(0))
    assert "above the null" in str(found) and found.null_size == 6


def test_few_models_have_no_null():
    found = klom(noise(3, 5), noise(3, 5, seed=1), replicates=2)
    assert not found.excess_mean.supported and "4 models of each kind" in found.null_tail.note and found.mean.supported


def test_the_public_code_s_kl_is_larger_by_its_renormalised_bins_and_no_more():
    a, b = noise(40, 1, seed=1), noise(40, 1, seed=2) + 1
    low, high = float(min(a.min(), b.min())), float(max(a.max(), b.max()))
    p, q = (np.histogram(x, 20, (low, high))[0] / 40 for x in (a, b))
    theirs = entropy(p, np.where(p > 0, np.maximum(q, 1e-5), q))
    assert 0 < theirs - histogram_kl(a, b).item() < 2e-4 and (q[p > 0] == 0).any()


def test_bad_inputs_are_refused():
    good, broken = noise(8, 5), noise(8, 5)
    broken[1, 2] = torch.inf
    with pytest.raises(DataError, match="retrained models must be finite"):
        klom(good, broken)
    with pytest.raises(DataError, match="at least 2 a models; got 1"):
        wasserstein(good[:1], good)
    with pytest.raises(MissingError, match="histogram"):
        klom(good, good, measure="histogramm")
    with pytest.raises(MissingError, match="direction"):
        klom(good, good, direction="forward")
    for settings in ({"level": 2.0}, {"replicates": 1}):
        with pytest.raises(ConfigError):
            klom(good, good, **settings)
    with pytest.raises(ConfigError, match="n_bins"):
        histogram_kl(good, good, n_bins=1)
