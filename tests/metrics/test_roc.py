import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from expunge.errors import ConfigError, DataError
from expunge.metrics import auc, auc_difference, roc, roc_band, tpr_at_fpr
from oracles import auc_by_pairs, tpr_by_thresholds

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)  # few values, so many ties


def normal(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


@given(SCORES, SCORES)
def test_auc_counts_pairs_and_ties_half(members, nonmembers):
    assert auc(torch.tensor(members), torch.tensor(nonmembers)).value == pytest.approx(auc_by_pairs(members, nonmembers), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_auc_equals_scikit_learns(ties):
    members, nonmembers = normal(700, 0, 0.3), normal(1100, 1)
    if ties:
        members, nonmembers = members.round(decimals=1), nonmembers.round(decimals=1)
    truth = np.r_[np.ones(700), np.zeros(1100)]
    assert auc(members, nonmembers).value == pytest.approx(roc_auc_score(truth, torch.cat([members, nonmembers]).numpy()), abs=1e-12)


@given(SCORES, SCORES)
def test_swapped_groups_mirror_the_auc_and_its_interval(members, nonmembers):
    forth, back = auc(torch.tensor(members), torch.tensor(nonmembers)), auc(torch.tensor(nonmembers), torch.tensor(members))
    assert (back.value, back.low, back.high) == pytest.approx((1 - forth.value, 1 - forth.high, 1 - forth.low), abs=1e-9)


@given(SCORES, SCORES)
def test_auc_interval_contains_its_value_and_has_a_width(members, nonmembers):
    estimate = auc(torch.tensor(members), torch.tensor(nonmembers))
    assert 0 <= estimate.low <= estimate.value + 1e-12 and estimate.value - 1e-12 <= estimate.high <= 1 and estimate.low < estimate.high


def test_constant_scores_have_an_auc_of_one_half():
    assert auc(torch.ones(30), torch.ones(50)).value == 0.5


def test_a_loss_with_the_wrong_sign_is_seen_as_an_auc_below_one_half():
    """A public tool negates softmax scores as if they were losses and reports 0.376 where the attack achieves 0.624."""
    members, nonmembers = normal(2000, 0, 0.45), normal(2000, 1)
    assert auc(members, nonmembers).value > 0.6 and auc(-members, -nonmembers).value < 0.4


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_delong_interval_covers_the_true_auc_about_as_often_as_it_says(shift):
    truth = 0.5 * (1 + math.erf(shift / 2))  # Φ(Δ/√2)
    groups = normal(500 * 140, 7).view(500, 140)
    estimates = [auc(row[:60] + shift, row[60:]) for row in groups]
    coverage = sum(e.low <= truth <= e.high for e in estimates) / 500
    assert 0.92 <= coverage <= 0.98  # 95 % ± 3 binomial standard errors


def test_perfect_separation_has_the_exact_interval_of_independent_pairs():
    estimate = auc(torch.arange(100.0) + 1000, torch.arange(500.0))
    assert estimate.value == estimate.high == 1.0 and estimate.low == pytest.approx(0.025 ** (1 / 100), abs=1e-9)


def test_a_wider_level_gives_a_wider_interval():
    narrow, wide = (auc(normal(100, 0, 0.5), normal(100, 1), level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_paired_difference_covers_the_truth_and_is_narrower_than_two_intervals():
    base, noise = normal(500 * 140, 3).view(500, 140), 0.5 * normal(500 * 140, 4).view(500, 140)
    truth = 0.5 * (1 + math.erf(1 / 2)) - 0.5 * (1 + math.erf(1 / (2 * math.sqrt(1.25))))
    estimates = [auc_difference(b[:60] + 1, b[60:], (b + n)[:60] + 1, (b + n)[60:]) for b, n in zip(base, noise, strict=True)]
    assert 0.92 <= sum(e.low <= truth <= e.high for e in estimates) / 500 <= 0.985
    alone = auc(base[0, :60] + 1, base[0, 60:])
    assert estimates[0].high - estimates[0].low < 0.7 * (alone.high - alone.low)


def test_difference_of_two_perfect_separations_is_not_claimed_to_be_exact():
    estimate = auc_difference(torch.arange(50.0) + 100, torch.arange(50.0), torch.arange(50.0) + 200, torch.arange(50.0))
    assert estimate.value == 0 and estimate.low < -0.05 and estimate.high > 0.05


def test_a_model_differs_from_itself_by_exactly_nothing():
    estimate = auc_difference(normal(50, 0), normal(60, 1), normal(50, 0), normal(60, 1))
    assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)


@given(SCORES, SCORES, st.sampled_from([0.1, 0.25, 0.5, 1.0]))
def test_tpr_is_the_best_among_thresholds_within_the_fpr(members, nonmembers, fpr):
    band = roc_band(torch.tensor(members), torch.tensor(nonmembers), [fpr], replicates=2)
    assert float(band.tpr[0]) == pytest.approx(tpr_by_thresholds(members, nonmembers, fpr), abs=1e-12)


def test_ties_are_decided_against_the_attacker():
    members, nonmembers = torch.ones(100), torch.cat([torch.ones(60), torch.zeros(940)])
    assert tpr_at_fpr(members, nonmembers, 0.05).value == 0.0  # 50 may pass, but all 60 at the top are tied with the members
    assert tpr_at_fpr(members, nonmembers, 0.06).value == 1.0


@pytest.mark.parametrize(("n", "supported", "noted"), [(499, False, True), (500, True, True), (2499, True, True), (2500, True, False)])
def test_tpr_at_one_percent_is_refused_or_flagged_by_the_number_of_nonmembers(n, supported, noted):
    estimate = tpr_at_fpr(normal(300, 0, 1), normal(n, 1), 0.01)
    assert estimate.supported is supported and (estimate.note is not None) is noted
    assert supported or "needs 500 non-members, got 499" in str(estimate)


def test_tpr_bootstrap_is_that_of_resampling_both_groups():
    """The order-statistic draw against the plain bootstrap; the quantiles of 4,000 replicates agree within their own noise."""
    members, nonmembers = normal(400, 0, 1.5), normal(600, 1)
    band = roc_band(members, nonmembers, [0.05], replicates=4000)
    rng, plain = np.random.default_rng(5), []
    for _ in range(4000):
        m, n = rng.choice(members.numpy(), 400), rng.choice(nonmembers.numpy(), 600)
        plain.append((m > np.partition(n, 600 - 31)[600 - 31]).mean())
    assert (float(band.low[0]), float(band.high[0])) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=0.012)


def test_tpr_interval_is_repeatable_and_leaves_the_global_generators_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again = (tpr_at_fpr(normal(300, 0, 1), normal(1000, 1), 0.05) for _ in range(2))
    assert first == again != tpr_at_fpr(normal(300, 0, 1), normal(1000, 1), 0.05, seed=1)
    assert torch.equal(torch.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()


def test_a_tpr_of_zero_or_one_still_has_an_interval():
    perfect = tpr_at_fpr(torch.arange(200.0) + 5000, torch.arange(1000.0), 0.05)
    assert perfect.value == 1 and perfect.low == pytest.approx(0.025 ** (1 / 200), abs=1e-9)


def test_roc_is_a_staircase_from_corner_to_corner_that_agrees_with_the_tpr():
    members, nonmembers = normal(200, 0, 1).round(decimals=1), normal(1000, 1).round(decimals=1)
    curve = roc(members, nonmembers)
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
    assert (curve.fpr.diff() >= 0).all() and (curve.tpr.diff() >= 0).all() and (curve.thresholds.diff() < 0).all()
    for fpr in (0.01, 0.1, 0.5):
        assert curve.tpr[curve.fpr <= fpr + 1e-9].max() == tpr_at_fpr(members, nonmembers, fpr).value


@pytest.mark.parametrize(
    ("members", "nonmembers", "match"), [([], [1.0], "members"), ([1.0], [], "non-members"), ([1.0], [math.nan, 2], "1 NaN")]
)
def test_unusable_scores_are_refused(members, nonmembers, match):
    with pytest.raises(DataError, match=match):
        auc(torch.tensor(members), torch.tensor(nonmembers))


def test_percents_in_the_place_of_fractions_are_refused():
    with pytest.raises(ConfigError, match="for 1 %"):
        tpr_at_fpr(torch.ones(3), torch.ones(3), 5.0)
