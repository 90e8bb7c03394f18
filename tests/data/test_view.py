"""Anything an item can be becomes pixels in [0, 1] and an int, or an error that helps."""

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.data.view import to_label, to_pixels
from expunge.errors import DataError


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)), (1, 3, 4)),
        (Image.new("RGB", (4, 3)), (3, 3, 4)),
        (Image.new("RGBA", (4, 3)), (3, 3, 4)),
        (np.zeros((3, 4), np.uint8), (1, 3, 4)),
        (np.zeros((5, 4, 3)), (3, 5, 4)),
        (np.zeros((3, 5, 4), np.float32), (3, 5, 4)),
        (np.zeros((1, 5, 4), np.float32), (1, 5, 4)),
        (torch.zeros(5, 4), (1, 5, 4)),
        (torch.zeros(5, 3), (1, 5, 3)),
        (torch.zeros(3, 5, 4), (3, 5, 4)),
        (torch.zeros(5, 4, 3, dtype=torch.uint8), (3, 5, 4)),
        (torch.zeros(3, 5, 4, dtype=torch.float64), (3, 5, 4)),
    ],
)
def test_every_kind_of_image_becomes_channels_first(image, expected):
    found = to_pixels(image, "it")
    assert tuple(found.shape) == expected
    assert found.dtype in (torch.uint8, torch.float32)


@pytest.mark.parametrize("image", ["text", torch.zeros(3, 4, 5, dtype=torch.int64), torch.zeros(2, 3, 4, 5), np.array(["a"]), None])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(DataError, match=r"it: expected a PIL image, .*End the transform with ToTensor\(\)"):
        to_pixels(image, "it")


@pytest.mark.parametrize("label", [3, np.int32(3), torch.tensor(3), np.array(3)])
def test_integers_of_every_kind_are_labels(label):
    assert to_label(label, 0) == 3 and type(to_label(label, 0)) is int


@pytest.mark.parametrize("label", ["cat", 3.0, True, torch.tensor([3]), torch.tensor(3.0), None])
def test_other_labels_are_refused(label):
    with pytest.raises(DataError, match="item 7: the label must be an integer class number"):
        to_label(label, 7)
