"""Labelled images that methods, attacks and audits read.

Everything that trains or scores a model takes `Samples`: images with labels and a stable id for each. There are three kinds, and they look the same from
outside: `ImageData` keeps a whole set in memory, `Subset` is a list of positions in another one (no pixel is copied), `StreamedData` (data/stream.py) reads from a map-style
dataset of yours. Ids are positions in the outermost training set; the randomness of crops and flips is a function of them (see rng.py).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..checks import check_indices, check_settings, setting
from ..errors import DataError
from ..types import Images, Labels, Pixels


@dataclass(frozen=True)
class Augment:
    """Random changes of training images that keep their label: a shift by up to `pad` pixels (zeros come in), and a mirror.

    A property of the data, not of a method: mirrored digits are other digits.

    Raises:
        ConfigError: pad is not an integer ≥ 0, or flip not a bool.

    Example:
        >>> import expunge
        >>> train, _ = expunge.load_data("digits", augment=expunge.Augment(pad=1))
        >>> train.augment
        Augment(pad=1, flip=False)
    """

    pad: int = setting(0, ge=0)
    flip: bool = setting(False)

    def __post_init__(self) -> None:
        check_settings(self)

    def __bool__(self) -> bool:
        return self.pad > 0 or self.flip


class Samples(ABC, Dataset[Any]):
    """Images with labels and ids. Item i is (float image (C, H, W) in [0, 1], int label), as PyTorch's datasets have it.

    Example:
        >>> import expunge
        >>> train, _ = expunge.load_data("digits")
        >>> len(train), train.shape, train.subset([17, 42]).ids.tolist()
        (1000, (1, 8, 8), [17, 42])
    """

    resident: ClassVar[bool] = False  # whether all pixels lie in memory, as `images`

    if TYPE_CHECKING:  # what a kind of samples stores, computes once or takes from its parent

        @property
        def labels(self) -> Labels:
            """int64 (N,); or (N, K) probabilities, after `relabel`."""

        @property
        def ids(self) -> Labels:
            """The samples' positions in the outermost training set."""

        @property
        def classes(self) -> tuple[str, ...]:
            """The names of the classes."""

        @property
        def augment(self) -> Augment:
            """How training may vary the images."""

        @property
        def images(self) -> Pixels:
            """All pixels, where they are `resident`."""

    @property
    def n_workers(self) -> int:
        """Processes that read ahead while a model trains; 0 = read in this one."""
        return 0

    @abstractmethod
    def fetch(self, positions: Tensor) -> Images:
        """The images at these positions: float32 (B, C, H, W) in [0, 1], never augmented."""

    def fetch_training(self, positions: Tensor, *, seed: int | None = None, epoch: int = 0) -> Images:
        """The images as a training loop should see them: the same, but for data that augment themselves as a function of (seed, epoch, position)."""
        return self.fetch(positions)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over pixels, labels and class names: equal exactly when the data are."""

    @property
    def root(self) -> "Samples":
        """The set that holds the pixels: this one, but for subsets."""
        return self

    def rooted(self, positions: Tensor) -> Tensor:
        """The positions in `root` of these samples."""
        return positions

    @final
    def __len__(self) -> int:
        return len(self.labels)

    @final
    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        if not -len(self) <= position < len(self):
            raise IndexError(f"position {position} is outside a set of {len(self)} samples")
        position = position % len(self)
        return self.fetch(torch.tensor([position]))[0], int(self.labels[position])

    @final
    def subset(self, positions: Sequence[int] | Tensor) -> "Subset":
        """The samples at these positions, in ascending order, without copying an image."""
        return Subset(self, check_indices(positions, len(self), "positions"))

    @final
    def batches(self, size: int = 256) -> Iterator[tuple[Images, Labels]]:
        """All samples in order, in batches of at most `size`."""
        for positions in torch.arange(len(self)).split(size):
            yield self.fetch(positions), self.labels[positions]


@final
@dataclass(frozen=True, eq=False, repr=False)
class ImageData(Samples):
    """A labelled image set in memory.

    Args:
        images: uint8 (N, C, H, W), or float32 in [0, 1].
        labels: int64 (N,) in [0, K).
        classes: the K class names.
        augment: how training may vary the images.

    Raises:
        DataError: shapes, types or ranges do not fit.

    Example:
        >>> data = ImageData(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), ("zero", "one"))
        >>> len(data), data.shape
        (2, (1, 8, 8))
    """

    resident: ClassVar[bool] = True

    images: Pixels
    labels: Labels
    classes: tuple[str, ...]
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        _check_images(self.images)
        _check_labels(self.labels, len(self.images), self.classes)

    def __repr__(self) -> str:
        return f"ImageData({len(self)} images, {'×'.join(map(str, self.shape))}, {len(self.classes)} classes, {self.augment})"

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @cached_property
    def ids(self) -> Labels:
        return torch.arange(len(self.labels))

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.classes, tuple(self.images.shape), str(self.images.dtype))).encode())
        for tensor in (self.images, self.labels):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def fetch(self, positions: Tensor) -> Images:
        return to_unit(self.images[positions])


@final
@dataclass(frozen=True, eq=False, repr=False)
class Subset(Samples):
    """Some samples of another set, in ascending order of position. Made by `Samples.subset`, `Split`, `relabel` and `outside`."""

    parent: Samples
    positions: Tensor
    targets: Tensor | None = None  # labels in place of the parent's: (N,) int64, or (N, K) probabilities
    numbers: Labels | None = None  # ids in place of the parent's

    def __repr__(self) -> str:
        return f"Subset({len(self)} of {self.parent!r})"

    @cached_property
    def labels(self) -> Tensor:
        return self.parent.labels[self.positions] if self.targets is None else self.targets

    @cached_property
    def ids(self) -> Labels:
        return self.parent.ids[self.positions] if self.numbers is None else self.numbers

    @property
    def classes(self) -> tuple[str, ...]:
        return self.parent.classes

    @property
    def augment(self) -> Augment:
        return self.parent.augment

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.parent.shape

    @cached_property
    def images(self) -> Pixels:
        """The pixels of these samples as one tensor (a copy); only where the parent is in memory."""
        return self.parent.images[self.positions]

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.parent.fingerprint.encode())
        digest.update(self.positions.contiguous().numpy().data)
        if self.targets is not None:
            digest.update(self.targets.contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def n_workers(self) -> int:
        return self.parent.n_workers

    @property
    def root(self) -> Samples:
        return self.parent.root

    def rooted(self, positions: Tensor) -> Tensor:
        return self.parent.rooted(self.positions[positions])

    def fetch(self, positions: Tensor) -> Images:
        return self.parent.fetch(self.positions[positions])

    def fetch_training(self, positions: Tensor, *, seed: int | None = None, epoch: int = 0) -> Images:
        return self.parent.fetch_training(self.positions[positions], seed=seed, epoch=epoch)


def relabel(samples: Samples, labels: Tensor) -> Subset:
    """The same images with other labels: int64 (N,), or rows of probabilities (N, K).

    Example:
        >>> import torch, expunge
        >>> few = expunge.load_data("digits").train.subset([17, 42])
        >>> relabel(few, torch.tensor([0, 1])).labels.tolist()
        [0, 1]
    """
    if len(labels) != len(samples):
        raise DataError(f"expected one label for each of {len(samples)} samples; got {len(labels)}. Pass them in the samples' order.")
    return Subset(samples, torch.arange(len(samples)), labels)


def outside(samples: Samples) -> Subset:
    """The same samples as no part of the training set, such as noise that a method made or images of another data set: their ids are below 0, which no training
    sample's is, so that their costs are not counted as those of forget or retain samples.

    Example:
        >>> from expunge import load_data
        >>> outside(load_data("digits")[1]).ids[:3].tolist()
        [-1, -2, -3]
    """
    return Subset(samples, torch.arange(len(samples)), numbers=-1 - torch.arange(len(samples)))


def places(known: Tensor, wanted: Tensor) -> Tensor:
    """Where each wanted id, int64 (N,), stands among the known ones, which are unique and at least one; −1 if nowhere."""
    order = known.argsort()
    found = order[torch.searchsorted(known[order], wanted).clamp(max=len(known) - 1)]
    return torch.where(known[found] == wanted, found, -1)


def to_unit(pixels: Pixels) -> Images:
    """uint8 pixels as float32 in [0, 1]; floats as they are."""
    return pixels.to(torch.float32).div_(255) if pixels.dtype == torch.uint8 else pixels


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32) or 0 in images.shape:
        raise DataError(
            f"images must be a non-empty uint8 or float32 tensor (N, C, H, W); got {images.dtype} of shape {tuple(images.shape)}. "
            "For (N, H, W, C) arrays: images.permute(0, 3, 1, 2)."
        )
    if images.device.type != "cpu":
        raise DataError(
            f"images must be on the CPU, from where training puts them on the model's device; got {images.device}. Pass images.cpu()."
        )
    if images.dtype == torch.float32:
        low, high = (float(v) for v in torch.aminmax(images))
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise DataError(
                f"float images must lie in [0, 1]; got values from {low:.3g} to {high:.3g}. Divide 8-bit pixels by 255; "
                "if they are mean/std-normalised, load them with from_dataset(dataset, mean=…, std=…) and put Normalize in front of the model."
            )


def _check_labels(labels: Tensor, n: int, classes: tuple[str, ...]) -> None:
    if labels.dtype != torch.int64 or labels.shape != (n,) or labels.device.type != "cpu":
        raise DataError(
            f"labels must be int64 of shape ({n},) on the CPU, one for each image; "
            f"got {labels.dtype} of shape {tuple(labels.shape)} on {labels.device}."
        )
    if len(set(classes)) != len(classes):
        raise DataError(f"class names must be unique; got {sorted({c for c in classes if classes.count(c) > 1})[:3]} more than once.")
    outside = (labels < 0) | (labels >= len(classes))
    if outside.any():
        raise DataError(f"labels must lie in [0, {len(classes)}), the number of class names; got {int(labels[outside][0])}.")
