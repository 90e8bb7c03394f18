import itertools
import json
import math

import numpy as np
import pytest
import torch

from expunge.audits.forgetting_score import Utility, forgetting_epsilon, forgetting_points, forgetting_score
from expunge.errors import ConfigError, DataError

DELTA = 1e-5


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def epsilon_of_rule(inside, outside, lower: float, upper: float) -> float | None:
    """ε of the rule "of the first group in [lower, upper]"; None where it is discarded."""
    fnr = 1 - sum(lower <= x <= upper for x in inside) / len(inside)
    fpr = sum(lower <= x <= upper for x in outside) / len(outside)
    fnr = round(fnr * len(inside)) / len(inside)
    if fnr == fpr == 0:
        return 50.0
    if fnr == 0 or fpr == 0:
        return None
    terms = [math.log(top / bottom) for top, bottom in ((1 - DELTA - fpr, fnr), (1 - DELTA - fnr, fpr)) if top > 0]
    return max([*terms, 0.0])


def by_brute_force(u, r, intervals: bool) -> float:
    """Every threshold and every pair of ends among the scores, one rule after the other."""
    narrow, wide = sorted(max(x) - min(x) for x in (u, r))
    if narrow < 0.01 * wide:
        return 50.0
    high, low = (r, u) if np.median(r) > np.median(u) else (u, r)
    found = [epsilon_of_rule(high, low, t, math.inf) for t in {*u, *r}]
    if intervals:
        inside, outside = (low, high) if max(high) - min(high) >= max(low) - min(low) else (high, low)
        found += [epsilon_of_rule(inside, outside, a, b) for a, b in itertools.combinations_with_replacement(sorted({*u, *r}), 2)]
    return max([x for x in found if x is not None], default=0.0)


def by_grid(u, r) -> float:
    """As the competition does: thresholds 0.01 apart, upper ends within 2 of the narrower group's maximum, lengths within 2 of its range."""
    high, low = (r, u) if np.median(r) > np.median(u) else (u, r)
    scores = [*u, *r]
    thresholds = np.linspace(min(scores), max(scores), math.ceil((max(scores) - min(scores)) * 100))
    found = [epsilon_of_rule(high, low, t, math.inf) for t in thresholds]
    inside, outside = (low, high) if max(high) - min(high) >= max(low) - min(low) else (high, low)
    width, a, b = max(inside) - min(inside), np.array(inside), np.array(outside)
    uppers = np.linspace(max(inside) - 2, max(inside) + 2, 400)[:, None]
    lowers = uppers - width + np.linspace(-2, 2, 400)
    held = [sum((lowers <= x) & (x <= uppers) for x in group) for group in (a, b)]
    fnr, fpr = 1 - held[0] / len(a), held[1] / len(b)
    with np.errstate(divide="ignore", invalid="ignore"):
        grid = np.fmax(np.log(1 - DELTA - fpr) - np.log(fnr), np.log(1 - DELTA - fnr) - np.log(fpr)).clip(0)
    grid = np.where((held[0] == len(a)) & (held[1] == 0), 50.0, np.where((held[0] == len(a)) | (held[1] == 0), 0.0, grid))
    return max([x for x in found if x is not None] + [float(grid.max())])


@pytest.mark.parametrize(("n_u", "n_r"), [(2, 2), (5, 5), (12, 12), (4, 9)])
@pytest.mark.parametrize("intervals", [True, False])
@pytest.mark.parametrize("digits", [9, 0])  # 0: whole numbers, full of ties
def test_exact_search_equals_brute_force(n_u, n_r, intervals, digits):
    u, r = (noise(n_u, 40, seed=1) * 3 + 1).round(decimals=digits), (noise(n_r, 40, seed=2) * 2).round(decimals=digits)
    expected = [by_brute_force(u[:, s].tolist(), r[:, s].tolist(), intervals) for s in range(40)]
    found = forgetting_epsilon(u, r, intervals=intervals, window=None)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert digits == 9 or len(u.unique()) < u.numel() / 2


def test_exact_search_finds_what_the_published_grid_finds_and_more():
    u, r = noise(10, 15, seed=1) * 2 + 1, noise(10, 15, seed=2) * 3
    grid = torch.tensor([by_grid(u[:, s].tolist(), r[:, s].tolist()) for s in range(15)], dtype=torch.float64)
    exact = forgetting_epsilon(u, r)
    assert (exact >= grid - 1e-9).all()
    assert (exact - grid < 1e-9).double().mean() >= 0.8  # a grid misses rules between scores less than 0.01 apart


def test_an_assertion_on_an_array_of_thresholds_fails_where_ours_answers():
    """The published code ends with `assert thr_eps` on all that were found (D9)."""
    u, r = noise(8, 1, seed=1), noise(8, 1, seed=2)
    rules = np.array(
        [x for x in (epsilon_of_rule(u[:, 0].tolist(), r[:, 0].tolist(), t, math.inf) for t in r[:, 0].tolist()) if x is not None]
    )
    with pytest.raises(ValueError, match="ambiguous"):
        assert rules
    assert forgetting_epsilon(u, r).item() >= rules.max() - 1e-12


def test_inputs_are_not_changed():
    u, r = noise(8, 5, seed=1), noise(8, 5, seed=2)
    before = u.clone(), r.clone()
    forgetting_score(u, r, replicates=2)
    assert torch.equal(u, before[0]) and torch.equal(r, before[1])


@pytest.mark.parametrize("n_models", [64, 256, 1024])
def test_thresholds_alone_give_identical_groups_an_epsilon_of_1_15_and_a_quality_of_0_36(n_models):
    """The numbers of the specification, which do not shrink with the number of models."""
    epsilon = forgetting_epsilon(noise(n_models, 600, seed=1), noise(n_models, 600, seed=2), intervals=False)
    assert epsilon.mean() == pytest.approx(1.15, abs=0.06)
    assert epsilon.quantile(0.95) == pytest.approx(1.95, abs=0.15)  # a count of 7 or 8 to one: log 7 = 1.95, log 8 = 2.08
    assert forgetting_points(epsilon, n_models).mean() == pytest.approx(0.36, abs=0.04)


def test_points_halve_with_every_half_and_end_at_what_the_models_can_show():
    points = forgetting_points(torch.arange(0, 6, 0.25), 64)  # ⌈log 63⌉ = 5
    expected = [2.0 ** -(k // 2) if k / 4 < 5 else 0.0 for k in range(24)]
    assert points.tolist() == expected


def test_a_constant_model_is_perfectly_told_apart_unless_both_are_the_same_constant():
    constant = torch.zeros(8, 1, dtype=torch.float64)
    assert forgetting_epsilon(constant, noise(8, 1)).item() == 50
    assert forgetting_epsilon(0.001 * noise(8, 1), noise(8, 1, seed=1)).item() == 50
    assert forgetting_epsilon(constant, constant + 1).item() == 50
    assert forgetting_epsilon(constant, constant).item() == 0


def test_scale_of_margins_changes_nothing_without_a_window():
    u, r = noise(16, 50, seed=1), noise(16, 50, seed=2)
    assert torch.equal(forgetting_epsilon(32 * u, 32 * r, window=None), forgetting_epsilon(u, r, window=None))
    assert (forgetting_epsilon(u, r) <= forgetting_epsilon(u, r, window=None)).all()
    assert forgetting_epsilon(u, r).mean() < forgetting_epsilon(u, r, window=None).mean() - 0.05


def test_order_of_models_and_samples_and_blocks_change_nothing(monkeypatch):
    u, r = noise(9, 33, seed=1), noise(7, 33, seed=2)
    expected, order = forgetting_epsilon(u, r), torch.randperm(33, generator=torch.Generator().manual_seed(0))
    assert torch.equal(forgetting_epsilon(u.flip(0)[:, order], r.flip(0)[:, order]), expected[order])
    monkeypatch.setattr("expunge.audits.threshold_rules.BLOCK", 40)
    assert torch.equal(forgetting_epsilon(u, r), expected)


def test_retraining_has_a_normalised_quality_of_one():
    """Also where whole models are shifted; 95 % intervals, of 14 seeds."""
    covered, values = 0, []
    for seed in range(14):
        u, r = (noise(24, 60, seed=10 * seed + k) + noise(24, 1, seed=10 * seed + k + 5) for k in range(2))
        found = forgetting_score(u, r, intervals=False, replicates=8, seed=seed).normalised
        covered += found.low <= 1 <= found.high
        values.append(found.value)
    assert np.median(values) == pytest.approx(1, abs=0.1)
    assert covered >= 12


def test_with_further_retrained_models_the_groups_stay_whole():
    u, r, second = (noise(32, 200, seed=k) for k in range(3))
    found = forgetting_score(u, r, second, intervals=False, replicates=10)
    assert found.floor.value == forgetting_points(forgetting_epsilon(second, r, intervals=False), 32).mean()
    assert found.normalised.value == pytest.approx(found.quality.value / found.floor.value, rel=1e-9)  # order of models does not matter
    assert found.normalised.low < 1 < found.normalised.high


def test_models_that_did_not_forget_have_no_quality_and_a_proven_epsilon():
    found = forgetting_score(noise(64, 50, seed=1) + 12, noise(64, 50, seed=2), replicates=5)
    assert found.quality.value == found.normalised.value == 0
    assert found.certified.value == 1 and found.proven.bounds.min() == pytest.approx(found.proven.ceiling)
    assert found.proven.ceiling < found.ceiling == pytest.approx(2.82, abs=0.005)
    assert "could prove 2.82" in str(found)


def test_intervals_of_quality_are_as_wide_as_its_spread_and_centred_where_plain_percentiles_are_not():
    values, reaches, drawn = [], [], []
    for seed in range(12):
        u, r = noise(48, 50, seed=2 * seed), noise(48, 50, seed=2 * seed + 1)
        found = forgetting_score(u, r, intervals=False, replicates=8, seed=seed).quality
        values.append(found.value)
        reaches.append((found.high - found.value) / 1.96)
        rng = torch.Generator().manual_seed(seed)
        i, j = (torch.randint(48, (48,), generator=rng) for _ in range(2))
        drawn.append(float(forgetting_points(forgetting_epsilon(u[i], r[j], intervals=False), 48).mean()))
    assert 0.9 * np.std(values) < np.mean(reaches) < 2.2 * np.std(values)  # wide: what is a sample's and what is a model's overlap
    assert np.mean(drawn) < np.mean(values) - 0.04  # a resample is no draw from the truth: its percentiles would miss the value itself


def test_the_score_multiplies_the_ratios_of_accuracies():
    u, r = noise(16, 60, seed=1), noise(16, 60, seed=2)
    half, ones = torch.full((16,), 0.45), torch.full((16,), 0.9)
    found = forgetting_score(u, r, utility=Utility(half, ones, ones, ones), intervals=False, replicates=5)
    assert found.score.value == pytest.approx(found.quality.value / 2)
    assert not forgetting_score(u, r, intervals=False, replicates=5).score.supported


def test_nothing_is_proven_for_at_least_95_percent_of_samples_of_identical_groups():
    """Where the plug-in ε is above 1 for most."""
    u, r = noise(32, 1000, seed=1), noise(32, 1000, seed=2)
    found = forgetting_score(u, r, intervals=False, replicates=2)
    assert found.certified.value <= 0.05 and found.proven.bounds.median() == 0
    assert found.epsilon.value > 1


def test_results_are_plain_values_and_the_same_for_the_same_seed():
    u, r = noise(8, 6, seed=1), noise(8, 6, seed=2)
    state = torch.get_rng_state()
    first, again = (forgetting_score(u, r, replicates=3, seed=5).to_dict() for _ in range(2))
    assert json.loads(json.dumps(first)) == again and torch.equal(torch.get_rng_state(), state)
    assert first["n_unlearned"] == 8 and len(first["epsilons"]) == 6


def test_few_models_have_no_floor_and_one_sample_no_spread():
    found = forgetting_score(noise(5, 3, seed=1), noise(5, 3, seed=2), replicates=2)
    assert not found.floor.supported and "8 models" in found.floor.note
    assert "one sample" in forgetting_score(noise(8, 1, seed=1), noise(8, 1, seed=2), replicates=2).quality.note


def test_bad_inputs_are_refused():
    good, broken = noise(8, 5), noise(8, 5)
    broken[1, 2] = torch.nan
    with pytest.raises(DataError, match="unlearned models must be finite; got 1"):
        forgetting_epsilon(broken, good)
    with pytest.raises(DataError, match="same 5 samples as the others; got 4"):
        forgetting_epsilon(good, good[:, :4])
    with pytest.raises(DataError, match="at least 4 retrained models; got 3"):
        forgetting_score(good, good[:3])
    with pytest.raises(DataError, match="floating point"):
        forgetting_epsilon(good.long(), good)
    with pytest.raises(DataError, match="retain_unlearned must hold 8"):
        forgetting_score(good, good, utility=Utility(*(torch.ones(7),) * 4))
    for settings in ({"delta": 1.0}, {"window": -1.0}):
        with pytest.raises(ConfigError):
            forgetting_epsilon(good, good, **settings)
    for settings in ({"level": 95.0}, {"replicates": 1}):
        with pytest.raises(ConfigError):
            forgetting_score(good, good, **settings)
