"""Quantile-regression MIA: is the score of this sample higher than non-members that look like it can have?

Instead of shadow models, one regression learns on public samples (non-members) how the score of a non-member depends on its features φ(x):

    "gaussian"   s | φ ~ N(μ(φ), σ(φ)²),  μ and log σ linear          score (s − μ) / σ
    "pinball"    q_τ(φ) linear, for several levels τ, sorted          score −log(1 − τ) where q_τ(φ) = s, interpolated

    p(x) = (1 + #{calibration samples with a score ≥ that of x}) / (n + 1)

The p-values are calibrated on public samples that the regression did not see (conformal), so that of non-members at most a share α has
p ≤ α, however bad the regression is. That holds on average over samples, not for each kind of sample.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from ..errors import ConfigError, DataError
from ..metrics.estimate import Estimate, proportion_interval, unsupported
from ..rng import permutation

HEADS = ("gaussian", "pinball")
LEAST_PUBLIC = 40
SMOOTH = 0.05  # standard deviations over which the corner of the pinball loss is rounded
PENALTIES = (0.01, 0.1, 1.0)  # on the slopes of log σ; and none at all, a constant σ
SHRINK = 0.003  # penalty on what quantiles deviate from a shifted mean


@final
@dataclass(frozen=True, eq=False)
class QuantileResult:
    """Membership scores from a quantile regression.

    Attributes:
        scores: (N,) float64, higher = more likely a member.
        p_values: (N,) in [1/(n + 1), 1], n = n_calibration: how likely a non-member scores this high.
        n_fit, n_calibration: public samples that the regression and the p-values are made of.
    """

    scores: Float[Tensor, " N"]
    p_values: Float[Tensor, " N"]
    n_fit: int
    n_calibration: int

    def members(self, fpr: float) -> Bool[Tensor, " N"]:
        """Whether each sample is called a member at this false-positive rate, p ≤ fpr.

        Raises:
            ConfigError: fpr below 1/(n_calibration + 1), which no number of calibration samples this small supports, or not in (0, 1).
        """
        least = 1 / (self.n_calibration + 1)
        if not least <= fpr < 1:
            raise ConfigError(
                f"fpr must be in [1/(n_calibration + 1), 1) = [{least:.3g}, 1); got {fpr!r}. Smaller rates need more public samples."
            )
        return self.p_values <= fpr

    def rate(self, fpr: float, level: float = 0.95) -> Estimate:
        """The share of samples that are called members at this false-positive rate, with its exact interval; `fpr` itself = nothing found."""
        if fpr * (self.n_calibration + 1) < 1:
            return unsupported(f"needs {math.ceil(1 / fpr) - 1} calibration samples, got {self.n_calibration}", len(self.scores))
        found, n = int(self.members(fpr).sum()), len(self.scores)
        return Estimate(found / n, *proportion_interval(found, n, level), n)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "scores": self.scores.tolist(),
            "p_values": self.p_values.tolist(),
            "n_fit": self.n_fit,
            "n_calibration": self.n_calibration,
        }


def quantile_mia(
    target: Float[Tensor, " N"],
    features: Float[Tensor, "N D"],
    public: Float[Tensor, " P"],
    public_features: Float[Tensor, "P D"],
    *,
    head: str = "gaussian",
    levels: Sequence[float] | None = None,
    seed: int = 0,
) -> QuantileResult:
    """Scores and calibrated p-values of samples, given scores and features of public samples that no audited model was trained on.

    Half of the public samples, drawn at random, fit the regression; the other half calibrate. The penalty of the mean is chosen by leave-one-out
    in closed form, that of log σ on a fifth of the fitted samples.

    Use when: no shadow models can be trained, and there are public samples like the audited ones. Cost: no training; at 10,000 public samples of
    512 features 2 s ("gaussian") and 4 s ("pinball") of one core.

    Args:
        target: scores under the audited model, higher = member; `hinge` in the paper, `logit_margin` likewise.
        features: of the same samples, frozen: penultimate activations of a public network, say; of the audited model they would themselves
            tell members from non-members.
        public, public_features: of P ≥ 40 public samples.
        head: "gaussian" (robust default) or "pinball".
        levels: of the pinball head, in (0, 1 − 1/n_fit], ascending; None = 0.05 … 0.9, then up to 1 − 10/n_fit evenly in the logarithm.
        seed: of the halves; the global generators are not touched.

    Raises:
        ConfigError: an unknown head, or levels out of range: beyond 1 − 1/n_fit no sample says anything.
        DataError: shapes do not fit, values are not finite, too few public samples, or public scores that are all the same.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> x, public_x = torch.randn(200, 3, generator=rng), torch.randn(1000, 3, generator=rng)
        >>> noise, public_noise = torch.randn(200, generator=rng), torch.randn(1000, generator=rng)
        >>> found = quantile_mia(4 * x[:, 0] + noise + 3, x, 4 * public_x[:, 0] + public_noise, public_x)
        >>> print(found.rate(0.05))
        0.925 [0.879, 0.957]

    Paper: Bertran et al., "Scalable Membership Inference Attacks via Quantile Regression", NeurIPS 2023, arXiv:2307.03694.
    Departures: a linear head on frozen features instead of a network; σ is fitted to the leave-one-out residuals of μ instead of jointly
        (in-sample residuals are too small); conformal calibration; quantiles that cross are sorted at every level spacing.
    """
    if head not in HEADS:
        raise ConfigError(f"head must be one of {', '.join(map(repr, HEADS))}; got {head!r}.")
    target, public = _checked("audited", target, features), _checked("public", public, public_features)
    if features.shape[1] != public_features.shape[1] or len(public) < LEAST_PUBLIC:
        raise DataError(
            f"at least {LEAST_PUBLIC} public samples with the {features.shape[1]} features of the audited ones are needed; "
            f"got {len(public)} with {public_features.shape[1]}. Take both from one network."
        )
    if float(public.max()) <= float(public.min()):
        raise DataError(f"public scores must differ, or there is nothing to regress on; got {len(public)} times {float(public[0]):g}.")
    order = permutation(len(public), seed)
    fit, calibrate = order[: len(order) // 2], order[len(order) // 2 :]
    at = _checked_levels(levels, len(fit))
    x = public_features.detach().cpu().double()
    columns = _Columns(x[fit])
    learnt = (_gaussian if head == "gaussian" else _pinball)(columns(x[fit]), public[fit], at)
    null = learnt(columns(x[calibrate]), public[calibrate]).sort().values
    scores = learnt(columns(features.detach().cpu().double()), target)
    above = len(null) - torch.searchsorted(null, scores)
    return QuantileResult(scores, (1 + above).double() / (len(null) + 1), len(fit), len(calibrate))


class _Columns:
    """Features as they are fitted: centred and scaled by the fitted samples; constant ones vanish."""

    def __init__(self, x: Tensor):
        self.centre, deviation = x.mean(0), x.std(0)
        self.scale = torch.where(deviation > 1e-12, 1 / deviation.clamp_min(1e-12), 0.0)

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.centre) * self.scale


class _Mean(NamedTuple):
    weights: Tensor
    intercept: Tensor
    residuals: Tensor  # of each fitted sample, by the regression without it

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weights + self.intercept


class _Gaussian(NamedTuple):
    mean: _Mean
    weights: Tensor
    intercept: Tensor

    def __call__(self, x: Tensor, scores: Tensor) -> Tensor:
        return (scores - self.mean(x)) * torch.exp(-(x @ self.weights + self.intercept))


class _Quantiles(NamedTuple):
    weights: Tensor  # (D, L)
    intercepts: Tensor
    levels: Tensor

    def __call__(self, x: Tensor, scores: Tensor) -> Tensor:
        """−log(1 − τ) at the score, linear between the quantiles, and beyond them with their mean slope."""
        q, t = (x @ self.weights + self.intercepts).sort(1).values, -torch.log1p(-self.levels)
        width = (q[:, 1:] - q[:, :-1]).clamp_min(1e-9)
        steps = ((scores[:, None] - q[:, :-1]) / width).clamp(0, 1) * (t[1:] - t[:-1])
        slope = (t[-1] - t[0]) / width.sum(1)
        outside = (scores - q[:, -1]).clamp_min(0) - (q[:, 0] - scores).clamp_min(0)
        return t[0] + steps.sum(1) + slope * outside


def _ridge(x: Tensor, y: Tensor) -> _Mean:
    """Ridge regression with the penalty of the smallest leave-one-out error."""
    n, centre = len(y), y.mean()
    size, basis = torch.linalg.eigh(x.T @ x)
    size, rotated = size.clamp_min(0), x @ basis
    along = rotated.T @ (y - centre)
    found = []
    for penalty in (size.mean().clamp_min(1e-12) * torch.logspace(-5, 4, 19, dtype=torch.float64)).tolist():
        left = 1 - 1 / n - (rotated.square() @ (1 / (size + penalty)))  # 1 − the leverage of each sample
        residuals = (y - centre - rotated @ (along / (size + penalty))) / left.clamp_min(1e-6)
        found.append((float(residuals.square().mean()), penalty, residuals))
    _, penalty, residuals = min(found, key=lambda tried: tried[0])
    return _Mean(basis @ (along / (size + penalty)), centre, residuals)


def _gaussian(x: Tensor, y: Tensor, levels: Tensor) -> _Gaussian:
    mean = _ridge(x, y)
    squares = mean.residuals.square().clamp_min(1e-24 + 1e-12 * float(mean.residuals.square().mean()))
    kept = torch.arange(len(x)) % 5 != 0
    constant = torch.zeros(x.shape[1], dtype=torch.float64), squares[kept].mean().log() / 2
    tried: list[tuple[float, float | None]] = [(_nll(x[~kept], squares[~kept], *constant), None)]
    tried += [(_nll(x[~kept], squares[~kept], *_log_sd(x[kept], squares[kept], p)), p) for p in PENALTIES]
    penalty = min(tried, key=lambda pair: pair[0])[1]
    if penalty is None:
        return _Gaussian(mean, constant[0], squares.mean().log() / 2)
    return _Gaussian(mean, *_log_sd(x, squares, penalty))


def _nll(x: Tensor, squares: Tensor, weights: Tensor, intercept: Tensor) -> float:
    log_sd = x @ weights + intercept
    return float((squares / 2 * torch.exp(-2 * log_sd) + log_sd).mean())


def _log_sd(x: Tensor, squares: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """The slopes and intercept of log σ that make the residuals likeliest: a convex problem."""
    base = squares.mean().log() / 2
    relative = squares * torch.exp(-2 * base)
    theta = torch.zeros(x.shape[1] + 1, dtype=torch.float64)

    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        weights, log_sd = theta[:-1], (x @ theta[:-1] + theta[-1]).clamp(-20, 20)
        scaled = relative * torch.exp(-2 * log_sd)
        slope = (1 - scaled) / len(x)
        gradient = torch.cat([x.T @ slope + penalty * weights, slope.sum()[None]])
        return (scaled / 2 + log_sd).mean() + penalty * weights.square().sum() / 2, gradient

    theta = _minimise(objective, theta, iterations=60)
    return theta[:-1], theta[-1] + base


def _pinball(x: Tensor, y: Tensor, levels: Tensor) -> _Quantiles:
    """Linear quantiles: what is learnt is how each deviates from the mean, so that few samples give shifted means."""
    mean = _ridge(x, y)
    scale = mean.residuals.std().clamp_min(1e-12)
    left, (n, d), m = mean.residuals / scale, x.shape, len(levels)
    start = torch.cat([torch.zeros(d, m, dtype=torch.float64), torch.quantile(left, levels)[None]])

    def objective(theta: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.view(d + 1, m)
        over = left[:, None] - x @ theta[:-1] - theta[-1]
        # The pinball loss max(τu, (τ − 1)u) with its corner rounded: τu + h·softplus(−u/h).
        value = (levels * over + SMOOTH * softplus(-over / SMOOTH)).sum() / n + SHRINK * theta[:-1].square().sum() / 2
        slope = (torch.sigmoid(-over / SMOOTH) - levels) / n
        return value, torch.cat([x.T @ slope + SHRINK * theta[:-1], slope.sum(0)[None]]).flatten()

    theta = _minimise(objective, start.flatten(), iterations=40).view(d + 1, m)
    return _Quantiles(mean.weights[:, None] + scale * theta[:-1], mean.intercept + scale * theta[-1], levels)


def _minimise(objective: Callable[[Tensor], tuple[Tensor, Tensor]], theta: Tensor, iterations: int) -> Tensor:
    """LBFGS on a convex function that returns its value and gradient."""
    theta = theta.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([theta], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe", tolerance_change=1e-10)

    @torch.no_grad()
    def closure() -> Tensor:
        value, theta.grad = objective(theta.detach())
        return value

    optimizer.step(closure)
    return theta.detach()


def _checked(what: str, scores: Tensor, features: Tensor) -> Tensor:
    if len(scores) != len(features) or len(scores) == 0:
        raise DataError(f"{what} samples need a score and a row of features each; got {len(scores)} scores and {len(features)} rows.")
    broken = int((~torch.isfinite(scores)).sum()) + int((~torch.isfinite(features)).any(1).sum())
    if broken:
        raise DataError(f"scores and features of {what} samples must be finite; got NaN or infinity for {broken}. Check the networks.")
    return scores.detach().cpu().double()


def _checked_levels(levels: Sequence[float] | None, n: int) -> Tensor:
    if levels is None:
        tail = -torch.logspace(-1, math.log10(max(10 / n, 1e-4)), 12, dtype=torch.float64) + 1 if n > 200 else torch.tensor([0.9]).double()
        return torch.cat([torch.linspace(0.05, 0.85, 9, dtype=torch.float64), tail])
    found = torch.tensor(levels, dtype=torch.float64)
    highest = 1 - 1 / n
    if len(found) < 2 or not (found[1:] > found[:-1]).all() or not float(found[0]) > 0 or not float(found[-1]) <= highest:
        raise ConfigError(
            f"levels must be at least two ascending numbers in (0, 1 − 1/{n}] = (0, {highest:.4g}]; got {list(levels)}. "
            f"Beyond {highest:.4g} the {n} fitted public samples say nothing: leave levels out, or pass more public samples."
        )
    return found
