"""Image sets by name or path, as a training and a test set.

A new named set is one function `(root, download) -> DataPair` and one line in DATASETS.
"""

import contextlib
import os
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ..checks import choose, is_integer
from ..errors import ConfigError, DataError
from ..rng import permutation
from .folder import load_folder
from .images import Augment, ImageData, Samples
from .stream import StreamedData

NPZ_KEYS = ("images", "labels", "test_images", "test_labels", "classes")
LAYOUTS = {
    "cifar10": "cifar-10-batches-py/ with data_batch_1 … data_batch_5, test_batch and batches.meta",
    "cifar100": "cifar-100-python/ with train, test and meta",
    "mnist": "MNIST/raw/ with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte",
}


class DataPair(NamedTuple):
    """A training set and a test set with the same classes and image shape."""

    train: Samples
    test: Samples


def load_data(
    name_or_path: str | Path,
    *,
    root: str | Path = "data",
    augment: Augment | None = None,
    download: bool = True,
    size: tuple[int, int] | None = None,
    n_test: int | None = None,
) -> DataPair:
    """A training and a test set, by name or from your own files.

    Args:
        name_or_path: one of `expunge list datasets`; or an .npz file with arrays images, labels, test_images, test_labels, classes; or a
            folder of image files as train/CLASS/… and test/CLASS/…, or with n_test as CLASS/….
        root: the folder where named sets are, or are downloaded to.
        augment: how training may vary the images; None: a shift by 4 pixels and a mirror for cifar10 and cifar100, a shift by 2 for
            mnist, nothing for the rest.
        download: whether a named set that is not below `root` may be fetched.
        size: (H, W) that the images of a folder are resized to; None: they all have one size.
        n_test: how many images of each class of a folder CLASS/… are held out as the test set, ≥ 1; always the same ones, whatever other classes there are.

    Raises:
        MissingError: neither a known name nor an existing path.
        DataError: files that are absent, damaged, or do not fit one another; a class without more than n_test images; a download that failed.
        ConfigError: size or n_test with anything but a folder, or not positive integers; n_test with a folder that has its own test set.

    Example:
        >>> train, test = load_data("digits")
        >>> train
        ImageData(1000 images, 1×8×8, 10 classes, Augment(pad=0, flip=False))
        >>> len(test)
        797
    """
    path = Path(name_or_path)
    is_folder = str(name_or_path) not in DATASETS and path.is_dir()
    if size is not None and (not is_folder or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size)):
        raise ConfigError(
            f"size must be (height, width) in pixels, and is for folders of images only; got {size!r} with {str(name_or_path)!r}."
        )
    if n_test is not None and (not is_folder or not is_integer(n_test, 1)):
        raise ConfigError(
            f"n_test must be an integer ≥ 1, and is for folders of images only; got {n_test!r} with {str(name_or_path)!r}. Leave it out for data that have a test set."
        )
    if str(name_or_path) in DATASETS:
        pair = DATASETS[str(name_or_path)](Path(root), download)
    elif is_folder:
        pair = DataPair(*load_folder(path, size, n_test))
    elif path.is_file():
        pair = _arrays(path)
    else:
        remedy = f"`expunge list datasets` shows all. Or pass the path of an .npz file or a folder of images (looked in {os.getcwd()})."
        choose("dataset", str(name_or_path), DATASETS, remedy)
    if augment is None:
        return pair
    train, test = (replace(cast(ImageData | StreamedData, samples), augment=augment) for samples in pair)
    return DataPair(train, test)


def digits(root: Path, download: bool) -> DataPair:
    """The 1797 handwritten digits that come with scikit-learn: 8×8, grey; 1000 to train, 797 to test, in equal shares of each class.

    Pixels 0 … 16 become 0 … 255, rounded. The split is by a fixed random order (seed 0); within each part the original order is kept.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(np.rint(found.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(found.target.astype(np.int64))
    order = permutation(len(labels), 0)
    share = torch.empty(len(labels), dtype=torch.float64)  # where a sample stands in the order of its class, in (0, 1)
    for k in range(10):
        of_class = order[labels[order] == k]
        share[of_class] = (torch.arange(len(of_class)) + 0.5).double() / len(of_class)
    chosen = order[share[order].argsort(stable=True)]
    train, test = chosen[:1000].sort().values, chosen[1000:].sort().values
    classes = tuple(map(str, range(10)))
    return DataPair(ImageData(images[train], labels[train], classes), ImageData(images[test], labels[test], classes))


def mnist(root: Path, download: bool) -> DataPair:
    """70,000 handwritten digits: 28×28, grey; 60,000 to train. LeCun & Cortes."""
    return _torchvision("mnist", "MNIST", root, download, Augment(pad=2))


def cifar10(root: Path, download: bool) -> DataPair:
    """60,000 photos of 10 kinds of things: 32×32, colour; 50,000 to train. Krizhevsky 2009."""
    return _torchvision("cifar10", "CIFAR10", root, download, Augment(pad=4, flip=True))


def cifar100(root: Path, download: bool) -> DataPair:
    """60,000 photos of 100 kinds of things: 32×32, colour; 50,000 to train. Krizhevsky 2009."""
    return _torchvision("cifar100", "CIFAR100", root, download, Augment(pad=4, flip=True))


DATASETS: dict[str, Callable[[Path, bool], DataPair]] = {"cifar10": cifar10, "cifar100": cifar100, "digits": digits, "mnist": mnist}


def _torchvision(name: str, kind: str, root: Path, download: bool, augment: Augment) -> DataPair:
    import torchvision

    def get(train: bool, fetch: bool) -> Any:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):  # torchvision prints; our stdout is for results
            warnings.simplefilter("ignore")  # NumPy's, about how the official files were pickled
            return getattr(torchvision.datasets, kind)(str(root), train=train, download=fetch)

    try:
        pair = [get(train, fetch=False) for train in (True, False)]
    except (RuntimeError, OSError, EOFError, ValueError) as absent:
        if not download:
            raise DataError(f"{name} is not below {root}, or damaged ({_line(absent)}). {_layout(name, root)}") from absent
        try:
            pair = [get(train, fetch=True) for train in (True, False)]
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            raise DataError(f"{name} is not below {root}, and could not be downloaded ({_line(error)}). {_layout(name, root)}") from error
    classes = tuple(map(str, range(10))) if name == "mnist" else tuple(pair[0].classes)
    return DataPair(
        *(ImageData(_channels_first(d.data, name), torch.as_tensor(d.targets, dtype=torch.int64), classes, augment) for d in pair)
    )


def _layout(name: str, root: Path) -> str:
    return f"Where there is a network, run load_data({name!r}) once; or put the official files there: {root}/{LAYOUTS[name]}."


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _arrays(path: Path) -> DataPair:
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            found = {key: loaded[key] for key in loaded.files} if isinstance(loaded, np.lib.npyio.NpzFile) else {"a single array": loaded}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as an .npz file of plain arrays: {_line(error)}. "
            "Write it with np.savez; labels as integers, class names as strings."
        ) from error
    if set(NPZ_KEYS) - set(found):
        raise DataError(
            f"{path.name} must hold the arrays {', '.join(NPZ_KEYS)}; got {', '.join(sorted(found))}. "
            "Write it with np.savez(path, images=…, labels=…, …)."
        )
    classes = tuple(map(str, found["classes"].ravel().tolist()))
    parts = [
        ImageData(
            _channels_first(found[f"{prefix}images"], f"{path.name}: {prefix}images"),
            _int64(found[f"{prefix}labels"], f"{prefix}labels"),
            classes,
        )
        for prefix in ("", "test_")
    ]
    if parts[0].shape != parts[1].shape:
        raise DataError(
            f"images and test_images must have one shape; got {parts[0].shape} and {parts[1].shape}. Prepare both in the same way."
        )
    return DataPair(*parts)


def _channels_first(images: np.ndarray | Tensor, what: str) -> Tensor:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) pixels as (N, C, H, W): C is the axis of length 1 or 3."""
    found = torch.as_tensor(np.asarray(images)) if np.asarray(images).dtype.kind in "uif" else None
    if found is None or found.ndim not in (3, 4) or not (found.dtype == torch.uint8 or found.is_floating_point()):
        got = "another type" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
        raise DataError(f"{what} must be uint8, or floats in [0, 1], of shape (N, H, W), (N, H, W, C) or (N, C, H, W); got {got}.")
    if found.ndim == 3:
        found = found[:, None]
    else:
        first, last = found.shape[1] in (1, 3), found.shape[3] in (1, 3)
        if first == last:
            raise DataError(
                f"{what} must have 1 or 3 channels, on axis 1 or 3; got shape {tuple(found.shape)}. For others make ImageData yourself."
            )
        found = found.permute(0, 3, 1, 2) if last else found
    return found.contiguous() if found.dtype == torch.uint8 else found.float().contiguous()


def _int64(labels: np.ndarray, what: str) -> Tensor:
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"{what} must be integers in [0, number of classes); got {labels.dtype}. Number them in the order of the array classes."
        )
    return torch.from_numpy(labels.astype(np.int64))
