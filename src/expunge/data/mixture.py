"""Batches for the training loop, drawn from one or several sets of samples as if they were one.

Pixels of sets in memory are put on the device once and gathered there; samples that stream from disk come through PyTorch's DataLoader, whose workers
read ahead. Either way the loop sees the same `Batch`.
"""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import current_process

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from ..rng import derive
from ..types import Images
from .augment import augmented
from .images import Augment, Samples, to_unit

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


class Mixture(Dataset):
    """Several sets of samples behind one another: position p counts through all of them."""

    def __init__(self, sources: Sequence[Samples], device: torch.device, *, augment: bool = True, seed: int = 0) -> None:
        self.sources = list(sources)
        _check_compatible(self.sources)
        self.device, self.seed, self.augment = device, seed, augment
        self.starts = torch.tensor([0, *(len(s) for s in self.sources)]).cumsum(0)
        self.n_soft = next((s.labels.shape[1] for s in self.sources if s.labels.ndim == 2), 0)
        self.roots = [s.root for s in self.sources]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def epoch(self, batches: Sequence[Tensor], numbers: int | Sequence[int]) -> Iterator[Batch]:
        """One batch for each list of positions, in this order; a number, one for all or one for each batch, selects the augmentation."""
        numbers = [numbers] * len(batches) if isinstance(numbers, int) else numbers
        if all(root.resident for root in self.roots):
            for positions, number in zip(batches, numbers, strict=True):
                yield self._augmented(self.parts(positions, number, self.device), number)
            return
        reads = torch.Generator().manual_seed(derive(self.seed, numbers[0] if numbers else 0))  # instead of a draw from the global one
        n_workers = 0 if current_process().daemon else max(root.n_workers for root in self.roots)  # a fleet's worker may not have children
        loader = DataLoader(_Reader(self, batches, numbers), batch_size=None, num_workers=n_workers, generator=reads)
        for parts, number in zip(loader, numbers, strict=True):
            yield self._augmented(parts, number)

    def parts(self, positions: Tensor, epoch: int, device: torch.device) -> list["_Part"]:
        """The samples at these positions, one part for each set that has any."""
        source = torch.bucketize(positions, self.starts[1:], right=True)
        return [self._part(int(k), positions[source == k] - self.starts[k], epoch, device) for k in source.unique()]

    def _part(self, k: int, positions: Tensor, epoch: int, device: torch.device) -> "_Part":
        samples = self.sources[k]
        labels = samples.labels[positions]
        if self.n_soft and labels.ndim == 1:
            labels = functional.one_hot(labels, self.n_soft).float()
        augment = samples.augment if self.augment else Augment()
        root, rows = samples.root, samples.rooted(positions)
        if root.resident:
            pixels = _resident(root, device)[rows.to(device)]
        else:
            pixels = root.fetch_training(rows, seed=self.seed, epoch=epoch) if self.augment else root.fetch(rows)
        return _Part(pixels, labels, samples.ids[positions], augment, k)

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


class _Reader(Dataset):
    """Item i is the i-th batch of an epoch, still on the CPU: what a DataLoader worker produces."""

    def __init__(self, mixture: Mixture, batches: Sequence[Tensor], numbers: Sequence[int]) -> None:
        self.mixture, self.positions, self.numbers = mixture, batches, numbers

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> list[_Part]:
        return self.mixture.parts(self.positions[i], self.numbers[i], torch.device("cpu"))


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
