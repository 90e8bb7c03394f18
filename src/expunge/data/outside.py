"""Samples that are no part of the training set: noise that a method made, images of another data set."""

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from ..types import Images, Labels, Pixels
from .images import Augment, Samples


@final
@dataclass(frozen=True, eq=False, repr=False)
class Outside(Samples):
    """The same samples with ids below 0, which no training sample has, so that costs are not counted as those of forget or retain samples.

    Example:
        >>> from expunge import load_data
        >>> Outside(load_data("digits")[1]).ids[:3].tolist()
        [-1, -2, -3]
    """

    parent: Samples

    def __repr__(self) -> str:
        return f"Outside({self.parent!r})"

    @cached_property
    def ids(self) -> Labels:
        return -1 - torch.arange(len(self.parent))

    @property
    def labels(self) -> Tensor:
        return self.parent.labels

    @property
    def classes(self) -> tuple[str, ...]:
        return self.parent.classes

    @property
    def augment(self) -> Augment:
        return self.parent.augment

    @property
    def n_workers(self) -> int:
        return self.parent.n_workers

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.parent.shape

    @property
    def fingerprint(self) -> str:
        return self.parent.fingerprint

    @property
    def images(self) -> Pixels:
        """The pixels, where they are in memory."""
        return self.parent.images

    @property
    def root(self) -> Samples:
        return self.parent.root

    def rooted(self, positions: Tensor) -> Tensor:
        return self.parent.rooted(positions)

    def fetch(self, positions: Tensor) -> Images:
        return self.parent.fetch(positions)

    def fetch_training(self, positions: Tensor, *, seed: int | None = None, epoch: int = 0) -> Images:
        return self.parent.fetch_training(positions, seed=seed, epoch=epoch)
