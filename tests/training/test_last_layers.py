"""Layers in the order of their calls, and what one of them takes along."""

import pytest
import torch
from torch import nn

from expunge.data.images import ImageData
from expunge.errors import ModelError
from expunge.models.architecture import architecture
from expunge.training.last_layers import last_layers
from expunge.training.reinitialise import reset
from toys import toy_net


@pytest.fixture
def data():
    torch.manual_seed(0)
    return ImageData(torch.randint(256, (6, 1, 8, 8), dtype=torch.uint8), torch.arange(6) % 3, tuple("abc"))


class Backwards(nn.Module):
    """Constructs its layers in another order than it calls them."""

    def __init__(self):
        super().__init__()
        self.head, self.norm, self.conv = nn.Linear(4, 3), nn.BatchNorm2d(4), nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


class Attentive(nn.Module):
    """Weights of the model itself, and of a layer whose child is used but never called."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.norm, self.attention, self.head = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(torch.cat([self.token.expand(len(x), -1, -1), x.flatten(1, 2)], 1))
        return self.head(self.attention(x, x, x, need_weights=False)[0][:, 0])


def test_layers_are_counted_in_the_order_of_their_calls_and_batchnorm_goes_with_the_convolution_before_it(data):
    model = Backwards()
    assert last_layers(model, data, 1) == ([model.head], [model.norm, model.conv])
    assert last_layers(model, data, 2) == ([model.conv, model.norm, model.head], [])


def test_more_layers_than_there_are_means_all(data):
    assert len(last_layers(toy_net(n_classes=3), data, 100).last) == 5


def test_the_last_stage_of_a_resnet_and_its_head_are_six_layers(data):
    net = architecture("resnet18", data)()
    last, front = last_layers(net, data, 6)
    assert set(last) == {
        m for part in (net[1].layer4, net[1].fc) for m in part.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)
    }
    assert not set(last) & set(front) and len(last) + len(front) == 41  # 20 convolutions, 20 BatchNorms, 1 head


def test_weights_of_the_model_itself_come_first_and_an_uncalled_child_goes_with_its_parent(data):
    model = Attentive()
    assert last_layers(model, data, 2) == ([model.attention, model.attention.out_proj, model.head], [model, model.norm])


def test_a_normalisation_with_statistics_alone_belongs_to_its_layer_too(data):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(144, 3))
    assert last_layers(model, data, 1).front == [model[0], model[1]]


def test_a_model_that_calls_no_layer_is_refused(data):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 3)

        def forward(self, x):
            return nn.functional.linear(x.flatten(1), self.layer.weight, self.layer.bias)

    with pytest.raises(ModelError, match="calls none"):
        last_layers(Functional(), data, 1)


def test_reset_draws_weights_and_statistics_anew_and_leaves_what_requires_no_gradient():
    model = toy_net()
    model[1].running_mean.fill_(5.0)
    model[4].weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        model[1].weight.fill_(3.0)
    reset([model[1], model[4], model[9]])
    assert not model[1].running_mean.any() and (model[1].weight == 1).all()
    assert torch.equal(model[4].weight, before["4.weight"]) and not torch.equal(model[4].bias, before["4.bias"])
    assert not torch.equal(model[9].weight, before["9.weight"]) and torch.equal(model[0].weight, before["0.weight"])


def test_a_module_that_cannot_draw_its_weights_is_named_before_anything_changes():
    model = Attentive()
    before = model.head.weight.detach().clone()
    with pytest.raises(ModelError, match="reset_parameters.*got Attentive"):
        reset([model.head, model])
    assert torch.equal(model.head.weight, before)
    reset([model.attention, model.attention.out_proj])
    assert not model.attention.out_proj.bias.any()  # as MultiheadAttention wants it, not as Linear would have it
