"""How well models that forgot samples are told from models that never saw them: AUC, balanced accuracy and TPR with intervals over models and samples.

What the designs of u_lira.py and u_lira_pool.py share.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from ..errors import ConfigError
from ..metrics.estimate import Estimate, check_level, proportion_interval, unsupported
from ..metrics.roc import FEW_FALSE_POSITIVES, MIN_FALSE_POSITIVES, false_positives

FEW_MODELS = 8  # a side. Where whole models are shifted, chance separates 4 from 4 perfectly in 1 of 35 nulls: 2 / C(8, 4)
SHARED_FITS = 2.5  # times the naive variance over models; on noise with whole models shifted, the true one was 2.0 to 2.8 times the naive


@final
@dataclass(frozen=True, eq=False)
class ULiRAResult:
    """How well unlearned models are told from models that never saw the samples.

    Attributes:
        auc: in [0, 1]; 0.5 = indistinguishable.
        balanced_accuracy: of the verdict "trained on it" at Λ > 0; 0.5 = guessing.
        tpr: share of unlearned samples found at `fpr`.
        fpr: the false-positive rate asked for.
        n_unlearned, n_unseen: how many models.
        n_samples: how many samples each was scored on.
    """

    auc: Estimate
    balanced_accuracy: Estimate
    tpr: Estimate
    fpr: float
    n_unlearned: int
    n_unseen: int
    n_samples: int

    @property
    def gap(self) -> Estimate:
        """|AUC − 0.5|, in [0, 0.5]; its interval starts at 0 where 0.5 is plausible."""
        ends = sorted((abs(self.auc.low - 0.5), abs(self.auc.high - 0.5)))
        low = 0.0 if self.auc.low <= 0.5 <= self.auc.high else ends[0]
        return Estimate(abs(self.auc.value - 0.5), low, ends[1], self.auc.n, self.auc.note)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        estimates = {name: getattr(self, name).to_dict() for name in ("auc", "balanced_accuracy", "tpr", "gap")}
        return estimates | {name: getattr(self, name) for name in ("fpr", "n_unlearned", "n_unseen", "n_samples")}

    def __str__(self) -> str:
        return (
            f"U-LiRA ({self.n_unlearned} unlearned and {self.n_unseen} unseen models, {self.n_samples} samples): AUC {self.auc}, "
            f"balanced accuracy {self.balanced_accuracy}, TPR at {100 * self.fpr:g}% FPR {self.tpr}"
        )


@final
@dataclass(frozen=True, eq=False)
class ClassLeakage:
    """How well U-LiRA tells a method's models from retrained ones, on one forgotten class.

    Attributes:
        name: of the class. neighbour: of the class that retrained models take it for.
        rows: for each method, and first "original" (nothing done: the ceiling), four results by score and images: "own train", "own unseen", "neighbour train",
            "neighbour unseen". "own" is the margin of the forgotten class, "neighbour" that of its neighbour.
        floors: the same four for retrained models against one another, the |AUC − 0.5| that is chance, rather too much than too little of it (see `u_lira_floor`);
            empty with fewer than 6 models of each kind.
        n: models of each kind.
    """

    name: str
    neighbour: str
    rows: dict[str, dict[str, ULiRAResult]]
    floors: dict[str, Estimate]
    n: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and the report."""
        rows = [{"method": method} | {key: result.to_dict() for key, result in row.items()} for method, row in self.rows.items()]
        floors = {key: floor.to_dict() for key, floor in self.floors.items()}
        return {"name": self.name, "neighbour": self.neighbour, "n": self.n, "rows": rows, "floors": floors}


class Terms(NamedTuple):
    """AUC, balanced accuracy and TPR of one target, (3,), and what each sample does to them, up to a constant."""

    values: Float[Tensor, "3"]
    of_members: Float[Tensor, "3 n_members"]
    of_nonmembers: Float[Tensor, "3 n_nonmembers"]


def contrast(members: Tensor, nonmembers: Tensor, fpr: float) -> Terms:
    """The terms of one target, from the scores of samples that it forgot and of samples that it never saw."""
    wins, losses, ranked_members, ranked = _placed(members, nonmembers)
    accepted, rejected = (members > 0).double() / 2, (nonmembers <= 0).double() / 2

    n = len(nonmembers)
    k = false_positives(fpr, n)
    reach = max(1, math.isqrt(k))  # the rank of the threshold varies by about √k from draw to draw of non-members
    ranks = torch.tensor([max(0, k - reach), k, min(n, k + reach)])
    thresholds = torch.cat([ranked.flip(0), ranked.new_full((1,), -math.inf)])[ranks]  # the (k+1)-th highest may not pass, ties neither
    rates = 1 - torch.searchsorted(ranked_members, thresholds, right=True).double() / len(members)
    slope = (rates[2] - rates[0]) * n / (ranks[2] - ranks[0])  # dTPR/dFPR: a non-member above the threshold pushes it up

    values = torch.stack([wins.mean(), accepted.mean() + rejected.mean(), rates[1]])
    of_members = torch.stack([wins, accepted, (members > thresholds[1]).double()])
    return Terms(values, of_members, torch.stack([1 - losses, rejected, -slope * (nonmembers > thresholds[1])]))


def _placed(members: Tensor, nonmembers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each member the share of non-members below it, for each non-member that of members below it (ties half); and both groups sorted.

    One sort of all scores and counts along it: four searches of one group in the other take five times as long.
    """
    n1, n = len(members), len(members) + len(nonmembers)
    scores = torch.cat([members, nonmembers]).numpy()
    order = np.argsort(scores)
    ordered, is_member = scores[order], order < n1
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))  # of runs of equal scores
    ends, counted = np.append(starts[1:], n), np.append(0, np.cumsum(is_member))
    below, other = counted[starts] + counted[ends], starts + ends  # twice the members below a run, and twice all below it
    if len(starts) < n:
        below, other = (np.repeat(x, ends - starts) for x in (below, other))
    shares = np.empty(n)
    shares[order] = np.where(is_member, (other - below) / (2 * (n - n1)), below / (2 * n1))
    found = shares[:n1], shares[n1:], ordered[is_member], ordered[~is_member]
    of_members, of_nonmembers, their_scores, other_scores = (torch.from_numpy(x) for x in found)
    return of_members, of_nonmembers, their_scores, other_scores


def estimates(
    values: Tensor, spread: Tensor, influence: Tensor, *, trials: int, n_nonmembers: int, fpr: float, level: float
) -> tuple[Estimate, Estimate, Estimate]:
    """The three numbers with intervals, from their variance over models and each sample's influence, (3, N)."""
    n = influence.shape[1]
    errors = (SHARED_FITS * spread + influence.var(1, correction=0) / n).sqrt()
    few = f"few models: fewer than {FEW_MODELS} a side" if trials < FEW_MODELS else None
    area, accuracy, tpr = (
        Estimate(value, *_interval(value, error, trials, level), n, few)
        for value, error in zip(values.tolist(), errors.tolist(), strict=True)
    )
    return area, accuracy, _supported(tpr, fpr, n_nonmembers)


def _interval(value: float, error: float, trials: int, level: float) -> tuple[float, float]:
    separated = trials < FEW_MODELS and trials * min(value, 1 - value) < 1
    if error < 1e-9 or separated:
        return proportion_interval(value * trials, trials, level)
    reach = float(stdtrit(trials - 1, (1 + level) / 2)) * error
    return max(0.0, value - reach), min(1.0, value + reach)


def _supported(tpr: Estimate, fpr: float, n_nonmembers: int) -> Estimate:
    k = false_positives(fpr, n_nonmembers)
    if k < MIN_FALSE_POSITIVES:
        needed = math.ceil(MIN_FALSE_POSITIVES / fpr - 1e-9)
        return unsupported(f"TPR at {100 * fpr:g}% FPR needs {needed} non-members, got {n_nonmembers}", tpr.n)
    weak = f"underpowered: the threshold rests on {k} non-members" if k < FEW_FALSE_POSITIVES else None
    return Estimate(tpr.value, tpr.low, tpr.high, tpr.n, "; ".join(filter(None, (tpr.note, weak))) or None)


def check_report(fpr: float, level: float) -> None:
    check_level(level)
    if not 0 < fpr <= 1:
        raise ConfigError(f"fpr must be a fraction in (0, 1]; got {fpr!r}. Pass 0.01 for 1 %.")
