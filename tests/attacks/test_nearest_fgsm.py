"""The walk along one sign vector."""

from dataclasses import replace

import pytest
import torch

from expunge.attacks import NearestFGSM
from expunge.errors import AdversarialSearchFailed

ATTACK = NearestFGSM(eps=0.02, steps=25, restarts=3, noise=0.05, batch_size=64)


def test_results_lie_on_the_walk(trained, some):
    adversarial = replace(ATTACK, restarts=0)(trained, some)
    change = (adversarial.images - some.images)[adversarial.found]
    inner = (adversarial.images[adversarial.found] > 0) & (adversarial.images[adversarial.found] < 1) & (change != 0)
    steps = (change / 0.02).abs()
    assert torch.allclose(steps[inner], steps[inner].round(), atol=1e-3)
    for change_of_one, inside in zip(steps, inner, strict=True):
        assert change_of_one[inside].round().unique().numel() <= 1


def test_the_step_before_the_result_is_still_right(trained, some):
    adversarial = replace(ATTACK, restarts=0)(trained, some)
    walked = adversarial.found & ~adversarial.already_wrong
    x, far = some.images[walked], adversarial.images[walked]
    one_less = (far - 0.02 * (far - x).sign()).maximum(torch.minimum(x, far)).minimum(torch.maximum(x, far))
    unclipped = ((far > 0) & (far < 1)).flatten(1).float().mean(1) > 0.99
    with torch.no_grad():
        assert (trained(one_less).argmax(1) == some.labels[walked])[unclipped].all()


def test_restarts_find_more(trained, some):
    with pytest.warns(AdversarialSearchFailed):
        once = replace(ATTACK, restarts=0, steps=10)(trained, some)
    with pytest.warns(AdversarialSearchFailed):
        often = replace(ATTACK, restarts=8, steps=10)(trained, some)
    assert often.found.sum() > once.found.sum()
    assert torch.equal(often.images[once.found], once.images[once.found])


def test_backward_passes_only_at_the_start_of_a_walk(trained, some):
    backward = []
    handle = trained.register_forward_hook(lambda module, inputs, output: backward.append(len(output)) if inputs[0].requires_grad else None)
    try:
        adversarial = replace(ATTACK, steps=50)(trained, some.subset(range(30)))
    finally:
        handle.remove()
    assert sum(backward) < 30 * 4 < adversarial.forward_passes.sum()


def test_seed_decides_the_disturbance(trained, some):
    images = some.images[:3]
    one, other = (replace(ATTACK, seed=s).disturbed(images, some.ids[:3]) for s in (0, 1))
    assert torch.equal(one, ATTACK.disturbed(images, some.ids[:3])) and not torch.equal(one, other)
    assert ((one - images).abs() <= 0.05 + 1e-6).all()
