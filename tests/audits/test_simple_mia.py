import json
import math

import numpy as np
import pytest
import torch

from expunge.audits.simple_mia import _logistic, _right, simple_mia
from expunge.errors import ConfigError, DataError


def losses(n: int, shift: float, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) + shift


def test_separate_losses_are_told_apart_and_equal_ones_are_not():
    assert simple_mia(losses(100, 0, 0), losses(100, 9, 1)).accuracy.value == 1
    same = simple_mia(losses(500, 0, 0), losses(500, 0, 1)).accuracy
    assert same.low < 0.5 < same.high and 0.4 < same.value < 0.6


def test_the_accuracy_on_gaussians_is_that_of_theory():
    """N(0, 1) against N(−1, 1): the best threshold lies halfway, accuracy Φ(½)."""
    found = simple_mia(losses(4000, -1, 0), losses(4000, 0, 1))
    assert found.accuracy.value == pytest.approx(0.5 * (1 + math.erf(0.5 / math.sqrt(2))), abs=3 * math.sqrt(0.25 / 8000))
    assert found.auc.value == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=0.02)


def test_it_is_the_starting_kits_number_up_to_the_choice_of_folds():
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

    forget, test = losses(300, -0.8, 0), losses(300, 0, 1)
    x, y = torch.cat([test, forget]).numpy()[:, None], np.repeat([0, 1], 300)
    kit = cross_val_score(LogisticRegression(), x, y, cv=StratifiedShuffleSplit(10, random_state=0), scoring="accuracy")
    ours = simple_mia(forget, test, balanced=False)
    assert ours.accuracy.value == pytest.approx(kit.mean(), abs=3 * kit.std() / math.sqrt(10))
    assert ours.folds.mean().item() == pytest.approx(ours.accuracy.value, abs=1e-9) and (ours.n_forget, ours.n_test) == (300, 300)


def test_unequal_groups_do_not_move_the_balanced_accuracy_but_would_move_the_plain_one():
    """With 1 of 10 samples to be forgotten, calling nothing forgotten is 91 % accurate."""
    found = simple_mia(losses(100, 0, 0), losses(1000, 0, 1))
    assert found.accuracy.low < 0.5 < found.accuracy.high < 0.65 and (found.n_forget, found.n_test) == (100, 1000)
    cut = simple_mia(losses(100, 0, 0), losses(1000, 0, 1), balanced=False)
    assert (cut.n_forget, cut.n_test) == (100, 100) and cut.accuracy.value < 0.65


def test_intervals_raise_at_most_one_false_alarm_in_twenty_and_cover():
    """An interval over samples alone would not: near the null the regressions of folds turn their signs together."""
    found = [simple_mia(losses(60, 0, 2 * r), losses(60, 0, 2 * r + 1), n_folds=5, seed=r).accuracy for r in range(60)]
    assert sum(e.low > 0.5 for e in found) <= 3  # measured on 300: 0.7 %
    assert sum(e.low <= 0.5 <= e.high for e in found) >= 52  # measured on 300: 95 %


def test_the_interval_is_never_narrower_than_that_over_folds_nor_than_the_exact_one():
    from scipy.stats import t

    found = simple_mia(losses(100, -1, 0), losses(100, 0, 1))
    corrected = t.ppf(0.975, 9) * math.sqrt(float(found.folds.var()) * (1 / 10 + 20 / 180))
    naive = t.ppf(0.975, 9) * math.sqrt(float(found.folds.var()) / 10)  # folds as if independent
    assert found.accuracy.high - found.accuracy.value >= corrected - 1e-9 > naive
    perfect = simple_mia(losses(100, -9, 0), losses(100, 9, 1)).accuracy
    assert perfect.low < 1  # no variance over folds, and still not certain


def test_the_seed_decides_and_the_world_stays_as_it_was():
    forget, test, state = losses(60, -0.3, 0), losses(80, 0, 1), torch.get_rng_state()
    a, b, c = (simple_mia(forget, test, balanced=False, seed=s) for s in (0, 0, 1))
    assert torch.equal(a.folds, b.folds) and not torch.equal(a.folds, c.folds) and torch.equal(state, torch.get_rng_state())


def test_the_result_is_plain_values():
    found = simple_mia(losses(20, -1, 0), losses(20, 0, 1))
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["accuracy"]["value"] == found.accuracy.value and len(plain["folds"]) == 10 and plain["n_test"] == 20


def test_wrong_input_is_refused():
    good = losses(20, 0, 0)
    with pytest.raises(DataError, match="test losses must be finite; got 1 NaN"):
        simple_mia(good, torch.cat([good, torch.tensor([math.nan])]))
    with pytest.raises(DataError, match=r"forget losses.*each of 10 folds; got shape \(9,\).*fewer folds"):
        simple_mia(good[:9], good)
    with pytest.raises(ConfigError, match="n_folds must be an integer ≥ 2; got 1"):
        simple_mia(good, good, n_folds=1)
    with pytest.raises(ConfigError, match="level"):
        simple_mia(good, good, level=95.0)


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_the_regressions_are_scikit_learns(scale):
    from sklearn.linear_model import LogisticRegression

    x, member = scale * torch.cat([losses(80, -0.7, 0), losses(200, 0, 1)]).double(), torch.arange(280) < 80
    weights = torch.rand(3, 280, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    slope, intercept = _logistic(x, member.double() * 2 - 1, weights)
    for k in range(3):
        fit = LogisticRegression(tol=1e-10, max_iter=10000).fit(x[:, None].numpy(), member.numpy(), weights[k].numpy())
        assert slope[k].item() == pytest.approx(fit.coef_.item(), rel=1e-3, abs=1e-5)
        assert intercept[k].item() == pytest.approx(fit.intercept_.item(), rel=1e-3, abs=1e-4)


def test_no_sample_is_judged_by_a_regression_that_saw_it():
    from sklearn.linear_model import LogisticRegression

    member, fold, in_sample_differs = torch.arange(20) < 10, torch.arange(20) % 5, False
    for seed in range(5):
        x, held_out, seen = losses(20, 0, seed).double(), torch.empty(20).bool(), torch.empty(20).bool()
        for k in range(5):
            for verdicts, fitted in ((held_out, fold != k), (seen, fold >= 0)):
                fit = LogisticRegression(class_weight="balanced", tol=1e-10).fit(x[fitted, None].numpy(), member[fitted].numpy())
                verdicts[fold == k] = torch.tensor(fit.predict(x[fold == k, None].numpy())) == member[fold == k]
        assert torch.equal(_right(x, member, fold, 5), held_out)
        in_sample_differs |= not torch.equal(held_out, seen)
    assert in_sample_differs


def test_separable_constant_and_enormous_losses_are_fitted_without_overflow():
    rare = torch.cat([losses(50, 0, 0), torch.tensor([1e6])])
    for forget, test in ((torch.zeros(50), torch.zeros(50)), (rare, losses(50, 0, 1)), (losses(50, 1e6, 0), losses(50, 0, 1))):
        assert 0 <= simple_mia(forget, test).accuracy.value <= 1
    assert simple_mia(torch.zeros(50), torch.zeros(50)).accuracy.value == 0.5
