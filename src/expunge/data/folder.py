"""Folders of image files, one folder a class, as a training and a test set."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ..errors import ConfigError, DataError
from ..rng import permutation
from .from_dataset import from_dataset
from .images import Samples
from .view import DEEP_MODES, GREY_MODES, pil_pixels


@final
@dataclass(frozen=True, eq=False)
class ImageFiles(Dataset[Any]):
    """Image files with labels; items are (uint8 array (H, W) or (H, W, 3), label)."""

    files: tuple[Path, ...]
    targets: tuple[int, ...]
    classes: tuple[str, ...]
    grey: bool
    size: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, position: int) -> tuple[np.ndarray, int]:
        with _opened(self.files[position]) as image:
            pixels = pil_pixels(image, self.grey)
        if self.size is not None and pixels.shape[:2] != self.size:
            pixels = np.asarray(Image.fromarray(pixels).resize(self.size[::-1], Image.Resampling.BILINEAR))
        return pixels, self.targets[position]


def load_folder(path: Path, size: tuple[int, int] | None, n_test: int | None) -> tuple[Samples, Samples]:
    """A training and a test set of image files; see `load_data`."""
    classes, *parts = _two_parts(path) if n_test is None else _one_part(path, n_test)
    headers = [_header(file) for part in parts for files in part for file in files]
    shapes = {header[1:] for header in headers}
    if size is None and len(shapes) > 1:
        examples = " and ".join(f"{h}×{w}" for h, w in sorted(shapes)[:3])
        raise DataError(f"images must all be of one size; got {examples} (height × width) below {path}. Pass size=(H, W) to resize them.")
    grey = all(mode in (*GREY_MODES, *DEEP_MODES) for mode, _, _ in headers)
    train, test = (_samples(part, classes, grey, size) for part in parts)
    return train, test


class _Listing(NamedTuple):
    """The image files of each class, in a training and a test part."""

    classes: tuple[str, ...]
    train: list[list[Path]]
    test: list[list[Path]]


def _two_parts(path: Path) -> _Listing:
    """train/CLASS/… and test/CLASS/…"""
    classes = _subfolders(path / "train")
    if not classes or not _subfolders(path / "test"):
        got = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise DataError(
            f"{path} must hold images as train/CLASS/… and test/CLASS/…; got {got}. Move the images into one folder for each class; "
            "or if they lie in CLASS/…, without a test set, load_data(…, n_test=N) holds out N of each."
        )
    strange = sorted(set(_subfolders(path / "test")) - set(classes))
    if strange:
        raise DataError(
            f"{path / 'test'} must have no other classes than train; got {', '.join(strange[:3])}. Add them to train, or remove them; "
            f"or if test has other classes on purpose, as VGGFace2 has other people: load_data({str(path / 'train')!r}, n_test=N) holds out N images of each."
        )
    return _Listing(classes, *(_list_files(path / part, classes) for part in ("train", "test")))


def _one_part(path: Path, n_test: int) -> _Listing:
    """CLASS/…, and of each class n_test files in the test part: in a fixed random order, because neighbours may be shots of one scene."""
    classes = _subfolders(path)
    if {"train", "test"} <= set(classes):
        raise ConfigError(
            f"n_test is for folders without a test set; got {n_test}, and {path} has train/ and test/. Leave it out, or load {path / 'train'} alone."
        )
    listing = _Listing(classes, [], [])
    for name, files in zip(classes, _list_files(path, classes), strict=True):
        if len(files) <= n_test:
            raise DataError(
                f"each class must have more than n_test={n_test} images; got {len(files)} of {name!r} in {path}. Lower n_test, or remove the class."
            )
        held_out = set(permutation(len(files), 0)[:n_test].tolist())
        listing.train.append([file for i, file in enumerate(files) if i not in held_out])
        listing.test.append([file for i, file in enumerate(files) if i in held_out])
    return listing


def _samples(part: list[list[Path]], classes: tuple[str, ...], grey: bool, size: tuple[int, int] | None) -> Samples:
    files, labels = zip(*((file, k) for k, of_class in enumerate(part) for file in of_class), strict=True)
    return from_dataset(ImageFiles(files, labels, classes, grey, size), classes=classes)


def _subfolders(path: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))) if path.is_dir() else ()


def _list_files(path: Path, classes: tuple[str, ...]) -> list[list[Path]]:
    known = Image.registered_extensions()
    found = [
        [
            file
            for file in sorted((path / name).rglob("*"))
            if file.suffix.lower() in known and file.is_file() and not file.name.startswith(".")
        ]
        for name in classes
    ]
    if not any(found):
        raise DataError(f"{path} must hold image files in its class folders; got none with a suffix such as .png or .jpg.")
    return found


def _header(file: Path) -> tuple[str, int, int]:
    with _opened(file) as image:
        return image.mode, image.height, image.width


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{file} cannot be read as an image: {(str(error).splitlines() or [type(error).__name__])[0]}. Replace or remove it."
        ) from error
