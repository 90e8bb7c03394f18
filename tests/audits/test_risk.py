import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, norm

from expunge.audits import risk as risk_module
from expunge.audits.exposure import _aucs, benjamini_hochberg, exposure
from expunge.audits.lira import lira
from expunge.audits.risk import calibrate_risk, membership_risk
from expunge.errors import ConfigError, DataError
from oracles import auc_by_pairs, halves


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def world(n_models: int, n: int, seed: int, heavy: bool = False):
    """Shadow models whose samples differ in level, spread and how much training on them moves the margin; targets from the same world."""
    rng = torch.Generator().manual_seed(seed)
    level, spread, moved = noise(n, seed=seed) * 3, 0.5 + torch.rand(n, generator=rng).double(), 1.5 * torch.rand(n, generator=rng).double()
    included, member = halves(n_models, n, seed), torch.rand(n, generator=rng) < 0.5
    noises = torch.randn(n_models + 1, n, generator=rng, dtype=torch.float64)
    if heavy:  # Student's t with 3 degrees of freedom: Gaussians claim far too much
        noises = noises / (torch.randn(3, n_models + 1, n, generator=rng, dtype=torch.float64) ** 2).mean(0).sqrt()
    margins = level + spread * (noises + moved * torch.cat([included, member[None]]))
    z = (margins[-1] - level) / spread
    truth = 1 / (1 + torch.exp(-(z * moved - moved**2 / 2)))  # the posterior of somebody who knows everything, for Gaussian noise
    return margins[-1], margins[:-1], included, member, truth


def calibration_error(probability: torch.Tensor, member: torch.Tensor, bins: int = 8) -> float:
    order = probability.argsort()
    return float(np.mean([abs(float(probability[b].mean() - member[b].double().mean())) for b in order.chunk(bins)]))


@pytest.mark.parametrize("heavy", [False, True])
def test_probabilities_are_as_often_right_as_they_say_where_the_likelihood_ratio_is_not(heavy):
    target, shadow, included, member, _ = world(16, 6000, 1, heavy)
    risk = membership_risk(target, shadow, included)
    assert calibration_error(risk.probability, member) < 0.025  # bins of 750: half a standard error of each is about 0.015
    plain = torch.sigmoid(lira(target, shadow, included))
    assert calibration_error(plain, member) > 0.03


def test_the_interval_mostly_holds_the_probability_of_somebody_who_knows_the_true_gaussians():
    target, shadow, included, _, truth = world(64, 4000, 2)
    risk = membership_risk(target, shadow, included)
    covered = ((risk.low <= truth) & (truth <= risk.high)).double().mean()
    assert covered > 0.85 and (risk.high - risk.low).mean() < 0.35
    assert (risk.low <= risk.probability).all() and (risk.probability <= risk.high).all()


def test_on_noise_nobody_is_at_risk_and_the_score_says_that_nothing_is_known():
    shadow, included = noise(16, 2000), halves(16, 2000)
    risk = membership_risk(noise(2000, seed=9), shadow, included)
    assert (risk.probability - 0.5).abs().mean() < 0.03 and risk.brier.value == pytest.approx(0.25, abs=0.004)


def test_a_perfect_separation_is_as_certain_as_the_shadow_models_allow_and_no_more():
    included = halves(8, 100)
    shadow = noise(8, 100) + 30.0 * included
    risk = membership_risk(torch.tensor([30.0, 0.0]).double().repeat(50), shadow, included)
    assert 0.99 < float(risk.probability[0]) < 1 and 0 < float(risk.probability[1]) < 0.01
    assert risk.brier.value < 0.01


def test_the_riskiest_keep_their_ids():
    target, shadow, included, _, _ = world(16, 300, 3)
    ids = torch.arange(300) * 7 + 1000
    risk = membership_risk(target, shadow, included, ids=ids)
    assert torch.equal(risk.ids, ids)
    top = risk.riskiest(5)
    assert [i for i, _ in top] == ids[risk.probability.argsort(descending=True, stable=True)[:5]].tolist()
    assert [e.value for _, e in top] == sorted((e.value for _, e in top), reverse=True)
    assert json.loads(json.dumps(risk.to_dict()))["ids"] == ids.tolist()


def test_more_models_give_narrower_intervals():
    few, many = (membership_risk(*world(m, 1000, 4)[:3]) for m in (8, 128))
    assert (many.high - many.low).mean() < 0.6 * (few.high - few.low).mean()


def test_the_auc_of_each_sample_counts_pairs_of_models_and_its_p_value_is_the_rank_sums():
    after, included = noise(16, 12).round(decimals=1) + halves(16, 12), halves(16, 12)
    found = exposure(after, included, standardise=False)
    for i in range(12):
        a, b = after[included[:, i], i].numpy(), after[~included[:, i], i].numpy()
        assert float(found.auc[i]) == pytest.approx(auc_by_pairs(a, b))
        assert float(found.p_values[i]) == pytest.approx(mannwhitneyu(a, b, alternative="greater", method="asymptotic").pvalue, rel=1e-6)


def test_without_a_signal_the_spread_is_chance_and_nobody_is_chosen():
    found = exposure(noise(64, 1000), halves(64, 1000))
    assert float(found.auc.std()) == pytest.approx(0.41 / math.sqrt(32), rel=0.1)  # the specification's standard error
    assert found.spread < 0.02 and int(found.exposed.sum()) <= 1
    assert float(found.auc.max()) > 0.7 and float(found.shrunk.max()) < 0.55  # the largest raw value is luck; the shrunk one says so


def test_the_chosen_are_mostly_exposed_in_truth_and_raw_levels_choose_too_many():
    wrong, chosen, found_share, faulty = 0, 0, [], 0
    for r in range(20):
        included, moved = halves(64, 400, r), torch.arange(400) < 60
        found = exposure(noise(64, 400, seed=r) + 1.5 * included * moved, included)
        wrong, chosen = wrong + int((found.exposed & ~moved).sum()), chosen + int(found.exposed.sum())
        found_share.append(float(found.exposed[:60].double().mean()))
        faulty += int(((found.p_values < 0.05) & ~moved).sum())
    assert wrong / chosen < 0.07 and np.mean(found_share) > 0.85
    assert faulty / 20 > 12  # 5 % of 340 that are not exposed, each model audit


@pytest.mark.parametrize("n_models", [32, 128])
def test_shrunk_values_are_closer_to_the_truth_and_their_intervals_cover_it(n_models):
    moved = torch.linspace(0, 1.5, 500, dtype=torch.float64)
    truth = torch.from_numpy(norm.cdf(moved.numpy() / math.sqrt(2)))
    included = halves(n_models, 500, 5)
    found = exposure(noise(n_models, 500, seed=5) + moved * included, included)
    assert ((found.shrunk - truth) ** 2).mean() < ((found.auc - truth) ** 2).mean()
    assert 0.92 <= ((found.low <= truth) & (truth <= found.high)).double().mean() <= 0.995


def test_a_model_that_is_more_confident_as_a_whole_says_nothing_of_its_samples():
    included = halves(32, 300)
    after = noise(32, 300) + 1.2 * included + 10 * noise(32, 1, seed=1)
    assert exposure(after, included).mean.value > 0.75 and exposure(after, included, standardise=False).mean.value < 0.6


@pytest.mark.parametrize(("n_models", "sd"), [(6, 0.3), (16, 1.0)])
def test_the_mean_and_the_shrunk_values_speak_of_other_models_too(n_models, sd):
    """What unlearning leaves differs from model to model: an interval over samples alone misses the truth."""
    # All samples have the same true AUC: a margin with the sd of 1 + sd² where a model forgot, shifted by 1.
    truth = norm.cdf(1 / math.sqrt(2 + sd**2))
    hits, faulty, shrunk, rng = 0, 0, [], np.random.default_rng(0)
    for r in range(100):
        included = halves(n_models, 400, r)
        left = torch.from_numpy(1 + sd * rng.standard_normal((n_models, 1)))
        found = exposure(torch.from_numpy(rng.standard_normal((n_models, 400))) + left * included, included, standardise=False)
        hits += found.mean.low <= truth <= found.mean.high
        chance = (n_models + 1) / (3 * n_models**2)
        reach = 1.96 * math.sqrt(max(float(found.auc.var()), chance) / 400)
        faulty += abs(found.mean.value - truth) <= reach
        shrunk.append(float(((found.low <= truth) & (truth <= found.high)).double().mean()))
    assert hits >= 88 and np.mean(shrunk) >= 0.88 and faulty < 85  # 88 is 3 standard errors below 95


@pytest.mark.parametrize("n_models", [6, 32])
def test_the_mean_exposure_of_nothing_holds_one_half_in_at_least_95_percent(n_models):
    rng = np.random.default_rng(0)
    found = [exposure(torch.from_numpy(rng.standard_normal((n_models, 60))), halves(n_models, 60, r)).mean for r in range(300)]
    assert sum(mean.low <= 0.5 <= mean.high for mean in found) >= 285


def test_a_model_moves_the_mean_exposure_by_the_derivative_of_the_auc():
    """The influence of one model, against leaving it out."""
    included, margins = halves(40, 30), noise(40, 30)
    area, _, influence = _aucs(margins.numpy(), included.numpy())
    for m in (0, 7, 31):
        kept = torch.arange(40) != m
        without = _aucs(margins[kept].numpy(), included[kept].numpy())[0].mean()
        assert area.mean() - without == pytest.approx(influence[m], rel=0.1, abs=1e-4)
    assert influence.sum() == pytest.approx(0, abs=1e-12)


def test_the_risk_of_many_models_calibrates_once(monkeypatch):
    target, shadow, included, _, _ = world(8, 200, 3)
    whole = membership_risk(target, shadow, included, level=0.9, prior_weight=3.0)
    calls, plain = [], risk_module.lira_leave_one_out
    monkeypatch.setattr(risk_module, "lira_leave_one_out", lambda *a, **k: calls.append(1) or plain(*a, **k))
    risk_of = calibrate_risk(shadow, included, level=0.9, prior_weight=3.0)
    first, other = risk_of(target), risk_of(target + 1, ids=torch.arange(200) + 5)
    assert len(calls) == 1 and first.to_dict() == whole.to_dict()
    assert int(other.ids[0]) == 5 and not torch.equal(other.probability, first.probability) and other.brier == first.brier
    with pytest.raises(DataError, match="same 200 samples"):
        risk_of(target[:100])


def test_benjamini_hochberg_equals_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(12) ** 2
        ranks = [r for r in range(1, 13) if np.sort(p)[r - 1] <= r * 0.1 / 12]
        expected = p <= (np.sort(p)[max(ranks) - 1] if ranks else -1)
        assert (benjamini_hochberg(p, 0.1) == expected).all()


def test_exposure_becomes_json_with_ids():
    found = exposure(noise(8, 5), halves(8, 5), ids=torch.tensor([5, 3, 9, 1, 7]))
    assert json.loads(json.dumps(found.to_dict()))["ids"] == [5, 3, 9, 1, 7] and len(found.riskiest(2)) == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"shadow": noise(4, 10), "included": halves(4, 10)}, "at least 6"),
        ({"included": halves(8, 10).int()}, "must be bool"),
        ({"included": torch.ones(8, 10).bool()}, "at least 2 shadow models"),
        ({"target": torch.full((10,), math.nan, dtype=torch.float64)}, "finite"),
        ({"ids": torch.arange(9)}, "10 integers"),
    ],
)
def test_unusable_inputs_are_refused(change, match):
    given = {"target": noise(10), "shadow": noise(8, 10), "included": halves(8, 10)} | change
    with pytest.raises(DataError, match=match):
        membership_risk(**given)


def test_unusable_settings_are_refused():
    with pytest.raises(ConfigError, match="fdr"):
        exposure(noise(8, 10), halves(8, 10), fdr=5.0)
    with pytest.raises(ConfigError, match="prior_weight"):
        membership_risk(noise(10), noise(8, 10), halves(8, 10), prior_weight=-1.0)
