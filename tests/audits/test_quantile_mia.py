import json
import math

import pytest
import torch

from expunge.audits.quantile_mia import HEADS, QuantileResult, _checked_levels, _minimise, _pinball, _Quantiles, _ridge, quantile_mia
from expunge.errors import ConfigError, DataError
from expunge.metrics import auc


def world(n: int, seed: int, shift: float = 0.0, spread: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores that depend on the features in mean and in spread, members `shift` higher; and features."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=rng, dtype=torch.float64)
    return 3 * x[:, 0] - x[:, 1] + torch.exp(spread * x[:, 2]) * torch.randn(n, generator=rng, dtype=torch.float64) + shift, x


PUBLIC, PUBLIC_X = world(2000, 0)


@pytest.mark.parametrize("head", HEADS)
def test_members_are_found_that_the_score_alone_hides(head):
    (out, out_x), (own, own_x) = world(500, 1), world(500, 2, shift=2)
    found = quantile_mia(torch.cat([own, out]), torch.cat([own_x, out_x]), PUBLIC, PUBLIC_X, head=head)
    areas = [auc(s[:500], s[500:]).value for s in (found.scores, torch.cat([own, out]))]
    ideal = [(s - 3 * x[:, 0] + x[:, 1]) * torch.exp(-0.6 * x[:, 2]) for s, x in ((own, own_x), (out, out_x))]
    assert areas[0] > areas[1] + 0.15 and areas[0] == pytest.approx(auc(*ideal).value, abs=0.02)


@pytest.mark.parametrize("head", HEADS)
def test_nonmembers_are_accused_as_often_as_promised(head):
    scores, x = world(4000, 1)
    p = quantile_mia(scores, x, PUBLIC, PUBLIC_X, head=head).p_values
    for alpha in (0.01, 0.1, 0.5):
        # Both the audited samples and the 1,000 that calibrate are a sample.
        error = math.sqrt(alpha * (1 - alpha) * (1 / 4000 + 1 / 1000))
        assert (p <= alpha).double().mean().item() == pytest.approx(alpha, abs=3 * error)


def test_calibration_repairs_a_wrong_model_and_the_formula_without_it_does_not():
    """Non-members with heavy tails: the Gaussian's own tail probability accuses ten times too many at 0.1 %."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(16000, 2, generator=rng, dtype=torch.float64)
    scores = torch.distributions.StudentT(2.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scores = scores.sample((16000,)).double()
    found = quantile_mia(scores[:8000], x[:8000], scores[8000:], x[8000:])
    conformal = (found.p_values <= 0.005).double().mean().item()
    gaussian = (1 - torch.special.ndtr(found.scores) <= 1e-6).double().mean().item()
    assert conformal < 0.01 and gaussian > 1e-3


@pytest.mark.parametrize("head", HEADS)
def test_samples_that_were_fitted_do_not_calibrate(head):
    """150 samples and 100 features: on fitted samples the residuals are far too small, and every second non-member would be accused at 10 %."""
    rng = torch.Generator().manual_seed(0)
    x, scores = torch.randn(2300, 100, generator=rng), torch.randn(2300, generator=rng) + 3
    scores += x[:, :50].sum(1)
    found = quantile_mia(scores[300:], x[300:], scores[:300], x[:300], head=head)
    # Few calibration samples: the rate itself is Beta(15, 136), of standard deviation 0.025.
    assert found.rate(0.1).value < 0.1 + 3 * 0.025


def test_features_that_say_nothing_leave_the_order_of_the_scores():
    scores, x = torch.randn(300, generator=torch.Generator().manual_seed(1)), torch.ones(300, 3)
    for head in HEADS:
        found = quantile_mia(scores, x, torch.linspace(-3, 3, 400), torch.ones(400, 3), head=head)
        assert torch.equal(found.scores.argsort(), scores.double().argsort())


def test_sorted_quantiles_never_cross():
    fitted = _pinball(PUBLIC_X[:60], PUBLIC[:60], _checked_levels(None, 60))
    raw = PUBLIC_X @ fitted.weights + fitted.intercepts
    assert (raw[:, 1:] < raw[:, :-1]).any()  # as fitted they do
    at = torch.linspace(-30, 30, 200, dtype=torch.float64)
    one = PUBLIC_X[(raw[:, 1:] < raw[:, :-1]).any(1)][:1].expand(200, -1)
    assert (fitted(one, at).diff() > 0).all()
    at_quantiles = fitted(one[: len(fitted.levels)], raw[(raw[:, 1:] < raw[:, :-1]).any(1)][0].sort().values)
    torch.testing.assert_close(at_quantiles, -torch.log1p(-fitted.levels), rtol=1e-9, atol=1e-9)


def test_the_pinball_score_is_the_level_at_the_quantile():
    levels = torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64)
    fitted = _Quantiles(torch.zeros(1, 3).double(), torch.tensor([0.0, 1.0, 3.0]).double(), levels)
    t = fitted(torch.zeros(5, 1).double(), torch.tensor([0.0, 1.0, 2.0, 3.0, 6.0]).double())
    slope = (math.log(100) - math.log(2)) / 3
    expected = [math.log(2), math.log(10), (math.log(10) + math.log(100)) / 2, math.log(100), math.log(100) + 3 * slope]
    assert t.tolist() == pytest.approx(expected, abs=1e-6)


def test_fitted_quantiles_are_passed_by_their_level():
    levels = torch.tensor([0.1, 0.5, 0.9, 0.95], dtype=torch.float64)
    fitted = _pinball(PUBLIC_X, PUBLIC, levels)
    scores, x = world(4000, 3)
    below = (scores[:, None] <= x @ fitted.weights + fitted.intercepts).double().mean(0)
    assert below.tolist() == pytest.approx(levels.tolist(), abs=0.03)


def test_leave_one_out_residuals_are_those_of_the_loop():
    x, y = PUBLIC_X[:30] - PUBLIC_X[:30].mean(0), PUBLIC[:30]
    fitted = _ridge(x, y)
    gram = x.T @ x
    # The penalty is recovered from the weights: (XᵀX + λ) w = Xᵀ y.
    along = x.T @ (y - y.mean()) - gram @ fitted.weights
    penalty = float((along * fitted.weights).sum() / fitted.weights.square().sum())
    for i in range(5):
        # The row that is left out keeps the centre: an intercept column without penalty.
        kept = torch.arange(30) != i
        ones = torch.cat([x, torch.ones(30, 1).double()], 1)
        shrink = torch.diag(torch.tensor([penalty] * 6 + [0.0]).double())
        theta = torch.linalg.solve(ones[kept].T @ ones[kept] + shrink, ones[kept].T @ y[kept])
        assert fitted.residuals[i].item() == pytest.approx((y[i] - ones[i] @ theta).item(), abs=1e-6)


def test_the_minimiser_finds_the_minimum():
    target = torch.tensor([3.0, -2.0], dtype=torch.float64)
    found = _minimise(lambda t: ((t - target).square().sum(), 2 * (t - target)), torch.zeros(2).double(), 20)
    torch.testing.assert_close(found, target)


def test_levels_beyond_what_the_public_samples_say_are_refused():
    scores, x = world(10, 1)
    quantile_mia(scores, x, PUBLIC[:200], PUBLIC_X[:200], head="pinball", levels=[0.5, 0.99])
    with pytest.raises(ConfigError, match=r"\(0, 1 − 1/100\] = \(0, 0.99\]; got \[0.5, 0.999\]"):
        quantile_mia(scores, x, PUBLIC[:200], PUBLIC_X[:200], head="pinball", levels=[0.5, 0.999])
    with pytest.raises(ConfigError, match="ascending"):
        quantile_mia(scores, x, PUBLIC, PUBLIC_X, head="pinball", levels=[0.9, 0.5])
    assert _checked_levels(None, 1000).max() <= 0.99 + 1e-12 and (_checked_levels(None, 50).diff() > 0).all()


def test_rates_that_the_calibration_does_not_support_are_refused():
    found = QuantileResult(torch.zeros(4), torch.tensor([0.01, 0.01, 0.5, 1.0]), 99, 99)
    assert found.members(0.01).tolist() == [True, True, False, False]
    assert found.rate(0.01).value == 0.5 and str(found.rate(0.005)) == "n/a (needs 199 calibration samples, got 99)"
    with pytest.raises(ConfigError, match=r"1/\(n_calibration \+ 1\), 1\) = \[0.01, 1\); got 0.005"):
        found.members(0.005)


@pytest.mark.parametrize("head", HEADS)
def test_each_score_is_its_samples_own_and_the_world_stays_as_it_was(head):
    scores, x = world(60, 1)
    state = torch.get_rng_state()
    whole, part = (quantile_mia(scores[:n], x[:n], PUBLIC, PUBLIC_X, head=head) for n in (60, 7))
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(whole.scores[:7], part.scores, rtol=1e-9, atol=1e-9)
    assert not torch.equal(quantile_mia(scores, x, PUBLIC, PUBLIC_X, head=head, seed=1).scores, whole.scores)


def test_more_features_than_samples_are_no_obstacle_and_constant_scores_are_one():
    rng = torch.Generator().manual_seed(0)
    wide = torch.randn(80, 200, generator=rng), torch.randn(20, 200, generator=rng)
    for head in HEADS:
        found = quantile_mia(torch.randn(20, generator=rng), wide[1], torch.randn(80, generator=rng), wide[0], head=head)
        assert torch.isfinite(found.scores).all()
        with pytest.raises(DataError, match="public scores must differ.*80 times 0"):
            quantile_mia(torch.zeros(20), wide[1], torch.zeros(80), wide[0], head=head)


def test_the_result_is_plain_values():
    found = quantile_mia(*world(5, 1), PUBLIC, PUBLIC_X)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["p_values"] == found.p_values.tolist() and plain["n_fit"] == plain["n_calibration"] == 1000


def test_wrong_input_is_refused():
    scores, x = world(10, 1)
    with pytest.raises(ConfigError, match="'gaussian', 'pinball'; got 'forest'"):
        quantile_mia(scores, x, PUBLIC, PUBLIC_X, head="forest")
    with pytest.raises(DataError, match="at least 40 public samples with the 6 features.*got 39 with 6"):
        quantile_mia(scores, x, PUBLIC[:39], PUBLIC_X[:39])
    with pytest.raises(DataError, match="public samples must be finite.*for 1"):
        quantile_mia(scores, x, torch.cat([PUBLIC, torch.tensor([math.nan])]), torch.cat([PUBLIC_X, x[:1]]))
