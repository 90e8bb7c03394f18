import pytest
import torch
from torch.nn import functional

from expunge.errors import ModelError
from expunge.methods import GradientAscent
from expunge.training.inference import logits_of


def loss(model, samples):
    return float(functional.cross_entropy(logits_of(model, samples), samples.labels))


@pytest.mark.parametrize("problem", ["memorised", "memorised_class"])
@pytest.mark.parametrize("lr", [1e-4, 1e-2])
def test_the_loss_of_the_forget_set_rises(problem, lr, request):
    # A public implementation negates the gradients before they are computed, and so goes down.
    model, split, _ = request.getfixturevalue(problem)
    climbed = GradientAscent(epochs=1, lr=lr, batch_size=8, batchnorm="frozen_statistics")(model, split)
    assert loss(climbed, split.forget) > loss(model, split.forget)


def test_a_model_that_fell_over_the_cliff_is_an_error_and_not_a_result(memorised):
    model, split, _ = memorised
    with pytest.raises(ModelError, match="diverged.*Lower lr"):
        GradientAscent(epochs=30, lr=1e6)(model, split)


def test_as_the_step_vanishes_the_weights_stay(memorised):
    model, split, _ = memorised
    still = GradientAscent(lr=1e-12)(model, split)
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(model.parameters(), still.parameters(), strict=True))
