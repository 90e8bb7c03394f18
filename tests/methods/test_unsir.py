import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional

from expunge import measure_cost
from expunge.data.images import Augment, ImageData, outside
from expunge.data.split import forget_classes
from expunge.methods import UNSIR, unsir
from expunge.methods.unsir import channel_moments
from expunge.rng import fork
from expunge.training.inference import logits_of
from toys import Watched, spy_on_sgd

QUICK = {"noise_images": 12, "copies": 3, "batch_size": 16}


@pytest.fixture
def calls(monkeypatch):
    return spy_on_sgd(monkeypatch, unsir)


@pytest.fixture
def two_classes(memorised_class):
    model, split, _ = memorised_class
    return model, forget_classes(split.train, [3, 5])


def noise_of(method, model, split, seed=0):
    with fork(seed):
        return method._noise(copy.deepcopy(model), split, split.retain)


def test_every_class_has_noise_with_its_own_label(two_classes):
    # The authors' notebook labels all of it 0.
    noise = noise_of(UNSIR(**QUICK), *two_classes)
    assert noise.labels.tolist() == ([3] * 12 + [5] * 12) * 3
    first, second, *_ = noise.images.split(12)
    assert not torch.equal(first, second) and torch.equal(noise.images[:24], noise.images[24:48])


def test_the_noise_is_what_a_slow_loop_makes(two_classes):
    model, split = two_classes
    method = UNSIR(**QUICK, noise_steps=5, noise_penalty=0.03, noise_lr=0.2)
    noise = noise_of(method, model, split, seed=7)
    pixels = torch.stack([x for x, _ in split.retain])[:, 0]
    with fork(7):
        for c, made in zip((3, 5), noise.images.split(12), strict=False):
            n, mean, square = torch.randn(12, 1, 8, 8), torch.zeros(12, 1, 8, 8), torch.zeros(12, 1, 8, 8)
            for t in range(1, 6):
                n = n.requires_grad_()
                wrong = functional.cross_entropy(
                    model.eval()((pixels.mean() + pixels.std(correction=0) * n).clamp(0, 1)), torch.full((12,), c)
                )
                gradient = torch.autograd.grad(-wrong + 0.03 * sum(x.norm() ** 2 for x in n) / 12, n)[0]
                mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
                n = (n - 0.2 * (mean / (1 - 0.9**t)) / ((square / (1 - 0.999**t)).sqrt() + 1e-8)).detach()
            torch.testing.assert_close(made, (pixels.mean() + pixels.std(correction=0) * n).clamp(0, 1), atol=1e-4, rtol=0)


def test_noise_raises_the_error_and_a_large_penalty_shrinks_it_to_the_mean(two_classes):
    model, split = two_classes

    def error(method):
        noise = noise_of(method, model, split)
        return float(functional.cross_entropy(logits_of(model, noise), noise.labels)), noise.images.std()

    (start, spread), (strong, _), (_, shrunk) = (
        error(UNSIR(**QUICK, **k))
        for k in (
            {"noise_steps": 1, "noise_lr": 1e-9},
            {"noise_penalty": 0.0},
            {"noise_penalty": 1e4, "noise_steps": 60, "noise_lr": 0.05},
        )
    )
    assert strong > start + 5 and shrunk < 0.2 * spread


def test_making_noise_leaves_the_model_as_it_is_even_in_training_mode(two_classes):
    # A model fresh from its constructor is in training mode, where noise would move BatchNorm's running statistics.
    model, split = copy.deepcopy(two_classes[0]).train(), two_classes[1]
    before = copy.deepcopy(model.state_dict())
    with fork(0):
        UNSIR(**QUICK)._noise(model, split, split.retain)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert model.training and all(p.grad is None for p in model.parameters())
    assert torch.equal(noise_of(UNSIR(**QUICK), model, split).images, noise_of(UNSIR(**QUICK), model.eval(), split).images)


def test_no_forget_image_is_read(two_classes):
    model, split = two_classes
    watched = Watched(split.train, forbidden=tuple(split.forget.ids.tolist()))
    UNSIR(**QUICK).run(copy.deepcopy(model), dataclasses.replace(split, train=watched))
    assert watched.read == set(split.retain.ids.tolist())


def test_impairing_sees_noise_and_a_few_retain_images_and_repairing_the_same_few(two_classes, calls):
    model, split = two_classes
    UNSIR(**QUICK, per_class=4, impair_lr=0.007, repair_lr=0.003, rounds=2)(model, split)
    assert len(calls) == 4
    (impairing, first), (repairing, second), (again, _), _ = calls
    noise, retain = impairing
    assert len(noise) == 2 * 12 * 3 and again[0] is noise and repairing is retain
    assert retain.labels.bincount().tolist() == [4, 4, 4, 0, 4, 0, 4, 4, 4, 4]
    assert (first["lr"], second["lr"]) == (0.007, 0.003)
    assert all((options["optimizer"], options["epochs"], options["weight_decay"]) == ("adam", 1, 0.0) for _, options in calls)


def test_retain_images_are_augmented_and_noise_is_not(two_classes, calls):
    model, split = two_classes
    train = dataclasses.replace(split.train, augment=Augment(pad=1))
    UNSIR(**QUICK)(model, forget_classes(train, [3]))
    noise, retain = calls[0][0]
    assert not noise.augment and retain.augment == Augment(pad=1)


def test_noise_counts_as_no_part_of_the_training_set(two_classes):
    model, split = two_classes
    with measure_cost() as cost:
        UNSIR(**QUICK, noise_steps=7)(model, split)
    assert dict(cost.input_gradients) == {"other": 2 * 12 * 7}
    assert dict(cost.backward) == {"other": 2 * 12 * 3, "retain": 2 * len(split.retain)}
    assert cost.forward["other"] == 2 * 12 * (7 + 3)


def test_statistics_of_channels_are_those_of_the_pixels():
    torch.manual_seed(0)
    images = torch.rand(300, 3, 4, 5) * torch.tensor([1.0, 0.3, 0.0])[:, None, None]
    mean, std = channel_moments(ImageData(images, torch.zeros(300, dtype=torch.int64), ("a",)))
    torch.testing.assert_close(mean.flatten(), images.mean((0, 2, 3)))
    torch.testing.assert_close(std.flatten()[:2], images.std((0, 2, 3), correction=0)[:2])
    assert mean.shape == std.shape == (3, 1, 1) and std[2] == pytest.approx(1 / 255)


def test_outside_samples_are_the_same_samples_with_ids_below_0(digits):
    few = outside(digits[0].subset([3, 5, 9]))
    assert torch.equal(few.fetch(torch.tensor([2, 0])), digits[0].fetch(torch.tensor([9, 3]))) and torch.equal(
        few.labels, digits[0].labels[[3, 5, 9]]
    )
    assert few.ids.tolist() == [-1, -2, -3] and few.subset([1, 2]).ids.tolist() == [-2, -3]
    assert few.root is digits[0] and few.rooted(torch.tensor([1])).tolist() == [5] and few.shape == (1, 8, 8)


def test_the_class_goes_and_the_others_come_back(memorised_class):
    model, split, test = memorised_class
    unlearned = UNSIR(noise_images=32, copies=4, batch_size=8, rounds=2)(model, split)
    right = logits_of(unlearned, test).argmax(1) == test.labels
    assert right[test.labels == 3].float().mean() < 0.1 and right[test.labels != 3].float().mean() > 0.7


def test_a_model_without_batchnorm_and_with_dropout_works(two_classes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 10))
    assert logits_of(UNSIR(**QUICK)(model, two_classes[1]), two_classes[1].forget).isfinite().all()
