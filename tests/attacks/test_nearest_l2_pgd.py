"""Algorithm 1 of AMUN, against closed forms and a plain loop."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from expunge.attacks import NearestL2PGD

ATTACK = NearestL2PGD(eps_init=0.2, steps=20, batch_size=128)


def plain_search(model, x, y, *, eps, steps, ratio, early_stop, restart):
    """One sample, as the authors write it: cross-entropy ascent, checks before each step and after the last."""
    point, passes = x, 0
    while True:
        if restart:
            point = x
        for step in range(steps + 1):
            probe = point.clone().requires_grad_()
            logits = model(probe[None])
            passes += 1
            wrong = logits.argmax().item() != y
            if wrong and (early_stop or step == steps or passes == 1):
                return point, eps, passes
            if step == steps:
                break
            gradient = torch.autograd.grad(functional.cross_entropy(logits.double(), torch.tensor([y])), probe)[0]
            change = point + ratio * eps * gradient / gradient.norm() - x
            point = (x + change * min(1.0, eps / change.norm())).clamp(0, 1)
        eps, passes = 2 * eps, passes - (not restart)  # going on from the same point needs no second look


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("restart", [True, False])
def test_equals_a_plain_loop_over_samples(early_stop, restart, trained, some):
    few = some.subset(range(0, 125, 12))
    attack = NearestL2PGD(eps_init=0.1, steps=12, early_stop=early_stop, restart=restart, batch_size=4)
    adversarial = attack(trained, few)
    for i in range(len(few)):
        image, label = few[i]
        point, eps, passes = plain_search(trained, image, label, eps=0.1, steps=12, ratio=0.1, early_stop=early_stop, restart=restart)
        assert adversarial.epsilons[i] == pytest.approx(eps)
        assert adversarial.forward_passes[i] == passes + 1  # and the last look
        # Pixels are sums of up to 100 steps whose directions are rounded to float32.
        assert torch.allclose(adversarial.images[i], point, atol=2e-4)


def test_linear_model_is_crossed_within_a_step_of_the_closed_form(linear_case):
    exact, adversarial = linear_case(NearestL2PGD(eps_init=0.01, step_ratio=0.02, steps=60), n_classes=4)
    assert adversarial.found.all()
    assert (adversarial.distances >= exact * (1 - 1e-4)).all()
    # The log-sum of several wrong classes bends the path a little where two are almost equally near.
    assert (adversarial.distances / exact - 1).median() < 0.06
    assert (adversarial.distances / exact).max() < 1.25


def test_two_classes_are_crossed_at_exactly_the_margin(linear_case):
    exact, adversarial = linear_case(NearestL2PGD(eps_init=0.01, bisections=12), n_classes=2)
    assert torch.allclose(adversarial.distances.double(), exact, rtol=1e-3)  # 12 halvings of the last stretch


def test_early_stop_never_costs_more_and_finds_nearer_examples(trained, some, pgd_set):
    full = replace(ATTACK, early_stop=False)(trained, some)
    assert (pgd_set.forward_passes <= full.forward_passes).all()
    assert pgd_set.distances.mean() < 0.95 * full.distances.mean()


def test_radius_is_the_first_that_suffices(pgd_set):
    doublings = torch.log2(pgd_set.epsilons / 0.2)
    assert torch.equal(doublings, doublings.round()) and doublings.min() >= 0 and doublings.max() >= 1


def test_no_doubling_means_the_first_ball_only(trained, some):
    with pytest.warns(UserWarning, match="no adversarial example was found for"):
        adversarial = replace(ATTACK, max_doublings=0)(trained, some)
    assert (adversarial.epsilons == 0.2).all() and (adversarial.forward_passes <= 22).all()
    assert 0 < adversarial.found.sum() < len(some)
    assert adversarial.succeeded().found.all() and len(adversarial.succeeded()) == adversarial.found.sum()
