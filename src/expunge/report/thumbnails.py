"""Small pictures inside the page: a tensor as a PNG in a data URI, and the only check by which one may enter a page."""

import base64
import binascii
import io
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..checks import is_integer
from ..errors import ConfigError, DataError

if TYPE_CHECKING:  # rendering plain values needs no torch
    from torch import Tensor

PREFIX = "data:image/png;base64,"
HEAD = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"  # what every PNG begins with; width and height follow
SIDE = 64  # CSS pixels of the longer side on the page
MOST = 1024  # pixels of a side: more is no thumbnail, and may be meant to exhaust the reader's memory


@dataclass(frozen=True)
class Picture:
    """A thumbnail as the page shows it: its longer side is SIDE, whatever it has in pixels."""

    uri: str
    width: int
    height: int
    coarse: bool  # fewer pixels than it is shown with: squares rather than a blur


def thumbnail(image: "Tensor", size: int = 64) -> str:
    """A PNG of an image as a data URI, for "image" of a report's most exposed forget images.

    An image whose longer side has at most `size` pixels is kept pixel by pixel (the page enlarges it); a larger one is shrunk with smoothing, in proportion.

    Args:
        image: float (C, H, W) in [0, 1], grey (C = 1) or RGB (C = 3).
        size: pixels of the longer side at most, an integer in [1, 1024].

    Raises:
        DataError: the image has another shape, another number of channels, or values outside [0, 1] (NaN too).
        ConfigError: size is out of its range.

    Cost: about a millisecond; 1 to 3 kB for 32 × 32 pixels of a photograph.

    Example:
        >>> import torch
        >>> thumbnail(torch.zeros(1, 8, 8))[:30]
        'data:image/png;base64,iVBORw0K'
    """
    from PIL import Image

    if not is_integer(size, 1) or size > MOST:
        raise ConfigError(f"size must be an integer in [1, {MOST}]; got {size!r}. Pass 64.")
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape or not image.is_floating_point():
        raise DataError(
            f"a thumbnail needs a float image (C, H, W) with 1 or 3 channels; got {tuple(image.shape)} of {image.dtype}. Leave the image out, or pass three of its channels."
        )
    image = image.detach().cpu()
    if not bool(((image >= 0) & (image <= 1)).all()):  # NaN is neither
        raise DataError(
            f"a thumbnail needs values in [0, 1]; got {float(image.min()):g} to {float(image.max()):g}. Pass the image before it is normalised."
        )
    height, width = image.shape[1:]
    pixels = (255 * image.double()).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if max(height, width) > size:
        shrink = size / max(height, width)
        picture = picture.resize((max(1, round(width * shrink)), max(1, round(height * shrink))), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return PREFIX + base64.b64encode(file.getvalue()).decode("ascii")


def picture(uri: Any) -> Picture | None:
    """What may be shown as an image: a PNG inside the text itself, with sides up to MOST; None for everything else.

    Example:
        >>> picture("https://example.org/cat.png"), picture("javascript:alert(1)"), picture("data:image/svg+xml;base64,PHN2Zz4=")
        (None, None, None)
    """
    if not isinstance(uri, str) or not re.fullmatch(re.escape(PREFIX) + r"[A-Za-z0-9+/]+={0,2}", uri):
        return None
    try:
        content = base64.b64decode(uri[len(PREFIX) :], validate=True)
    except binascii.Error:
        return None
    if not content.startswith(HEAD) or len(content) < len(HEAD) + 8:
        return None
    width, height = struct.unpack_from(">II", content, len(HEAD))
    if not (1 <= width <= MOST and 1 <= height <= MOST):
        return None
    factor = SIDE / max(width, height)
    return Picture(uri, max(1, round(factor * width)), max(1, round(factor * height)), factor > 1)
