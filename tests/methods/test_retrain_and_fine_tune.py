import pytest
import torch
from torch import nn

from expunge.data.split import forget_samples
from expunge.errors import ModelError
from expunge.methods import FineTune, Retrain
from expunge.rng import draw_seed, fork
from expunge.training.recipe import Recipe, train_model
from toys import Watched, toy_net

RECIPE = Recipe(epochs=2, batch_size=16)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_retraining_is_training_on_the_retain_set_bit_for_bit(memorised):
    model, split, _ = memorised
    with fork(7):
        seed = draw_seed()
    assert same(
        Retrain(build=toy_net, recipe=RECIPE)(model, split, seed=7, device="cpu"),
        train_model(toy_net, split.retain, RECIPE, seed=seed, device="cpu"),
    )


def test_retraining_starts_from_new_weights_in_every_layer(memorised):
    # A public "retrain" resets only the last layer of a ResNet.
    _, split, _ = memorised
    hardly = Recipe(epochs=1, lr=1e-9, batch_size=16)
    original = train_model(toy_net, split.train, hardly, seed=0)
    retrained = Retrain(build=toy_net, recipe=hardly)(original, split, seed=0)
    for ours, theirs in zip(retrained.parameters(), original.parameters(), strict=True):
        if theirs.ndim > 1:
            correlation = torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1]
            assert abs(correlation) < 0.5


@pytest.mark.parametrize("method", [Retrain(build=toy_net, recipe=RECIPE), FineTune(epochs=1, batch_size=16)], ids=lambda m: m.name)
def test_no_forget_sample_is_trained_on(memorised, method):
    model, split, _ = memorised
    checked_by_the_seam = set(split.forget.ids[:8].tolist())
    watched = Watched(split.train, forbidden=tuple(set(split.forget.ids.tolist()) - checked_by_the_seam))
    method(model, forget_samples(watched, split.forget_indices))


def test_another_architecture_is_refused(memorised):
    model, split, _ = memorised
    with pytest.raises(ModelError, match="architecture"):
        Retrain(build=other_net, recipe=RECIPE)(model, split)


def other_net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_fine_tuning_with_hardly_a_step_is_the_identity(memorised):
    model, split, _ = memorised
    still = FineTune(epochs=1, lr=1e-12, weight_decay=0.0)(model, split)
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(model.parameters(), still.parameters(), strict=True))


def test_retraining_does_not_start_from_the_original(memorised):
    model, split, _ = memorised
    with pytest.raises(ModelError, match="build.. must make a new model"):
        Retrain(build=lambda: model, recipe=RECIPE)(model, split)
