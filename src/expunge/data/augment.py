"""Shifts and mirrors of a batch of images, on whatever device they are, as a function of (seed, epoch, id).

The same sample gets the same change in the same epoch, whoever its batch mates are and wherever it is computed; an adversarial example that shares
its sample's id can therefore share its crop.
"""

from torch import Tensor
from torch.nn import functional

from ..rng import uniform
from ..types import Pixels
from .images import Augment

SHIFT_Y, SHIFT_X, FLIP = 1, 2, 3  # purposes, so that the three draws are independent


def augmented(pixels: Pixels, ids: Tensor, augment: Augment, seed: int, epoch: int) -> Pixels:
    """The batch (B, C, H, W), each image shifted by up to `augment.pad` pixels in both directions (zeros come in) and mirrored or not; dtype unchanged."""
    if augment.pad:
        pixels = _shifted(pixels, ids, augment.pad, seed, epoch)
    if augment.flip:
        mirror = uniform(seed, FLIP, epoch, ids=ids, high=2).bool()
        pixels = pixels.index_put((mirror,), pixels[mirror].flip(-1))
    return pixels


def _shifted(pixels: Pixels, ids: Tensor, pad: int, seed: int, epoch: int) -> Pixels:
    height, width = pixels.shape[-2:]
    down = uniform(seed, SHIFT_Y, epoch, ids=ids, high=2 * pad + 1)
    right = uniform(seed, SHIFT_X, epoch, ids=ids, high=2 * pad + 1)
    # A strided view of all (2 pad + 1)² windows: one gather then crops the whole batch, several times faster than slicing image by image.
    windows = functional.pad(pixels, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    rows = down.new_tensor(range(len(pixels)))
    return windows[rows, :, down, right]
