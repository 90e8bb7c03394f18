"""How far an unlearned model is from the retrained one: a signed gap for each measure, and the mean of their absolute values.

    gap = unlearned − retrained,    average gap = (|Δ forget accuracy| + |Δ retain accuracy| + |Δ test accuracy| + |Δ AUC|) / 4

Where whole classes are forgotten, the accuracy on unseen images of those classes is a fifth measure, and the test accuracy is of the other classes. Both models are scored on the same samples, so every interval is paired.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import DataError
from ..rng import generator
from .accuracy import accuracy_difference
from .bootstrap import ResampledAUC, blocks, draw_counts
from .estimate import Estimate, check_level
from .roc import auc_difference

GROUPS = ("forget", "forget_test", "retain", "test")


@dataclass(frozen=True, eq=False, kw_only=True)
class GapInputs:
    """What one model did on the samples that both models are compared on.

    Attributes:
        forget, retain, test: whether each sample is classified correctly (see `correct`); `retain` is None if the retain data are gone.
        forget_scores, test_scores: membership scores of the same forget (member) and test (non-member) samples in the same order, higher =
            member.
        forget_test: whether each unseen sample of forgotten classes is classified correctly; these are then the non-members that `test_scores` are of.
            None where no whole class is forgotten.
    """

    forget: Bool[Tensor, " n_forget"]
    test: Bool[Tensor, " n_test"]
    forget_scores: Float[Tensor, " n_forget_scores"]
    test_scores: Float[Tensor, " n_test_scores"]
    retain: Bool[Tensor, " n_retain"] | None = None
    forget_test: Bool[Tensor, " n_forget_test"] | None = None

    @property
    def nonmembers(self) -> str:
        """The field of the samples that `test_scores` are of."""
        return "test" if self.forget_test is None else "forget_test"

    def __post_init__(self) -> None:
        unseen = getattr(self, self.nonmembers)
        for name, group, scores in (("forget", self.forget, self.forget_scores), (self.nonmembers, unseen, self.test_scores)):
            if len(group) != len(scores):
                raise DataError(
                    f"{name} needs one score for each sample; got {len(group)} samples and {len(scores)} scores. "
                    "Score the set that was classified."
                )


class Gaps(NamedTuple):
    """Signed gaps to the retrained model, and the mean of their absolute values; None for what was not measured: no retain data, no class forgotten."""

    forget: Estimate
    forget_test: Estimate | None
    retain: Estimate | None
    test: Estimate
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
        >>> print(f"{result.forget:.2f} | {result.auc:.2f} | {result.average:.2f}")
        0.10 [0.06, 0.14] | 0.09 [0.09, 0.10] | 0.05 [0.04, 0.06]
    """
    _check_paired(unlearned, retrained)
    areas = auc_difference(unlearned.forget_scores, unlearned.test_scores, retrained.forget_scores, retrained.test_scores, level)
    parts = {name: accuracy_difference(a, b, level) for name, a, b in _pairs(unlearned, retrained)}

    measured = [*parts.values(), areas]
    value = average_absolute([gap.value for gap in measured])
    # |mean|g*| − mean|g|| ≤ mean|g* − g|: an interval of this half-width covers. The percentiles of mean|g*| itself would not: near zero an
    # absolute value is biased upwards by the resampling noise, and the interval could even miss its own point estimate.
    moved = np.abs(_resampled_gaps(unlearned, retrained, replicates, seed) - np.array([gap.value for gap in measured])).mean(1)
    width = float(np.quantile(moved, check_level(level)))
    average = Estimate(value, max(0.0, value - width), value + width, sum(gap.n for gap in parts.values()))
    return Gaps(parts["forget"], parts.get("forget_test"), parts.get("retain"), parts["test"], areas, average)


def average_gap(unlearned: GapInputs, retrained: GapInputs, level: float = 0.95, *, replicates: int = 1000, seed: int = 0) -> Estimate:
    """The average gap alone; see `gaps`."""
    return gaps(unlearned, retrained, level, replicates=replicates, seed=seed).average


def _pairs(unlearned: GapInputs, retrained: GapInputs) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name and correctness in both models of each group of samples that there is."""
    for name in GROUPS:
        if getattr(unlearned, name) is not None:
            yield name, getattr(unlearned, name), getattr(retrained, name)


def _resampled_gaps(unlearned: GapInputs, retrained: GapInputs, replicates: int, seed: int) -> np.ndarray:
    """The signed gaps of `replicates` paired bootstrap samples: a column for each group of samples, and last the AUC."""
    members, nonmembers = (_signs(getattr(unlearned, name), getattr(retrained, name)) for name in ("forget", unlearned.nonmembers))
    resampled = [ResampledAUC(x.forget_scores.double(), x.test_scores.double()) for x in (unlearned, retrained)]
    rng, rows = generator(seed), []
    for size in blocks(replicates):
        counts, other_counts = draw_counts(len(members), size, rng), draw_counts(len(nonmembers), size, rng)
        areas = [auc(counts, other_counts) for auc in resampled]
        rows.append(torch.stack([counts @ members / len(members), other_counts @ nonmembers / len(nonmembers), areas[0] - areas[1]], 1))
    scored = dict(zip(("forget", unlearned.nonmembers, "auc"), torch.cat(rows).double().numpy().T, strict=True))
    # The other samples enter through three kinds only (gained, lost, same), so their resamples are multinomial: no counts for 45,000 samples.
    draw = np.random.default_rng(seed)
    return np.stack(
        [scored[n] if n in scored else _drawn(_signs(a, b), replicates, draw) for n, a, b in _pairs(unlearned, retrained)]
        + [scored["auc"]],
        1,
    )


def _drawn(signs: Tensor, replicates: int, draw: np.random.Generator) -> np.ndarray:
    """The mean of each of `replicates` resamples of numbers that are 1, −1 or 0."""
    kinds = draw.multinomial(len(signs), [float((signs == kind).sum()) / len(signs) for kind in (1, -1, 0)], size=replicates)
    return (kinds[:, 0] - kinds[:, 1]) / len(signs)


def _signs(right_a: Tensor, right_b: Tensor) -> Tensor:
    return right_a.float() - right_b.float()


def _check_paired(unlearned: GapInputs, retrained: GapInputs) -> None:
    for name in GROUPS:
        a, b = getattr(unlearned, name), getattr(retrained, name)
        if (a is None) != (b is None) or (a is not None and a.shape != b.shape):
            got = ["none" if x is None else str(len(x)) for x in (a, b)]
            raise DataError(
                f"a gap needs the same {name} samples for both models; got {got[0]} and {got[1]}. "
                "Score both models on one set, in one order."
            )
