"""Risk sample by sample: how probable it is that a model was trained on each one.

Asks about one model, with shadow models: the likelihood ratio of LiRA, turned into a probability by how often shadow models with such a ratio had truly seen the sample.
exposure.py asks about a method, with many unlearned models of a pool.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from ..errors import ConfigError, DataError
from ..metrics.estimate import Estimate, check_level, mean_estimate
from .groups import check_groups
from .lira import Group, lira_leave_one_out, moments
from .populations import checked_margins

LEAST_IN_BIN = 40  # judged pairs of model and sample for each step of the calibration curve
MOST_BINS = 400


@final
@dataclass(frozen=True, eq=False)
class Risk:
    """For each sample the probability that the model was trained on it, at prior 1/2.

    Attributes:
        ids: (N,) as given. probability, low, high: (N,) float64 in (0, 1); the interval is of the sample's fit, at `level`.
        brier: mean squared error of such probabilities on the shadow models, of which the truth is known; 0.25 = knows nothing. Its interval is over models.
        n_models: shadow models. level: of confidence.
    """

    ids: Tensor
    probability: Tensor
    low: Tensor
    high: Tensor
    brier: Estimate
    n_models: int
    level: float

    def riskiest(self, k: int) -> list[tuple[int, Estimate]]:
        """The k samples with the highest probability, (id, estimate), highest first."""
        return top(self.ids, self.probability, self.low, self.high, k, self.n_models)

    def first(self, n: int) -> "Risk":
        """The same for the first n samples alone."""
        return replace(self, ids=self.ids[:n], probability=self.probability[:n], low=self.low[:n], high=self.high[:n])

    def __getitem__(self, sample: int) -> Estimate:
        """Of the sample with this id."""
        i = int((self.ids == sample).nonzero()[0])
        return Estimate(float(self.probability[i]), float(self.low[i]), float(self.high[i]), self.n_models)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        lists = {name: getattr(self, name).tolist() for name in ("ids", "probability", "low", "high")}
        return lists | {"brier": self.brier.to_dict(), "n_models": self.n_models, "level": self.level}


def membership_risk(
    target: Tensor,
    shadow: Tensor,
    included: Tensor,
    ids: Tensor | None = None,
    level: float = 0.95,
    *,
    prior_weight: float = 10.0,
    drop_mates: bool = True,
) -> Risk:
    """The probability, sample by sample, that the target was trained on it, calibrated on the shadow models.

        Λ = log N(φ; μ_in, σ_in²) − log N(φ; μ_out, σ_out²)  with shrunk variances,    P = C(Λ)
        Var Λ ≈ Σ_in,out [ z²/n + (z² − 1)² / (2 (ν₀ + n − 1)) ]

    C is the share of true members among shadow models' own Λ of that size, each judged by the others (isotonic, in bins; at most 1/2 pseudo-pair of each kind). So samples are
    shrunk twice: variances towards the population's, and what a Gaussian claims towards how often it was right. The interval is C(Λ ± z √Var Λ).

    Args:
        target: (N,) margins of the model under audit (`logit_margin`).
        shadow: (M, N) margins of shadow models, M ≥ 6. included: (M, N) bool, which trained on which.
        ids: (N,) integers; None = positions.
        level: confidence in (0, 1).
        prior_weight: ν₀ ≥ 0, observations that the pooled variance is worth.
        drop_mates: leave out the complement when a shadow model is judged; False if halves were drawn independently.

    Raises:
        DataError: shapes do not fit, NaN, or too few models. ConfigError: a setting is outside its range.

    Cost: that of `lira_leave_one_out`, and one sort of M · N numbers.

    Paper: Carlini et al., IEEE S&P 2022, arXiv:2112.03570 (the ratio). Departures: probability instead of a score; the calibration is ours. The target must be like the
    shadow models: for a model that was unlearned the probability says what the shadow models' population would make of its margins.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> half = torch.rand(16, 300, generator=rng) < 0.5
        >>> included = torch.stack([half, ~half], 1).flatten(0, 1)
        >>> shadow = torch.randn(32, 300, generator=rng) + 1.5 * included
        >>> risk = membership_risk(torch.tensor([0.75, 3.5, -2.0]).repeat(100), shadow, included)
        >>> print(*(f"{p:.2f}" for p in risk.probability.view(-1, 3).mean(0).tolist()))
        0.49 0.94 0.07
    """
    return calibrate_risk(shadow, included, level, prior_weight=prior_weight, drop_mates=drop_mates)(target, ids)


@final
@dataclass(frozen=True, eq=False)
class RiskModel:
    """What shadow models say about margins: called with those of one model, it gives `Risk`. Made by `calibrate_risk`.

    Attributes:
        brier: of the probabilities on the shadow models. n_models: shadow models. level: of confidence.
    """

    brier: Estimate
    n_models: int
    level: float
    _curve: "_Curve"
    _centre: Tensor
    _groups: tuple[Group, Group]
    _prior_weight: float

    def __call__(self, target: Tensor, ids: Tensor | None = None) -> Risk:
        """The risk of each sample under the model with these margins, (N,); ids as in `membership_risk`."""
        n = len(self._centre)
        target, ids = checked_margins("the target", target[None], 1, n)[0], checked_ids(ids, n)
        ratio, error = _ratio(target - self._centre, *self._groups, prior_weight=self._prior_weight)
        reach = float(ndtri((1 + self.level) / 2)) * error
        probability, low, high = (torch.from_numpy(self._curve(x.numpy())) for x in (ratio, ratio - reach, ratio + reach))
        return Risk(ids, probability, low, high, self.brier, self.n_models, self.level)


def calibrate_risk(
    shadow: Tensor, included: Tensor, level: float = 0.95, *, prior_weight: float = 10.0, drop_mates: bool = True
) -> RiskModel:
    """The part of `membership_risk` that depends on the shadow models alone, and is nearly all of its cost: for many models on the same samples it is paid once.

    Args, Raises: as for `membership_risk`.

    Example:
        >>> shadow, included = torch.randn(8, 50), torch.tensor([True, False]).repeat(4)[:, None].expand(8, 50)
        >>> risk_of = calibrate_risk(shadow, included)
        >>> [len(risk_of(margins).probability) for margins in torch.randn(3, 50)]
        [50, 50, 50]
    """
    check_pool(shadow, included, level, 6)
    if not prior_weight >= 0:
        raise ConfigError(f"prior_weight must be a number ≥ 0; got {prior_weight!r}. 0 = each sample's own variance.")
    known = lira_leave_one_out(shadow, included, prior_weight=prior_weight, drop_mates=drop_mates)
    centre, seen, unseen = moments(shadow.detach().cpu(), included)
    return RiskModel(_brier(known, included, level), len(shadow), level, _calibrate(known, included), centre, (seen, unseen), prior_weight)


class _Curve(NamedTuple):
    """A calibration curve: log-odds between the centres of bins, level outside them."""

    at: np.ndarray
    log_odds: np.ndarray

    def __call__(self, ratio: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-np.interp(ratio, self.at, self.log_odds)))


def _calibrate(ratio: Tensor, included: Tensor) -> _Curve:
    """Members among judged pairs of model and sample, by bins of equal size of Λ, never decreasing."""
    from sklearn.isotonic import isotonic_regression

    ratios, truth = ratio.flatten().numpy(), included.flatten().numpy()
    order = np.argsort(ratios, kind="stable")
    edges = np.linspace(0, len(ratios), max(2, min(MOST_BINS, len(ratios) // LEAST_IN_BIN)) + 1).astype(int)
    size = np.diff(edges)
    members, at = np.add.reduceat(truth[order].astype(float), edges[:-1]), np.add.reduceat(ratios[order], edges[:-1]) / size
    level = isotonic_regression(members / size, sample_weight=size.astype(float), y_min=0.0, y_max=1.0)
    # Half a pseudo-pair of each kind for each level stretch: where all are members, the probability is that of as many pairs and not 1.
    stretch = np.unique(level, return_inverse=True)[1]
    pairs = np.bincount(stretch, weights=size)[stretch]
    level = (level * pairs + 0.5) / (pairs + 1)
    return _Curve(at, np.log(level / (1 - level)))


def _brier(ratio: Tensor, included: Tensor, level: float) -> Estimate:
    """Mean squared error of the probabilities on one half of the models, by the curve of the other half, and the other way round; over models."""
    half = len(ratio) // 2
    rows = []
    for told, judged in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        found = _calibrate(ratio[told], included[told])(ratio[judged].numpy())
        rows.append(((found - included[judged].numpy()) ** 2).mean(1))
    return replace(mean_estimate(np.concatenate(rows).tolist(), level, within=(0.0, 1.0)), n=ratio.numel())


def _ratio(target: Tensor, group_in: Group, group_out: Group, *, prior_weight: float) -> tuple[Tensor, Tensor]:
    """LiRA's Λ and its standard error from the means and variances that are only estimated, (N,) each."""
    ratio, variance = torch.zeros_like(target), torch.zeros_like(target)
    for sign, group in ((1, group_in), (-1, group_out)):
        fit = group.gaussian("shrunk", prior_weight)
        square = fit.z(target) ** 2
        ratio += sign * fit.log_density(target)
        variance += square / group.n + (square - 1) ** 2 / (2 * (prior_weight + group.n - 1))
    return ratio, variance.sqrt()


def top(ids: Tensor, value: Tensor, low: Tensor, high: Tensor, k: int, n: int) -> list[tuple[int, Estimate]]:
    """The k samples with the highest values, (id, estimate), highest first."""
    order = value.argsort(descending=True, stable=True)[:k].tolist()
    return [(int(ids[i]), Estimate(float(value[i]), float(low[i]), float(high[i]), n)) for i in order]


def check_pool(margins: Tensor, included: Tensor, level: float, least: int) -> int:
    """The number of samples of a checked pool: models (M, N) of which at least 2 have, and 2 have not, each sample."""
    check_level(level)
    n = checked_margins("models", margins, least).shape[1]
    if included.dtype != torch.bool or included.shape != margins.shape:
        raise DataError(f"included must be bool of shape {tuple(margins.shape)}; got {included.dtype} of shape {tuple(included.shape)}.")
    check_groups(included, 2, 2)
    return n


def checked_ids(ids: Tensor | None, n: int) -> Tensor:
    if ids is None:
        return torch.arange(n)
    if ids.shape != (n,) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise DataError(f"ids must be {n} integers, one for each sample; got {ids.dtype} of shape {tuple(ids.shape)}.")
    return ids.clone()
