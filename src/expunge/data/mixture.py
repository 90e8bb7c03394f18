"""Batches for the training loop, drawn from one or several sets of samples as if they were one.

Pixels of sets in memory are put on the device once and gathered there: which samples come next, and how they are augmented, is drawn for many batches at once (`Drawn`), so that a
batch takes a few operations and never waits for the device. Samples that stream from disk come through PyTorch's DataLoader, whose workers read ahead. Either way the loop sees the
same `Batch`.
"""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing import current_process
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from ..rng import derive, generator
from ..types import Images
from .augment import augmented, changed, draw
from .images import Augment, Samples, to_unit

DRAWN_AT_ONCE = 8192  # samples: enough that drawing costs next to nothing, few enough that the first batch comes at once

_on_device: "weakref.WeakKeyDictionary[Samples, dict[torch.device, Tensor]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Batch:
    """What an objective sees.

    Attributes:
        images: float32 (B, C, H, W) in [0, 1], augmented.
        labels: int64 (B,), or probabilities (B, K).
        ids: int64 (B,), the samples' positions in the outermost training set.
        source: int64 (B,), which of the mixed sets each sample is from: 0, 1, …
        epoch: of the training that the batch belongs to, from 0 on.
    """

    images: Images
    labels: Tensor
    ids: Tensor
    source: Tensor
    epoch: int = 0

    def where(self, chosen: Tensor) -> "Batch":
        """The samples of the batch for which `chosen`, bool (B,), holds."""
        return Batch(self.images[chosen], self.labels[chosen], self.ids[chosen], self.source[chosen], self.epoch)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A batch that is still to be gathered: `Mixture.batch` makes it, from these tensors alone, by operations on the device.

    Attributes:
        numbers: int64 (6, B): row of the resident pixels, id, source, and what `augment.draw` says.
        labels: of the batch.
        runs: which set each part of the batch is from: (set, first, end).
    """

    numbers: Tensor
    labels: Tensor
    runs: tuple[tuple[int, int, int], ...]


class Mixture(Dataset[Any]):
    """Several sets of samples behind one another: position p counts through all of them."""

    def __init__(self, sources: Sequence[Samples], device: torch.device, *, augment: bool = True, seed: int = 0) -> None:
        self.sources = list(sources)
        _check_compatible(self.sources)
        self.device, self.seed, self.augment = device, seed, augment
        self.starts = torch.tensor([0, *(len(s) for s in self.sources)]).cumsum(0)
        self.n_soft = next((s.labels.shape[1] for s in self.sources if s.labels.ndim == 2), 0)
        self.roots = [s.root for s in self.sources]
        self.augments = [s.augment if augment else Augment() for s in self.sources]
        self.resident = all(root.resident for root in self.roots)
        self.one_gather = self.resident and all(
            r is self.roots[0] and a == self.augments[0] for r, a in zip(self.roots, self.augments, strict=True)
        )

    def __len__(self) -> int:
        return int(self.starts[-1])

    def epoch(self, batches: Sequence[Tensor], numbers: int | Sequence[int]) -> Iterator[Batch]:
        """One batch for each list of positions, in this order; a number, one for all or one for each batch, selects the augmentation."""
        return map(self.batch, self.drawn(batches, numbers))

    def drawn(self, batches: Sequence[Tensor], numbers: int | Sequence[int]) -> Iterator[Drawn | Batch]:
        """The same, still to be gathered if it can be at any time: if the pixels are in memory."""
        numbers = [numbers] * len(batches) if isinstance(numbers, int) else numbers
        if self.resident:
            first = 0
            for end in _ends([len(batch) for batch in batches]):
                yield from self._draw(batches[first:end], numbers[first:end])
                first = end
            return
        reads = generator(derive(self.seed, numbers[0] if numbers else 0))  # instead of a draw from the global one
        n_workers = 0 if current_process().daemon else max(root.n_workers for root in self.roots)  # a fleet's worker may not have children
        loader = DataLoader(_Reader(self, batches, numbers), batch_size=None, num_workers=n_workers, generator=reads)
        for parts, number in zip(loader, numbers, strict=True):
            yield self._augmented(parts, number)

    def batch(self, drawn: Drawn | Batch) -> Batch:
        """The batch itself."""
        if not isinstance(drawn, Drawn):
            return drawn
        rows, ids, source, changes = *drawn.numbers[:3], drawn.numbers[3:]
        runs = ((0, 0, len(rows)),) if self.one_gather else drawn.runs
        images = [self._gathered(k, rows[first:end], changes[:, first:end]) for k, first, end in runs]
        return Batch(images[0] if len(images) == 1 else torch.cat(images), drawn.labels, ids, source)

    def _gathered(self, k: int, rows: Tensor, changes: Tensor) -> Images:
        pixels = _resident(self.roots[k], self.device).index_select(0, rows)  # copies whole images: several times faster than indexing
        return to_unit(changed(pixels, changes, self.augments[k]) if self.augments[k] else pixels)

    def _draw(self, batches: Sequence[Tensor], numbers: Sequence[int]) -> Iterator[Drawn]:
        """Some batches at once: on the CPU what no device has, then one transfer, then what each device computes alike. Within a batch the sets follow one another."""
        sizes = torch.tensor([len(batch) for batch in batches])
        positions, counts = torch.cat(list(batches)), [[size] for size in sizes.tolist()]
        source = torch.zeros_like(positions)
        if len(self.sources) > 1:
            source = torch.bucketize(positions, self.starts[1:], right=True)
            keys = torch.arange(len(batches)).repeat_interleave(sizes) * len(self.sources) + source
            order = keys.argsort(stable=True)
            positions, source = positions[order], source[order]
            counts = keys.bincount(minlength=len(batches) * len(self.sources)).view(len(batches), -1).tolist()
        rows, ids, labels = self._looked_up(positions - self.starts[source], source)
        table = torch.stack([rows, ids, source, torch.tensor(list(numbers)).repeat_interleave(sizes)])
        table, labels = _sent(table, self.device), _sent(labels, self.device)
        changes = self._changes(table, source)
        table = torch.cat([table[:3], changes])
        first = 0
        for size, parts in zip(sizes.tolist(), counts, strict=True):
            ends = torch.tensor([0, *parts]).cumsum(0).tolist()
            runs = tuple((k, a, b) for k, (a, b) in enumerate(pairwise(ends)) if b > a)
            yield Drawn(table[:, first : first + size], labels[first : first + size], runs)
            first += size

    def _looked_up(self, positions: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row of the pixels, id and label of each sample, given by its position in its own set."""
        if len(self.sources) == 1:
            samples = self.sources[0]
            return samples.rooted(positions), samples.ids[positions], self._labels(0, positions)
        rows, ids = torch.empty_like(positions), torch.empty_like(positions)
        labels: Tensor | None = None
        for k in source.unique().tolist():
            mine = (source == k).nonzero().squeeze(1)
            rows[mine], ids[mine] = self.sources[k].rooted(positions[mine]), self.sources[k].ids[positions[mine]]
            found = self._labels(k, positions[mine])
            labels = found.new_empty(len(positions), *found.shape[1:]) if labels is None else labels
            labels[mine] = found
        assert labels is not None  # batches are not empty
        return rows, ids, labels

    def _labels(self, k: int, positions: Tensor) -> Tensor:
        labels = self.sources[k].labels[positions]
        return functional.one_hot(labels, self.n_soft).float() if self.n_soft and labels.ndim == 1 else labels

    def _changes(self, table: Tensor, source: Tensor) -> Tensor:
        """`draw` for all samples of the table (row, id, source, number), which is on the device; `source` is on the CPU."""
        _, ids, _, numbers = table
        if len(set(self.augments)) == 1:
            return draw(ids, self.augments[0], self.seed, numbers)
        changes = ids.new_zeros(3, len(ids))
        for k in source.unique().tolist():
            mine = _sent((source == k).nonzero().squeeze(1), self.device)
            changes[:, mine] = draw(ids[mine], self.augments[k], self.seed, numbers[mine])
        return changes

    def parts(self, positions: Tensor, epoch: int) -> list["_Part"]:
        """The samples at these positions, one part for each set that has any; on the CPU."""
        source = torch.bucketize(positions, self.starts[1:], right=True)
        return [self._part(int(k), positions[source == k] - self.starts[k], epoch) for k in source.unique()]

    def _part(self, k: int, positions: Tensor, epoch: int) -> "_Part":
        samples, root, rows = self.sources[k], self.roots[k], self.sources[k].rooted(positions)
        if root.resident:
            pixels = root.images[rows]
        else:
            pixels = root.fetch_training(rows, seed=self.seed, epoch=epoch) if self.augment else root.fetch(rows)
        return _Part(pixels, self._labels(k, positions), samples.ids[positions], self.augments[k], k)

    def _augmented(self, parts: list["_Part"], epoch: int) -> Batch:
        parts = [part.to(self.device) for part in parts]
        images = torch.cat([to_unit(augmented(p.pixels, p.ids, p.augment, self.seed, epoch)) for p in parts])
        source = torch.cat([torch.full_like(p.ids, p.source) for p in parts])
        return Batch(images, torch.cat([p.labels for p in parts]), torch.cat([p.ids for p in parts]), source)


@dataclass(frozen=True, eq=False)
class _Part:
    pixels: Tensor
    labels: Tensor
    ids: Tensor
    augment: Augment
    source: int

    def to(self, device: torch.device) -> "_Part":
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device), ids=self.ids.to(device))


class _Reader(Dataset[Any]):
    """Item i is the i-th batch of an epoch, still on the CPU: what a DataLoader worker produces."""

    def __init__(self, mixture: Mixture, batches: Sequence[Tensor], numbers: Sequence[int]) -> None:
        self.mixture, self.positions, self.numbers = mixture, batches, numbers

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> list[_Part]:
        return self.mixture.parts(self.positions[i], self.numbers[i])


def _ends(sizes: Sequence[int]) -> list[int]:
    """After which batches enough samples have come together to be drawn at once."""
    ends, n = [], 0
    for k, size in enumerate(sizes, 1):
        n += size
        if n >= DRAWN_AT_ONCE or k == len(sizes):
            ends.append(k)
            n = 0
    return ends


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; to a GPU through pinned memory, so that nobody waits for what the GPU has still to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _resident(samples: Samples, device: torch.device) -> Tensor:
    """The pixels of a set on a device, copied there once for as long as the set lives."""
    if device.type == "cpu":
        return samples.images
    copies = _on_device.setdefault(samples, {})
    if device not in copies:
        copies[device] = samples.images.to(device)
    return copies[device]


def _check_compatible(sources: Sequence[Samples]) -> None:
    if not sources or not sum(map(len, sources)):
        raise DataError("training needs at least one sample; got none.")
    shapes = {s.shape for s in sources if len(s)}
    if len(shapes) > 1:
        raise DataError(f"sets that are trained on together must have images of one shape; got {sorted(shapes)}. Resize one of them.")
