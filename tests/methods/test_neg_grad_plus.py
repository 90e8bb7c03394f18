import copy
import dataclasses
import functools
import itertools

import pytest
import torch
from torch.nn import functional

from expunge import measure_cost
from expunge.data.images import Augment
from expunge.data.split import forget_samples
from expunge.methods import FineTune, NegGradPlus, neg_grad_plus
from expunge.rng import derive, draw_seed, fork, permutation
from expunge.training.inference import logits_of
from expunge.training.loop import sgd
from expunge.training.schedules import Step
from toys import Watched


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture
def passes(monkeypatch):
    """Every batch that goes forward on its own: filled in while the method runs."""
    batches = []

    def spy(model, batch):
        batches.append(batch)
        return cross_entropy(model, batch)

    cross_entropy = neg_grad_plus.cross_entropy
    monkeypatch.setattr(neg_grad_plus, "cross_entropy", spy)
    return batches


def test_without_weight_on_the_forget_set_it_is_fine_tuning_bit_for_bit_and_reads_no_forget_sample(memorised):
    model, split, _ = memorised
    options = {"epochs": 2, "batch_size": 16, "lr": 0.01, "weight_decay": 5e-4, "schedule": Step()}
    assert same(NegGradPlus(alpha=1.0, momentum=0.9, **options)(model, split), FineTune(**options)(model, split))
    watched = Watched(split.train, forbidden=tuple(split.forget.ids[8:].tolist()))  # the seam looks at the first eight
    NegGradPlus(alpha=1.0, **options)(model, forget_samples(watched, split.forget_indices))


def test_one_step_goes_down_the_retain_loss_and_up_the_forget_loss(memorised, monkeypatch):
    # Oracle: the gradient of both losses, each of a forward pass of its own in training mode.
    model, split, _ = memorised
    monkeypatch.setattr(neg_grad_plus, "sgd", functools.partial(sgd, precision="float32"))
    alpha, lr, n = 0.7, 0.01, len(split.retain)
    ours = NegGradPlus(alpha=alpha, lr=lr, epochs=1, batch_size=n)(model, split, seed=3, device="cpu")
    with fork(3):
        seed = draw_seed()
    drawn = torch.cat([permutation(16, derive(seed, 1), k) for k in range(n // 16)])
    oracle = copy.deepcopy(model).train()
    retain = functional.cross_entropy(oracle(split.retain.fetch(torch.arange(n))), split.retain.labels)
    forget = functional.cross_entropy(oracle(split.forget.fetch(drawn)), split.forget.labels[drawn])
    gradients = torch.autograd.grad(alpha * retain - (1 - alpha) * forget, list(oracle.parameters()))
    for old, gradient, new in zip(model.parameters(), gradients, ours.parameters(), strict=True):
        assert torch.allclose(old - new, lr * gradient, atol=2e-7, rtol=1e-3)  # weights near 1 are rounded by 6e-8


def test_the_forget_set_is_climbed(memorised):
    # A public NegGrad has the sign wrong and fine-tunes on everything.
    model, split, _ = memorised
    options = {"epochs": 5, "batch_size": 16, "lr": 0.05}
    alone, climbed = (NegGradPlus(alpha=a, **options)(model, split) for a in (1.0, 0.5))

    def loss(m):
        return float(functional.cross_entropy(logits_of(m, split.forget), split.forget.labels))

    assert loss(climbed) > 10 * loss(alone)


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_retain_set_decides_the_number_of_steps_and_the_parts_go_forward_apart(memorised, passes, epochs):
    # zip() of the two would end with the shorter, after two steps.
    model, split, _ = memorised
    with measure_cost() as cost:
        NegGradPlus(epochs=epochs, batch_size=8)(model, split)
    assert len(passes) == 2 * epochs * 14  # 112 / 8 retain batches
    retain, forget = set(split.retain.ids.tolist()), set(split.forget.ids.tolist())
    assert all(set(b.ids.tolist()) <= retain for b in passes[::2]) and all(set(b.ids.tolist()) <= forget for b in passes[1::2])
    assert dict(cost.backward) == {"retain": 112 * epochs, "forget": 112 * epochs}


def test_each_round_through_the_forget_set_is_in_another_order_and_with_other_crops(memorised, passes):
    # itertools.cycle(loader) keeps the batches of the first round: the same order and the same crops for ever.
    model, split, _ = memorised
    split = forget_samples(dataclasses.replace(split.train, augment=Augment(pad=2, flip=True)), split.forget_indices[:12])
    NegGradPlus(epochs=2, batch_size=8)(model, split)
    ids, images = (torch.cat([getattr(b, name) for b in passes[1::2]]) for name in ("ids", "images"))
    assert [len(b.ids) for b in passes[1::2]] == (
        [8, 4] * 7 + [8]
    ) * 2  # no sample is twice in a step; the second epoch begins a round of its own
    whole = torch.cat([ids[:84].view(-1, 12), ids[92:176].view(-1, 12)])
    assert (whole.sort(1).values == split.forget.ids).all()
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(whole, 2))
    crops = images[ids == ids[0]].flatten(1)
    assert len(crops.unique(dim=0)) > 0.7 * len(crops)  # of 50 possible ones, drawn some 15 times


def test_single_samples_in_a_step_pass_through_batchnorm(memorised):
    model, split, _ = memorised
    unlearned = NegGradPlus(epochs=1, batch_size=1)(model, split)
    assert all(t.isfinite().all() for t in unlearned.state_dict().values())
    moved = unlearned[1].num_batches_tracked - model[1].num_batches_tracked
    assert moved == 1 + 7  # the last two samples of a round are joined; alone, a sample is normalised by the running statistics


def test_with_frozen_statistics_forget_samples_do_not_move_them(memorised):
    model, split, _ = memorised
    for batchnorm, moves in (("train", True), ("frozen_statistics", False)):
        unlearned = NegGradPlus(epochs=1, batch_size=16, batchnorm=batchnorm)(model, split)
        assert torch.equal(unlearned[1].running_mean, model[1].running_mean) != moves


def test_a_single_forget_sample_is_once_in_each_step(memorised, passes):
    # Repeated to a whole batch it has no variance, and takes BatchNorm's running statistics along.
    model, split, _ = memorised
    split = forget_samples(split.train, split.forget_indices[:1])
    unlearned = NegGradPlus(epochs=1, batch_size=16)(model, split)
    assert all(len(batch.ids) == 1 for batch in passes[1::2])
    assert unlearned[1].num_batches_tracked - model[1].num_batches_tracked == len(passes) // 2
