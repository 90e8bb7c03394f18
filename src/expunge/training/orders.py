"""In which order a training loop visits the samples of its sets."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..rng import derive, permutation


class Visit(NamedTuple):
    """One batch: positions in the mixture of all sets, int64 (B,), and a number that decides its augmentation: the same sample with another number looks different."""

    positions: Tensor
    number: int


Order = Callable[[Sequence[int], int, int, int], list[Visit]]
"""(sizes of the sets, batch size, seed, epoch) → the batches of that epoch."""


def shuffled(sizes: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[Visit]:
    """All sets shuffled into one another, every sample once; a last batch of one is joined to the one before it, because BatchNorm cannot normalise one vector."""
    return [Visit(batch, epoch) for batch in _batches(permutation(sum(sizes), seed, epoch), batch_size)]


def in_turn(sizes: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[Visit]:
    """All of the first set, then all of the second, and so on: each shuffled, every sample once."""
    visits, first = [], 0
    for k, size in enumerate(sizes):
        if size:
            visits += [Visit(batch, epoch) for batch in _batches(first + permutation(size, derive(seed, k), epoch), batch_size)]
        first += size
    return visits


def paired(sizes: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[Visit]:
    """In every step a batch of the first set and one of the second: every sample of the first once, and the second, shuffled and augmented anew each time that it has
    been gone through, as often as that takes. No sample is twice in a step. Two sets."""
    n, m = sizes
    visits: list[Visit] = []
    waiting: list[Tensor] = []
    batches = _batches(permutation(n, seed, epoch), batch_size)
    for step, batch in enumerate(batches):
        number = epoch * len(batches) + step
        waiting = waiting or _batches(permutation(m, derive(seed, 1), number), batch_size)
        visits.append(Visit(torch.cat([batch, n + waiting.pop(0)]), number))
    return visits


def _batches(order: Tensor, size: int) -> list[Tensor]:
    batches = list(order.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
