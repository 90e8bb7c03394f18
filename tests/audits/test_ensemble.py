import math

import numpy as np
import pytest
import torch
from scipy.stats import cauchy, kstest

from expunge.audits import RMIA, LiRA, LossThreshold, MembershipAudit
from expunge.audits.ensemble import Ensemble, _ordered, cauchy_combination, empirical_p_values, min_p
from expunge.errors import ConfigError, DataError
from expunge.metrics import auc
from oracles import halves

K = 5


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def audited(n: int, n_models: int, memory: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """A target, of which the first half of samples are members, and shadow models; members' logits are higher by `memory`."""
    rng, included, labels = torch.Generator().manual_seed(seed), halves(n_models, n, seed), torch.arange(n) % K
    member = torch.cat([included, (torch.arange(n) < n // 2)[None]])
    easy = 2 * torch.randn(n, generator=rng)  # what all models find easy
    logits = torch.randn(n_models + 1, n, K, generator=rng)
    logits.scatter_add_(2, labels.expand(n_models + 1, n)[..., None], (easy + memory * member)[..., None])
    return {"target_logits": logits[-1], "labels": labels, "shadow_logits": logits[:-1], "included": included}


def test_p_values_are_shares_of_the_null_counted():
    scores, null = uniform(40).mul(5).round(), uniform(60, seed=1).mul(5).round()
    expected = [(1 + sum(float(z) >= float(s) for z in null)) / 61 for s in scores]
    assert empirical_p_values(scores, null).tolist() == pytest.approx(expected, abs=1e-12)


def test_p_values_of_nonmembers_are_never_small_too_often():
    for n in (3, 9, 19):  # exactly: over all ranks of one more draw, ties or not
        null = uniform(n)
        p = torch.stack(
            [
                empirical_p_values(
                    torch.cat([null, uniform(1, seed=9)])[[i]], torch.cat([null, uniform(1, seed=9)])[torch.arange(n + 1) != i]
                )
                for i in range(n + 1)
            ]
        )
        for alpha in (0.1, 0.25, 0.5):
            assert (p <= alpha + 1e-12).double().mean() <= alpha + 1e-12


@pytest.mark.parametrize("combine", [min_p, cauchy_combination])
@pytest.mark.parametrize("n_attacks", [1, 2, 5])
def test_the_null_is_known_for_independent_attacks(combine, n_attacks):
    combined = combine(uniform(n_attacks, 20000))
    assert kstest(combined.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("combine", [min_p, cauchy_combination])
def test_attacks_that_agree_accuse_no_more_than_promised(combine):
    """Correlated attacks by a common Gaussian; and the same attack several times."""
    noise = torch.randn(4, 40000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = torch.special.ndtr(0.8 * noise[0] + 0.6 * noise[1:])
    for alpha in (0.001, 0.01, 0.05):
        rate = (combine(p) <= alpha).double().mean().item()
        assert rate <= 1.15 * alpha + 3 * math.sqrt(alpha / 40000), alpha
    assert (combine(p[:1].repeat(3, 1)) >= p[0] - 1e-12).all()


def test_a_union_of_thresholds_accuses_too_many_and_the_combinations_do_not():
    """What public ensembles do: a member is who passes any attack's threshold. Four independent attacks on non-members alone, at 5 %."""
    p, alpha = uniform(4, 20000), 0.05
    union = (p <= alpha).any(0).double().mean().item()
    assert union == pytest.approx(1 - (1 - alpha) ** 4, abs=0.01) and union > 3.5 * alpha
    for combine in (min_p, cauchy_combination):
        assert (combine(p) <= alpha).double().mean().item() == pytest.approx(alpha, abs=3 * math.sqrt(alpha / 20000))


def test_thresholds_from_the_evaluated_samples_find_members_where_there_are_none():
    """The best of many attacks, each with its threshold set on the evaluated labels, beats 5 % on noise by choice alone; held-out p-values do not."""
    scores = torch.randn(30, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    members, nonmembers = scores[:, :200], scores[:, 200:]
    thresholds = nonmembers.quantile(0.95, dim=1)
    best = (members > thresholds[:, None]).double().mean(1).max().item()
    null = torch.randn(30, 4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = torch.stack([empirical_p_values(s, z) for s, z in zip(members, null, strict=True)])
    assert best > 0.09 and (min_p(p) <= 0.05).double().mean() < 0.085


def test_cauchy_is_scipys_and_keeps_tiny_p_values():
    p = uniform(3, 50)
    expected = cauchy.sf(np.tan(np.pi * (0.5 - p.numpy())).mean(0))
    assert cauchy_combination(p).tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    assert cauchy_combination(torch.full((2, 1), 1e-30)).item() == pytest.approx(1e-30, rel=1e-6)
    naive = 0.5 - math.atan(math.tan(math.pi * (0.5 - 1e-30))) / math.pi
    assert naive < 1e-15 or abs(naive / 1e-30 - 1) > 1  # what is not computed with the cotangent is lost
    weighted = cauchy_combination(torch.tensor([[0.01], [0.7]]), torch.tensor([1.0, 0.0]))
    assert weighted.item() == pytest.approx(0.01, rel=1e-6)


def test_min_p_keeps_tiny_p_values():
    assert min_p(torch.tensor([[1e-18], [0.5]])).item() == pytest.approx(2e-18, rel=1e-6)
    assert 1 - (1 - 1e-18) ** 2 == 0  # the formula as written


@pytest.mark.parametrize("combine", ["min_p", "cauchy"])
def test_nonmembers_are_accused_as_often_as_the_p_value_says(combine):
    rates = []
    for seed in range(4):
        p = Ensemble(combine=combine).p_values(**audited(800, 16, memory=2, seed=seed))
        rates.append((p[400:] <= 0.05).double().mean().item())
        assert (p[:400] <= 0.05).double().mean() > 0.2
    assert np.mean(rates) < 0.07  # 1,600 samples: ± 0.011 at two standard errors


def test_members_that_different_attacks_find_are_found_by_the_ensemble():
    """One attack sees the first half of the members, another the other half: the ensemble sees both."""

    class Sees(MembershipAudit):
        """Reads one logit and forgets the rest."""

        needs_shadows = False

        def scores(self, target_logits, labels, shadow_logits=None, included=None):
            return target_logits[:, self.column]

    left, right = (type(f"Sees{c}", (Sees,), {"name": f"sees{c}", "paper": "", "column": c})() for c in (0, 1))
    rng, n = torch.Generator().manual_seed(0), 800
    target, shadow = torch.randn(n, 2, generator=rng), torch.randn(8, n, 2, generator=rng)
    target[:200, 0] += 4
    target[200:400, 1] += 4
    inputs = {"target_logits": target, "labels": torch.zeros(n).long(), "shadow_logits": shadow, "included": halves(8, n)}
    both, *alone = (auc(s[:400], s[400:]).value for s in (Ensemble(attacks=(left, right))(**inputs), target[:, 0], target[:, 1]))
    assert both > 0.95 and max(alone) < 0.8


def test_no_two_samples_tie_and_the_order_is_that_of_the_p_values():
    inputs = audited(600, 8, memory=3)
    scores, p = Ensemble()(**inputs), Ensemble().p_values(**inputs)
    assert p.unique().numel() < 500 < scores.unique().numel()
    assert (p[scores.argsort()].diff() <= 1e-12).all()


def test_ties_are_broken_within_their_level_only():
    scores = _ordered(torch.tensor([1.0, 2.0, 1.0, 2.0]).double(), torch.tensor([100.0, -100.0, -100.0, 100.0]).double())
    assert scores.argsort().tolist() == [2, 0, 1, 3] and (_ordered(torch.zeros(3).double(), torch.zeros(3).double()) == 0.25).all()


def test_a_single_attack_keeps_its_order():
    inputs = audited(400, 8, memory=2)
    for attack in (LossThreshold(), LiRA(), RMIA()):
        found, alone = Ensemble(attacks=(attack,))(**inputs), attack(**inputs)
        members = torch.arange(400) < 200
        assert auc(found[members], found[~members]).value == pytest.approx(auc(alone[members], alone[~members]).value, abs=2e-3)


def test_online_is_passed_on_and_more_models_are_needed_than_by_each_attack():
    assert Ensemble().models_needed == (3, 3) and Ensemble(online=False).models_needed == (0, 3)
    assert Ensemble(attacks=(LossThreshold(),)).models_needed == (1, 1)
    with pytest.raises(DataError, match="at least 3 shadow models trained on it"):
        Ensemble()(**audited(40, 4, 1.0))


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="at least one MembershipAudit"):
        Ensemble(attacks=())
    with pytest.raises(ConfigError, match="combine must be one of 'min_p', 'cauchy'"):
        Ensemble(combine="union")
    with pytest.raises(DataError, match="got 0 of non-members"):
        empirical_p_values(torch.zeros(2), torch.zeros(0))
    with pytest.raises(DataError, match=r"in \[0, 1\]"):
        min_p(torch.tensor([[1.5]]))
    with pytest.raises(DataError, match="at least one attack"):
        cauchy_combination(torch.zeros(0, 3))
    with pytest.raises(DataError, match="each of the 1 attacks"):
        cauchy_combination(torch.tensor([[0.5]]), torch.tensor([-1.0]))
    inputs = audited(20, 8, 1.0)
    with pytest.raises(DataError, match="complementary pairs"):
        Ensemble()(**inputs | {"included": (inputs["included"] ^ (torch.arange(8) == 7)[:, None] & (torch.arange(20) == 0))})
