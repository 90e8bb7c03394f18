"""How far apart two groups of models must be, as a lower bound on ε: what this many models can prove, and what they could at most.

If unlearned models were (ε, δ)-indistinguishable from retrained ones, then every rule that looks at one model and says "unlearned" would have error rates

    1 − δ − FPR ≤ e^ε · FNR    and    1 − δ − FNR ≤ e^ε · FPR

so that ε ≥ max( log((1 − δ − FPR) / FNR), log((1 − δ − FNR) / FPR) ). One trial is one model: many samples of one model are not independent trials. With n models the
error rates are known to about 3.7 / n at best, so that a finite number of models proves a finite ε: the ceiling, which is always shown beside the bound.
"""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from ..checks import is_integer
from ..errors import ConfigError, DataError
from ..rng import permutation
from .estimate import check_level


@final
@dataclass(frozen=True, eq=False)
class EpsilonBounds:
    """Lower bounds on ε, one for each sample, and the largest that these models could have proved.

    Attributes:
        bounds: (N,) float64, ≥ 0; each holds with probability `level` by itself.
        worst: a lower bound on the largest ε of the samples, corrected for choosing among them (Bonferroni over samples): it holds with probability `level`.
        ceiling: the bound of a perfect separation, with the models that were counted. worst_ceiling: the same for `worst`.
        n_unlearned, n_retrained: models that were counted; those that chose the threshold are not among them.
        delta, level: as asked for.
    """

    bounds: Tensor
    worst: float
    ceiling: float
    worst_ceiling: float
    n_unlearned: int
    n_retrained: int
    delta: float
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = ("worst", "ceiling", "worst_ceiling", "n_unlearned", "n_retrained", "delta", "level")
        return {"bounds": self.bounds.tolist()} | {name: getattr(self, name) for name in plain}

    def __str__(self) -> str:
        found = int((self.bounds > 0).sum())
        return (
            f"ε ≥ {self.worst:.2f} for the worst of {len(self.bounds)} samples (at most {self.worst_ceiling:.2f} could be shown with "
            f"{self.n_unlearned} unlearned and {self.n_retrained} retrained models), {100 * self.level:g} %; "
            f"{found} samples with ε > 0 each by itself (at most {self.ceiling:.2f})"
        )


def epsilon_from_errors(
    false_positives: np.ndarray | int,
    n_retrained: int,
    false_negatives: np.ndarray | int,
    n_unlearned: int,
    delta: float = 1e-5,
    level: float = 0.95,
) -> np.ndarray:
    """The lower bound on ε from counts of errors of a rule that was fixed before, float64, 0 where nothing is proved.

        ε = max( 0, log((1 − δ − FPR⁺) / FNR⁺), log((1 − δ − FNR⁺) / FPR⁺) )

    with FPR⁺ and FNR⁺ the upper ends of one-sided Clopper-Pearson intervals at α/2 each (α = 1 − level), so that both hold together.

    Args:
        false_positives: retrained models that the rule calls unlearned, in [0, n_retrained]; a number or an array.
        false_negatives: unlearned models that it calls retrained, in [0, n_unlearned].
        delta: δ in [0, 1).
        level: confidence in (0, 1).

    Raises:
        DataError: a count outside its range. ConfigError: δ or the level outside theirs.

    Example:
        >>> round(float(epsilon_from_errors(0, 64, 0, 64)), 2)
        2.82
    """
    _check(delta, level)
    for name, errors, n in (("false_positives", false_positives, n_retrained), ("false_negatives", false_negatives, n_unlearned)):
        if not is_integer(n, 1) or np.min(errors) < 0 or np.max(errors) > n:
            raise DataError(f"{name} must lie in [0, n] with n ≥ 1 models; got {np.min(errors)} to {np.max(errors)} of {n}.")
    return _bound(np.asarray(false_positives), n_retrained, np.asarray(false_negatives), n_unlearned, delta=delta, alpha=1 - level)


def epsilon_ceiling(n_unlearned: int, n_retrained: int | None = None, delta: float = 1e-5, level: float = 0.95) -> float:
    """The largest ε that this many models can prove: no error at all, with a rule that was fixed before.

    A rule that is chosen on half of the models leaves the other half, hence the ceiling of half as many.

    Args:
        n_unlearned: models, ≥ 1. n_retrained: models; None = as many.
        delta, level: as in `epsilon_from_errors`.

    Example:
        >>> [round(epsilon_ceiling(n), 2) for n in (64, 128, 256, 512, 1024)]
        [2.82, 3.53, 4.23, 4.93, 5.62]
    """
    _check(delta, level)
    counts = n_unlearned, n_unlearned if n_retrained is None else n_retrained
    if not all(is_integer(n, 1) for n in counts):
        raise ConfigError(f"a ceiling needs numbers of models ≥ 1; got {counts}.")
    fnr, fpr = (-math.expm1(math.log((1 - level) / 2) / n) for n in counts)  # Clopper-Pearson for no error in n
    return max(0.0, *(math.log(max(1 - delta - x, 1e-300) / y) for x, y in ((fpr, fnr), (fnr, fpr))))


def epsilon_bounds(
    unlearned: Tensor,
    retrained: Tensor,
    delta: float = 1e-5,
    level: float = 0.95,
    *,
    thresholds: Tensor | None = None,
    seed: int = 0,
) -> EpsilonBounds:
    """Lower bounds on ε, sample by sample, from the scores of many unlearned and many retrained models.

    The rule is "unlearned if the score is above t", or below t. It is chosen on one half of the models (a random one), and its errors are counted on the other half; so
    the choice costs half of the models and nothing of the confidence. With `thresholds`, all models count, and the level is shared among all rules (Bonferroni).
    Under the null a bound is 0 with probability ≥ `level`.

    Args:
        unlearned: (A, N) scores, such as margins φ, of A independent models on N samples; A ≥ 4.
        retrained: (B, N), B ≥ 4. A model is a row: one model's samples are not a sample of models.
        delta: δ in [0, 1).
        level: confidence in (0, 1).
        thresholds: (T,), fixed before these scores were seen; each is tried in both directions. None = choose one by splitting the models.
        seed: of the split; global generators are not touched.

    Raises:
        DataError: shapes do not fit, NaN, or too few models. ConfigError: δ or the level is outside its range.

    Cost: O(N · (A + B)²) with a split, O(N · T · log(A + B)) without.

    Paper: Triantafillou et al. 2024, arXiv:2406.09073 (the NeurIPS 2023 challenge), who take the largest plug-in ratio of all thresholds. For two equal groups that is 1.15 on
    average, however many models. Departures: intervals instead of plug-in rates (0 under the null); single thresholds, without rules of two thresholds.
    Public code takes the smaller of the two ratios, or the samples of one model as trials: both are avoided here. The bound for one run of Steinke et al. is not here.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> models = torch.randn(128, 3, generator=rng)
        >>> found = epsilon_bounds(models[:64] + torch.tensor([0.0, 2.0, 9.0]), models[64:])
        >>> [round(x, 2) for x in found.bounds.tolist()], round(found.ceiling, 2)
        ([0.0, 0.73, 2.1], 2.1)
    """
    _check(delta, level)
    u, r = (_checked(name, group) for name, group in (("unlearned", unlearned), ("retrained", retrained)))
    if u.shape[1] != r.shape[1]:
        raise DataError(f"both groups must be scored on the same samples; got {u.shape[1]} and {r.shape[1]}. Score one set, in one order.")
    alpha, n = 1 - level, u.shape[1]
    if thresholds is None:
        (choosing_u, counted_u), (choosing_r, counted_r) = (_halved(group, seed, k) for k, group in enumerate((u, r)))
        chosen, above = _best_rule(choosing_u, choosing_r, delta=delta, alpha=alpha)
        counted = counted_u, counted_r
        fp, fn = _errors(*counted, chosen[None])
        fp, fn = (np.where(above, x[0], len(group) - x[0]) for x, group in zip((fp, fn), (counted[1], counted[0]), strict=True))
        rules = 1
    else:
        counted, candidates = (u, r), _checked_thresholds(thresholds)
        fp, fn = _errors(u, r, candidates[:, None].expand(-1, n))
        fp, fn = np.concatenate([fp, len(r) - fp]), np.concatenate([fn, len(u) - fn])
        rules = len(fp)
    counts = len(counted[0]), len(counted[1])

    def bound(x: np.ndarray | int, y: np.ndarray | int, share: int) -> np.ndarray:
        return _bound(np.asarray(x), counts[1], np.asarray(y), counts[0], delta=delta, alpha=alpha / share)

    bounds, worst = bound(fp, fn, rules).reshape(-1, n).max(0), float(bound(fp, fn, rules * n).max())
    return EpsilonBounds(
        torch.from_numpy(bounds), worst, float(bound(0, 0, rules)), float(bound(0, 0, rules * n)), *counts, delta=delta, level=level
    )


def _bound(fp: np.ndarray, n0: int, fn: np.ndarray, n1: int, *, delta: float, alpha: float) -> np.ndarray:
    upper = [np.append(betaincinv(np.arange(1, n + 1), np.arange(n, 0, -1), 1 - alpha / 2), 1.0) for n in (n0, n1)]
    fpr, fnr = upper[0][fp], upper[1][fn]
    return np.asarray(np.log(np.maximum(np.maximum((1 - delta - fpr) / fnr, (1 - delta - fnr) / fpr), 1.0)))


def _errors(unlearned: Tensor, retrained: Tensor, thresholds: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """False positives and false negatives of "unlearned if above", for thresholds (T, N), each (T, N)."""
    at_most = [
        torch.searchsorted(group.T.contiguous().sort(1).values, thresholds.T.contiguous(), right=True).T for group in (retrained, unlearned)
    ]
    return len(retrained) - at_most[0].numpy(), at_most[1].numpy()


def _best_rule(unlearned: Tensor, retrained: Tensor, *, delta: float, alpha: float) -> tuple[Tensor, np.ndarray]:
    """For each sample the threshold and the direction (True = above) with the largest bound on these models, (N,) each.

    Of many equally good neighbours the middle one: it is the likeliest to be as good on other models.
    """
    values = torch.cat([unlearned, retrained]).sort(0).values
    candidates = (values[:-1] + values[1:]) / 2
    fp, fn = _errors(unlearned, retrained, candidates)
    n1, n0 = len(unlearned), len(retrained)
    both = np.stack([_bound(fp, n0, fn, n1, delta=delta, alpha=alpha), _bound(n0 - fp, n0, n1 - fn, n1, delta=delta, alpha=alpha)])
    # Where nothing is proved all bounds are 0: then the rule with the fewest errors, both rates counted alike.
    rates = fp / n0 + fn / n1
    both = both - 1e-3 * np.stack([rates, 2 - rates])
    good = both >= both.max((0, 1)) - 1e-12
    above = good[0].any(0)
    good = np.where(above, good[0], good[1])
    middle = (good.cumsum(0) * 2 >= good.sum(0)).argmax(0)
    return candidates.gather(0, torch.from_numpy(middle)[None])[0], above


def _halved(group: Tensor, seed: int, which: int) -> tuple[Tensor, Tensor]:
    order = permutation(len(group), seed, which)
    return group[order[: len(group) // 2]], group[order[len(group) // 2 :]]


def _checked(name: str, group: Tensor) -> Tensor:
    if group.ndim != 2 or group.shape[1] == 0 or not group.is_floating_point():
        raise DataError(
            f"scores of {name} models must be floating point, a row for each model and a column for each sample; got {group.dtype} of shape "
            f"{tuple(group.shape)}. For one sample pass scores[:, None]."
        )
    if len(group) < 4:
        raise DataError(
            f"a bound on ε needs at least 4 {name} models, each of them one trial; got {len(group)}. "
            "The samples of one model share its weights and are no independent trials: train and unlearn more models, with other seeds."
        )
    if not torch.isfinite(group).all():
        raise DataError(
            f"scores of {name} models must be finite; got {int((~torch.isfinite(group)).sum())} that are not. Check the logits."
        )
    return group.detach().cpu().double()


def _checked_thresholds(thresholds: Tensor) -> Tensor:
    if thresholds.ndim != 1 or len(thresholds) == 0 or not torch.isfinite(thresholds).all():
        raise ConfigError(
            f"thresholds must be a flat list of finite numbers, at least one; got shape {tuple(thresholds.shape)}. Pass None to choose one by a split."
        )
    return thresholds.detach().cpu().double()


def _check(delta: float, level: float) -> None:
    check_level(level)
    if not 0 <= delta < 1:
        raise ConfigError(f"delta must be a probability in [0, 1); got {delta!r}. The usual value is 1e-5.")
