"""Image sets that stay where they are: `StreamedData` reads them item by item from a map-style dataset of yours.

Beside the clean images it keeps a second view with your own augmentation, for training. `from_dataset` decides which sets need this.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from ..checks import is_integer
from ..errors import ConfigError, DataError
from ..progress import report
from ..rng import derive, fork_cpu
from ..types import Images, Labels
from .images import Augment, Samples, to_unit
from .view import View, different_size


@final
@dataclass(frozen=True, eq=False, repr=False)
class StreamedData(Samples):
    """Samples read from a map-style dataset whenever they are needed. They pickle if the dataset does, for the workers of a DataLoader.

    Args:
        view: the clean images: no augmentation, pixels in [0, 1] (a `View`, other Samples, or any dataset that `View` accepts).
        training_view: the same samples with your own augmentation, for training; None = train on the clean ones.
        labels: int64 (N,); None: from the dataset's targets, labels or samples, else by one pass over the items.
        classes: names; None: the dataset's own, else "0", "1", …
        augment: a shift and mirror of ours in training, where there is no training_view.
        n_workers: processes that read ahead while a model trains, ≥ 0; 0 = read in the training process.

    Raises:
        ConfigError: n_workers is not an integer ≥ 0.
        DataError: the two views differ in length, the set is empty, or an item cannot be used.

    Example:
        >>> import expunge
        >>> from torchvision import datasets, transforms
        >>> photos = datasets.FakeData(4, image_size=(3, 8, 8), num_classes=2, transform=transforms.ToTensor())
        >>> expunge.StreamedData(photos, classes=("cat", "dog"))
        StreamedData(4 images, 3×8×8, 2 classes)
    """

    view: Any
    training_view: Any = None
    labels: Labels = None  # type: ignore[assignment]  # never None once it is made
    classes: tuple[str, ...] = None  # type: ignore[assignment]
    augment: Augment = field(default_factory=Augment)
    n_workers: int = 0

    def __post_init__(self) -> None:
        if not is_integer(self.n_workers, 0):
            raise ConfigError(f"n_workers must be an integer ≥ 0; got {self.n_workers!r}. Pass the number of cores that may read images.")
        put = object.__setattr__  # the dataclass is frozen for everyone else
        put(self, "view", self.view if isinstance(self.view, View | Samples) else View(self.view))
        if self.training_view is not None:
            given = self.training_view
            put(self, "training_view", given if isinstance(given, View) else View(given, augmented=True))
            if len(given) != len(self.view):
                raise DataError(
                    f"the clean and the augmented view must hold the same samples; got {len(self.view)} and {len(given)}. "
                    "Make both from one list of samples, in one order."
                )
        if len(self.view) == 0:
            raise DataError("a dataset must hold at least one sample; got none. Check its folder or filter.")
        put(self, "labels", labels_of(self.view) if self.labels is None else self.labels)
        put(self, "classes", class_names(self.view, self.labels) if self.classes is None else tuple(map(str, self.classes)))
        check_labels(self.labels, len(self.view), self.classes)

    def __repr__(self) -> str:
        own = ", own augmentation" if self.training_view is not None else ""
        return f"StreamedData({len(self)} images, {'×'.join(map(str, self.shape))}, {len(self.classes)} classes{own})"

    @cached_property
    def ids(self) -> Labels:
        return torch.arange(len(self.labels))

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        return self.view.shape if isinstance(self.view, Samples) else tuple(self.view[0][0].shape)

    def fetch(self, positions: Tensor) -> Images:
        if isinstance(self.view, Samples):
            return self.view.fetch(positions)
        return torch.stack([to_unit(self._pixels(self.view, p)) for p in positions.tolist()])

    def fetch_training(self, positions: Tensor, *, seed: int | None = None, epoch: int = 0) -> Images:
        """The images at these positions as your augmentation varies them: float32 (B, C, H, W); the clean ones if there is none.

        Args:
            positions: int64 (B,).
            seed: makes each image a function of (seed, epoch, position), whatever the batch and the number of workers, for augmentations
                that draw from the generators of torch, NumPy or Python. None: the generators as they are.
            epoch: another epoch, another variation.
        """
        if self.training_view is None:
            return self.fetch(positions)
        images = []
        for position in positions.tolist():
            with contextlib.nullcontext() if seed is None else fork_cpu(derive(seed, epoch, position)):
                images.append(to_unit(self._pixels(self.training_view, position)))
        return torch.stack(images)

    def _pixels(self, view: View, position: int) -> Tensor:
        pixels = view[position][0]
        if tuple(pixels.shape) != self.shape:
            raise DataError(different_size(position, tuple(pixels.shape), self.shape))
        return pixels

    @cached_property
    def fingerprint(self) -> str:
        """That of ImageData with the same pixels, by one pass over the clean images."""
        if isinstance(self.view, Samples):
            return self.view.fingerprint
        digests = {}
        for dtype in (torch.uint8, torch.float32):  # which one is known only at the end: uint8 if every image is exactly that
            digests[dtype] = hashlib.sha256(repr((self.classes, (len(self), *self.shape), str(dtype))).encode())
        for position in range(len(self)):
            pixels = self._pixels(self.view, position).contiguous()
            if pixels.dtype != torch.uint8:
                digests.pop(torch.uint8, None)
            if torch.uint8 in digests:
                digests[torch.uint8].update(pixels.numpy().data)
            digests[torch.float32].update(to_unit(pixels).numpy().data)
            report("fingerprint", position + 1, len(self))
        digest = digests.get(torch.uint8, digests[torch.float32])
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()


def labels_of(dataset: Any) -> Labels:
    """The labels of a dataset: from its list of them if it has one that agrees with its items, else by one pass."""
    inner = dataset.dataset if isinstance(dataset, View) else dataset
    listed = dataset.labels if isinstance(dataset, Samples) else _listed_labels(inner)
    if listed is not None:
        spread = torch.linspace(0, len(dataset) - 1, min(8, len(dataset))).long().tolist()
        if all(int(listed[p]) == dataset[p][1] for p in spread):  # they differ if a target_transform is at work
            return listed
    labels = torch.empty(len(dataset), dtype=torch.int64)
    for position in range(len(dataset)):
        labels[position] = dataset[position][1]
        report("read labels", position + 1, len(dataset))
    return labels


def _listed_labels(dataset: Any) -> Labels | None:
    if isinstance(dataset, Subset):
        whole = _listed_labels(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [_listed_labels(part) for part in dataset.datasets]
        found = [part for part in parts if part is not None]
        return torch.cat(found) if len(found) == len(parts) else None
    samples = getattr(dataset, "samples", None)
    from_samples = [s[1] for s in samples if isinstance(s, tuple) and len(s) == 2] if isinstance(samples, list) else None
    for listed in (getattr(dataset, "targets", None), getattr(dataset, "labels", None), from_samples):
        if isinstance(listed, list | tuple | np.ndarray | Tensor) and len(listed) == len(dataset):
            array = np.asarray(listed)
            if array.ndim == 1 and array.dtype.kind in "iu":
                return torch.from_numpy(array.astype(np.int64))
    return None


def class_names(dataset: Any, labels: Labels) -> tuple[str, ...]:
    """The names that the dataset, or the one it is a part of, gives its classes; else the numbers."""
    while dataset is not None:
        names = getattr(dataset, "classes", None)
        if isinstance(names, list | tuple) and names:
            return tuple(map(str, names))
        dataset = getattr(dataset, "dataset", None) or next(iter(getattr(dataset, "datasets", [])), None)
    return tuple(str(k) for k in range(int(labels.max()) + 1))


def check_labels(labels: Labels, n: int, classes: Sequence[str]) -> None:
    """Raises DataError unless there are n labels in [0, number of classes)."""
    if labels.dtype != torch.int64 or labels.shape != (n,):
        raise DataError(f"labels must be int64 of shape ({n},), one for each image; got {labels.dtype} of shape {tuple(labels.shape)}.")
    outside = (labels < 0) | (labels >= len(classes))
    if outside.any():
        raise DataError(
            f"labels must lie in [0, {len(classes)}), the number of class names; got {int(labels[outside][0])}. "
            "Number the classes from 0, and pass all their names as classes=."
        )
