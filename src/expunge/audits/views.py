"""Deterministic views of images, the same for every model: as they are, mirrored, shifted by a pixel.

An attack that asks several times must ask all models the same questions. Random crops drawn anew for each model (as in public code) add noise to
a score that is no property of the model, and make results depend on who was asked first.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn import functional

from ..data.images import ImageData, Samples
from ..errors import ConfigError
from ..training.inference import logits_of


class QueryView(NamedTuple):
    """One view of an image: mirrored or not, then shifted by whole pixels; zeros come in at the edge."""

    mirrored: bool = False
    down: int = 0
    right: int = 0


def query_views(n: int = 18, *, mirror: bool = True) -> list[QueryView]:
    """The first n of the 18 views, mirror × (3 × 3) shifts by a pixel; first the image itself, then its mirror image, then small shifts.

    Args:
        n: in [1, 18]; without mirrors in [1, 9].
        mirror: whether a mirrored image is an image of the same class. A mirrored digit is not; `samples.augment.flip` says it.

    Raises:
        ConfigError: n out of range.

    Example:
        >>> query_views(2)
        [QueryView(mirrored=False, down=0, right=0), QueryView(mirrored=True, down=0, right=0)]
    """
    shifts = sorted(((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)), key=lambda s: (abs(s[0]) + abs(s[1]), s))
    found = [QueryView(m, *shift) for shift in shifts for m in ((False, True) if mirror else (False,))]
    if not 1 <= n <= len(found):
        raise ConfigError(f"n must be in [1, {len(found)}], the number of views there are; got {n!r}.")
    return found[:n]


def predictions_over_views(model: nn.Module, samples: Samples, looks: Sequence[QueryView] | None = None) -> Int64[Tensor, "V N"]:
    """The label that the model gives each sample in each view, int64 (V, N); a function of model and sample alone.

    Args:
        model: answers logits; asked in float32 and eval mode.
        samples: images.
        looks: the views; None = all of `query_views`, mirrored if the data's augmentation mirrors.

    Raises:
        ModelError: the model cannot take these images.

    Cost: V forward passes.

    Example:
        >>> from expunge import load_data
        >>> digits = load_data("digits")[1].subset(range(4))
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> predictions_over_views(model, digits).shape
        torch.Size([9, 4])
    """
    looks = query_views(18 if samples.augment.flip else 9, mirror=samples.augment.flip) if looks is None else looks
    images = torch.cat([images for images, _ in samples.batches()])
    seen = (ImageData(_looked_at(images, look), samples.labels, samples.classes) for look in looks)
    return torch.stack([logits_of(model, one).argmax(1) for one in seen])


def _looked_at(images: Tensor, look: QueryView) -> Tensor:
    images = images.flip(-1) if look.mirrored else images
    return functional.pad(images, (look.right, -look.right, look.down, -look.down))  # negative: cut off what leaves
