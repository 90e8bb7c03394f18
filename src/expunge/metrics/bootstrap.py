"""Resampling examples: how often each one is drawn, and the AUC of every resample at once.

A bootstrap sample is a vector of counts (how often each example was drawn), so that 1,000 samples are one matrix and no score is sorted
twice.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

Counts = Float[Tensor, "B N"]  # rows sum to N

BLOCK = 64  # resamples worked on at a time: 64 × 10,000 float32 counts are 2.5 MB and stay in the cache


def blocks(replicates: int) -> Iterator[int]:
    """Sizes of at most BLOCK that sum to `replicates`."""
    for start in range(0, replicates, BLOCK):
        yield min(BLOCK, replicates - start)


def draw_counts(n: int, replicates: int, rng: torch.Generator) -> Counts:
    """How often each of n examples is drawn in a sample of n with replacement, float32 (replicates, n).

    Example:
        >>> draw_counts(5, 2, torch.Generator().manual_seed(0)).sum(1)
        tensor([5., 5.])
    """
    draws = torch.randint(n, (replicates, n), generator=rng) + n * torch.arange(replicates)[:, None]
    return torch.bincount(draws.flatten(), minlength=replicates * n).view(replicates, n).float()


class ResampledAUC:
    """The AUC of every bootstrap sample of two groups of scores, by counting pairs on the sorted order.

    Example:
        >>> members, nonmembers = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0])
        >>> ResampledAUC(members, nonmembers)(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.ones(2, 2))
        tensor([0.7500, 1.0000], dtype=torch.float64)
    """

    def __init__(self, members: Tensor, nonmembers: Tensor):
        self.order = nonmembers.argsort()
        ordered = nonmembers[self.order]
        self.below = torch.searchsorted(ordered, members)
        self.up_to = torch.searchsorted(ordered, members, right=True)
        self.ties = not torch.equal(self.below, self.up_to)

    def __call__(
        self, member_counts: Float[Tensor, "B n_members"], nonmember_counts: Float[Tensor, "B n_nonmembers"]
    ) -> Float[Tensor, " B"]:
        return self.areas(member_counts, self.passed(nonmember_counts))

    def passed(self, nonmember_counts: Float[Tensor, "B n_nonmembers"]) -> Float[Tensor, "B n_nonmembers_and_1"]:
        """How many drawn non-members are among the j lowest, for j = 0, …, n₀."""
        return torch.nn.functional.pad(nonmember_counts[:, self.order].cumsum(1), (1, 0))

    def areas(self, member_counts: Float[Tensor, "B n_members"], passed: Float[Tensor, "B n_nonmembers_and_1"]) -> Float[Tensor, " B"]:
        """The AUCs from the counts that `passed` gave. Sums of pairs are whole numbers in float64, hence exact: resamples that agree agree to the last digit."""
        beaten = passed[:, self.below]
        if self.ties:
            beaten = (beaten + passed[:, self.up_to]) / 2
        n_pairs = member_counts.shape[1] * (passed.shape[1] - 1)
        return torch.einsum("bn,bn->b", member_counts.double(), beaten.double()) / n_pairs
