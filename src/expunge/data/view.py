"""What an item of a map-style dataset is: a PIL image, array or tensor becomes pixels in [0, 1]; anything else, an error that helps."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DataError

TOLERANCE = 1e-4  # of a pixel in [0, 1]: far below 1/255, far above what undoing a normalisation in float32 loses
GREY_MODES = ("1", "L", "LA")
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # 16 bits, which Pillow would clip at 255 instead of scaling


@final
@dataclass(frozen=True, eq=False)
class View(Dataset[Any]):
    """A dataset whose items are (uint8, or float32 in [0, 1], (C, H, W) image, int label), made from the items of another.

    Args:
        dataset: map-style, items (image, label).
        mean: of a normalisation to be undone, one number for each channel or one for all; None = the items are not normalised.
        std: likewise.
        augmented: the items are random, and may leave [0, 1] (noise after a normalisation does).

    Raises:
        DataError: when an item is read that is no image and label, or lies outside [0, 1].
    """

    dataset: Any
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augmented: bool = False

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        image, label = _pair(self.dataset[position], position)
        pixels = to_pixels(image, f"item {position}")
        if self.mean is not None:
            assert self.std is not None  # they come together
            pixels = _undo(pixels, self.mean, self.std, position)
        if not self.augmented:
            pixels = _exact(_in_unit_range(pixels, position))
        return pixels, to_label(label, position)


def _undo(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...], position: int) -> Tensor:
    if pixels.dtype == torch.uint8 or len(mean) not in (1, len(pixels)):
        raise DataError(
            f"to undo mean and std of {len(mean)} channels, float images of as many are expected; got item {position} "
            f"as {pixels.dtype} of shape {tuple(pixels.shape)}. Pass the numbers of this dataset's normalisation, if it has one."
        )
    per_channel_mean, per_channel_std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (mean, std))
    return (pixels * per_channel_std + per_channel_mean).float()


def to_pixels(image: Any, what: str) -> Tensor:
    """A PIL image, array or tensor as a (C, H, W) tensor, uint8 or float32.

    Arrays are read as (H, W[, C]), tensors as ([C,] H, W), unless only the other way gives 1 or 3 channels.
    """
    if isinstance(image, Image.Image):
        image = pil_pixels(image, grey=image.mode in (*GREY_MODES, *DEEP_MODES, "F"))
    channels_last = isinstance(image, np.ndarray)
    pixels = torch.from_numpy(np.array(image)) if channels_last and image.dtype.kind in "uifb" else image
    if not isinstance(pixels, Tensor) or pixels.ndim not in (2, 3) or not (pixels.dtype == torch.uint8 or pixels.is_floating_point()):
        got = f"{pixels.dtype} of shape {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else type(image).__name__
        raise DataError(
            f"{what}: expected a PIL image, or a uint8 or float array or tensor (C, H, W); got {got}. End the transform with ToTensor()."
        )
    pixels = pixels.detach().as_subclass(Tensor).cpu()
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    first, last = pixels.shape[0] in (1, 3), pixels.shape[-1] in (1, 3)
    if (last and not first) or (channels_last and last):
        pixels = pixels.permute(2, 0, 1) if not (channels_last and image.ndim == 2) else pixels
    return pixels if pixels.dtype == torch.uint8 else pixels.float()


def pil_pixels(image: Image.Image, grey: bool) -> np.ndarray:
    """A PIL image as a uint8 array (H, W) or (H, W, 3); 16-bit grey is scaled to 8 bits, transparency is dropped."""
    if image.mode in DEEP_MODES:
        image = Image.fromarray((np.clip(np.asarray(image).astype(np.int64), 0, 65535) // 257).astype(np.uint8))
    elif image.mode == "P":
        image = image.convert("RGBA")  # a palette with transparency cannot become RGB in one step without a warning
    return np.asarray(image.convert("L" if grey else "RGB"))


def to_label(label: Any, position: int) -> int:
    """A class number as int; raises DataError for anything but an integer."""
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int | np.integer):
        raise DataError(
            f"item {position}: the label must be an integer class number; got {type(label).__name__} {str(label)[:40]!r}. "
            "Number the classes from 0 (target_transform=…), and pass their names as classes=."
        )
    return int(label)


def different_size(position: int, got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """The sentence about an image of another size."""
    words, others = ("×".join(map(str, shape)) for shape in (expected, got))
    return f"images must all be of one size, {words} as the first; got {others} at item {position}. Resize or crop them in the transform."


def _pair(item: Any, position: int) -> tuple[Any, Any]:
    if not isinstance(item, tuple | list) or len(item) != 2:
        got = f"a {type(item).__name__}" + (f" of {len(item)}" if isinstance(item, tuple | list | dict) else "")
        raise DataError(f"item {position}: expected a pair (image, label); got {got}. Wrap the dataset so that it returns just these two.")
    return item[0], item[1]


def _in_unit_range(pixels: Tensor, position: int) -> Tensor:
    if pixels.dtype == torch.uint8:
        return pixels
    low, high = (float(v) for v in torch.aminmax(pixels))
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # also catches NaN
        remedy = (
            "divide 8-bit pixels by 255 (v2.ToDtype(torch.float32, scale=True))"
            if low >= 0
            else (
                "if they are mean/std-normalised, pass mean= and std= to from_dataset, and wrap the model: with_normalize(model, mean, std)"
            )
        )
        raise DataError(f"float images must lie in [0, 1]; got values from {low:.3g} to {high:.3g} at item {position}: {remedy}.")
    return pixels.clamp(0, 1)


def _exact(pixels: Tensor) -> Tensor:
    """uint8 where all values are k/255, else as given."""
    if pixels.dtype == torch.uint8:
        return pixels
    scaled = pixels * 255
    rounded = scaled.round()
    return rounded.to(torch.uint8) if (scaled - rounded).abs().max() <= 255 * TOLERANCE else pixels
