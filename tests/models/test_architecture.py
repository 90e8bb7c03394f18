"""The networks: sizes as published, any image from 8×8 on, recipes that survive JSON, and enough capacity to memorise."""

import json
from dataclasses import asdict

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from expunge.data.images import ImageData
from expunge.errors import ConfigError, MissingError
from expunge.models.architecture import ARCHITECTURES, Architecture, architecture, channel_statistics
from expunge.models.normalize import Normalize
from expunge.rng import fork


def build(name: str, shape: tuple[int, int, int] = (3, 32, 32), n_classes: int = 10) -> nn.Module:
    return Architecture(name, n_classes, shape, (0.5,) * shape[0], (0.25,) * shape[0])()


@pytest.mark.parametrize(
    ("name", "n_parameters"),
    [
        ("resnet18", 11_173_962),  # the CIFAR ResNet-18 of the literature, 11.17 M
        ("resnet9", 6_573_130),  # 6.57 M, as the DAWNBench entries report
        ("vgg19", 20_035_018),  # torchvision's vgg19_bn features (20,029,... without convolution biases) and one linear layer
        ("all_cnn", 1_370_986),
        ("all_cnn_plain", 1_369_738),  # 1.37 M; the paper says 1.4 M
        ("resnet_small", 701_466),
        ("resnet_tiny", 308_826),
        ("resnet18_plain", 11_169_162),
        ("resnet_tiny_plain", 308_106),
    ],
)
def test_parameter_counts_are_those_of_the_papers(name, n_parameters):
    with torch.device("meta"):
        model = build(name)
    assert sum(p.numel() for p in model.parameters()) == n_parameters


@pytest.mark.parametrize(
    ("name", "megaflops"),
    [("resnet_small", 70), ("resnet_tiny", 32), ("resnet18", 1111), ("resnet9", 759), ("vgg19", 796), ("all_cnn", 562)],
)
def test_documented_work_is_what_the_flop_counter_measures(name, megaflops):
    with torch.device("meta"):
        model, image = build(name).eval(), torch.empty(1, 3, 32, 32)
        with FlopCounterMode(display=False) as counter:
            model(image)
    assert counter.get_total_flops() / 1e6 == pytest.approx(megaflops, abs=0.6)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (1, 40, 24), (3, 33, 64)])
def test_every_network_takes_grey_and_oblong_images_of_any_size(name, shape):
    with torch.device("meta"):
        model = build(name, shape, n_classes=7)
        assert model(torch.empty(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_network_trains_every_weight(name):
    with fork(0):
        model = build(name, (1, 9, 8))
        model(torch.rand(4, 1, 9, 8)).logsumexp(1).sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # Before a batch normalisation over few pixels a gradient can vanish, but not for whole convolutions of these sizes.
    assert not [n for n in dead if n.endswith("weight")]


def test_two_calls_give_two_models():
    make = Architecture("small", 10, (1, 8, 8), (0.5,), (0.25,))
    first, second = make(), make()
    assert not torch.equal(first[1][0][0].weight, second[1][0][0].weight)


def test_architecture_takes_classes_shape_and_statistics_from_the_data():
    images = torch.zeros(10, 3, 8, 12, dtype=torch.uint8)
    images[:5, 0] = 255  # channel 0: half ones, so mean and std are 1/2; channel 1: constant
    images[:, 1] = 51
    images[:1, 2] = 255  # channel 2: a tenth ones: std = sqrt(0.1 · 0.9)
    made = architecture("small", ImageData(images, torch.arange(10) % 3, ("a", "b", "c")))
    assert made == Architecture("small", 3, (3, 8, 12), (0.5, 0.2, 0.1), (0.5, 1.0, 0.3))
    assert isinstance(made()[0], Normalize)


def test_statistics_do_not_depend_on_the_batch_they_were_read_in():
    images = torch.randint(256, (1100, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = channel_statistics(ImageData(images, torch.zeros(1100, dtype=torch.int64), ("a",)))
    pixels = images.double() / 255
    assert mean == (round(pixels.mean().item(), 4),)
    assert std == (round(pixels.std(correction=0).item(), 4),)


def test_an_architecture_survives_json():
    made = Architecture("small", 10, (1, 8, 8), (0.5,), (0.25,))
    assert Architecture.from_json(json.loads(json.dumps(asdict(made)))) == made


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(MissingError, match=r"no architecture named 'resnet19'; did you mean 'resnet1?[89]'"):
        Architecture("resnet19", 10, (1, 8, 8), (0.5,), (0.25,))


@pytest.mark.parametrize(
    "fields",
    [
        {"n_classes": 0},
        {"shape": (1, 7, 8)},
        {"shape": (0, 8, 8), "mean": (), "std": ()},
        {"mean": (0.5, 0.5)},
        {"std": (0.0,)},
        {"mean": (float("nan"),)},
    ],
)
def test_numbers_that_do_not_fit_are_refused(fields):
    with pytest.raises(ConfigError, match="Architecture: "):
        Architecture(**{"name": "small", "n_classes": 10, "shape": (1, 8, 8), "mean": (0.5,), "std": (0.25,)} | fields)


def test_the_small_network_memorises_a_thousand_digits():
    pixels, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels[:1000], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels[:1000])
    with fork(0):
        model = Architecture("small", 10, (1, 8, 8), (0.3048,), (0.3761,))()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        for epoch in range(14):
            optimiser.param_groups[0]["lr"] = 0.1 * (1 - epoch / 14)
            for batch in torch.randperm(1000).split(64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimiser.step()
    with torch.no_grad():
        logits = model.eval()(images)
    assert (logits.argmax(1) == labels).all()
    assert nn.functional.cross_entropy(logits, labels) < 0.01
