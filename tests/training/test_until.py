import copy
import warnings

import pytest
import torch
from torch import nn

from expunge.data.images import ImageData, relabel
from expunge.errors import ClassNotGone, ModelError
from expunge.methods import DELETE
from expunge.rng import draw_seed, fork
from expunge.training import until
from expunge.training.loop import sgd
from expunge.training.objectives import cross_entropy
from expunge.training.until import DOUBLINGS, sgd_until_gone

OPTIONS = {"epochs": 2, "batch_size": 4, "momentum": 0.0, "weight_decay": 0.0, "augment": False, "precision": "float32"}


@pytest.fixture
def steps(monkeypatch):
    """The steps of the trials and what the model was before each."""
    seen = []

    def spy(model, *args, **options):
        seen.append((options["lr"], copy.deepcopy(model.state_dict())))
        sgd(model, *args, **options)

    monkeypatch.setattr(until, "sgd", spy)
    return seen


def blank(n=20, n_classes=3):
    """Images of class 0."""
    return ImageData(torch.full((n, 1, 2, 2), 255, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64), tuple("abcdef"[:n_classes]))


class Bias(nn.Module):
    """Answers the same for every image: one number a class, of which class 0 has most."""

    def __init__(self, lead=1.0):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([lead, 0.0, -5.0]))

    def forward(self, images):
        return self.bias.expand(len(images), 3)


def push(model, batch):
    """Lowers class 0 by lr at each step, whatever came before: after 2 epochs of 20 samples in fours, by 10 lr."""
    return model(batch.images)[:, 0].mean()


def run(model, objective=push, *, lr=0.01, share=0.05, seed=0, forget=None, **options):
    forget = blank() if forget is None else forget
    with fork(seed):
        sgd_until_gone(model, forget, objective, lr=lr, until=share, forget=forget, **OPTIONS | options)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 10))


@pytest.fixture
def learnt(digits):
    """A small network with BatchNorm and dropout that knows 64 digits; and those of class 3 under the name of 5."""
    model, train = network(), digits[0].subset(range(64))
    sgd(model, train, epochs=20, lr=0.05, batch_size=16, seed=0)
    forget = train.subset((train.labels == 3).nonzero().flatten())
    return model, forget, relabel(forget, torch.full_like(forget.labels, 5))


@pytest.mark.parametrize(("lead", "trials"), [(0.05, 1), (0.15, 2), (1.0, 5), (50.0, 10)])
def test_the_smallest_step_that_works_is_found(steps, lead, trials):
    # Class 0 falls by 0.1, 0.2, 0.4, …: it is gone when its lead is less.
    model = Bias(lead)
    run(model)
    assert [lr for lr, _ in steps] == [0.01 * 2**k for k in range(trials)]
    assert float(model.bias[0].detach()) == pytest.approx(lead - 0.1 * 2 ** (trials - 1), abs=1e-4)


def test_the_result_is_bit_for_bit_that_of_one_run_with_the_step_found(learnt, steps):
    # Batches and dropout are those of a single run: every trial has the same seed, however many came before.
    model, forget, target = learnt
    found, alone, plain = (copy.deepcopy(model) for _ in range(3))
    options = {"epochs": 3, "batch_size": 4, "batchnorm": "frozen_statistics"}
    with fork(7):
        sgd_until_gone(found, target, cross_entropy, lr=1e-5, until=0.05, forget=forget, **options)
        after = draw_seed()
    lr = steps[-1][0]
    assert len(steps) > 3
    with fork(7):
        sgd_until_gone(alone, target, cross_entropy, lr=lr, until=None, forget=forget, **options)
        assert draw_seed() == after, "the number of trials must not show in what is drawn next"
    with fork(7):
        seed = draw_seed()
        with fork(seed):
            sgd(plain, target, cross_entropy, lr=lr, seed=seed, **options)
    assert same(found, alone) and same(found, plain)
    with fork(8):
        sgd_until_gone(other := copy.deepcopy(model), target, cross_entropy, lr=lr, until=None, forget=forget, **options)
    assert not same(other, found)


def test_every_trial_starts_from_the_given_weights_and_batchnorm_statistics(learnt, steps):
    model, forget, target = learnt
    moved = copy.deepcopy(model)
    with fork(0):
        sgd_until_gone(moved, target, cross_entropy, lr=1e-5, until=0.05, forget=forget, epochs=2, batch_size=4)
    assert len(steps) > 3 and not torch.equal(moved[1].running_mean, model[1].running_mean)
    for _, start in steps:
        assert start.keys() == model.state_dict().keys()
        assert all(torch.equal(start[name], tensor) for name, tensor in model.state_dict().items())
    assert int(moved[1].num_batches_tracked - model[1].num_batches_tracked) == 2 * -(-len(forget) // 4)


def test_without_a_share_there_is_one_run_whatever_comes_of_it(steps):
    model, plain = Bias(), Bias()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(model, share=None)
    sgd(plain, blank(), push, lr=0.01, seed=0, **OPTIONS)
    assert [lr for lr, _ in steps] == [0.01] and same(model, plain) and not caught


def test_where_no_step_works_the_flag_tells_so_and_the_model_is_that_of_the_last_trial(steps):
    model = Bias(lead=1e6)
    with pytest.warns(ClassNotGone) as caught:
        run(model)
    (flag,) = caught
    message = str(flag.message)
    assert all(part in message for part in ("100% of the forget samples", "lr=10.24", "at most 5%", "more epochs, or try another method"))
    assert len(steps) == DOUBLINGS + 1 == 11 and steps[-1][0] == pytest.approx(10.24)
    plain = Bias(lead=1e6)
    sgd(plain, blank(), push, lr=steps[-1][0], seed=0, **OPTIONS)
    assert same(model, plain)


def test_the_flag_points_at_the_users_line(memorised_class):
    model, split, _ = memorised_class
    with pytest.warns(ClassNotGone) as caught:
        DELETE(epochs=1, lr=1e-12)(model, split)
    assert caught[0].filename == __file__


class First(nn.Module):
    """Answers 0 for the first `n` of twenty images, whose pixels are their positions, and 1 for the others."""

    def __init__(self):
        super().__init__()
        self.n = nn.Parameter(torch.tensor(20.0))

    def forward(self, images):
        ahead = self.n - 0.5 - images[:, 0, 0, 0] * 255
        return torch.stack([ahead, -ahead], 1)


@pytest.mark.parametrize(("share", "left"), [(0.0, 0), (0.04, 0), (0.05, 1), (0.49, 9), (0.5, 10)])
def test_a_class_is_gone_when_no_more_than_the_share_is_left_the_share_itself_included(share, left, monkeypatch):
    # 1 of 20 is 0.05; in float32 it would be more.
    pixels = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 1, 2, 2).contiguous()
    forget, counts = ImageData(pixels, torch.zeros(20, dtype=torch.int64), ("a", "b")), iter([20, 11, 10, 9, 2, 1, 0])
    monkeypatch.setattr(until, "sgd", lambda model, *_, **__: model.n.data.fill_(next(counts)))
    model = First()
    sgd_until_gone(model, forget, push, lr=1.0, until=share, forget=forget)
    assert int(model.n) == left


def test_a_classifier_beside_the_trained_model_decides(steps):
    class Wrapped(nn.Module):
        """As Boundary Expanding trains: a class more, which takes everything in from the start."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, images):
            logits = self.inner(images)
            return torch.cat([logits, torch.full_like(logits[:, :1], 100.0)], 1)

    inner = Bias(lead=1.0)
    run(Wrapped(inner), classifier=inner)
    assert len(steps) == 5 and float(inner.bias[0].detach()) < 0
    steps.clear()
    inner = Bias(lead=1.0)
    run(Wrapped(inner))
    assert len(steps) == 1 and float(inner.bias[0].detach()) > 0


def test_a_step_that_diverges_is_an_error_with_its_lr():
    def explode(model, batch):
        return (model.bias**2).sum() * 1e30

    with pytest.raises(ModelError, match="diverged.*lr="):
        run(Bias(), explode)
