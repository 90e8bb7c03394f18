import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from expunge.costs import measure_cost
from expunge.data.images import Augment, ImageData
from expunge.errors import ConfigError, ModelError
from expunge.training import per_sample
from expunge.training.gradient_products import (
    flat,
    gradient_slopes,
    gradient_sum,
    inverse_by_conjugate_gradients,
    inverse_by_woodbury,
    unflat,
)
from expunge.training.per_sample import (
    absolute_gradients,
    answer_length,
    every_label,
    gradient_matrix,
    own_label,
    squared_gradients,
    trainable,
)
from toys import Attending, toy_net

LOSSES = pytest.mark.parametrize("losses", [own_label, every_label, answer_length])


class TwiceUsed(nn.Module):
    """One layer called twice, and one weight in two layers."""

    def __init__(self, tied):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 3)
        self.tied = tied
        if tied:
            self.again.weight = self.first.weight
        else:
            del self.again

    def forward(self, x):
        second = self.again if self.tied else self.first
        return self.last(second(self.first(x.flatten(1)).relu()).relu())


class Hidden(nn.Module):
    """A layer that is never called: its weight is used behind the module's back, on top of another's."""

    def __init__(self):
        super().__init__()
        self.first, self.behind = nn.Linear(48, 8), nn.Linear(8, 3)

    def forward(self, x):
        return functional.linear(self.first(x.flatten(1)), self.behind.weight)


class Sequence(nn.Module):
    """A linear layer that sees positions, not samples, in its first dimension."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(96, 3)

    def forward(self, x):
        return self.last(self.first(x.reshape(-1, 4)).tanh().reshape(len(x), 96))


def conv_net(**options):
    layers = [
        nn.Conv2d(3, 6, 3, **options),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, (2, 1), bias=False),
        nn.AdaptiveAvgPool2d(1),
    ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def prepared(model, shape, n=7):
    """The model with running statistics that are not 0 and 1, and images."""
    torch.manual_seed(1)
    data = ImageData(torch.randint(256, (n, *shape), dtype=torch.uint8), torch.arange(n) % 3, ("a", "b", "c"), Augment(2, True))
    with torch.no_grad():
        model.train()(data.fetch(torch.arange(n)))
    return model, data


def by_loop(model, data, losses, size):
    """One sample, one loss, one backward pass at a time."""
    means = {name: torch.zeros_like(p) for name, p in model.named_parameters() if p.requires_grad}
    model = copy.deepcopy(model).eval()
    for k in range(len(data)):
        for loss, weight in losses(model(data.fetch(torch.tensor([k]))), data.labels[k : k + 1]):
            own = torch.autograd.grad(
                loss.sum(), [p for p in model.parameters() if p.requires_grad], retain_graph=True, materialize_grads=True
            )
            for mean, g in zip(means.values(), own, strict=True):
                mean.add_(float(weight) * size(g) / len(data))
    return means


def agree(found, expected, tolerance=2e-6):
    assert found.keys() == expected.keys() and found
    for name, mean in expected.items():
        assert float((found[name] - mean).norm()) <= tolerance * float(mean.norm()), name


CONVOLUTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (1, 3), "padding": (0, 2), "dilation": (2, 1)},
    {"groups": 3, "padding": 2, "dilation": 2, "bias": False},
]


@LOSSES
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=["plain", "strided", "unequal", "grouped"])
def test_both_ways_give_the_mean_square_of_each_samples_own_gradient(losses, options):
    model, data = prepared(conv_net(**options), (3, 9, 8))
    expected = by_loop(model, data, losses, torch.square)
    agree(squared_gradients(model, data, losses, by_layers=True), expected)
    agree(squared_gradients(model, data, losses, by_layers=False), expected)
    agree(absolute_gradients(model, data, losses), by_loop(model, data, losses, torch.abs))


def test_squares_of_batches_would_be_something_else(memorised):
    # Public code squares the gradient of a batch's mean: noise in it shrinks with the batch.
    model, split, _ = memorised
    own = squared_gradients(model, split.retain)
    total = unflat(gradient_sum(model, split.retain), trainable(model))
    assert all(float((total[name] / len(split.retain)).square().sum()) < 0.2 * float(own[name].sum()) for name in own)


@LOSSES
def test_the_batch_size_and_the_size_of_pieces_change_nothing_but_rounding(memorised, losses, monkeypatch):
    model, split, _ = memorised
    once = squared_gradients(model, split.forget, losses, batch_size=16)
    for size in (1, 5):
        agree(squared_gradients(model, split.forget, losses, batch_size=size), once, 1e-5)
    monkeypatch.setitem(per_sample.PIECE, "cpu", 1)
    monkeypatch.setattr(per_sample, "WHOLE", 1)
    for way in (True, False):
        agree(squared_gradients(model, split.forget, losses, by_layers=way), once, 1e-5)


@pytest.mark.parametrize("model", [TwiceUsed(tied=False), TwiceUsed(tied=True), Hidden(), Sequence(), nn.Sequential(nn.Conv2d(3, 4, 1, padding_mode="circular"), nn.Flatten(), nn.GroupNorm(2, 64), nn.Linear(64, 3))], ids=["twice", "tied", "hidden", "positions", "others"])  # fmt: skip
def test_models_that_layers_cannot_describe_take_the_other_way(model):
    model, data = prepared(model, (3, 4, 4))
    agree(squared_gradients(model, data), by_loop(model, data, own_label, torch.square))
    with pytest.raises(ModelError, match="called once"):
        squared_gradients(model, data, by_layers=True)


def test_a_layer_that_computes_something_else_under_a_known_name_is_found_out():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for layer in (Doubled(48, 3), nn.Linear(48, 3)):
        model, data = prepared(nn.Sequential(nn.Flatten(), layer), (3, 4, 4))
        if type(layer) is nn.Linear:
            layer.register_forward_hook(lambda layer, x, y: 2 * y)
        agree(squared_gradients(model, data), by_loop(model, data, own_label, torch.square))


def test_frozen_parameters_are_left_out_and_the_model_stays_as_it_is():
    model, data = prepared(conv_net(), (3, 9, 8))
    model[0].weight.requires_grad_(False), model[1].bias.requires_grad_(False)
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    for way in (True, False):
        found = squared_gradients(model, data, by_layers=way)
        assert "0.weight" not in found and "1.bias" not in found and "0.bias" in found and "1.weight" in found
    agree(found, by_loop(model, data, own_label, torch.square))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ModelError, match="all are frozen"):
        squared_gradients(model.requires_grad_(False), data)


def test_what_it_costs_is_counted(memorised, monkeypatch):
    model, split, _ = memorised
    seen = []
    monkeypatch.setattr(nn.AdaptiveAvgPool2d, "forward", lambda self, x, f=nn.AdaptiveAvgPool2d.forward: seen.append(len(x)) or f(self, x))
    with measure_cost() as cost:
        squared_gradients(model, split.forget, every_label, batch_size=5)
    assert cost.forward.total() == sum(seen) == 16 + 3 and cost.backward.total() == 160 + 3


def test_rows_sums_slopes_and_both_inverses_agree_with_dense_algebra():
    model, data = prepared(conv_net(), (3, 9, 8), n=12)
    rows = gradient_matrix(model, data, batch_size=5)
    model.eval()
    for k, row in enumerate(rows):
        loss = functional.cross_entropy(model(data.fetch(torch.tensor([k]))), data.labels[k : k + 1])
        torch.testing.assert_close(row, flat(torch.autograd.grad(loss, list(model.parameters()))), rtol=1e-5, atol=1e-6)
    torch.manual_seed(0)
    v, w = torch.randn(rows.shape[1]), torch.randn(12)
    torch.testing.assert_close(gradient_sum(model, data, w, batch_size=5), rows.T @ w, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient_sum(model, data), rows.sum(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient_slopes(model, data, v, batch_size=5), rows @ v, rtol=1e-4, atol=1e-5)

    dense = 0.01 * torch.eye(len(v), dtype=torch.float64) + rows.double().T @ rows.double() / 12
    expected = torch.linalg.solve(dense, v.double()).float()
    found = {
        "woodbury": inverse_by_woodbury(v, rows, 0.01),
        "conjugate gradients": inverse_by_conjugate_gradients(
            v, lambda u: gradient_sum(model, data, gradient_slopes(model, data, u) / 12), 0.01, iterations=30, tolerance=1e-6
        ),
    }
    for name, solution in found.items():
        assert float((solution - expected).norm() / expected.norm()) < 1e-5, name
    with pytest.raises(ConfigError, match="residual.*after 1 iterations. Allow more, or raise the damping"):
        inverse_by_conjugate_gradients(v, lambda u: rows.T @ (rows @ u) / 12, 1e-6, iterations=1)


def test_a_matrix_that_would_not_fit_is_refused(memorised, monkeypatch):
    model, split, _ = memorised
    monkeypatch.setattr(per_sample, "MOST_NUMBERS", 50_000)
    with pytest.raises(ConfigError, match="at most 50,000 numbers; got 16 samples of 6,186 parameters. Take 8 samples or fewer"):
        gradient_matrix(model, split.forget)
    assert gradient_matrix(toy_net(), split.forget.subset(range(8))).shape == (8, 6186)


def test_attention_is_differentiated_sample_by_sample_without_falling_back_to_a_slow_loop():
    """PyTorch warns of the loop, and here warnings are errors."""
    torch.manual_seed(0)
    model = Attending().eval()
    data = ImageData(torch.rand(5, 1, 8, 8), torch.arange(5) % 3, tuple("abc"))
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for image, label in data:
        loss = functional.cross_entropy(model(image[None]), torch.tensor([label]))
        for (name, _), g in zip(model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            expected[name] += g.square() / len(data)
    torch.testing.assert_close(squared_gradients(model, data), expected, rtol=1e-3, atol=1e-7)
