"""Which samples stay exposed after unlearning: for each sample of a pool an AUC over models that forgot it and models that never saw it.

Asks about a method, with many unlearned models of a pool; risk.py asks about one model.
"""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

from ..errors import ConfigError
from ..metrics.estimate import Estimate
from .risk import check_pool, checked_ids, top


@final
@dataclass(frozen=True, eq=False)
class Exposure:
    """For each sample of a pool how well models that forgot it are told from models that never saw it.

    Attributes:
        ids: (N,) as given. auc: (N,) over models, as measured. shrunk, low, high: (N,) shrunk towards the pool's mean, with its interval at `level`.
        p_values: (N,) one-sided, of the AUC being 0.5. exposed: (N,) bool, chosen so that at most `fdr` of the chosen are expected to be chance.
        mean: of the AUCs, its interval over samples and models. spread: τ, the standard deviation of the true AUCs; 0 where chance explains all of it.
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
        return top(self.ids, self.shrunk, self.low, self.high, k, self.n_models)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        lists = {name: getattr(self, name).tolist() for name in ("ids", "auc", "shrunk", "low", "high", "p_values", "exposed")}
        return lists | {"mean": self.mean.to_dict()} | {name: getattr(self, name) for name in ("spread", "n_models", "fdr", "level")}


def exposure(
    after: Tensor, included: Tensor, ids: Tensor | None = None, fdr: float = 0.05, level: float = 0.95, *, standardise: bool = True
) -> Exposure:
    """For each sample of a pool the AUC, over models, of those that forgot it against those that never saw it; and which samples stay exposed.

        shrunk = Ā + τ² / (τ² + v) · (A − Ā),    v = (M + 1) / (3 M²) less what all samples share: a standard error of 0.41 / √(M/2) at the null
        Var Ā ≈ τ²/N + Σ over pairs of mates of (what the pair does to Ā)²,    Student's t with (pairs − 1) degrees of freedom
        exposed: the largest r with p₍ᵣ₎ ≤ r · fdr / N (Benjamini-Hochberg)

    All samples share the models: where unlearning leaves more in one model than in the next, all AUCs move at once. The interval of the mean therefore has the variance over
    models, and that of each shrunk value the part of it that all share.

    The distribution and the shrunk values are what to look at; the largest raw AUC of many samples is mostly luck.

    Args:
        after: (M, N) margins after unlearning, M ≥ 6 (`u_lira_pool`'s design). included: (M, N) bool, what each model trained on and then unlearned.
        ids: (N,) integers; None = positions.
        fdr: expected share of chance among the chosen, in (0, 1).
        level: confidence in (0, 1).
        standardise: take each sample's mean over models, and then each model's median over the pool, out of the margins, so that a model that is more confident as a whole says nothing.

    Raises:
        DataError: shapes do not fit, NaN, too few models, or a sample that fewer than 2 models forgot or never saw. ConfigError: a setting outside its range.

    Cost: three sorts of M margins for each sample.

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
    n = check_pool(after, included, level, 6)
    ids = checked_ids(ids, n)
    if not 0 < fdr < 1:
        raise ConfigError(f"fdr must be a share in (0, 1); got {fdr!r}. 0.05 = of 20 chosen samples one by chance.")
    margins = after.detach().cpu().double()
    if standardise:
        margins = margins - margins.mean(0)
        margins = margins - margins.median(1, keepdim=True).values
    area, p_values, influence = _aucs(margins.numpy(), included.numpy())
    n_in = included.sum(0).double().numpy()
    n_out = len(margins) - n_in
    chance = (len(margins) + 1) / (12 * n_in * n_out)
    over_models, freedom = _over_models(influence, included)
    over_models = max(over_models, float(chance.mean()) / n)  # never less than chance alone
    shared = over_models - float(chance.mean()) / n  # what moves all samples at once, since they share models
    own = np.maximum(chance - shared, chance / 10)
    centre, z = float(area.mean()), float(ndtri((1 + level) / 2))
    between = max(0.0, float(area.var(ddof=1)) - float(own.mean())) if n > 1 else 0.0
    weight = between / (between + own)
    shrunk, students = centre + weight * (area - centre), float(stdtrit(freedom, (1 + level) / 2))
    error = np.sqrt((students / z) ** 2 * over_models + weight * own + (1 - weight) ** 2 * between / n)
    reach = students * math.sqrt(between / n + over_models)
    low, high = (np.clip(shrunk + sign * z * error, 0, 1) for sign in (-1, 1))
    columns = {"auc": area, "shrunk": shrunk, "low": low, "high": high, "p_values": p_values, "exposed": benjamini_hochberg(p_values, fdr)}
    numbers: dict[str, Any] = {name: torch.from_numpy(x) for name, x in columns.items()}
    mean = Estimate(centre, max(0.0, centre - reach), min(1.0, centre + reach), n)
    return Exposure(ids, mean=mean, spread=math.sqrt(between), n_models=len(margins), fdr=fdr, level=level, **numbers)


def benjamini_hochberg(p_values: np.ndarray, fdr: float) -> np.ndarray:
    """Which hypotheses to reject so that the expected share of false ones among them is at most `fdr`, bool (N,).

    Example:
        >>> benjamini_hochberg(np.array([0.001, 0.03, 0.04, 0.9]), 0.05).tolist()
        [True, False, False, False]
    """
    ordered = np.sort(p_values)
    passed = np.flatnonzero(ordered <= fdr * np.arange(1, len(ordered) + 1) / len(ordered))
    return p_values <= (ordered[passed[-1]] if len(passed) else -1.0)


def _over_models(influence: np.ndarray, included: Tensor) -> tuple[float, int]:
    """The variance of the mean AUC over models, and its degrees of freedom. Mates count as one draw; models of one half, and where there are fewer than 3 draws, by themselves."""
    of = (included ^ included[:, :1]).unique(dim=0, return_inverse=True)[1].numpy()  # mates look alike once the first sample is out in both
    draws = np.bincount(of, weights=influence) if of.max() >= 2 else influence
    return float((draws**2).sum()) * len(draws) / (len(draws) - 1), len(draws) - 1


def _aucs(margins: np.ndarray, included: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each sample the AUC over models and the one-sided p-value of the rank sum (normal, corrected for ties and for steps of 1/2); what each model does to the mean AUC."""
    from scipy.stats import norm, rankdata

    ranks = rankdata(margins, axis=0)
    m, n1 = len(margins), included.sum(0)
    n0 = m - n1
    wins = (ranks * included).sum(0) - n1 * (n1 + 1) / 2
    variance = n1 * n0 / (m - 1) * (ranks**2).mean(0) - n1 * n0 / (m - 1) * ((m + 1) / 2) ** 2
    z = (wins - n1 * n0 / 2 - 0.5) / np.sqrt(np.maximum(variance, 1e-12))
    area = wins / (n1 * n0)
    # Ranks among all less ranks among one's own kind: how many of the other kind a model beats.
    own = np.where(included, rankdata(np.where(included, margins, np.inf), axis=0), rankdata(np.where(included, np.inf, margins), axis=0))
    beaten = ranks - own
    influence = np.where(included, (beaten / n0 - area) / n1, (1 - beaten / n1 - area) / n0).mean(1)
    return area, norm.sf(z), influence
