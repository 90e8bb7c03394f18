"""The share of samples that a model classifies correctly, and how far two models differ in it."""

from statistics import NormalDist

from jaxtyping import Bool
from torch import Tensor

from ..errors import DataError
from ..types import Labels, Logits
from .estimate import Estimate, check_level, proportion_interval
from .signals import check_logits

Correct = Bool[Tensor, " N"]  # one entry for each sample: is the top class the label?


def correct(logits: Logits, labels: Labels) -> Correct:
    """Whether the top class is the label, for each sample.

    Raises:
        DataError: shapes or labels do not fit.
        ModelError: logits are NaN or infinite.
    """
    check_logits(logits, labels)
    return logits.argmax(1) == labels


def accuracy(logits: Logits, labels: Labels, level: float = 0.95) -> Estimate:
    """The accuracy, a fraction in [0, 1], with its exact (Clopper-Pearson) interval.

    Example:
        >>> import torch
        >>> print(accuracy(torch.eye(3).repeat(20, 1), torch.tensor([0, 1, 1]).repeat(20)))
        0.667 [0.533, 0.783]
    """
    return accuracy_of(correct(logits, labels), level)


def accuracy_of(right: Correct, level: float = 0.95) -> Estimate:
    """The accuracy from `correct(…)`.

    Raises:
        DataError: no sample.
    """
    n = _count(right)
    hits = int(right.sum())
    return Estimate(hits / n, *proportion_interval(hits, n, level), n)


def accuracy_difference(right_a: Tensor, right_b: Tensor, level: float = 0.95) -> Estimate:
    """Accuracy of a minus accuracy of b on the same samples in the same order, in [−1, 1].

    The interval is Agresti and Min's: the Wald interval of paired proportions after half a sample is added to each of the four cells (right
    or wrong in a and in b), so that it has a width also when the two models agree everywhere.

    Args:
        right_a, right_b: bool (N,), from `correct(…)`.
        level: confidence in (0, 1).

    Raises:
        DataError: different numbers of samples, or none.

    Example:
        >>> import torch
        >>> print(accuracy_difference(torch.ones(100).bool(), torch.arange(100) >= 10))
        0.100 [0.037, 0.159]
    """
    if right_a.shape != right_b.shape:
        raise DataError(
            f"a paired difference needs the same samples for both models; got {len(right_a)} and {len(right_b)}. Score both on one set."
        )
    n, z = _count(right_a), NormalDist().inv_cdf((1 + check_level(level)) / 2)
    gained, lost = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    more, fewer, total = gained + 0.5, lost + 0.5, n + 2
    centre = (more - fewer) / total
    width = z * (((more + fewer) / total - centre**2) / total) ** 0.5
    return Estimate((gained - lost) / n, max(-1.0, centre - width), min(1.0, centre + width), n)


def _count(right: Tensor) -> int:
    if len(right) == 0:
        raise DataError("an accuracy needs at least one sample; got none. Pass a non-empty set.")
    return len(right)
