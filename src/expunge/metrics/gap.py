"""How far an unlearned model is from the retrained one: a signed gap for each measure, and the mean of their absolute values.

    gap = unlearned − retrained,    average gap = (|Δ forget accuracy| + |Δ retain accuracy| + |Δ test accuracy| + |Δ AUC|) / 4

Both models are scored on the same samples, so every interval is paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import DataError
from .accuracy import accuracy_difference
from .bootstrap import ResampledAUC, blocks, draw_counts, generator
from .estimate import Estimate, check_level
from .roc import auc_difference


@dataclass(frozen=True, eq=False, kw_only=True)
class GapInputs:
    """What one model did on the samples that both models are compared on.

    Attributes:
        forget, retain, test: whether each sample is classified correctly (see `correct`); `retain` is None if the retain data are gone.
        forget_scores, test_scores: membership scores of the same forget (member) and test (non-member) samples in the same order, higher =
            member.
    """

    forget: Bool[Tensor, " n_forget"]
    test: Bool[Tensor, " n_test"]
    forget_scores: Float[Tensor, " n_forget_scores"]
    test_scores: Float[Tensor, " n_test_scores"]
    retain: Bool[Tensor, " n_retain"] | None = None

    def __post_init__(self):
        for name, group, scores in (("forget", self.forget, self.forget_scores), ("test", self.test, self.test_scores)):
            if len(group) != len(scores):
                raise DataError(
                    f"{name} needs one score for each sample; got {len(group)} samples and {len(scores)} scores. "
                    "Score the set that was classified."
                )


class Gaps(NamedTuple):
    """Signed gaps to the retrained model, and the mean of their absolute values; `retain_accuracy` is None without retain data."""

    forget_accuracy: Estimate
    retain_accuracy: Estimate | None
    test_accuracy: Estimate
    auc: Estimate
    average: Estimate


def average_absolute(gaps: Sequence[float]) -> float:
    """The mean of absolute gaps.

    Example:
        >>> round(average_absolute([95.45 - 94.49, 99.57 - 100.0, 93.45 - 94.33, 50.18 - 50.0]), 4)
        0.6125
    """
    return sum(abs(gap) for gap in gaps) / len(gaps)


def gaps(unlearned: GapInputs, retrained: GapInputs, level: float = 0.95, *, replicates: int = 1000, seed: int = 0) -> Gaps:
    """The signed gap of each measure and the average gap, with paired intervals.

    Args:
        unlearned, retrained: the same samples in the same order.
        level: confidence in (0, 1).
        replicates: bootstrap samples for the average gap, ≥ 1.
        seed: of the bootstrap; the same seed compares methods on the same resamples.

    Raises:
        DataError: the two models were not scored on the same samples.

    Example:
        >>> right, scores = torch.arange(200) % 10 > 0, torch.linspace(0, 1, 200)
        >>> retrained = GapInputs(forget=right, test=right, retain=right, forget_scores=scores, test_scores=scores)
        >>> unlearned = GapInputs(forget=right | True, test=right, retain=right, forget_scores=scores + 0.1, test_scores=scores)
        >>> result = gaps(unlearned, retrained)
        >>> print(f"{result.forget_accuracy:.2f} | {result.auc:.2f} | {result.average:.2f}")
        0.10 [0.06, 0.14] | 0.09 [0.09, 0.10] | 0.05 [0.04, 0.06]
    """
    _check_paired(unlearned, retrained)
    retain = None if unlearned.retain is None else accuracy_difference(unlearned.retain, retrained.retain, level)
    forget = accuracy_difference(unlearned.forget, retrained.forget, level)
    test = accuracy_difference(unlearned.test, retrained.test, level)
    auc = auc_difference(unlearned.forget_scores, unlearned.test_scores, retrained.forget_scores, retrained.test_scores, level)

    measured = [gap for gap in (forget, retain, test, auc) if gap is not None]
    value = average_absolute([gap.value for gap in measured])
    # |mean|g*| − mean|g|| ≤ mean|g* − g|: an interval of this half-width covers. The percentiles of mean|g*| itself would not: near zero an
    # absolute value is biased upwards by the resampling noise, and the interval could even miss its own point estimate.
    moved = np.abs(_resampled_gaps(unlearned, retrained, replicates, seed) - np.array([gap.value for gap in measured])).mean(1)
    width = float(np.quantile(moved, check_level(level)))
    return Gaps(forget, retain, test, auc, Estimate(value, max(0.0, value - width), value + width, sum(gap.n for gap in measured[:-1])))


def average_gap(unlearned: GapInputs, retrained: GapInputs, level: float = 0.95, *, replicates: int = 1000, seed: int = 0) -> Estimate:
    """The average gap alone; see `gaps`."""
    return gaps(unlearned, retrained, level, replicates=replicates, seed=seed).average


def _resampled_gaps(unlearned: GapInputs, retrained: GapInputs, replicates: int, seed: int) -> np.ndarray:
    """The signed gaps of `replicates` paired bootstrap samples, (replicates, 3 or 4) in the order forget, retain, test, AUC."""
    forget, test = (_signs(getattr(unlearned, name), getattr(retrained, name)) for name in ("forget", "test"))
    resampled = [ResampledAUC(x.forget_scores.double(), x.test_scores.double()) for x in (unlearned, retrained)]
    rng, rows = generator(seed), []
    for size in blocks(replicates):
        forget_counts, test_counts = draw_counts(len(forget), size, rng), draw_counts(len(test), size, rng)
        areas = [auc(forget_counts, test_counts) for auc in resampled]
        rows.append(torch.stack([forget_counts @ forget / len(forget), test_counts @ test / len(test), areas[0] - areas[1]], 1))
    columns = torch.cat(rows).double().numpy()
    if unlearned.retain is None:
        return columns
    # Retain samples enter through three kinds only (gained, lost, same), so their resamples are multinomial: no counts for 45,000 samples.
    signs = _signs(unlearned.retain, retrained.retain)
    shares = np.array([float((signs == kind).sum()) for kind in (1, -1, 0)]) / len(signs)
    drawn = np.random.default_rng(seed).multinomial(len(signs), shares, size=replicates) / len(signs)
    return np.insert(columns, 1, drawn[:, 0] - drawn[:, 1], axis=1)


def _signs(right_a: Tensor, right_b: Tensor) -> Tensor:
    return right_a.float() - right_b.float()


def _check_paired(unlearned: GapInputs, retrained: GapInputs) -> None:
    for name in ("forget", "retain", "test"):
        a, b = getattr(unlearned, name), getattr(retrained, name)
        if (a is None) != (b is None) or (a is not None and a.shape != b.shape):
            got = ["none" if x is None else str(len(x)) for x in (a, b)]
            raise DataError(
                f"a gap needs the same {name} samples for both models; got {got[0]} and {got[1]}. "
                "Score both models on one set, in one order."
            )
