"""A fixed number of images of each class, and what a share of the training set that is."""

from dataclasses import dataclass
from typing import final

import torch

from ..rng import permutation
from .images import Samples, Subset


@final
@dataclass(frozen=True)
class TrainingSet:
    """The size of a training set."""

    n: int
    n_classes: int


REFERENCE = TrainingSet(50_000, 10)  # CIFAR-10's: a method that reads a fixed number of images states its cost for it


def few_of_each(samples: Samples, n: int, seed: int) -> Subset:
    """At most n samples of each class, chosen at random; the same seed gives the same ones.

    Example:
        >>> from expunge import load_data
        >>> few_of_each(load_data("digits")[0], 3, seed=0).labels.bincount().tolist()
        [3, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    """
    order = permutation(len(samples), seed)
    labels = samples.labels[order]
    return samples.subset(torch.cat([order[labels == k][:n] for k in labels.unique()]))


def classes_in(share: float) -> int:
    """How many classes of the reference training set a share of it is, at least one."""
    return max(1, round(share * REFERENCE.n_classes))


def share_of_few(n: int, share: float) -> float:
    """The share of the reference training set that `few_of_each` takes of whole classes that are this share of it."""
    return min(share, passes_over(classes_in(share) * n))


def passes_over(n: int) -> float:
    """What a pass over n images is in passes over the reference training set."""
    return n / REFERENCE.n
