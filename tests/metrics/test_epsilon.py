import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import beta

from expunge.errors import ConfigError, DataError
from expunge.metrics.epsilon import epsilon_bounds, epsilon_ceiling, epsilon_from_errors


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_bound(fp: int, n0: int, fn: int, n1: int, delta: float = 1e-5, alpha: float = 0.05) -> float:
    """Clopper-Pearson by SciPy's distribution, and the definition."""
    fpr, fnr = (1.0 if k == n else float(beta.ppf(1 - alpha / 2, k + 1, n - k)) for k, n in ((fp, n0), (fn, n1)))
    ratios = [(1 - delta - fpr) / fnr, (1 - delta - fnr) / fpr]
    return max([0.0, *(math.log(x) for x in ratios if x > 0)])


def copied_epsilon(fp: int, n0: int, fn: int, n1: int, delta: float = 1e-5) -> float:
    """A public tool (ledger D14): plug-in rates cut at 1e-10, and the smaller of the two ratios."""
    fpr, fnr = max(fp / n0, 1e-10), max(fn / n1, 1e-10)
    return min(math.log(max(1 - delta - fpr, 1e-10) / fnr), math.log(max(1 - delta - fnr, 1e-10) / fpr))


@pytest.mark.parametrize(("n", "epsilon"), [(64, 2.82), (128, 3.53), (256, 4.23), (512, 4.93), (1024, 5.62)])
def test_ceilings_are_those_of_the_specification(n, epsilon):
    assert epsilon_ceiling(n) == pytest.approx(epsilon, abs=0.005) and epsilon_ceiling(n) == pytest.approx(slow_bound(0, n, 0, n))
    assert epsilon_ceiling(n, 50) == pytest.approx(float(epsilon_from_errors(0, 50, 0, n)))


@pytest.mark.parametrize("counts", [(0, 20, 0, 30), (1, 64, 30, 64), (30, 64, 1, 64), (20, 20, 0, 20), (7, 50, 9, 40)])
def test_bounds_from_counts_equal_the_definition(counts):
    assert float(epsilon_from_errors(*counts)) == pytest.approx(slow_bound(*counts), abs=1e-9)


def test_the_larger_ratio_counts_not_the_smaller():
    """D14: few false positives prove a large ε though most unlearned models are missed."""
    counts = (0, 512, 400, 512)
    assert float(epsilon_from_errors(*counts)) == pytest.approx(slow_bound(*counts)) and slow_bound(*counts) > 2.5
    assert copied_epsilon(*counts) < 0.3


def test_a_perfect_separation_proves_no_more_than_the_ceiling():
    assert copied_epsilon(0, 64, 0, 64) > 20
    unlearned, retrained = noise(64, 5) + 100, noise(64, 5, seed=1)
    found = epsilon_bounds(unlearned, retrained)
    assert (found.bounds == found.ceiling).all() and found.ceiling == pytest.approx(epsilon_ceiling(32)) and found.worst < found.ceiling
    fixed = epsilon_bounds(unlearned, retrained, thresholds=torch.tensor([50.0]))
    assert fixed.ceiling == pytest.approx(float(epsilon_from_errors(0, 64, 0, 64, level=0.975))) and (fixed.bounds == fixed.ceiling).all()


def test_one_model_is_not_a_sample_of_models_however_many_images_it_is_scored_on():
    """D14: a model shifted as a whole, by chance, from another of the same recipe seems to leak when its images are counted as trials."""
    images = noise(2000)
    unlearned, retrained = images + 0.4, images  # the same recipe; one model is a little more confident everywhere
    fp, fn = int((retrained > 0.2).sum()), int((unlearned <= 0.2).sum())
    assert slow_bound(fp, 2000, fn, 2000) > 0.2
    with pytest.raises(DataError, match="no independent trials"):
        epsilon_bounds(unlearned[None], retrained[None])


@pytest.mark.parametrize("n_models", [16, 64])
@pytest.mark.parametrize("thresholds", [None, torch.linspace(-2, 2, 9)])
def test_under_the_null_the_bound_is_zero_for_at_least_95_percent(n_models, thresholds):
    found = epsilon_bounds(noise(n_models, 4000, seed=1), noise(n_models, 4000, seed=2), thresholds=thresholds)
    assert (found.bounds == 0).double().mean() >= 0.95 and found.worst == 0


def test_the_largest_plug_in_ratio_is_far_from_zero_under_the_null():
    """The challenge's formula, best of all thresholds, rules with a zero error discarded: about 1.15 for two equal groups of models."""
    u, r, found = noise(64, 200, seed=1).numpy(), noise(64, 200, seed=2).numpy(), []
    for a, b in zip(u.T, r.T, strict=True):
        fpr, fnr = (b > np.r_[a, b][:, None]).mean(1), (a <= np.r_[a, b][:, None]).mean(1)
        kept = (fpr > 0) & (fnr > 0)
        found.append(np.log(np.maximum((1 - fpr) / np.where(kept, fnr, 9), (1 - fnr) / np.where(kept, fpr, 9))).max())
    assert 0.9 < np.mean(found) < 1.4
    assert (epsilon_bounds(torch.tensor(u), torch.tensor(r)).bounds == 0).double().mean() > 0.95


def test_bounds_stay_below_the_truth_for_at_least_95_percent():
    """Randomised response: with ε = 1 a model shows its true side with probability e / (1 + e)."""
    p = math.e / (1 + math.e)
    rng = torch.Generator().manual_seed(0)
    told = torch.rand(2, 128, 3000, generator=rng) < p
    unlearned, retrained = told[0].double(), (~told[1]).double()
    for thresholds in (None, torch.tensor([0.5])):
        found = epsilon_bounds(unlearned, retrained, delta=0.0, thresholds=thresholds)
        assert (found.bounds <= 1).double().mean() >= 0.95 and found.bounds.mean() > 0.3


def test_unlearned_models_that_score_lower_are_told_apart_as_well():
    found = epsilon_bounds(noise(64, 20) - 5, noise(64, 20, seed=1))
    assert (found.bounds > 1.5).all()


def test_the_worst_of_many_samples_pays_for_the_choice():
    found = epsilon_bounds(noise(64, 300) + 2, noise(64, 300, seed=1))
    assert 0 < found.worst < float(found.bounds.max())


def test_the_split_is_repeatable_and_leaves_the_global_generators_alone():
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (epsilon_bounds(noise(40, 30) + 1, noise(40, 30, seed=1), seed=s).bounds for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state[0]) and (np.random.get_state()[1] == state[1]).all()


def test_a_result_prints_its_ceiling_and_becomes_json():
    found = epsilon_bounds(noise(64, 3) + 9, noise(64, 3, seed=1))
    assert f"at most {found.worst_ceiling:.2f}" in str(found) and f"at most {found.ceiling:.2f}" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["n_unlearned"] == 32


@pytest.mark.parametrize(
    ("unlearned", "retrained", "match"),
    [
        (torch.ones(5), torch.ones(5), r"scores\[:, None\]"),
        (torch.ones(5, 2), torch.ones(5, 3), "same samples"),
        (torch.ones(5, 2), torch.ones(3, 2), "at least 4 retrained"),
        (torch.full((5, 1), math.nan), torch.ones(5, 1), "finite"),
    ],
)
def test_unusable_scores_are_refused(unlearned, retrained, match):
    with pytest.raises(DataError, match=match):
        epsilon_bounds(unlearned, retrained)


def test_unusable_settings_are_refused():
    with pytest.raises(ConfigError, match="delta"):
        epsilon_ceiling(64, delta=1.0)
    with pytest.raises(ConfigError, match="level"):
        epsilon_ceiling(64, level=95.0)
    with pytest.raises(ConfigError, match="thresholds"):
        epsilon_bounds(torch.ones(5, 1), torch.ones(5, 1), thresholds=torch.ones(0))
    with pytest.raises(DataError, match="5 to 5 of 4"):
        epsilon_from_errors(5, 4, 0, 4)
