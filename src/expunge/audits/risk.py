"""Risk sample by sample: how probable it is that a model was trained on each one, and which samples stay exposed after unlearning.

Two designs. `membership_risk` asks about one model, with shadow models: the likelihood ratio of LiRA, turned into a probability by how often shadow models with such a ratio
had truly seen the sample. `exposure` asks about a method, with many unlearned models of a pool: an AUC over models for each sample.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from ..errors import ConfigError, DataError
from ..metrics.estimate import Estimate, check_level
from .groups import check_groups
from .lira import Group, lira_leave_one_out, moments
from .told_apart import checked_margins

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
        return _top(self.ids, self.probability, self.low, self.high, k, self.n_models)

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


@final
@dataclass(frozen=True, eq=False)
class Exposure:
    """For each sample of a pool how well models that forgot it are told from models that never saw it.

    Attributes:
        ids: (N,) as given. auc: (N,) over models, as measured. shrunk, low, high: (N,) shrunk towards the pool's mean, with its interval at `level`.
        p_values: (N,) one-sided, of the AUC being 0.5. exposed: (N,) bool, chosen so that at most `fdr` of the chosen are expected to be chance.
        mean: of the AUCs, over samples. spread: τ, the standard deviation of the true AUCs; 0 where chance explains all of it.
        n_models, fdr, level: as given.
    """

    ids: Tensor
    auc: Tensor
    shrunk: Tensor
    low: Tensor
    high: Tensor
    p_values: Tensor
    exposed: Tensor
    mean: Estimate
    spread: float
    n_models: int
    fdr: float
    level: float

    def riskiest(self, k: int) -> list[tuple[int, Estimate]]:
        """The k samples with the highest shrunk AUC, (id, estimate), highest first."""
        return _top(self.ids, self.shrunk, self.low, self.high, k, self.n_models)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        lists = {name: getattr(self, name).tolist() for name in ("ids", "auc", "shrunk", "low", "high", "p_values", "exposed")}
        return lists | {"mean": self.mean.to_dict()} | {name: getattr(self, name) for name in ("spread", "n_models", "fdr", "level")}


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
    n = _check(shadow, included, level, 6)
    ids = _checked_ids(ids, n)
    target = checked_margins("the target", target[None], 1, n)[0]
    if not prior_weight >= 0:
        raise ConfigError(f"prior_weight must be a number ≥ 0; got {prior_weight!r}. 0 = each sample's own variance.")
    known = lira_leave_one_out(shadow, included, prior_weight=prior_weight, drop_mates=drop_mates)
    curve = _calibrate(known, included)
    centre, *groups = moments(shadow.detach().cpu(), included)
    ratio, error = _ratio(target - centre, *groups, prior_weight=prior_weight)
    reach = float(ndtri((1 + level) / 2)) * error
    probability, low, high = (torch.from_numpy(curve(x.numpy())) for x in (ratio, ratio - reach, ratio + reach))
    return Risk(ids, probability, low, high, _brier(known, included, level), len(shadow), level)


def exposure(
    after: Tensor, included: Tensor, ids: Tensor | None = None, fdr: float = 0.05, level: float = 0.95, *, standardise: bool = True
) -> Exposure:
    """For each sample of a pool the AUC, over models, of those that forgot it against those that never saw it; and which samples stay exposed.

        shrunk = Ā + τ² / (τ² + v) · (A − Ā),    v = (M + 1) / (3 M²): a standard error of 0.41 / √(M/2) at the null
        exposed: the largest r with p₍ᵣ₎ ≤ r · fdr / N (Benjamini-Hochberg)

    The distribution and the shrunk values are what to look at; the largest raw AUC of many samples is mostly luck.

    Args:
        after: (M, N) margins after unlearning, M ≥ 6 (`u_lira_pool`'s design). included: (M, N) bool, what each model trained on and then unlearned.
        ids: (N,) integers; None = positions.
        fdr: expected share of chance among the chosen, in (0, 1).
        level: confidence in (0, 1).
        standardise: take each sample's mean over models, and then each model's median over the pool, out of the margins, so that a model that is more confident as a whole says nothing.

    Raises:
        DataError: shapes do not fit, NaN, too few models, or a sample that fewer than 2 models forgot or never saw. ConfigError: a setting outside its range.

    Cost: one sort of M margins for each sample.

    Paper: Hayes et al., SaTML 2025, arXiv:2403.01218 (samples differ); Benjamini and Hochberg, JRSS B 1995. Departures: samples share models, so that their p-values depend on one
    another; the choice assumes that they do so positively.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> half = torch.rand(32, 200, generator=rng) < 0.5
        >>> included = torch.stack([half, ~half], 1).flatten(0, 1)
        >>> after = torch.randn(64, 200, generator=rng) + 2 * included * (torch.arange(200) < 20)
        >>> found = exposure(after, included)
        >>> int(found.exposed[:20].sum()), int(found.exposed[20:].sum()), [i for i, _ in found.riskiest(3)]
        (20, 2, [10, 1, 12])
    """
    n = _check(after, included, level, 6)
    ids = _checked_ids(ids, n)
    if not 0 < fdr < 1:
        raise ConfigError(f"fdr must be a share in (0, 1); got {fdr!r}. 0.05 = of 20 chosen samples one by chance.")
    margins = after.detach().cpu().double()
    if standardise:
        margins = margins - margins.mean(0)
        margins = margins - margins.median(1, keepdim=True).values
    area, p_values = _aucs(margins.numpy(), included.numpy())
    n_in = included.sum(0).double().numpy()
    n_out = len(margins) - n_in
    chance = (len(margins) + 1) / (12 * n_in * n_out)
    centre, z = float(area.mean()), float(ndtri((1 + level) / 2))
    between = max(0.0, float(area.var(ddof=1)) - float(chance.mean())) if n > 1 else 0.0
    weight = between / (between + chance)
    shrunk, error = centre + weight * (area - centre), np.sqrt(weight * chance + (1 - weight) ** 2 * (between + chance) / n)
    reach = z * math.sqrt((between + float(chance.mean())) / n)
    ends = (np.clip(shrunk + sign * z * error, 0, 1) for sign in (-1, 1))
    numbers = (torch.from_numpy(x) for x in (area, shrunk, *ends, p_values))
    mean = Estimate(centre, max(0.0, centre - reach), min(1.0, centre + reach), n)
    return Exposure(ids, *numbers, torch.from_numpy(benjamini_hochberg(p_values, fdr)), mean, math.sqrt(between), len(margins), fdr, level)


def benjamini_hochberg(p_values: np.ndarray, fdr: float) -> np.ndarray:
    """Which hypotheses to reject so that the expected share of false ones among them is at most `fdr`, bool (N,).

    Example:
        >>> benjamini_hochberg(np.array([0.001, 0.03, 0.04, 0.9]), 0.05).tolist()
        [True, False, False, False]
    """
    ordered = np.sort(p_values)
    passed = np.flatnonzero(ordered <= fdr * np.arange(1, len(ordered) + 1) / len(ordered))
    return p_values <= (ordered[passed[-1]] if len(passed) else -1.0)


class _Curve(NamedTuple):
    """A calibration curve: log-odds between the centres of bins, level outside them."""

    at: np.ndarray
    log_odds: np.ndarray

    def __call__(self, ratio: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-np.interp(ratio, self.at, self.log_odds)))


def _calibrate(ratio: Tensor, included: Tensor) -> _Curve:
    """Members among judged pairs of model and sample, by bins of equal size of Λ, never decreasing."""
    from sklearn.isotonic import isotonic_regression

    ratio, truth = ratio.flatten().numpy(), included.flatten().numpy()
    order = np.argsort(ratio, kind="stable")
    edges = np.linspace(0, len(ratio), max(2, min(MOST_BINS, len(ratio) // LEAST_IN_BIN)) + 1).astype(int)
    size = np.diff(edges)
    members, at = np.add.reduceat(truth[order].astype(float), edges[:-1]), np.add.reduceat(ratio[order], edges[:-1]) / size
    level = isotonic_regression(members / size, sample_weight=size.astype(float), y_min=0.0, y_max=1.0)
    # Half a pseudo-pair of each kind for each level stretch: where all are members, the probability is that of as many pairs and not 1.
    stretch = np.unique(level, return_inverse=True)[1]
    pairs = np.bincount(stretch, weights=size)[stretch]
    level = (level * pairs + 0.5) / (pairs + 1)
    return _Curve(at, np.log(level / (1 - level)))


def _brier(ratio: Tensor, included: Tensor, level: float) -> Estimate:
    """Mean squared error of the probabilities on one half of the models, by the curve of the other half, and the other way round; over models."""
    from scipy.special import stdtrit

    half = len(ratio) // 2
    rows = []
    for told, judged in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        found = _calibrate(ratio[told], included[told])(ratio[judged].numpy())
        rows.append(((found - included[judged].numpy()) ** 2).mean(1))
    errors = np.concatenate(rows)
    reach = float(stdtrit(len(errors) - 1, (1 + level) / 2)) * float(errors.std(ddof=1)) / math.sqrt(len(errors))
    value = float(errors.mean())
    return Estimate(value, max(0.0, value - reach), value + reach, ratio.numel())


def _ratio(target: Tensor, group_in: Group, group_out: Group, *, prior_weight: float) -> tuple[Tensor, Tensor]:
    """LiRA's Λ and its standard error from the means and variances that are only estimated, (N,) each."""
    ratio, variance = torch.zeros_like(target), torch.zeros_like(target)
    for sign, group in ((1, group_in), (-1, group_out)):
        fit = group.gaussian("shrunk", prior_weight)
        square = fit.z(target) ** 2
        ratio += sign * fit.log_density(target)
        variance += square / group.n + (square - 1) ** 2 / (2 * (prior_weight + group.n - 1))
    return ratio, variance.sqrt()


def _aucs(margins: np.ndarray, included: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each sample the AUC over models and the one-sided p-value of the rank sum (normal, corrected for ties and for steps of 1/2)."""
    from scipy.stats import norm, rankdata

    ranks = rankdata(margins, axis=0)
    m, n1 = len(margins), included.sum(0)
    n0 = m - n1
    wins = (ranks * included).sum(0) - n1 * (n1 + 1) / 2
    variance = n1 * n0 / (m - 1) * (ranks**2).mean(0) * m / m - n1 * n0 / (m - 1) * ((m + 1) / 2) ** 2
    z = (wins - n1 * n0 / 2 - 0.5) / np.sqrt(np.maximum(variance, 1e-12))
    return wins / (n1 * n0), norm.sf(z)


def _top(ids: Tensor, value: Tensor, low: Tensor, high: Tensor, k: int, n: int) -> list[tuple[int, Estimate]]:
    order = value.argsort(descending=True, stable=True)[:k].tolist()
    return [(int(ids[i]), Estimate(float(value[i]), float(low[i]), float(high[i]), n)) for i in order]


def _check(margins: Tensor, included: Tensor, level: float, least: int) -> int:
    check_level(level)
    n = checked_margins("models", margins, least).shape[1]
    if included.dtype != torch.bool or included.shape != margins.shape:
        raise DataError(f"included must be bool of shape {tuple(margins.shape)}; got {included.dtype} of shape {tuple(included.shape)}.")
    check_groups(included, 2, 2)
    return n


def _checked_ids(ids: Tensor | None, n: int) -> Tensor:
    if ids is None:
        return torch.arange(n)
    if ids.shape != (n,) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise DataError(f"ids must be {n} integers, one for each sample; got {ids.dtype} of shape {tuple(ids.shape)}.")
    return ids.clone()
