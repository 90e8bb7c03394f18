"""What a dataset's transform does to its images: torchvision's `Normalize` and random transforms are found, and can be taken off a copy.

A dataset is walked through the ones that it wraps (`Subset`, `ConcatDataset`, yours with a `.dataset`), each transform through `Compose`.
"""

import copy
import importlib  # torchvision takes seconds to import, and a transform of it has done so already
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from ..errors import DataError
from .images import Augment

TRANSFORM_NAMES = ("transform", "transforms")  # where torchvision's datasets, and most others, keep the transform of the image
CHILD_NAMES = ("dataset", "subset", "base", "base_dataset")  # where a dataset keeps the one that it wraps

# Random transforms that leave the size as it is: without them the image is the clean one.
VARIATIONS = {
    *("RandomHorizontalFlip", "RandomVerticalFlip", "RandomRotation", "RandomAffine", "RandomPerspective", "ElasticTransform"),
    *(
        "RandomGrayscale",
        "RandomInvert",
        "RandomPosterize",
        "RandomSolarize",
        "RandomAdjustSharpness",
        "RandomAutocontrast",
        "RandomEqualize",
    ),
    *("RandomErasing", "RandomPhotometricDistort", "RandomChannelPermutation", "ColorJitter", "GaussianBlur", "GaussianNoise", "JPEG"),
    *("AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix"),
}
CERTAIN_AT_P1 = {
    *("RandomHorizontalFlip", "RandomVerticalFlip", "RandomGrayscale", "RandomInvert"),
    *("RandomPosterize", "RandomSolarize", "RandomAdjustSharpness", "RandomAutocontrast", "RandomEqualize"),
}
CONTAINERS = {"RandomApply", "RandomChoice", "RandomOrder"}
CROPS = {"RandomCrop", "RandomResizedCrop"}

Edit = Callable[[Any], Any]  # a single transform → what stands in its place; None = nothing


class Normalization(NamedTuple):
    """What a dataset's transform subtracts and divides by: the numbers for `with_normalize(model, mean, std)`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def chains(dataset: Any) -> list[list[Any]]:
    """The single transforms that an image passes through, in order; one list for each part of a ConcatDataset."""
    own = _singles(_transform(dataset))
    children = [child for _, child in _children(dataset)]
    return [chain + own for child in children for chain in chains(child)] or [own]


def rewrite(dataset: Any, edit: Edit) -> Any:
    """A shallow copy of a dataset whose transforms went through `edit`; the original stays as it is."""
    copied = copy.copy(dataset)
    for name in TRANSFORM_NAMES:
        transform = vars(dataset).get(name) if hasattr(dataset, "__dict__") else None
        if transform is not None:
            setattr(copied, name, _rewrite_transform(transform, edit))
    for name, child in _children(dataset):
        if name == "datasets":
            copied.datasets = [rewrite(part, edit) for part in dataset.datasets]
        else:
            setattr(copied, name, rewrite(child, edit))
    return copied


def without_variation(transform: Any) -> Any:
    """An edit: no Normalize, no randomness; a random crop becomes the central one."""
    if is_normalize(transform):
        return None
    if not is_random(transform):
        return transform
    name = torchvision_name(transform)
    version = importlib.import_module("torchvision.transforms" + (".v2" if ".v2" in type(transform).__module__ else ""))
    if name == "RandomCrop":
        return version.CenterCrop(transform.size)
    if name == "RandomResizedCrop":
        resize = version.Resize(max(transform.size), transform.interpolation, antialias=transform.antialias)
        return version.Compose([resize, version.CenterCrop(transform.size)])
    inner = _singles(list(transform.transforms)) if name in CONTAINERS else [transform]
    if all(torchvision_name(t) in VARIATIONS for t in inner):
        return None
    raise DataError(
        f"images without augmentation are needed for attacks and scores, and cannot be derived from {name}. "
        "Pass clean=, the same dataset with a transform that is not random."
    )


def is_normalize(transform: Any) -> bool:
    """Whether a single transform is torchvision's Normalize, of either version."""
    return torchvision_name(transform) == "Normalize"


def is_random(transform: Any) -> bool:
    """Whether a single transform is one of torchvision's random ones."""
    name = torchvision_name(transform)
    if name in CERTAIN_AT_P1 and getattr(transform, "p", 0) >= 1:
        return False
    spread = {"GaussianBlur": "sigma", "JPEG": "quality"}.get(name)
    if spread is not None:
        low, high = (getattr(transform, spread)[k] for k in (0, -1))
        return low != high
    return name in VARIATIONS | CONTAINERS | CROPS or name.startswith("Random") or name == "ScaleJitter"


def torchvision_name(transform: Any) -> str:
    """The class of a transform, or the class of torchvision's that it is derived from; "" for others."""
    for kind in type(transform).__mro__:
        if kind.__module__.startswith("torchvision.transforms"):
            return kind.__name__
    return ""


def normalization(dataset: Any) -> Normalization | None:
    """All Normalize of a dataset as one; raises DataError if its parts are normalised differently."""
    found = {_compose([t for t in chain if is_normalize(t)]) for chain in chains(dataset)}
    if len(found) > 1:
        raise DataError(
            f"all parts of a dataset must be normalised alike; got {' and '.join(map(str, found))}. "
            "Give every part the same Normalize, or none, and put with_normalize(model, mean, std) around the model."
        )
    return found.pop()


def as_augment(dataset: Any) -> Augment | None:
    """The padded crop and mirror that a dataset's random transforms amount to; None if they are, or may be, something else."""
    found = {_chain_augment(chain) for chain in chains(dataset)}
    return found.pop() if len(found) == 1 else None


def without_crop(transform: Any) -> Any:
    """An edit: like `without_variation`, with random crops and paddings taken off altogether."""
    return None if torchvision_name(transform) in ("RandomCrop", "Pad") else without_variation(transform)


def _chain_augment(chain: list[Any]) -> Augment | None:
    pad, flip, before = 0, False, None
    for transform in chain:
        name = torchvision_name(transform)
        if name == "RandomCrop":
            own, around = _margin(transform), _margin(before) if torchvision_name(before) == "Pad" else 0
            if pad or own is None or around is None:
                return None
            pad = own + around
        elif name == "RandomHorizontalFlip" and transform.p == 0.5:
            flip = True
        elif is_random(transform):
            return None
        elif name == "Normalize" and any(torchvision_name(t) == "RandomCrop" for t in chain[chain.index(transform) :]):
            return None  # the zeros that come in are not black then
        before = transform
    return Augment(pad, flip)


def _margin(transform: Any) -> int | None:
    """How many pixels of zeros a Pad or RandomCrop puts on every side; None if it is not the same everywhere, or not zeros."""
    fill = transform.fill
    fills = list(fill.values()) if isinstance(fill, dict) else [fill]
    padding = transform.padding
    sides = {0} if padding is None else {padding} if isinstance(padding, int) else set(padding)
    black = all(not np.any(f) for f in fills if f is not None)
    return sides.pop() if len(sides) == 1 and black and transform.padding_mode == "constant" else None


def _compose(normalizes: list[Any]) -> Normalization | None:
    mean, std = np.zeros(1), np.ones(1)
    for t in normalizes:  # ((x − m) / s − m') / s' = (x − (m + s·m')) / (s·s')
        mean, std = mean + std * np.asarray(t.mean, np.float64), std * np.asarray(t.std, np.float64)
    return Normalization(tuple(mean.tolist()), tuple(std.tolist())) if normalizes else None


def _transform(dataset: Any) -> Any:
    for name in TRANSFORM_NAMES:
        transform = getattr(dataset, name, None)
        if transform is not None and not isinstance(transform, str):
            return transform
    return None


def _children(dataset: Any) -> list[tuple[str, Any]]:
    found = [(name, getattr(dataset, name, None)) for name in CHILD_NAMES]
    if isinstance(getattr(dataset, "datasets", None), list | tuple):
        found += [("datasets", part) for part in dataset.datasets]
    plain = (list, tuple, dict, str, bytes, Tensor, np.ndarray)
    return [(n, c) for n, c in found if hasattr(c, "__getitem__") and hasattr(c, "__len__") and not isinstance(c, plain)]


def _singles(transform: Any) -> list[Any]:
    if transform is None:
        return []
    if isinstance(transform, list | tuple):
        return [single for part in transform for single in _singles(part)]
    if torchvision_name(transform) == "Compose":
        return _singles(list(transform.transforms))
    if isinstance(transform, nn.Sequential):
        return _singles(list(transform))
    if hasattr(transform, "target_transform"):  # torchvision's StandardTransform: one for the image, one for the label
        return _singles(transform.transform)
    return [transform]


def _rewrite_transform(transform: Any, edit: Edit) -> Any:
    if torchvision_name(transform) == "Compose":
        copied = copy.copy(transform)
        copied.transforms = [new for new in (_rewrite_transform(t, edit) for t in transform.transforms) if new is not None]
        return copied
    if isinstance(transform, nn.Sequential):
        return nn.Sequential(*(new for new in (_rewrite_transform(t, edit) for t in transform) if new is not None))
    if hasattr(transform, "target_transform"):
        copied = copy.copy(transform)
        copied.transform = None if transform.transform is None else _rewrite_transform(transform.transform, edit)
        return copied
    return edit(transform)
