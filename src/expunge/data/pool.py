"""Training and test images as one set, of which shadow models each see a random half."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from ..errors import DataError
from ..types import Images, Labels
from .images import Augment, ImageData, Samples


@final
@dataclass(frozen=True, eq=False, repr=False)
class Pooled(Samples):
    """Two sets one after the other, without copying an image. Made by `pool` where the images are not all in memory."""

    first: Samples
    second: Samples

    def __repr__(self) -> str:
        return f"Pooled({self.first!r}, {self.second!r})"

    @cached_property
    def labels(self) -> Labels:
        return torch.cat([self.first.labels, self.second.labels])

    @cached_property
    def ids(self) -> Labels:
        return torch.arange(len(self.labels))

    @property
    def classes(self) -> tuple[str, ...]:
        return self.first.classes

    @property
    def augment(self) -> Augment:
        return self.first.augment

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.first.shape

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.first.fingerprint} {self.second.fingerprint}".encode()).hexdigest()

    @property
    def n_workers(self) -> int:
        return max(self.first.n_workers, self.second.n_workers)

    def fetch(self, positions: Tensor) -> Images:
        return self._gather(positions, lambda part, rows: part.fetch(rows))

    def fetch_training(self, positions: Tensor, *, seed: int | None = None, epoch: int = 0) -> Images:
        return self._gather(positions, lambda part, rows: part.fetch_training(rows, seed=seed, epoch=epoch))

    def _gather(self, positions: Tensor, fetch: Callable[[Samples, Tensor], Images]) -> Images:
        n = len(self.first)
        images = torch.empty(len(positions), *self.shape)
        early = positions < n
        for part, mine, offset in ((self.first, early, 0), (self.second, ~early, n)):
            if mine.any():
                images[mine] = fetch(part, positions[mine] - offset)
        return images


def pool(train: Samples, test: Samples) -> Samples:
    """All samples of both sets as one: positions and ids 0 … len(train) − 1 are `train` in order, `test` follows.

    The augmentation is that of `train`.

    Raises:
        DataError: the sets have other classes or shapes of images, or labels that are not class numbers.

    Example:
        >>> from expunge import load_data
        >>> train, test = load_data("digits")
        >>> len(pool(train, test)) == len(train) + len(test)
        True
    """
    if train.classes != test.classes:
        raise DataError(
            f"training and test set must have the same classes; got {train.classes[:5]} and {test.classes[:5]}. Load both from one source."
        )
    if train.shape != test.shape:
        raise DataError(f"training and test images must have one shape; got {train.shape} and {test.shape}. Resize one of the sets.")
    if train.labels.ndim != 1 or test.labels.ndim != 1:
        raise DataError(
            "pooled sets must have one class number for each image; got rows of probabilities. Pass the sets as they were loaded."
        )
    if isinstance(train, ImageData) and isinstance(test, ImageData) and train.images.dtype == test.images.dtype:
        return ImageData(torch.cat([train.images, test.images]), torch.cat([train.labels, test.labels]), train.classes, train.augment)
    return Pooled(train, test)
