import json
import math

import numpy as np
import pytest
import torch

from expunge.errors import ConfigError, DataError, MissingError
from expunge.metrics import auc, auc_difference, tpr_at_fpr
from expunge.metrics.bootstrap import ResampledAUC, draw_counts
from expunge.metrics.two_level import Replicates, _Ranked, _spread, two_level, two_level_difference
from expunge.rng import generator
from oracles import auc_by_pairs, tpr_by_thresholds


def noise(*shape: int, seed: int = 0, decimals: int = 9) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).round(decimals=decimals)


@pytest.mark.parametrize("decimals", [9, 0])  # without ties, with many
@pytest.mark.parametrize("k", [0, 3, 40])
def test_each_resample_has_the_auc_and_tpr_of_the_repeated_samples(decimals, k):
    members, nonmembers, rng = noise(30, seed=1, decimals=decimals) + 1, noise(40, seed=2, decimals=decimals), generator(3)
    counts = draw_counts(30, 6, rng), draw_counts(40, 6, rng)
    fast = _Ranked(members, nonmembers, k).resampled(*counts)
    for row, a, b in zip(fast, *counts, strict=True):
        repeated = members.repeat_interleave(a.long()).tolist(), nonmembers.repeat_interleave(b.long()).tolist()
        assert row.tolist() == pytest.approx([auc_by_pairs(*repeated), tpr_by_thresholds(*repeated, k / 40)], abs=1e-6)


def test_values_are_means_over_models_of_the_plain_estimates():
    members, nonmembers = noise(3, 200, seed=1) + 1, noise(3, 600, seed=2)
    found = two_level(members, nonmembers, fpr=0.05, replicates=20)
    assert found.auc.value == pytest.approx(np.mean([auc(m, n).value for m, n in zip(members, nonmembers, strict=True)]))
    assert found.tpr.value == pytest.approx(np.mean([tpr_at_fpr(m, n, 0.05).value for m, n in zip(members, nonmembers, strict=True)]))


@pytest.mark.parametrize("kind", ["percentile", "bca"])
def test_for_one_model_it_agrees_with_delong_and_with_the_bootstrap_of_the_threshold(kind):
    members, nonmembers = noise(500, seed=1) + 1, noise(1500, seed=2)
    found = two_level(members, nonmembers, fpr=0.05, kind=kind)
    plain, rate = auc(members, nonmembers), tpr_at_fpr(members, nonmembers, 0.05)
    assert (found.auc.low, found.auc.high) == pytest.approx((plain.low, plain.high), abs=0.003)
    assert (found.tpr.low, found.tpr.high) == pytest.approx((rate.low, rate.high), abs=0.02)
    assert "one model" in found.auc.note and "one model" in found.tpr.note


def test_the_difference_of_one_model_to_another_agrees_with_delongs_paired_interval():
    members, nonmembers = noise(500, seed=1) + 1, noise(800, seed=2)
    others = members + 0.3 * noise(500, seed=3) - 0.2, nonmembers + 0.3 * noise(800, seed=4)
    found, plain = two_level_difference(members, nonmembers, *others).auc, auc_difference(members, nonmembers, *others)
    assert found.value == pytest.approx(plain.value) and (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.004)


def test_a_model_differs_from_itself_by_exactly_nothing():
    found = two_level_difference(noise(50), noise(600, seed=1), noise(50), noise(600, seed=1), fpr=0.05, replicates=10)
    assert (found.auc.value, found.auc.low, found.auc.high, found.tpr.low, found.tpr.high) == (0, 0, 0, 0, 0)


def test_seeds_that_differ_widen_the_interval_and_a_resample_of_three_models_would_not_say_how_much():
    shifts = torch.tensor([[0.0], [0.5], [1.0]], dtype=torch.float64)
    members, nonmembers = noise(1, 2000, seed=1) + shifts, noise(1, 4000, seed=2).expand(3, -1)
    found = two_level(members, nonmembers, replicates=400).auc
    values = [auc(m, n).value for m, n in zip(members, nonmembers, strict=True)]
    students = 4.303 * np.std(values, ddof=1) / math.sqrt(3)
    assert (found.high - found.low) / 2 == pytest.approx(students, rel=0.12)
    faulty = [np.mean(np.random.default_rng(b).choice(values, 3)) for b in range(1000)]  # plain resampling of models
    assert np.ptp(np.quantile(faulty, [0.025, 0.975])) / 2 < 0.5 * students


@pytest.mark.parametrize(("shift", "shared"), [(0.0, 0.8), (0.3, 0.8)])
def test_groups_of_models_from_one_recipe_seldom_seem_different(shift, shared):
    """Two-level intervals of the difference of 4 and 4 models cover 0, also where whole models are shifted; ignoring the models they do not."""
    hits, faulty = 0, 0
    for r in range(100):
        rng = generator(r)
        samples = [torch.randn(1, n, generator=rng, dtype=torch.float64) for n in (60, 240)]
        groups = []
        for _ in range(2):
            own = [torch.randn(4, n, generator=rng, dtype=torch.float64) for n in (60, 240)]
            scores = [math.sqrt(shared) * s + math.sqrt(1 - shared) * o for s, o in zip(samples, own, strict=True)]
            groups.append((scores[0] + shift * torch.randn(4, 1, generator=rng, dtype=torch.float64), scores[1]))
        found = two_level_difference(*groups[0], *groups[1], replicates=100, seed=r).auc
        hits += found.low <= 0 <= found.high
        averaged = auc_difference(*(x.mean(0) for group in groups for x in group))
        faulty += averaged.low <= 0 <= averaged.high
    assert hits >= 88 and (shift == 0 or faulty < 80)  # 88 is 3 standard errors below 95


def test_chance_of_the_samples_is_not_counted_twice():
    """Sixteen models that differ only by noise of their own on each sample: nothing is left over for the models."""
    members, nonmembers = noise(16, 100, seed=1), noise(16, 300, seed=2)
    found = two_level(members, nonmembers, replicates=300).auc
    one = auc(members[0], nonmembers[0])
    assert found.high - found.low < 1.7 * (one.high - one.low) / 4


def test_bca_follows_the_skewness_near_the_end_of_the_scale():
    members, nonmembers = noise(60, seed=1) + 2.6, noise(200, seed=2)
    plain, shifted = (two_level(members, nonmembers, kind=kind, replicates=2000).auc for kind in ("percentile", "bca"))
    assert shifted.low < plain.low and shifted.high < plain.high


def test_influence_is_the_derivative_of_the_auc():
    members, nonmembers = noise(30, seed=1, decimals=1), noise(40, seed=2, decimals=1)
    ranked = _Ranked(members, nonmembers, 8)
    influence, area = ranked.influence()[:, 0], auc(members, nonmembers).value
    for i in (0, 7, 29):
        heavier = torch.cat([members, members[i : i + 1]])
        assert auc(heavier, nonmembers).value - area == pytest.approx(influence[i] * 30 / 31, abs=1e-9)
    assert influence.sum() == pytest.approx(0, abs=1e-12)


def test_few_models_are_drawn_wider_than_many():
    def group(m: int) -> Replicates:
        values = np.tile([[0.4, 0.0], [0.6, 0.0]], (m // 2, 1))
        return Replicates(values, np.tile(values, (10, 1, 1)), np.zeros((4, 2)))

    _, two = _spread([group(2)], 0, 0.95)
    _, many = _spread([group(100)], 0, 0.95)
    assert two == pytest.approx((12.706 / 1.96) ** 2 * 0.02 / 2, rel=1e-3)
    assert many == pytest.approx((1.984 / 1.96) ** 2 * 0.01 * (100 / 99) / 100, rel=1e-3)


def test_perfect_separation_has_the_exact_interval():
    found = two_level(torch.arange(50.0) + 1000, torch.arange(600.0), fpr=0.05, replicates=10)
    assert found.auc.high == found.tpr.high == 1 and found.auc.low == found.tpr.low == pytest.approx(0.025 ** (1 / 50))
    both = two_level_difference(
        torch.arange(50.0) + 1000, torch.arange(600.0), torch.arange(50.0) + 2000, torch.arange(600.0), replicates=10
    )
    assert both.auc.low < -0.05 and both.auc.high > 0.05


@pytest.mark.parametrize("sizes", [(50, 600), (70, 613), (333, 1007)])
@pytest.mark.parametrize("n_models", [1, 3])
def test_where_all_resamples_agree_the_interval_is_that_of_the_plain_auc(sizes, n_models):
    """Constant scores, and perfect separation: sums in float32 would leave a width of 1e-7."""
    constant = [torch.ones(n_models, n) for n in sizes]
    found, plain = two_level(*constant, replicates=20).auc, auc(*(x[0] for x in constant))
    assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high), abs=1e-12)
    apart = [torch.arange(float(n)).expand(n_models, n) + shift for n, shift in zip(sizes, (2000, 0), strict=True)]
    other = two_level_difference(*apart, apart[0] + 1000, apart[1], replicates=20).auc
    assert other.high - other.low > 0.01 and other.value == 0


def test_resampled_areas_are_whole_pairs_and_exact():
    rng = generator(0)
    counts = draw_counts(333, 64, rng), draw_counts(1007, 64, rng)
    assert ResampledAUC(torch.ones(333), torch.ones(1007))(*counts).unique().tolist() == [0.5]
    passed = counts[1].cumsum(1)[:, -1:].expand(64, 333)
    assert len(torch.einsum("bn,bn->b", counts[0], passed / (333 * 1007)).unique()) > 1  # float32 sums of shares


def test_the_tpr_is_refused_or_flagged_by_its_support():
    refused, weak = (two_level(noise(100) + 1, noise(n, seed=1), fpr=0.01, replicates=10).tpr for n in (499, 600))
    assert not refused.supported and "needs 500 non-members, got 499" in refused.note
    assert weak.supported and "underpowered" in weak.note


def test_the_same_seed_gives_the_same_interval_and_global_generators_are_untouched():
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again = (two_level(noise(2, 50) + 1, noise(2, 700, seed=1), fpr=0.01, replicates=50) for _ in range(2))
    assert first == again != two_level(noise(2, 50) + 1, noise(2, 700, seed=1), fpr=0.01, replicates=50, seed=1)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()
    assert json.loads(json.dumps(first.to_dict()))["n_models"] == [2]


@pytest.mark.parametrize(
    ("members", "nonmembers", "match"),
    [
        (torch.zeros(0), torch.ones(3), "members"),
        (torch.ones(2, 3), torch.ones(3, 3), "2 models for members and 3"),
        (torch.tensor([math.nan]), torch.ones(2), "1 NaN"),
        (torch.ones(3).long(), torch.ones(2), "floating point"),
    ],
)
def test_unusable_scores_are_refused(members, nonmembers, match):
    with pytest.raises(DataError, match=match):
        two_level(members, nonmembers)


def test_unusable_settings_are_refused():
    ones = torch.ones(5)
    with pytest.raises(ConfigError, match="for 1 %"):
        two_level(ones, ones, fpr=5.0)
    with pytest.raises(ConfigError, match="replicates"):
        two_level(ones, ones, replicates=1)
    with pytest.raises(MissingError, match="percentile"):
        two_level(ones, ones, kind="percentil")
    with pytest.raises(DataError, match="same samples"):
        two_level_difference(ones, ones, torch.ones(4), ones)
    with pytest.raises(DataError, match="as many models"):
        two_level_difference(torch.ones(2, 5), torch.ones(2, 5), torch.ones(3, 5), torch.ones(3, 5), same_seeds=True)
