"""Balanced accuracy of a verdict: the mean of the shares of members and of non-members that it gets right."""

import math

from jaxtyping import Bool
from torch import Tensor

from ..errors import DataError
from .estimate import Estimate, proportion_interval


def balanced_accuracy(
    members_right: Bool[Tensor, " n_members"], nonmembers_right: Bool[Tensor, " n_nonmembers"], level: float = 0.95
) -> Estimate:
    """(TPR + 1 − FPR) / 2 in [0, 1], 0.5 = guessing, whatever the sizes of the two groups.

    The interval joins the exact (Clopper-Pearson) ones of the two shares by squares of their reaches, so that it has a width also when all
    verdicts are right:  low = ½ (a + b) − ½ √((a − a_low)² + (b − b_low)²),  and likewise high.

    Args:
        members_right, nonmembers_right: whether the verdict on each sample is right; at least one each.
        level: confidence in (0, 1).

    Raises:
        DataError: a group is empty.

    Cost: one pass.

    Example:
        >>> import torch
        >>> print(balanced_accuracy(torch.arange(100) < 60, torch.arange(400) < 200))
        0.550 [0.493, 0.604]

    Paper: Zou and Donner, Statistics in Medicine 2008 (the interval, there of differences).
    """
    shares = []
    for name, right in (("member", members_right), ("non-member", nonmembers_right)):
        if len(right) == 0:
            raise DataError(f"balanced accuracy needs at least one {name}; got none. Pass verdicts on both groups.")
        hits = int(right.sum())
        shares.append((hits / len(right), *proportion_interval(hits, len(right), level)))
    (a, a_low, a_high), (b, b_low, b_high) = shares
    value = (a + b) / 2
    down, up = math.hypot(a - a_low, b - b_low) / 2, math.hypot(a_high - a, b_high - b) / 2
    return Estimate(value, max(0.0, value - down), min(1.0, value + up), len(members_right) + len(nonmembers_right))
