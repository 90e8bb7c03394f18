import json
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from expunge.errors import ConfigError
from expunge.metrics import auc, tpr_at_fpr
from expunge.metrics.epsilon import epsilon_ceiling
from expunge.metrics.precision import auc_reach, plan_audit


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n1", "n0", "se"), [(200, 10000, 0.0206), (1000, 10000, 0.0096), (5000, 5000, 0.0058), (25000, 25000, 0.0026)])
def test_the_reach_of_an_auc_has_the_standard_errors_of_the_specification(n1, n0, se):
    assert auc_reach(n1, n0, z=1.0) == pytest.approx(se, abs=5e-5)


@pytest.mark.parametrize("margin", [0.02, 0.05])
def test_an_audit_of_the_planned_size_has_the_wanted_width(margin):
    plan = plan_audit(2000, 10000, auc=margin)
    n1, n0 = (plan.needs[0].needs[name] for name in ("forget_images", "test_images"))
    found = auc(noise(n1), noise(n0, seed=1))
    assert (found.high - found.low) / 2 == pytest.approx(margin, rel=0.05)
    assert auc_reach(n1, n0) <= margin < auc_reach(n1, n0 - max(1, n0 // 50))  # and not much less would do


def test_what_cannot_be_reached_is_refused_with_what_could_be():
    need = plan_audit(200, 10000, auc=0.02).needs[0]
    assert not need.reachable and "871 forget images" in need.reason and "0.0405 can be reached" in need.reason
    assert auc_reach(871, 10000) <= 0.02 < auc_reach(870, 10000) and auc_reach(200, 10000) <= 0.0405
    hopeless = plan_audit(200, 300, auc=0.02).needs[0]
    assert "more than 800 test images" in hopeless.reason and auc_reach(10**9, 800) > 0.02 > auc_reach(10**9, 802)


def test_with_any_number_of_members_the_tpr_rests_on_96_non_members():
    """The specification: for ± 20 %, k ≈ 96, at 0.1 % FPR 96,000 non-members."""
    need = plan_audit(10**8, 99000, tpr=0.2, fpr=0.001, expected_tpr=0.01).needs[0]
    assert need.reachable and need.needs["test_images"] == pytest.approx(96000, rel=0.04)
    assert not plan_audit(10**8, 96000, tpr=0.2, fpr=0.001, expected_tpr=0.01).needs[0].reachable


def half_width(n1: int, n0: int, fpr: float, tpr: float, runs: int) -> float:
    """Of the interval of the TPR relative to the true TPR, mean over audits."""
    shift, found = NormalDist().inv_cdf(1 - fpr) - NormalDist().inv_cdf(1 - tpr), []
    rng = np.random.default_rng(0)
    for r in range(runs):
        members, nonmembers = (torch.from_numpy(rng.standard_normal(n)) for n in (n1, n0))
        rate = tpr_at_fpr(members + shift, nonmembers, fpr, replicates=200, seed=r)
        found.append((rate.high - rate.low) / 2 / tpr)
    return float(np.mean(found))


@pytest.mark.parametrize(
    ("n_forget", "n_test", "r", "fpr", "tpr"),
    [(10**5, 10**5, 0.2, 0.05, 0.05), (10**5, 10**5, 0.4, 0.05, 0.3), (4000, 10**5, 0.2, 0.05, 0.05), (10**5, 4000, 0.3, 0.02, 0.05)],
)
def test_the_tpr_of_an_audit_of_the_planned_size_is_as_precise_as_promised(n_forget, n_test, r, fpr, tpr):
    """Members and threshold together; as if each could spend the whole error, the interval would be √2 as wide."""
    need = plan_audit(n_forget, n_test, tpr=r, fpr=fpr, expected_tpr=tpr).needs[0]
    assert need.reachable and need.needs["forget_images"] <= n_forget and need.needs["test_images"] <= n_test
    assert half_width(need.needs["forget_images"], need.needs["test_images"], fpr, tpr, 120) <= 1.02 * r  # a standard error is 1 %


def test_where_each_spends_the_whole_error_the_null_is_less_precise_than_promised():
    whole = (1.96 / 0.2) ** 2
    assert half_width(math.ceil(whole * 19), math.ceil(whole / 0.05), 0.05, 0.05, 60) > 1.25 * 0.2


def test_what_the_plan_says_can_be_reached_can_be():
    given = {"n_forget": 200, "n_test": 10000, "tpr": 0.2}
    reason = plan_audit(**given).needs[0].reason
    assert "at a TPR of 0.948 or more or at 34% FPR" in reason
    assert plan_audit(**given, expected_tpr=0.948).needs[0].reachable and not plan_audit(**given, expected_tpr=0.94).needs[0].reachable
    assert plan_audit(**given, fpr=0.34).needs[0].reachable and not plan_audit(**given, fpr=0.33).needs[0].reachable
    hopeless = plan_audit(5, 100, tpr=0.2, fpr=0.01, expected_tpr=0.02).needs[0]
    assert "at no FPR" in hopeless.reason


@pytest.mark.parametrize(("n_test", "word"), [(400, "refused"), (1000, "underpowered"), (5000, "less precise")])
def test_a_tpr_that_the_test_images_cannot_carry_says_what_becomes_of_it(n_test, word):
    need = plan_audit(5000, n_test, tpr=0.2, fpr=0.01).needs[0]
    found = tpr_at_fpr(noise(100) + 1, noise(n_test, seed=1), 0.01)
    assert not need.reachable and word in need.reason
    assert found.supported is (word != "refused") and ("underpowered" in (found.note or "")) is (word == "underpowered")


@pytest.mark.parametrize(("m", "se"), [(32, 0.10), (128, 0.051), (256, 0.036)])
def test_models_for_the_auc_of_a_sample_are_those_of_the_specification(m, se):
    plan = plan_audit(100, 100, sample_auc=1.96 * se)
    assert plan.shadow_models == pytest.approx(m, rel=0.13) and plan.shadow_models % 2 == 0
    assert plan.unlearnings == plan.shadow_models  # a pool: one unlearning a model


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 2.82, 5.0])
def test_the_planned_models_prove_the_wanted_epsilon_and_fewer_do_not(epsilon):
    n = plan_audit(10, 10, epsilon=epsilon).unlearned_models
    assert epsilon_ceiling(n // 2) >= epsilon and (n <= 4 or epsilon_ceiling(n // 2 - 1) < epsilon)


def test_an_epsilon_of_fifty_is_refused():
    """Ledger: public results claim 50, which would need 10²² models."""
    need = plan_audit(10, 10, epsilon=50.0).needs[0]
    assert not need.reachable and "can be reached" in need.reason


def test_seeds_are_enough_for_students_interval_of_the_difference():
    plan = plan_audit(10, 10, seed_auc=0.01, seed_sd=0.01)
    n, rng = plan.unlearned_models, np.random.default_rng(0)
    hits = np.mean([abs(a.mean() - b.mean()) <= 0.01 for a, b in zip(*rng.normal(0, 0.01, (2, 4000, n)), strict=True)])
    assert 0.95 <= hits < 0.995 and plan.retrained_models == n


def test_the_cost_counts_every_training_once():
    plan = plan_audit(100, 100, sample_auc=0.2, epsilon=1.0, seconds_per_training=10.0, seconds_per_unlearning=1.0)
    assert plan.trainings == 1 + plan.shadow_models + plan.retrained_models
    assert plan.unlearnings == plan.shadow_models + plan.unlearned_models
    assert plan.seconds == 10 * plan.trainings + plan.unlearnings
    assert plan_audit(100, 100, sample_auc=0.2).seconds is None


def test_what_models_cannot_be_paid_for_is_refused_with_what_they_could_do():
    plan = plan_audit(100, 100, sample_auc=0.05, epsilon=3.0, seed_auc=0.001, seed_sd=0.01, most_models=64)
    assert not plan.reachable and [need.reachable for need in plan.needs] == [False] * 3
    assert f"{1.96 * math.sqrt(65 / 3) / 64:.3g}" in plan.needs[0].reason and f"{epsilon_ceiling(32):.2f}" in plan.needs[1].reason


def test_a_plan_prints_and_becomes_json():
    plan = plan_audit(1000, 10000, auc=0.03, sample_auc=0.1)
    assert plan.reachable and "together" in str(plan) and json.loads(json.dumps(plan.to_dict()))["reachable"] is True


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "needs a wish"),
        ({"auc": 2.0}, "auc must be"),
        ({"accuracy": 0.1}, "got accuracy"),
        ({"seed_auc": 0.01}, "seed_sd"),
        ({"auc": 0.02, "n_forget": 0}, "n_forget"),
        ({"auc": 0.02, "seconds_per_training": -1.0}, "seconds_per_training"),
    ],
)
def test_unusable_wishes_are_refused(given, match):
    with pytest.raises(ConfigError, match=match):
        plan_audit(**({"n_forget": 10, "n_test": 10} | given))
