"""Any map-style dataset of yours as `Samples`: clean images in [0, 1], and your augmentation kept for training.

Attacks need the image itself, not a random crop of it, and distances need pixels, not normalised values. So torchvision's `Normalize` and
random transforms are taken off a shallow copy of the dataset (transforms.py), and the result is tested: what is still random, or outside
[0, 1], is refused with the way out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ..checks import is_integer
from ..errors import ConfigError, DataError
from ..progress import report
from ..rng import fork_cpu
from .images import Augment, ImageData, Samples, to_unit
from .stream import StreamedData, class_names
from .transforms import Edit, Normalization, as_augment, chains, is_random, normalization, rewrite, without_crop, without_variation
from .view import View, different_size, to_pixels

N_PROBES = 48  # fetches that look for randomness: a mirror with probability 1/2 escapes them with probability 2**-32


def from_dataset(
    dataset: Any,
    *,
    clean: Any = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    augment: Augment | None = None,
    memory_limit: int = 2 * 2**30,
    n_workers: int = 0,
) -> Samples:
    """The samples of a map-style dataset whose items are (image, label); in memory if they fit.

    Images may be PIL images, uint8 arrays or tensors, or floats in [0, 1]. A torchvision `Normalize` in the dataset's transform is undone;
    then the model that was trained on this dataset must be wrapped: with_normalize(model, *normalization_of(dataset)). Random transforms of
    torchvision are taken off for attacks and scores, and kept for training.

    Args:
        dataset: what the model is, or was, trained on. It is not changed.
        clean: the same samples in the same order without augmentation; needed only where that cannot be derived.
        mean: what a normalisation that hides in the dataset's own code subtracts: one number for each channel.
        std: what it divides by, > 0.
        classes: names; None: the dataset's own, else "0", "1", …
        augment: how training varies the images in place of the dataset's own random transforms.
        memory_limit: bytes, ≥ 0; larger sets stay where they are and are read when needed.
        n_workers: processes that read ahead while a model trains, for data that stay where they are; ≥ 0.

    Returns:
        ImageData, uint8 where all pixels are whole 255ths; or StreamedData where the set is larger than the limit, or its augmentation is
        more than a padded crop and a mirror.

    Raises:
        DataError: items that are not (image, label), images of several sizes or outside [0, 1], labels that are not class numbers, or an
            augmentation that cannot be taken off.
        ConfigError: mean without std, memory_limit or n_workers below 0.

    Example:
        >>> from torchvision import datasets, transforms
        >>> crop, normalize = transforms.RandomCrop(8, padding=1), transforms.Normalize(0.5, 0.2)
        >>> transform = transforms.Compose([crop, transforms.ToTensor(), normalize])
        >>> from_dataset(datasets.FakeData(4, image_size=(3, 8, 8), num_classes=2, transform=transform), classes=["a", "b"])
        ImageData(4 images, 3×8×8, 2 classes, Augment(pad=1, flip=False))
    """
    if isinstance(dataset, Samples):
        return dataset
    _check_dataset(dataset)
    given = _given(mean, std, memory_limit)
    with fork_cpu(0):
        view = _clean_view(dataset if clean is None else clean, given)
        if len(view) != len(dataset):
            raise DataError(
                f"clean must hold the same {len(dataset)} samples as dataset; got {len(view)}. Make both from one list of samples."
            )
        _check_clean(view)
        training, augment = _training_view(dataset, view, given, augment, separate=clean is not None)
        held = _read(view, memory_limit)
        names: Any = None if classes is None else tuple(classes)
        if held is None:
            return StreamedData(view, training, classes=names, augment=augment, n_workers=n_workers)
        images, labels = held
        data = ImageData(images, labels, class_names(dataset, labels) if names is None else names, augment)
        return data if training is None else StreamedData(data, training, classes=data.classes, n_workers=n_workers)


def normalization_of(dataset: Any) -> Normalization | None:
    """The mean and std, one for each channel, that torchvision's `Normalize` in a dataset's transform uses; None if there is none.

    Raises:
        DataError: the parts of a concatenated dataset are normalised differently.

    Example:
        >>> from torchvision import datasets, transforms
        >>> transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.25)])
        >>> normalization_of(datasets.FakeData(4, image_size=(3, 8, 8), transform=transform))
        Normalization(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    """
    found = normalization(dataset)
    if found is None or len(found.mean) > 1:
        return found
    with fork_cpu(0):
        n_channels = len(to_pixels(dataset[0][0], "item 0"))  # torchvision spreads one number over all channels
    return Normalization(found.mean * n_channels, found.std * n_channels)


def _check_dataset(dataset: Any) -> None:
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise DataError(
            f"expected a map-style dataset with __getitem__ and __len__; got {type(dataset).__name__}. Samples must have a position to be "
            "forgotten by: collect an iterable dataset with list(dataset), and pass a DataLoader's .dataset."
        )
    if len(dataset) == 0:
        raise DataError("a dataset must hold at least one sample; got none. Check its folder or filter.")


def _given(mean: Sequence[float] | None, std: Sequence[float] | None, memory_limit: int) -> Normalization | None:
    if (mean is None) != (std is None):
        raise ConfigError(
            f"mean and std must be given together; got mean={mean} and std={std}. Pass those of the normalisation, or neither."
        )
    if not is_integer(memory_limit, 0):
        raise ConfigError(f"memory_limit must be an integer ≥ 0, in bytes; got {memory_limit!r}. For 4 GiB: 4 * 2**30.")
    if mean is None or std is None:
        return None
    found = Normalization(tuple(map(float, mean)), tuple(map(float, std)))
    if len(found.mean) != len(found.std) or not found.mean or min(found.std) <= 0:
        raise ConfigError(f"mean and std must be one number for each channel, std > 0; got mean={mean} and std={std}.")
    return found


def _undone(dataset: Any, given: Normalization | None) -> Normalization | None:
    """What must be undone in the items of a dataset: the Normalize found in it, else the one given."""
    found = normalization(dataset)
    if found is not None and given is not None and not _equal(found, given):
        raise DataError(f"mean= and std= must agree with the Normalize found in the dataset, {found}; got {given}. Leave them out.")
    return given if found is None else found


def _equal(a: Normalization, b: Normalization) -> bool:
    return all(torch.allclose(torch.tensor(x), torch.tensor(y), rtol=0, atol=1e-6) for x, y in zip(a, b, strict=True))


def _clean_view(dataset: Any, given: Normalization | None, edit: Edit = without_variation) -> View:
    undone = _undone(dataset, given)
    if not _has_random(dataset) and undone is None:
        return View(dataset)
    stripped = rewrite(dataset, edit)
    if normalization(dataset) is None:
        return View(stripped, *(undone or ()))
    try:
        view = View(stripped)
        view[0]
        return view
    except DataError:  # normalised all the same: the dataset has applied its transform before, and keeps the outcome
        return View(stripped, *(undone or ()))


def _has_random(dataset: Any) -> bool:
    return any(is_random(transform) for chain in chains(dataset) for transform in chain)


def _check_clean(view: View) -> None:
    position = _first_random(view)
    if position is not None:
        raise DataError(
            f"images without augmentation are needed for attacks and scores; item {position} changed between two readings, "
            "and not by a random transform of torchvision. Pass clean=, the same dataset without augmentation."
        )


def _first_random(view: View) -> int | None:
    """The position of an item that changes with the state of the generators or from one reading to the next; None if none was seen to."""
    positions = _spread(view, 16)
    for position in positions:
        first = None
        for seed in range(max(3, N_PROBES // len(positions))):
            with fork_cpu(seed):
                image = view[position][0]
            first = image if first is None else first
            if not _same(first, image):
                return position
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(to_unit(a), to_unit(b))


def _training_view(
    dataset: Any, view: View, given: Normalization | None, augment: Augment | None, separate: bool
) -> tuple[View | None, Augment]:
    """The dataset's own augmentation: as a view of its own, or as an Augment of ours where that is the same."""
    if augment is not None:
        return None, augment
    mean, std = _undone(dataset, given) or (None, None)
    own = View(dataset, mean, std, augmented=True)
    if not _has_random(dataset) and not (separate and _first_random(own) is not None):
        return None, Augment()
    ours = as_augment(dataset)
    if ours is not None and _is_only(dataset, view, given):
        return None, ours
    return own, Augment()


def _is_only(dataset: Any, view: View, given: Normalization | None) -> bool:
    """Whether a dataset gives the clean images already before its random crop and mirror: then these are all that varies them."""
    bare = _clean_view(dataset, given, without_crop)
    try:
        return all(_same(bare[p][0], view[p][0]) for p in _spread(view, 8)) and _first_random(bare) is None
    except DataError:
        return False


def _spread(view: View, n: int) -> list[int]:
    return torch.linspace(0, len(view) - 1, min(n, len(view))).long().unique().tolist()


def _read(view: View, memory_limit: int) -> tuple[Tensor, Tensor] | None:
    """All images and labels; None if they need more memory than allowed."""
    first = view[0][0]
    labels = torch.empty(len(view), dtype=torch.int64)
    images: Tensor | None = None
    for position in range(len(view)):
        pixels, label = view[position] if position else (first, view[0][1])
        if pixels.shape != first.shape:
            raise DataError(different_size(position, tuple(pixels.shape), tuple(first.shape)))
        if images is None or (images.dtype == torch.uint8 and pixels.dtype != torch.uint8):
            if len(view) * pixels.nbytes > memory_limit:
                return None
            before, images = images, torch.empty(len(view), *first.shape, dtype=pixels.dtype)
            if before is not None:  # the first ones happened to be whole 255ths
                images[:position] = to_unit(before[:position])
        images[position] = pixels if pixels.dtype == images.dtype else to_unit(pixels)
        labels[position] = label
        report("read images", position + 1, len(view))
    assert images is not None  # a view of no items is refused before
    return images, labels
