"""Mean and standard deviation as the first layer of a model, so that everything outside it sees images in [0, 1].

Distances, ε-balls and bounds of adversarial examples are then those of the pixels, for every model alike.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelError


class Normalize(nn.Module):
    """Computes (x − mean) / std for each channel of images (…, C, H, W).

    Args:
        mean: one number for each channel, in units of the image (pixels in [0, 1]).
        std: likewise, > 0.

    Raises:
        ConfigError: the lengths differ, or a std is not positive.
        ModelError: at the call: an image with another number of channels.

    Example:
        >>> Normalize([0.5], [0.25])(torch.ones(1, 1, 1, 2)).tolist()
        [[[[2.0, 2.0]]]]
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor):
        super().__init__()
        mean, std = (v.tolist() if isinstance(v, Tensor) else list(v) for v in (mean, std))
        if len(mean) != len(std) or not mean or not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise ConfigError(
                f"mean and std must be one number for each channel, std > 0; got mean={mean} and std={std}. "
                "For colour images in [0, 1] pass three numbers each, as to torchvision's Normalize."
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-3] != len(self.mean):  # one channel would silently broadcast to three
            raise ModelError(
                f"the model normalises {len(self.mean)} channels; got images of shape {tuple(images.shape)}. "
                "Build the model for this data: architecture(name, data), or with_normalize(model, mean, std) with its mean and std."
            )
        return (images - self.mean[:, None, None]) / self.std[:, None, None]

    def extra_repr(self) -> str:
        return f"mean={[round(v, 4) for v in self.mean.tolist()]}, std={[round(v, 4) for v in self.std.tolist()]}"


def with_normalize(model: nn.Module, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> nn.Sequential:
    """A model that takes images in [0, 1] and normalises them for `model`, which it holds (not a copy).

    Use it for every model that was trained behind torchvision's `Normalize(mean, std)`, with the same numbers.

    Args:
        model: any classifier of (N, C, H, W) images: yours, torchvision's, timm's.
        mean: one number for each channel, in pixels of [0, 1].
        std: likewise, > 0.

    Raises:
        ConfigError: mean or std do not fit each other.
        ModelError: the model normalises already.

    Example:
        >>> import torchvision
        >>> model = with_normalize(torchvision.models.resnet18(num_classes=10), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    """
    if isinstance(model, nn.Sequential) and len(model) and isinstance(model[0], Normalize):
        raise ModelError(f"expected a model without Normalize in front; got one with {model[0]}. Use it as it is, or wrap model[1:].")
    normalize = Normalize(mean, std)
    some = next(model.parameters(), None)
    if some is not None:
        normalize.to(some.device)
    wrapped = nn.Sequential(normalize, model)
    wrapped.training = normalize.training = model.training  # not wrapped.train(), which would also change layers frozen in eval mode
    return wrapped
