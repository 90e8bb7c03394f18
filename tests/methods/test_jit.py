import copy
import dataclasses

import pytest
import torch
from torch import nn

from expunge import measure_cost
from expunge.data.images import ImageData
from expunge.data.mixture import Batch
from expunge.data.split import forget_only, forget_samples
from expunge.methods import JiT
from expunge.rng import draw_seed, fork, permutation
from expunge.training.inference import logits_of
from toys import toy_net

N, SIGMA = 3, 0.2
QUICK = {"sigma": SIGMA, "n_copies": N, "batch_size": 4, "lr": 0.01, "until": None}


@pytest.fixture
def problem():
    torch.manual_seed(0)
    data = ImageData(torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8), torch.arange(20) % 3, tuple("abc"))
    model = toy_net(n_classes=3).eval()
    model(data.fetch(torch.arange(20)))
    return model, forget_samples(data, range(12))


def batch_of(split, images=None):
    images = split.forget.fetch(torch.arange(len(split.forget))) if images is None else images
    n = len(images)
    return Batch(images, split.forget.labels[:n], split.forget.ids[:n], torch.zeros(n, dtype=torch.int64))


def slow_loss(model, images):
    """The formula, sample by sample and copy by copy; the noise in the order in which the method draws it."""
    noise = [torch.randn_like(images) for _ in range(N)]
    total = 0
    for i, x in enumerate(images):
        clean = model(x[None])[0]
        for noisy in noise:
            y = (x + SIGMA * noisy[i]).clamp(0, 1)
            total = total + (clean - model(y[None])[0].detach()).norm() / (y - x).norm()
    return total / (N * len(images))


def walk(model, split, forget_zero_grad=False):
    """The authors' loop on the method's batches and noise: one pass, a step for each batch."""
    model = copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with fork(7):
        seed = draw_seed()  # of the order; `sgd_until_gone` seeds every trial with it
    with fork(seed):
        for positions in permutation(12, seed, 0).split(4):
            if not forget_zero_grad:
                optimizer.zero_grad()
            slow_loss(model, split.forget.fetch(positions)).backward()
            optimizer.step()
    return model


def distance(a, b):
    return max(float((p - q).abs().max()) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_loss_is_the_mean_ratio_of_distances_and_its_gradient_goes_through_the_clean_answer_alone(problem):
    model, split = problem
    batch, parameters = batch_of(split), list(model.parameters())
    with fork(3):
        ours = JiT(**QUICK)._steepness(model, batch)
    with fork(3):
        theirs = slow_loss(model, batch.images)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_it_takes_one_step_for_each_batch_with_gradients_of_that_batch_alone(problem):
    # The authors' code sets gradients to zero once, before the loop.
    model, split = problem
    ours = JiT(**QUICK)(model, split, seed=7)
    assert distance(ours, walk(model, split)) < 1e-5
    assert distance(ours, walk(model, split, forget_zero_grad=True)) > 1e-3


def test_copies_are_images_and_do_not_depend_on_batch_mates(problem):
    model, split = problem
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    dark = batch_of(split, torch.zeros(4, 1, 8, 8))
    JiT(**QUICK | {"sigma": 2.0})._steepness(model, dark)
    assert len(seen) == 1 + N and all(x.min() >= 0 and x.max() <= 1 for x in seen)
    assert seen[1].max() == 1  # the range of this batch is [0, 0]: clamped to that, no copy would differ from its image


def test_a_copy_that_equals_its_image_gives_no_infinite_loss(problem):
    model, split = problem
    loss = JiT(**QUICK | {"sigma": 1e-30})._steepness(model, batch_of(split))
    loss.backward()
    assert loss == 0 and all(p.grad.isfinite().all() for p in model.parameters())


def test_a_model_that_is_constant_has_nothing_to_flatten(problem):
    _, split = problem
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    nn.init.zeros_(flat[1].weight)
    assert distance(JiT(**QUICK)(flat, split), flat) == 0


def test_statistics_of_batchnorm_stay_unless_asked_for(problem):
    model, split = problem
    assert torch.equal(JiT(**QUICK)(model, split)[1].running_mean, model[1].running_mean)
    assert not torch.equal(JiT(batchnorm="train", **QUICK)(model, split)[1].running_mean, model[1].running_mean)


def test_labels_do_not_matter(problem):
    model, split = problem
    data = split.train
    other = dataclasses.replace(split, train=ImageData(data.images, (data.labels + 1) % 3, data.classes))
    assert distance(JiT(**QUICK)(model, split), JiT(**QUICK)(model, other)) == 0


def test_every_copy_is_counted(problem):
    model, split = problem
    with measure_cost() as cost:
        JiT(**QUICK)(model, split)
    assert cost.forward["forget"] == (1 + N) * 12 + 16  # 16: two looks at 8 images before the work begins
    assert cost.backward == {"forget": 12}


def test_a_class_becomes_flat_and_leaves(memorised_class):
    model, split, _ = memorised_class
    unlearned = JiT()(model, forget_only(split.forget, [3]))
    assert (logits_of(unlearned, split.forget).argmax(1) == 3).float().mean() <= 0.05
    method, images = JiT(n_copies=10), batch_of(split)
    with fork(0):
        before = method._steepness(model, images)
    with fork(0):
        assert method._steepness(unlearned, images) < before
