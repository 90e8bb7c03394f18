"""Networks by name, as recipes that can be stored: an `Architecture` is a few numbers, and calling it gives a fresh model.

A new family is one file with a builder `(n_classes, in_channels, shape) -> nn.Module` and one line in ARCHITECTURES. Your own models need
none of this: wherever a `build` is asked for, any function without arguments that returns an `nn.Module` will do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import nn

from ..checks import check_settings, choose
from ..data.images import Samples
from ..errors import ConfigError
from .all_cnn import all_cnn, all_cnn_plain
from .normalize import Normalize
from .resnet import resnet9, resnet18, resnet18_plain, resnet_small, resnet_tiny, resnet_tiny_plain
from .small import small
from .vgg import vgg19

ARCHITECTURES: dict[str, Callable[[int, int, tuple[int, int, int]], nn.Module]] = {
    "all_cnn": all_cnn,
    "all_cnn_plain": all_cnn_plain,
    "resnet18": resnet18,
    "resnet18_plain": resnet18_plain,
    "resnet9": resnet9,
    "resnet_small": resnet_small,
    "resnet_tiny": resnet_tiny,
    "resnet_tiny_plain": resnet_tiny_plain,
    "small": small,
    "vgg19": vgg19,
}
MIN_SIDE = 8  # pixels: three halvings leave one


@final
@dataclass(frozen=True)
class Architecture:
    """A network of the registry for one kind of image. Calling it builds a fresh model that takes images in [0, 1] and returns logits.

    Args:
        name: one of ARCHITECTURES.
        n_classes: how many logits, ≥ 1.
        shape: (C, H, W) of the images; H and W ≥ 8.
        mean: one number for each channel, which the model subtracts.
        std: one number > 0 for each channel, which the model divides by.

    Raises:
        MissingError: a name that does not exist.
        ConfigError: the numbers do not fit one another.

    Example:
        >>> build = Architecture("small", 10, (1, 8, 8), (0.5,), (0.25,))
        >>> build()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    name: str
    n_classes: int = field(metadata={"bounds": {"ge": 1}})  # not `setting`, which type checkers take for a default
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        choose("architecture", self.name, ARCHITECTURES, "`expunge list architectures` shows all.")
        check_settings(self)
        if len(self.shape) != 3 or self.shape[0] < 1 or min(self.shape[1:]) < MIN_SIDE:
            raise ConfigError(
                f"Architecture: shape must be (channels, height, width), sides of {MIN_SIDE} or more; got {self.shape}. Enlarge the images."
            )
        numbers = (*self.mean, *self.std)
        if not (len(self.mean) == len(self.std) == self.shape[0]) or not all(map(math.isfinite, numbers)) or min(self.std) <= 0:
            raise ConfigError(
                f"Architecture: mean and std must be one number for each of {self.shape[0]} channels, std > 0; "
                f"got {self.mean} and {self.std}. architecture(name, data) takes them from the data."
            )

    def __call__(self) -> nn.Module:
        net = ARCHITECTURES[self.name](self.n_classes, self.shape[0], self.shape)
        return nn.Sequential(Normalize(self.mean, self.std), net)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Architecture":
        """The architecture that `dataclasses.asdict` and JSON made these fields of."""
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return cls(**values)


def architecture(name: str, data: Samples) -> Architecture:
    """The network `name` for this data: as many logits as it has classes, and its mean and standard deviation (4 decimals) in front.

    Args:
        name: one of `expunge list architectures`.
        data: the training set; all its pixels are read once.

    Raises:
        MissingError: a name that does not exist.
        ConfigError: images of fewer than 8×8 pixels.

    Example:
        >>> from expunge import load_data
        >>> architecture("small", load_data("digits").train)
        Architecture(name='small', n_classes=10, shape=(1, 8, 8), mean=(0.3061,), std=(0.3766,))
    """
    choose("architecture", name, ARCHITECTURES, "`expunge list architectures` shows all.")
    mean, std = channel_statistics(data)
    return Architecture(name, len(data.classes), data.shape, mean, std)


def channel_statistics(data: Samples) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, rounded to 4 decimals; a constant channel gets std 1."""
    total = torch.zeros(data.shape[0], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for images, _ in data.batches(512):
        pixels = images.transpose(0, 1).flatten(1).double()
        total += pixels.sum(1)
        squares += pixels.square().sum(1)
    n = len(data) * data.shape[1] * data.shape[2]
    mean = total / n
    std = (squares / n - mean.square()).clamp(min=0).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) or 1.0 for v in std.tolist())
