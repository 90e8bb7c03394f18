import copy

import pytest
import torch
from torch import nn

from expunge.data.split import forget_samples
from expunge.errors import ModelError
from expunge.methods import CFk, EUk
from expunge.training.inference import logits_of
from expunge.training.schedules import Step
from toys import toy_net

QUICK = {"epochs": 2, "batch_size": 16}


def moved(model, original):
    before = original.state_dict()
    return {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_with_all_layers_nothing_of_the_original_is_left(memorised):
    model, split, _ = memorised
    torch.manual_seed(7)
    stranger = toy_net()
    assert same(EUk(k=3, **QUICK)(model, split, seed=1), EUk(k=3, **QUICK)(stranger, split, seed=1))
    assert not same(EUk(k=2, **QUICK)(model, split, seed=1), EUk(k=2, **QUICK)(stranger, split, seed=1))
    assert not same(CFk(k=3, **QUICK)(model, split, seed=1), CFk(k=3, **QUICK)(stranger, split, seed=1))


@pytest.mark.parametrize(("k", "layers"), [(1, {"9"}), (2, {"4", "5", "9"}), (3, {"0", "1", "4", "5", "9"})])
def test_the_layers_before_the_last_k_stay_bit_for_bit_with_their_statistics(memorised, k, layers):
    model, split, _ = memorised
    assert moved(EUk(k=k, momentum=0.9, weight_decay=1e-2, **QUICK)(model, split), model) == layers


def test_the_new_head_does_not_depend_on_the_old_one(memorised):
    # SCRUB's code leaves the head as it was: then the two results differ.
    model, split, _ = memorised
    other = copy.deepcopy(model)
    nn.init.normal_(other[9].weight)
    assert same(EUk(**QUICK)(model, split), EUk(**QUICK)(other, split))


def test_a_new_head_on_old_features_learns_the_retain_set(memorised):
    model, split, _ = memorised
    unlearned = EUk(epochs=10, lr=0.1, batch_size=16, momentum=0.9)(model, split)
    assert (logits_of(unlearned, split.retain).argmax(1) == split.retain.labels).float().mean() > 0.95


def test_a_layer_that_cannot_draw_its_weights_is_refused(memorised):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return x * self.scale

    _, split, _ = memorised
    with pytest.raises(ModelError, match=r"got Scale without one.*let fewer layers start anew"):
        EUk(**QUICK)(nn.Sequential(toy_net(), Scale()), forget_samples(split.train, [0]))


def test_the_step_falls_after_epochs_10_15_and_20():
    schedule = EUk().schedule
    assert [round(schedule(e, 25), 6) for e in (0, 9.9, 10, 14.9, 15, 20, 24.9)] == [1, 1, 0.1, 0.1, 0.01, 0.001, 0.001]
    assert [Step(every=4, first=1, gamma=0.5)(e, 9) for e in (0, 1, 4.9, 5)] == [1, 0.5, 0.5, 0.25]
