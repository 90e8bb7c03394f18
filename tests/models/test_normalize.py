"""Normalize as a first layer: exact, picky about channels, and transparent to what it wraps."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from expunge.errors import ConfigError, ModelError
from expunge.models.normalize import Normalize, with_normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_normalize_equals_torchvisions():
    images = torch.rand(2, 3, 5, 7)
    expected = torchvision.transforms.Normalize(MEAN, STD)(images)
    torch.testing.assert_close(Normalize(MEAN, STD)(images), expected, rtol=0, atol=1e-6)


def test_grey_images_do_not_broadcast_into_a_colour_model():
    with pytest.raises(ModelError, match=r"normalises 3 channels; got images of shape \(2, 1, 8, 8\)"):
        Normalize(MEAN, STD)(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.0]), ([0.5], [-1.0]), ([0.5, 0.5], [1.0]), ([float("nan")], [1.0])])
def test_impossible_statistics_are_refused(mean, std):
    with pytest.raises(ConfigError, match="std > 0"):
        Normalize(mean, std)


@pytest.mark.parametrize(
    "make", [lambda: torchvision.models.resnet18(num_classes=10), lambda: timm.create_model("resnet18", num_classes=10, pretrained=False)]
)
def test_models_of_torchvision_and_timm_work_unmodified(make):
    model = make().eval()
    images = torch.rand(2, 3, 64, 64)
    wrapped = with_normalize(model, MEAN, STD)
    with torch.no_grad():
        assert torch.equal(wrapped(images), model(Normalize(MEAN, STD)(images)))


def test_wrapping_keeps_the_mode_of_every_layer():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model[1].eval()
    wrapped = with_normalize(model, [0.5], [0.5])
    assert wrapped.training and model[0].training and not model[1].training
    assert not with_normalize(model.eval(), [0.5], [0.5]).training


def test_wrapping_twice_is_refused():
    with pytest.raises(ModelError, match="without Normalize in front"):
        with_normalize(with_normalize(nn.Flatten(), [0.5], [0.5]), [0.5], [0.5])
