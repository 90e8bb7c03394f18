"""Shifts and mirrors of a batch of images, on whatever device they are, as a function of (seed, epoch, id).

The same sample gets the same change in the same epoch, whoever its batch mates are and wherever it is computed; an adversarial example that shares
its sample's id can therefore share its crop. Which change that is takes a hundred tiny operations and what it does to pixels takes four: a training loop draws
for many batches at once (`draw`), and moves pixels batch by batch (`changed`).
"""

import torch
from torch import Tensor
from torch.nn import functional

from ..rng import uniform
from ..types import Pixels
from .images import Augment

SHIFT_Y, SHIFT_X, FLIP = 1, 2, 3  # purposes, so that the three draws are independent


def augmented(pixels: Pixels, ids: Tensor, augment: Augment, seed: int, epoch: int) -> Pixels:
    """The batch (B, C, H, W), each image shifted by up to `augment.pad` pixels in both directions (zeros come in) and mirrored or not; dtype unchanged."""
    return changed(pixels, draw(ids, augment, seed, torch.full_like(ids, epoch)), augment) if augment else pixels


def draw(ids: Tensor, augment: Augment, seed: int, epochs: int | Tensor) -> Tensor:
    """How the samples with these ids look in these epochs: int64 (3, N), the window's row and column among the (2 pad + 1)², and whether it is mirrored."""
    n_shifts = 2 * augment.pad + 1
    down, right, mirrored = (
        uniform(seed, purpose, epochs, ids=ids, high=high) if high > 1 else torch.zeros_like(ids)
        for purpose, high in ((SHIFT_Y, n_shifts), (SHIFT_X, n_shifts), (FLIP, 1 + augment.flip))
    )
    return torch.stack([down, right, mirrored])


def changed(pixels: Pixels, drawn: Tensor, augment: Augment) -> Pixels:
    """The batch (B, C, H, W) as `draw` says, by one gather; nothing waits for the device.

    The gather reads rows of pixels that may begin anywhere in memory, of the images and of their mirror images: it copies each row as a whole, several times faster than an index for each pixel.
    """
    (down, right, mirrored), pad, (n, channels, height, width) = drawn, augment.pad, pixels.shape
    sources = functional.pad(pixels, (pad,) * 4).contiguous()
    sources = torch.cat([sources, sources.flip(-1)]) if augment.flip else sources
    tall, wide = sources.shape[-2:]
    image = torch.arange(n, device=pixels.device) + n * mirrored
    # Shifted, then mirrored: of a mirrored image the same window begins as far from the other edge.
    column = torch.where(mirrored > 0, 2 * pad - right, right)
    planes = image[:, None] * channels + torch.arange(channels, device=pixels.device)
    rows = (planes * tall + down[:, None])[:, :, None] + torch.arange(height, device=pixels.device)
    begins = rows * wide + column[:, None, None]
    anywhere = sources.as_strided((sources.numel() - width + 1, width), (1, 1))
    return anywhere.index_select(0, begins.flatten()).view(n, channels, height, width)
