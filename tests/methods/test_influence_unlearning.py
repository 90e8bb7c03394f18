import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

from expunge import InfluenceUnlearning
from expunge.data.images import ImageData
from expunge.data.split import Split, forget_samples
from expunge.errors import ConfigError
from expunge.methods import influence_unlearning
from expunge.methods.influence_unlearning import direction, official_recursion
from expunge.training import per_sample
from expunge.training.gradient_products import flat, inverse_by_woodbury
from expunge.training.per_sample import gradient_matrix


@pytest.fixture(scope="module")
def few(digits) -> Split:
    return forget_samples(ImageData(digits[0].images[:40], digits[0].labels[:40], digits[0].classes), [0, 5, 6])


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 10))


def weights(model):
    return flat([p.detach() for p in model.parameters()])


def by_loop(model, data):
    """One gradient after another, (m, P)."""
    rows = []
    for k in range(len(data)):
        loss = functional.cross_entropy(model(data.fetch(torch.tensor([k]))), data.labels[k : k + 1])
        rows.append(flat(torch.autograd.grad(loss, list(model.parameters()))))
    return torch.stack(rows)


def step_of(model, split, **settings):
    return weights(InfluenceUnlearning(**settings)(model, split)) - weights(model)


def off(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_the_step_is_a_dense_solve_of_the_damped_fisher(few):
    model = tiny()
    rows_f, rows_r = by_loop(model, few.forget), by_loop(model, few.retain)
    v = (rows_f.sum(0) - 3 / 37 * rows_r.sum(0)) / 40
    assert off(direction(model, few), v) < 1e-5
    fisher = 0.05 * torch.eye(len(v), dtype=torch.float64) + rows_r.double().T @ rows_r.double() / 37
    expected = 2 * torch.linalg.solve(fisher, v.double()).float()
    for inverse in ("auto", "woodbury", "conjugate_gradients"):
        assert off(step_of(model, few, alpha=2.0, damping=0.05, inverse=inverse), expected) < 3e-4, inverse
    rows = gradient_matrix(model, few.retain)
    assert off(inverse_by_woodbury(v, rows, 0.05), expected / 2) < 1e-5
    assert off(step_of(model, few, inverse="identity"), v) < 1e-4


def test_both_ways_take_the_same_samples_of_a_seed_and_other_seeds_take_others(few):
    model = tiny()
    settings = {"alpha": 1.0, "damping": 0.02, "fisher_samples": 9}
    found = {
        (inverse, seed): weights(InfluenceUnlearning(inverse=inverse, **settings)(model, few, seed=seed)) - weights(model)
        for inverse in ("woodbury", "conjugate_gradients") for seed in (1, 2)
    }  # fmt: skip
    assert off(found["conjugate_gradients", 1], found["woodbury", 1]) < 3e-4
    assert off(found["woodbury", 2], found["woodbury", 1]) > 0.01


def test_what_does_not_fit_is_solved_without_storing_it(few, monkeypatch):
    model, method = tiny(), InfluenceUnlearning(damping=0.05)
    stored = weights(method(model, few))
    monkeypatch.setattr(per_sample, "MOST_NUMBERS", 1000)
    monkeypatch.setattr(influence_unlearning, "gradient_matrix", None)
    assert off(weights(method(model, few)) - weights(model), stored - weights(model)) < 3e-4
    monkeypatch.undo()
    monkeypatch.setattr(per_sample, "MOST_NUMBERS", 1000)
    with pytest.raises(ConfigError, match="at most 1,000 numbers"):
        dataclasses.replace(method, inverse="woodbury")(model, few)
    with pytest.raises(ConfigError, match="raise the damping"):
        InfluenceUnlearning(inverse="conjugate_gradients", damping=1e-9, iterations=2)(model, few)


def test_where_forget_and_retain_set_are_the_same_images_nothing_moves(few):
    twice = ImageData(few.train.images.repeat(2, 1, 1, 1), few.train.labels.repeat(2), few.train.classes)
    split = forget_samples(twice, range(40))
    for inverse in ("auto", "identity", "official"):
        assert float(step_of(tiny(), split, inverse=inverse).abs().max()) < 1e-6
    assert float(step_of(tiny(), few).abs().max()) > 1e-3


def test_the_official_recursion_never_leaves_the_first_gradient(few):
    # In the true recursion each sample takes something along a vector of its own; a public user of it moves along v, but for one direction.
    model = tiny()
    rows = gradient_matrix(model, few.retain) * 8  # large enough to matter beside M
    v = direction(model, few)
    taken = official_recursion(v, rows.split(5), 37) - v
    assert abs(float(functional.cosine_similarity(taken, rows[0], 0))) == pytest.approx(1, abs=1e-5)
    true, exact = v.clone(), inverse_by_woodbury(v, rows, 1.0)
    memory = []
    for g in rows:  # Sherman-Morrison with every vector kept
        u = g.clone()
        for o, scale in memory:
            u -= (o @ g) / scale * o
        memory.append((u, 37 + g @ u))
        true -= (g @ true) / memory[-1][1] * u
    assert off(true, exact) < 1e-4
    assert off(official_recursion(v, rows.split(5), 37), exact) > 10 * off(true, exact)
    assert abs(float(functional.cosine_similarity(true - v, rows[0], 0))) < 0.9

    k, o = v.clone(), rows[0].clone()
    for g in rows[1:]:
        s = o @ g
        k = k - (k @ g) / (37 + s) * o
        o = o - s / (37 + s) * o
    assert off(official_recursion(v, rows.split(5), 37), k) < 1e-6
    first = weights(InfluenceUnlearning(inverse="official", fisher_samples=37)(model, few, seed=1))
    assert torch.equal(first, weights(InfluenceUnlearning(inverse="official", fisher_samples=37)(model, few, seed=2)))


def test_logistic_regression_lands_where_retraining_does():
    """Where the loss is convex and the model is the truth, the Fisher information is the Hessian, and the step is Newton's."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1000, 1, 1, 4, generator=generator)
    truth = torch.tensor([[1.0, -0.75, 0.5, 0.0], [-1.0, 0.75, 0.0, 0.5], [0.0, 0.0, -0.5, -0.5]])
    labels = torch.multinomial((images.flatten(1) @ truth.T).softmax(1), 1, generator=generator).flatten()
    split = forget_samples(ImageData(images, labels, ("a", "b", "c")), range(30))

    def optimum(positions):
        """Newton's method to the end, in float64."""
        x, y, w = (
            images[positions].flatten(1).double(),
            functional.one_hot(labels[positions], 3).double(),
            torch.zeros(3, 4, dtype=torch.float64),
        )
        for _ in range(20):
            p = (x @ w.T).softmax(1)
            curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None]
            hessian = torch.einsum("nij,na,nb->iajb", curvature, x, x).reshape(12, 12) / len(x)
            w -= torch.linalg.solve(hessian + 1e-9 * torch.eye(12), ((p - y).T @ x).flatten() / len(x)).view(3, 4)
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
        with torch.no_grad():
            model[1].weight.copy_(w - w.mean(0))  # what is added to all rows changes no answer
        return model

    original, retrained = optimum(range(1000)), weights(optimum(range(30, 1000)))
    before = float((retrained - weights(original)).norm())
    unlearned = InfluenceUnlearning(damping=1e-5, fisher_samples=1000)(original, split)
    assert float((retrained - weights(unlearned)).norm()) < 0.2 * before
    identity = InfluenceUnlearning(inverse="identity")(original, split)
    assert float((retrained - weights(identity)).norm()) > 0.8 * before


def test_frozen_parameters_and_statistics_stay(memorised):
    model, split, _ = memorised
    model = copy.deepcopy(model)
    model[4].weight.requires_grad_(False), model[1].bias.requires_grad_(False)
    unlearned = InfluenceUnlearning(fisher_samples=16)(model, split).state_dict()
    kept = {name for name, t in model.state_dict().items() if torch.equal(t, unlearned[name])}
    assert kept == {"4.weight", "1.bias", *(n for n in unlearned if "running" in n or "tracked" in n)}
