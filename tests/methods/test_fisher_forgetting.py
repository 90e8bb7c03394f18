import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from expunge import FisherForgetting
from expunge.data import few as few_module
from expunge.data.images import ImageData
from expunge.data.split import Split, forget_classes, forget_samples
from expunge.errors import ModelError
from expunge.methods.fisher_forgetting import variance
from expunge.models.layers import GlobalAverage
from expunge.training.per_sample import every_label, squared_gradients


def two_of_one_shape():
    """A hidden layer with as many outputs as classes: by its shape it would be taken for the last one."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Tanh(), nn.Linear(10, 10))


@pytest.fixture(scope="module")
def few(digits) -> Split:
    return forget_classes(ImageData(digits[0].images[:24], digits[0].labels[:24], digits[0].classes), [3])


def moved(before, after):
    return {name: (after.state_dict()[name] - t).abs() for name, t in before.state_dict().items()}


def test_the_fisher_information_is_the_expectation_over_the_models_own_answers(few):
    model = two_of_one_shape()
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for k in range(len(few.retain)):
        image = few.retain.fetch(torch.tensor([k]))
        answers = model(image).softmax(1).detach()[0]
        for label in range(10):
            loss = functional.cross_entropy(model(image), torch.tensor([label]))
            for mean, g in zip(expected.values(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
                mean.add_(answers[label] * g.square() / len(few.retain))
    found = squared_gradients(model, few.retain, every_label, batch_size=7)
    for name, mean in expected.items():
        torch.testing.assert_close(found[name], mean, rtol=1e-4, atol=1e-9)

    # A public copy squares the mean gradient of a batch and takes the mean probability of a class in it.
    images, faulty = few.retain.fetch(torch.arange(20)), 0.0
    for label in range(10):
        p = model(images).softmax(1)[:, label].mean().detach()
        loss = functional.cross_entropy(model(images), torch.full((20,), label))
        faulty = faulty + p * torch.autograd.grad(loss, model[1].weight)[0].square()
    assert float(faulty.sum()) < 0.8 * float(expected["1.weight"].sum())


def test_the_variance_follows_the_authors_rules():
    fisher = torch.tensor([[[[1.0]], [[0.0]]], [[[4.0]], [[1e-4]]]])  # (2, 2, 1, 1): 1/F is 1 and 1e3 at most, then 1/4 and 1e3 at most
    hidden = variance(fisher, 1e-2, False, [])
    assert hidden.shape == fisher.shape and hidden[:, :, 0, 0].tolist() == [
        pytest.approx([5.005, 5.005]),
        pytest.approx([5.00125, 5.00125]),
    ]
    assert variance(torch.tensor([0.0, 2.0]), 1e-2, False, []).tolist() == pytest.approx([100, 0.05])  # biases are ten times louder
    assert variance(torch.tensor([[0.0, 1.0], [2.0, 2.0]]), 1e-2, True, []).tolist() == [
        pytest.approx([5.05] * 2),
        pytest.approx([0.05] * 2),
    ]
    assert variance(torch.tensor([0.0, 2.0]), 1e-2, True, [1]).tolist() == pytest.approx([10, 1e-3])


def test_the_noise_has_that_variance(few):
    model = two_of_one_shape()
    fisher = squared_gradients(model, few.retain, every_label)
    split = forget_samples(few.train, few.forget_indices)
    draws = [FisherForgetting(alpha=1e-4)(model, split, seed=seed) for seed in range(40)]
    for name, p in model.named_parameters():
        noise = torch.stack([dict(m.named_parameters())[name].detach() - p.detach() for m in draws])
        ratio = noise.square().mean(0) / variance(fisher[name], 1e-4, name.startswith("3."), [])
        # 40 draws of each weight; the mean square of so many has a relative spread of √(2 / draws).
        assert float(ratio.mean()) == pytest.approx(1, abs=5 * (2 / (40 * p.numel())) ** 0.5), name
        assert float((noise.mean(0) / noise.std(0)).abs().max()) < 1


def test_with_alpha_to_zero_nothing_moves_but_the_rows_of_whole_classes(few):
    model, tiny = two_of_one_shape(), FisherForgetting(alpha=1e-30)
    samples = forget_samples(few.train, few.forget_indices)  # the same samples, not named as a class
    assert all(float(m.max()) < 1e-12 for m in moved(model, tiny(model, samples)).values())
    unlearned = tiny(model, few)
    change = moved(model, unlearned)
    others = [k for k in range(10) if k != 3]
    assert all(float(change[name][others].max()) < 1e-12 for name in ("3.weight", "3.bias"))
    assert float(change["1.weight"].max()) < 1e-12  # a layer of the same shape is not the last one
    row = torch.stack([tiny(model, few, seed=s)[3].weight.detach()[3] for s in range(40)])
    assert float(row.std()) == pytest.approx(0.001**0.5, rel=0.2) and abs(float(row.mean())) < 0.01


def test_no_row_is_wiped_however_many_samples_leave(digits):
    # A public copy takes 4500 samples of CIFAR-10 for a class, also when they are random, and then wipes the last one.
    model, tiny = two_of_one_shape(), FisherForgetting(alpha=1e-30)
    split = forget_samples(digits[0], (digits[0].labels == 9).nonzero().flatten())
    assert float(moved(model, tiny(model, split))["3.weight"].max()) < 1e-12


def test_several_classes_lose_their_rows(few):
    model = two_of_one_shape()
    split = forget_classes(few.train, [3, 9])
    change = FisherForgetting(alpha=1e-30)(model, split)[3].weight.detach()
    assert float(change[[3, 9]].abs().max()) < 0.2 and torch.allclose(change[:3], model[3].weight[:3])


def test_frozen_parameters_stay_and_so_do_statistics(memorised):
    model, split, _ = memorised
    model = copy.deepcopy(model)
    model[0].weight.requires_grad_(False), model[9].requires_grad_(False)
    change = moved(model, FisherForgetting()(model, split))
    kept = {name for name, m in change.items() if not m.any()}
    assert kept == {"0.weight", "9.weight", "9.bias", *(n for n in change if "running" in n or "tracked" in n)}


def test_too_much_alpha_destroys_the_model_and_the_forget_set_is_never_read(memorised):
    model, split, _ = memorised
    ruined = FisherForgetting(alpha=1.0)(model, split)
    assert float((ruined.eval()(split.retain.fetch(torch.arange(112))).argmax(1) == split.retain.labels).float().mean()) < 0.5


def test_a_model_without_a_last_linear_layer_is_refused(few):
    model = nn.Sequential(nn.Conv2d(1, 10, 3), GlobalAverage())
    with pytest.raises(ModelError, match=r"nn\.Linear"):
        FisherForgetting()(model, few)


def test_the_cost_is_a_backward_pass_for_each_class_of_the_reference_set(monkeypatch):
    assert FisherForgetting().cost(0.1) == pytest.approx((1 / 3 + 10 * 2 / 3) * 0.9)
    monkeypatch.setattr(few_module, "REFERENCE", few_module.TrainingSet(50_000, 100))
    assert FisherForgetting().cost(0.1) == pytest.approx((1 / 3 + 100 * 2 / 3) * 0.9)
