import itertools
import json
import math

import numpy as np
import pytest
import torch

import oracles
from expunge.audits.lira import lira
from expunge.audits.u_lira import u_lira, u_lira_class, u_lira_floor
from expunge.audits.u_lira_pool import u_lira_pool
from expunge.errors import ConfigError, DataError
from expunge.metrics import tpr_at_fpr
from oracles import halves


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def models(n_models: int, n_samples: int, shift: float, seed: int) -> torch.Tensor:
    """Retrained models: samples differ, and each model as a whole is shifted, by `shift` standard deviations of a sample."""
    rng = torch.Generator().manual_seed(seed)
    sizes = ((n_models, n_samples, 1.0), (n_models, 1, shift), (1, n_samples, 3.0))
    return sum(scale * torch.randn(rows, columns, generator=rng, dtype=torch.float64) for rows, columns, scale in sizes)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))


@pytest.mark.parametrize("variance", ["per_example", "fixed", "shrunk"])
def test_scores_are_those_of_lira_with_unlearned_models_as_in(variance):
    target, unlearned, unseen = noise(30, seed=1), noise(4, 30, seed=2) + 1, noise(6, 30, seed=3)
    included = torch.tensor([[True]] * 4 + [[False]] * 6).expand(-1, 30)
    expected = oracles.lira(target.numpy(), torch.cat([unlearned, unseen]).numpy(), included.numpy(), variance)
    torch.testing.assert_close(u_lira(target, unlearned, unseen, variance), torch.tensor(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variance", ["per_example", "fixed", "shrunk"])
def test_class_protocol_equals_the_loop_over_pairs(variance):
    unlearned, unseen, fpr = noise(3, 60, seed=1) * 2 + 51, noise(4, 60, seed=2) + 50, 0.1
    everything, included = torch.cat([unlearned, unseen]), torch.tensor([[True]] * 3 + [[False]] * 4).expand(-1, 60)
    aucs, accuracies, tprs = [], [], []
    for i in range(3):
        for j in range(4):
            rest = [m for m in range(7) if m not in (i, 3 + j)]
            scores = [lira(x, everything[rest], included[rest], variance) for x in (unlearned[i], unseen[j])]
            aucs.append(oracles.auc_by_pairs(*scores))
            accuracies.append(float((scores[0] > 0).double().mean() + (scores[1] <= 0).double().mean()) / 2)
            tprs.append(tpr_at_fpr(*scores, fpr).value)
    result = u_lira_class(unlearned, unseen, variance=variance, fpr=fpr)
    assert result.auc.value == pytest.approx(np.mean(aucs), abs=1e-9)
    assert result.balanced_accuracy.value == pytest.approx(np.mean(accuracies), abs=1e-9)
    assert result.tpr.value == pytest.approx(np.mean(tprs), abs=1e-9)
    assert (result.n_unlearned, result.n_unseen, result.n_samples) == (3, 4, 60)


@pytest.mark.parametrize("n_models", [4, 8, 16])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_null_gives_one_half(n_models, shift):
    """Also where whole models are shifted, so that a single AUC may be anything."""
    n_seeds = 160 // n_models
    values = []
    for seed in range(n_seeds):
        x = models(2 * n_models, 40, shift, seed)
        values.append(u_lira_class(x[:n_models], x[n_models:]).auc.value)
    value, error = mean_and_error(values)
    assert value == pytest.approx(0.5, abs=3 * error)
    assert error < 0.1


@pytest.mark.parametrize(("n_unlearned", "n_unseen"), [(4, 4), (3, 6)])
def test_intervals_cover_one_half_although_whole_models_are_shifted(n_unlearned, n_unseen):
    """Without SHARED_FITS and the exact interval for few models, 0.75 to 0.8."""
    covered, accurate = 0, 0
    for seed in range(150):
        x = models(n_unlearned + n_unseen, 30, 3.0, seed)
        result = u_lira_class(x[:n_unlearned], x[n_unlearned:])
        covered += result.auc.low <= 0.5 <= result.auc.high
        accurate += result.balanced_accuracy.low <= 0.5 <= result.balanced_accuracy.high
    assert covered >= 0.9 * 150
    assert accurate >= 0.9 * 150


def test_planted_shift_reaches_the_auc_of_theory():
    """Margins N(μ_x, 1) for unseen and N(μ_x + d, 1) for unlearned models: AUC = Φ(d / √2), with enough models to fit."""
    shift, centre = 1.0, 5 * noise(2000, seed=1)
    result = u_lira_class(centre + noise(20, 2000, seed=2) + shift, centre + noise(20, 2000, seed=3), variance="fixed")
    truth = 0.5 * (1 + math.erf(shift / 2))
    # Means of 19 models are off by 0.23 each, which costs about 0.01 of AUC; 2000 samples and 20 models, about 0.005 either way.
    assert result.auc.value == pytest.approx(truth, abs=0.02)
    assert result.auc.low > 0.7 and result.auc.note is None


def test_models_that_did_not_unlearn_are_found():
    result = u_lira_class(noise(8, 500, seed=1) + 6, noise(8, 500, seed=2))
    assert result.auc.value >= 0.99 and result.balanced_accuracy.value >= 0.99 and result.tpr.value >= 0.95
    assert result.gap.low > 0.4


def test_perfect_separation_still_has_an_interval():
    result = u_lira_class(noise(4, 100, seed=1) + 100, noise(4, 100, seed=2))
    assert result.auc.value == 1 and result.auc.low < 0.5 and "fewer than 8" in result.auc.note
    many = u_lira_class(noise(9, 100, seed=1) + 100, noise(9, 100, seed=2))
    assert many.auc.value == 1 and 0.6 < many.auc.low < 1 and many.auc.note is None


def test_constant_margins_say_nothing():
    result = u_lira_class(torch.full((4, 600), 2.5), torch.full((4, 600), 2.5))
    assert (result.auc.value, result.balanced_accuracy.value, result.tpr.value) == (0.5, 0.5, 0.0)
    assert result.gap.value == 0 and result.gap.low == 0


def test_order_of_samples_and_of_models_changes_nothing():
    unlearned, unseen = noise(4, 200, seed=1) + 0.5, noise(5, 200, seed=2)
    samples, rows = torch.randperm(200, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 3, 1])
    first, second = u_lira_class(unlearned, unseen, fpr=0.05), u_lira_class(unlearned[rows][:, samples], unseen[:, samples], fpr=0.05)
    for name in ("auc", "balanced_accuracy", "tpr"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), abs=1e-9)


def test_floor_of_six_models_takes_all_ten_halvings():
    x = models(6, 50, 1.0, seed=4)
    firsts = [[0, *others] for others in itertools.combinations(range(1, 6), 2)]
    gaps = [u_lira_class(x[first], x[[k for k in range(6) if k not in first]]).gap.value for first in firsts]
    floor = u_lira_floor(x)
    assert (floor.value, floor.low, floor.high) == pytest.approx((np.mean(gaps), min(gaps), max(gaps)), abs=1e-9)
    assert floor.n == 6 and max(gaps) > 0.1


def test_floor_is_the_gap_of_models_with_nothing_to_forget():
    """A new comparison of equal models is as far from 0.5 as the floor says, on average."""
    gaps, floors = [], []
    for seed in range(40):
        x = models(12, 40, 1.0, seed)
        floors.append(u_lira_floor(x[:6]).value)
        gaps.append(u_lira_class(x[6:9], x[9:]).gap.value)
    (gap, gap_error), (floor, floor_error) = mean_and_error(gaps), mean_and_error(floors)
    assert gap == pytest.approx(floor, abs=3 * math.hypot(gap_error, floor_error)) and floor > 0.05


def test_floor_is_higher_where_whole_models_differ():
    assert u_lira_floor(models(8, 300, 3.0, seed=0)).value > 3 * u_lira_floor(models(8, 300, 0.0, seed=0)).value


def test_floor_depends_on_its_seed_alone():
    x, state = noise(7, 40, seed=5), torch.get_rng_state()
    first, again, other = (u_lira_floor(x, seed=seed).value for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("n_models", [8, 16, 64])
def test_pool_null_gives_one_half(n_models):
    results = []
    for seed in range(20):
        included = halves(n_models, 2000 // n_models, seed=seed)
        results.append(u_lira_pool(models(n_models, included.shape[1], 1.0, seed), included))
    value, error = mean_and_error([result.auc.value for result in results])
    assert value == pytest.approx(0.5, abs=3 * error)
    assert sum(result.auc.low <= 0.5 <= result.auc.high for result in results) >= 18


def test_pool_equals_the_loop_over_targets():
    included, fpr = halves(8, 80, seed=1)[torch.tensor([3, 0, 6, 1, 4, 2, 7, 5])], 0.25  # mates need not be neighbours
    after = noise(8, 80, seed=2) + 1.5 * included
    scores = oracles.leave_one_out(oracles.lira, after.numpy(), included.numpy())
    groups = [(torch.tensor(row)[own], torch.tensor(row)[~own]) for row, own in zip(scores, included, strict=True)]
    result = u_lira_pool(after, included, fpr=fpr)
    assert result.auc.value == pytest.approx(np.mean([oracles.auc_by_pairs(*group) for group in groups]), abs=1e-9)
    accuracies = [float((a > 0).double().mean() + (b <= 0).double().mean()) / 2 for a, b in groups]
    assert result.balanced_accuracy.value == pytest.approx(np.mean(accuracies), abs=1e-9)
    assert result.tpr.value == pytest.approx(np.mean([oracles.tpr_by_thresholds(*group, fpr) for group in groups]), abs=1e-9)


def test_pool_finds_samples_that_were_not_unlearned():
    included = halves(16, 500)
    result = u_lira_pool(noise(16, 500, seed=1) + 5 * included, included, fpr=0.05)
    assert result.auc.value >= 0.99 and result.auc.low > 0.9


def test_tpr_without_enough_samples_is_refused_and_few_are_noted():
    unlearned, unseen = noise(8, 200, seed=1), noise(8, 200, seed=2)
    assert str(u_lira_class(unlearned, unseen).tpr) == "n/a (TPR at 1% FPR needs 500 non-members, got 200)"
    assert "rests on 10 non-members" in u_lira_class(unlearned, unseen, fpr=0.05).tpr.note
    assert u_lira_class(unlearned, unseen, fpr=1.0).tpr.value == 1


def test_tpr_rises_with_the_rate_allowed():
    unlearned, unseen = noise(4, 300, seed=1) + 1, noise(4, 300, seed=2)
    rates = [u_lira_class(unlearned, unseen, fpr=fpr).tpr for fpr in (0.02, 0.1, 0.5, 1.0)]
    assert all(a.value <= b.value for a, b in itertools.pairwise(rates))
    assert all(rate.low <= rate.value <= rate.high for rate in rates)


def test_gap_folds_the_interval_at_one_half():
    low = u_lira_class(noise(8, 400, seed=1) + 2, noise(8, 400, seed=2))
    assert low.gap.low == pytest.approx(low.auc.low - 0.5) and low.gap.high == pytest.approx(low.auc.high - 0.5)
    null = u_lira_class(noise(8, 400, seed=1), noise(8, 400, seed=2))
    assert null.gap.low == 0 and null.gap.high == pytest.approx(max(0.5 - null.auc.low, null.auc.high - 0.5))


def test_the_result_prints_and_is_plain_values():
    result = u_lira_class(noise(3, 100, seed=1), noise(4, 100, seed=2))
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["auc"]["value"] == result.auc.value and plain["tpr"]["value"] is None and plain["n_unseen"] == 4
    assert str(result).startswith("U-LiRA (3 unlearned and 4 unseen models, 100 samples): AUC 0.") and "\n" not in str(result)


def test_wrong_input_is_refused():
    good = torch.zeros(4, 5)
    broken = good.clone()
    broken[1, 2] = math.nan
    with pytest.raises(DataError, match="at least 3 unlearned models; got 2. Train more"):
        u_lira_class(good[:2], good)
    with pytest.raises(DataError, match="at least 3 unseen models; got 2"):
        u_lira_class(good, good[:2])
    with pytest.raises(DataError, match="at least 6 unseen models; got 4"):
        u_lira_floor(good)
    with pytest.raises(DataError, match="at least 2 unseen models; got 1"):
        u_lira(good[0], good, good[:1])
    with pytest.raises(DataError, match="finite; got 1 NaN or infinite"):
        u_lira_class(broken, good)
    with pytest.raises(DataError, match="same 5 samples as the others; got 4"):
        u_lira_class(good, good[:, :4])
    with pytest.raises(DataError, match="the target must be of the same 5 samples"):
        u_lira(good[0, :4], good, good)
    with pytest.raises(DataError, match=r"floating point, .*got torch.int64 of shape \(4, 5\)"):
        u_lira_class(good.long(), good)
    with pytest.raises(ConfigError, match="variance must be one of .*got 'free'"):
        u_lira_class(good, good, variance="free")
    with pytest.raises(ConfigError, match="prior_weight"):
        u_lira_class(good, good, prior_weight=-1.0)
    with pytest.raises(ConfigError, match="fpr must be a fraction"):
        u_lira_class(good, good, fpr=0.0)
    with pytest.raises(ConfigError, match="level"):
        u_lira_class(good, good, level=1.0)


def test_pools_that_are_not_complementary_pairs_are_refused():
    after, included = torch.zeros(8, 20), halves(8, 20)
    lonely = included.clone()
    lonely[5, 3] = ~lonely[5, 3]
    for wrong in (lonely, included[[0, 1, 0, 1, 4, 5, 6, 7]], torch.tensor([[True], [False]]).repeat(4, 20)):
        with pytest.raises(DataError, match="complementary pairs.*got 8 models that are not. Draw a random half"):
            u_lira_pool(after, wrong)
    with pytest.raises(DataError, match="this audit needs at least 6 models; got 4"):
        u_lira_pool(after[:4], included[:4])
    with pytest.raises(DataError, match=r"included must be bool of shape \(8, 20\)"):
        u_lira_pool(after, included.float())
