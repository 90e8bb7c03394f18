"""How precisely a model is computed, whatever surrounds the call."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from expunge.attacks.fgsm import logits_after_fgsm
from expunge.data.images import Samples
from expunge.methods.l2ul import towards
from expunge.training.gradient_products import gradient_sum
from expunge.training.inference import logits_of
from expunge.training.inputs import input_moments, weighted_layers
from expunge.training.loop import sgd
from expunge.training.per_sample import squared_gradients
from expunge.training.saliency import saliency_mask
from toys import toy_net


def trained(model: nn.Module, data: Samples) -> dict[str, torch.Tensor]:
    """Weights after two steps whose own autocast lies in the caller's, which keeps copies of weights until its end; and what the model then answers."""
    model = copy.deepcopy(model)
    sgd(model, data, epochs=2, lr=0.1, batch_size=40, precision="bfloat16", seed=0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return dict(model.state_dict()) | {"answers": model(data.fetch(torch.arange(len(data))))}


WHAT: dict[str, Callable[[nn.Module, Samples], torch.Tensor | dict[str, torch.Tensor]]] = {
    "logits": logits_of,
    "saliency_mask": lambda model, data: saliency_mask(model, data, 0.3),
    "input_moments": lambda model, data: input_moments(model, weighted_layers(model), data, n_inputs=10**6),
    "gradient_sum": gradient_sum,
    "squared_gradients": squared_gradients,
    "fgsm": lambda model, data: logits_after_fgsm(model, data, 0.1),
    "towards": lambda model, data: towards(model, data, torch.arange(9), 9 - data.labels[:9], eps=0.5, step=0.1, steps=2),
    "training": trained,
}


@pytest.mark.parametrize("what", WHAT)
def test_what_is_computed_of_a_model_is_the_same_bits_under_the_caller_s_autocast(what, digits):
    torch.manual_seed(0)
    model, data = toy_net(), digits[0].subset(range(40))
    expected = WHAT[what](model, data)
    with torch.autocast("cpu", torch.bfloat16):
        found = WHAT[what](model, data)
        assert torch.is_autocast_enabled("cpu")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert model.training
