"""Singular values against the SVD of the explicit matrix, for every kind of layer."""

import copy
import itertools

import pytest
import torch
from torch import nn

from expunge import singular_values
from expunge.errors import ConfigError, ModelError
from expunge.models import Normalize
from expunge.spectral.power_qr import power_qr
from expunge.spectral.values import singular_values_of
from oracles import dense


def random_batchnorm(width: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(width).eval()
    norm.running_mean.fill_(100.0)
    norm.running_var.uniform_(0.1, 2.0)
    nn.init.uniform_(norm.weight, -2, 2)
    nn.init.constant_(norm.bias, 50.0)
    return norm


def all_convolutions() -> list[tuple[nn.Module, tuple[int, ...]]]:
    settings = itertools.product((1, 2), (0, 1), (1, 2), ("zeros", "circular", "reflect", "replicate"))
    return [
        (nn.Conv2d(3, 5, 3, stride=stride, padding=padding, dilation=dilation, padding_mode=mode), (3, 9, 8))
        for stride, padding, dilation, mode in settings
        if padding or mode == "zeros"
    ]


torch.manual_seed(0)
LAYERS = [
    *all_convolutions(),
    (nn.Conv2d(3, 5, (3, 1), padding="same"), (3, 6, 7)),
    (nn.Conv2d(4, 8, 3, groups=2), (4, 7, 7)),
    (nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 7, 7)),
    (nn.Conv1d(3, 4, 3), (3, 20)),
    (nn.Conv3d(2, 2, 3), (2, 4, 4, 4)),
    (nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), (3, 5, 5)),
    (nn.ConvTranspose2d(4, 2, 3, groups=2, dilation=2), (4, 5, 5)),
    (nn.Conv2d(1, 1, 1, stride=2), (1, 8, 8)),
    (nn.Linear(30, 7), (30,)),
    (nn.Linear(7, 30, bias=False), (7,)),
    (nn.AvgPool2d(2), (3, 6, 6)),
    (nn.AvgPool2d(3, stride=1, padding=1), (2, 6, 6)),
    (nn.AdaptiveAvgPool2d(1), (3, 6, 6)),
    (random_batchnorm(5), (5, 4, 4)),
    (nn.Sequential(nn.Conv2d(3, 5, 3), random_batchnorm(5)), (3, 8, 8)),
    (nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5 * 36, 4)), (3, 8, 8)),
    (Normalize([0.5, 0.4], [0.25, 0.2]), (2, 3, 3)),
    (nn.Identity(), (3, 4, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda v: str(v).replace("\n", "")[:70])
def test_values_and_vectors_are_those_of_the_matrix(layer, shape):
    matrix = dense(layer, shape)
    found, k = singular_values(layer, shape, 3), 3
    exact = torch.linalg.svdvals(matrix)
    assert found.converged
    assert (found.values - exact[:k]).abs().max() <= 1e-5 * exact[0]
    assert (found.values[:, None] - exact).abs().min(1).values.le(found.error_estimate + 1e-6 * exact[0]).all()
    right, left = found.right.flatten(1).double(), found.left.flatten(1).double()
    torch.testing.assert_close(right @ right.T, torch.eye(k, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(right @ matrix, left * found.values[:, None].double(), atol=2e-4 * exact[0].item(), rtol=0)


def test_equal_and_vanishing_values():
    torch.manual_seed(0)
    rank_two = nn.Linear(40, 30, bias=False)
    with torch.no_grad():
        rank_two.weight.copy_(torch.randn(30, 2) @ torch.randn(2, 40))
    found = singular_values(rank_two, 40, 5)
    exact = torch.linalg.svdvals(rank_two.weight.detach())
    torch.testing.assert_close(found.values[:2], exact[:2])
    assert found.values[2:].max() < 1e-3 * exact[0]
    zero = nn.Linear(50, 40, bias=False)
    nn.init.zeros_(zero.weight)
    assert singular_values(zero, 50, 2).values.tolist() == [0, 0]


def test_any_float_type():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3)
    exact = torch.linalg.svdvals(dense(conv, (8, 9, 9)))[:2]
    double = singular_values(conv.double(), (8, 9, 9), 2, tolerance=1e-9)
    assert double.values.dtype == torch.float64
    assert double.converged
    torch.testing.assert_close(double.values, exact, rtol=1e-9, atol=0)
    for dtype, rtol in ((torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        half = singular_values(copy.deepcopy(conv).to(dtype), (8, 9, 9), 2).values
        assert half.dtype == torch.float32
        torch.testing.assert_close(half.double(), exact, rtol=rtol, atol=0)


def test_a_warm_start_is_faster_and_finds_what_came_up_elsewhere():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1)
    cold = singular_values(conv, (16, 16, 16), 2)
    with torch.no_grad():
        conv.weight.add_(1e-3 * torch.randn_like(conv.weight))
    warm = singular_values(conv, (16, 16, 16), 2, start=cold.right)
    assert warm.iterations < cold.iterations
    diagonal = nn.Linear(60, 60, bias=False)
    with torch.no_grad():
        diagonal.weight.copy_(torch.diag(torch.linspace(1, 0, 60)))
        first = singular_values(diagonal, 60, 1)
        diagonal.weight[30, 30] = 2.0  # the old vector is still a singular vector, exactly
    assert singular_values(diagonal, 60, 1, start=first.right).values.item() == pytest.approx(2.0, abs=1e-4)


def test_layers_side_by_side_are_as_alone():
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 6, 3, padding=1) for _ in range(3)]
    with torch.no_grad():
        layers[1].weight.mul_(3)
    together = singular_values_of(layers, (4, 8, 8), 2)
    for layer, found in zip(layers, together, strict=True):
        torch.testing.assert_close(found.values, singular_values(layer, (4, 8, 8), 2).values, rtol=1e-5, atol=0)


def test_memory_saves_products():
    torch.manual_seed(0)
    matrix = torch.diag(torch.linspace(1, 0, 400) ** 0.5)[None].double()
    counts = {}
    for memory in (1, 16):
        found = power_qr(lambda x: x @ matrix, torch.randn(1, 1, 400).double(), wanted=1, memory=memory, tolerance=1e-3, products=2000)
        assert found.half_widths[0, 0] <= 1e-3
        assert found.values[0, 0] == pytest.approx(1.0, abs=1e-3)
        counts[memory] = found.products
    assert counts[16] < counts[1] / 3


def test_nothing_of_the_model_or_the_generators_changes():
    conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    calls = []
    conv[0].register_forward_hook(lambda *_: calls.append(1))
    before, state = copy.deepcopy(conv.state_dict()), torch.get_rng_state()
    singular_values(conv, (3, 6, 6))
    assert not calls
    assert all(torch.equal(v, before[name]) for name, v in conv.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None and p.requires_grad for p in conv.parameters())


@pytest.mark.parametrize(
    ("layer", "shape", "error", "words"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.ReLU()), (3,), ModelError, "1 (ReLU())"),
        (nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(nn.Tanh(), nn.Conv2d(3, 3, 3))), (3, 8, 8), ModelError, "1.0 (Tanh())"),
        (nn.MaxPool2d(2), (1, 4, 4), ModelError, "MaxPool2d"),
        (nn.BatchNorm2d(3), (3, 4, 4), ModelError, "eval"),
        (nn.Conv2d(3, 4, 3), (4, 8, 8), ModelError, "input_shape"),
        (nn.Linear(4, 4), 5, ModelError, "input_shape"),
        (nn.Linear(4, 3), 4, ConfigError, "at most 3"),
    ],
)
def test_bad_layers_are_refused(layer, shape, error, words):
    with pytest.raises(error) as caught:
        singular_values(layer, shape, 4)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "bad", [{"k": 0}, {"k": True}, {"tolerance": 0.0}, {"tolerance": float("nan")}, {"max_iterations": 0}, {"start": torch.zeros(2, 4)}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        singular_values(nn.Linear(4, 4), 4, **bad)
