import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.errors import ConfigError, DataError
from expunge.report import thumbnail
from expunge.report.thumbnails import MOST, PREFIX, SIDE, picture
from report.pages import pictures


def decoded(uri):
    assert uri.startswith(PREFIX)
    return Image.open(io.BytesIO(base64.b64decode(uri[len(PREFIX) :], validate=True)))


def png(width, height):
    """The beginning of a PNG that claims this size, by the definition of the format."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return PREFIX + base64.b64encode(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))).decode()


@pytest.mark.parametrize(("shape", "mode"), [((1, 8, 8), "L"), ((3, 32, 32), "RGB"), ((3, 20, 64), "RGB"), ((1, 64, 1), "L")])
def test_a_small_image_is_kept_pixel_by_pixel(shape, mode):
    values = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    shown = decoded(thumbnail(values / 255))
    assert shown.mode == mode and shown.size == (shape[2], shape[1])
    array = np.asarray(shown) if mode == "RGB" else np.asarray(shown)[:, :, None]
    assert np.array_equal(array, values.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [((3, 224, 224), 64, (64, 64)), ((1, 96, 60), 64, (40, 64)), ((3, 10, 1000), 32, (32, 1)), ((3, 65, 65), 64, (64, 64))],
)
def test_a_large_image_is_shrunk_in_proportion(shape, size, expected):
    assert decoded(thumbnail(torch.full(shape, 0.5), size)).size == expected


def test_shrinking_smooths_rather_than_skips():
    stripes = (torch.arange(128) % 2).float().expand(1, 128, 128)
    values = np.asarray(decoded(thumbnail(stripes, 64)), float)[:, 4:-4]
    assert np.abs(values - 127.5).max() < 40  # every other column alone would be 0 or 255


def test_the_image_is_not_changed_and_may_be_double_or_need_gradients():
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    before = image.detach().clone()
    assert thumbnail(image) == thumbnail(image.detach().double()) and torch.equal(image.detach(), before)


def test_thumbnails_of_a_list_stay_small():
    assert max(len(thumbnail(image)) for image in pictures(4)) < 6000
    assert max(len(thumbnail(image)) for image in pictures(2, (3, 224, 224))) < 24000


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(32, 32), r"\(C, H, W\) with 1 or 3 channels; got \(32, 32\)"),
        (torch.zeros(2, 8, 8), r"got \(2, 8, 8\)"),
        (torch.zeros(3, 0, 8), r"got \(3, 0, 8\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "torch.uint8"),
        (torch.full((1, 8, 8), 1.5), "got 1.5 to 1.5"),
        (torch.full((1, 8, 8), -0.1), "before it is normalised"),
        (torch.full((1, 8, 8), float("nan")), "got nan"),
    ],
)
def test_what_is_no_image_gets_a_clear_error(image, message):
    with pytest.raises(DataError, match=message):
        thumbnail(image)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, MOST + 1])
def test_a_size_out_of_range_gets_a_clear_error(size):
    with pytest.raises(ConfigError, match=r"\[1, 1024\]"):
        thumbnail(torch.zeros(1, 8, 8), size)


@pytest.mark.parametrize(
    ("shape", "shown", "coarse"),
    [((1, 8, 8), (64, 64), True), ((3, 32, 16), (32, 64), True), ((3, 96, 60), (40, 64), False), ((3, 1, 64), (64, 1), False)],
)
def test_a_thumbnail_is_shown_at_one_size_and_only_small_ones_in_squares(shape, shown, coarse):
    found = picture(thumbnail(torch.zeros(shape)))
    assert (found.width, found.height, found.coarse) == (*shown, coarse) and max(shown) == SIDE


def test_sizes_that_would_exhaust_the_reader_are_not_shown():
    assert picture(png(MOST, 1)) is not None
    assert picture(png(MOST + 1, 1)) is picture(png(1, 60000)) is picture(png(0, 8)) is picture(png(8, 8)[: len(PREFIX) + 24]) is None
