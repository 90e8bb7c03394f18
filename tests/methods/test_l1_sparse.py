import copy
import functools
import math

import pytest
import torch
from torch.nn import functional

from expunge.methods import FineTune, L1Sparse, l1_sparse
from expunge.rng import draw_seed, fork, permutation
from expunge.training.loop import sgd

QUICK = {"epochs": 3, "batch_size": 16}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def l1(model):
    return float(sum(p.detach().abs().sum() for p in model.parameters()))


def test_without_penalty_it_is_fine_tuning_bit_for_bit(memorised):
    model, split, _ = memorised
    assert same(L1Sparse(alpha=0.0, **QUICK)(model, split), FineTune(**QUICK)(model, split))
    assert same(L1Sparse(coefficient="linear_increase", epochs=1)(model, split), FineTune(epochs=1)(model, split))  # γ_0 = 0


def test_the_coefficient_of_each_epoch():
    def coefficients(**options):
        method = L1Sparse(epochs=10, alpha=0.01, **options)
        return [method.gamma(e) for e in range(10)]

    decay = coefficients()
    assert decay[0] == 0.01 and decay[-1] == pytest.approx(0.01 / 10) and decay == sorted(decay, reverse=True)
    assert coefficients(coefficient="constant") == [0.01] * 10
    assert coefficients(coefficient="linear_increase") == pytest.approx([0.001 * e for e in range(10)])
    compounded = [0.01 * math.prod(2 - 2 * e / 10 for e in range(epoch)) for epoch in range(10)]  # AMUN's code
    assert max(compounded) > 9 * max(decay)


def test_the_steps_are_those_of_cross_entropy_plus_the_sum_of_absolute_weights(memorised, monkeypatch):
    # Oracle: torch's own SGD, written out, with the coefficient of each epoch.
    model, split, _ = memorised
    monkeypatch.setattr(l1_sparse, "sgd", functools.partial(sgd, precision="float32"))
    ours = L1Sparse(epochs=2, alpha=0.01, batch_size=28, lr=0.02)(model, split, seed=5, device="cpu")
    with fork(5):
        seed = draw_seed()
    oracle = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    for epoch in range(2):
        for positions in permutation(112, seed, epoch).split(28):
            loss = functional.cross_entropy(oracle(split.retain.fetch(positions)), split.retain.labels[positions])
            loss = loss + 0.01 * (1 - epoch / 2) * sum(p.abs().sum() for p in oracle.parameters())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    plain = FineTune(epochs=2, batch_size=28, lr=0.02)(model, split, seed=5, device="cpu")
    for a, b, c in zip(ours.parameters(), oracle.parameters(), plain.parameters(), strict=True):
        off = (a - b).norm()  # channels-last sums in another order; signs of weights near 0 may differ
        assert off < 1e-4 * b.norm() and off < 0.02 * (a - c).norm()


def test_the_sum_of_absolute_weights_falls_in_every_epoch(memorised, monkeypatch):
    model, split, _ = memorised
    sums = []

    def spy(model, *args, **options):
        sums.append(l1(model))
        sgd(model, *args, **options, after_epoch=lambda _: sums.append(l1(model)))

    monkeypatch.setattr(l1_sparse, "sgd", spy)
    L1Sparse(alpha=5e-3, **QUICK)(model, split)
    assert len(sums) == 4 and sums == sorted(sums, reverse=True)
    fine_tuned = l1(FineTune(**QUICK)(model, split))
    assert sums[-1] < fine_tuned - 0.5 * (sums[0] - sums[-1])


def test_frozen_parameters_are_no_part_of_the_sum(memorised):
    model, split, _ = memorised
    model = copy.deepcopy(model)
    model[4].weight.requires_grad_(False)
    unlearned = L1Sparse(alpha=5e-3, **QUICK)(model, split)
    assert torch.equal(unlearned[4].weight, model[4].weight)
    assert all(p is not q for p in L1Sparse()._penalised(model) for q in [model[4].weight])


def test_normalisation_layers_are_spared_if_asked(memorised):
    model, split, _ = memorised
    assert len(L1Sparse()._penalised(model)) == len(list(model.parameters())) == 10
    spared = {id(p) for k in (1, 5) for p in model[k].parameters()}
    kept = {id(p) for p in L1Sparse(exclude_norm=True)._penalised(model)}
    assert kept == {id(p) for p in model.parameters()} - spared
    shrunk, whole = (L1Sparse(alpha=5e-3, exclude_norm=e, **QUICK)(model, split)[1].weight.abs().sum() for e in (False, True))
    assert shrunk < whole
