import copy

import pytest
import torch
from torch import nn

from expunge.data.split import forget_samples
from expunge.methods import CFk, FineTune
from toys import toy_net


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moved(model, before):
    return {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_with_all_layers_it_is_fine_tuning_bit_for_bit(memorised):
    model, split, _ = memorised
    everything = CFk(k=3, epochs=2, lr=0.02, batch_size=16, momentum=0.9, weight_decay=1e-3)(model, split, seed=5)
    fine_tuned = FineTune(epochs=2, lr=0.02, batch_size=16, weight_decay=1e-3)(model, split, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(everything.state_dict().values(), fine_tuned.state_dict().values(), strict=True))


@pytest.mark.parametrize(("k", "layers"), [(1, {"9"}), (2, {"4", "5", "9"}), (3, {"0", "1", "4", "5", "9"})])
def test_the_layers_before_the_last_k_stay_bit_for_bit_with_their_statistics(memorised, k, layers):
    # Weight decay and momentum move weights without a gradient, and training mode moves statistics: neither must.
    model, split, _ = memorised
    unlearned = CFk(k=k, epochs=2, batch_size=16, momentum=0.9, weight_decay=1e-2)(model, split)
    assert moved(unlearned, state(model)) == layers


def test_statistics_of_the_frozen_part_are_used_and_those_of_the_rest_are_the_batches(memorised):
    # The oracle: torch's own loop, the front in eval mode and the rest in training mode.
    model, split, _ = memorised
    few = forget_samples(split.train, range(16, 128))
    oracle = copy.deepcopy(model)
    oracle.train()[:4].eval()
    optimizer = torch.optim.SGD(oracle[4:].parameters(), lr=0.05)
    images, labels = few.retain.fetch(torch.arange(16)), few.retain.labels
    nn.functional.cross_entropy(oracle(images), labels).backward()
    optimizer.step()
    unlearned = CFk(k=2, epochs=1, lr=0.05, batch_size=16)(model, few)
    for ours, theirs in zip(unlearned.state_dict().values(), oracle.state_dict().values(), strict=True):
        assert torch.allclose(ours.float(), theirs.float(), atol=3e-3)  # matrix products may be in bfloat16
    assert not torch.equal(unlearned[5].running_mean, model[5].running_mean)


def test_what_cannot_change_is_said(memorised):
    _, split, _ = memorised
    model = toy_net()
    model[9].requires_grad_(False)
    with pytest.raises(Exception, match="no parameter that may change"):
        CFk(k=1)(model, split)
