"""The share of samples that an attack leaves right, with its interval, at one radius and along a curve."""

from dataclasses import replace

import pytest
import torch
from jaxtyping import TypeCheckError

from expunge.attacks import NearestDDN
from expunge.attacks.bounded import BoundedAttack, Tried, accuracy_within, robust_accuracy
from expunge.attacks.pgd import PGD
from expunge.data.images import relabel
from expunge.errors import ConfigError
from expunge.metrics.accuracy import accuracy, accuracy_of
from expunge.training.inference import logits_of


class Boasts(BoundedAttack):
    """Claims to have fooled the model everywhere, with images far outside the ball."""

    name, paper, norm, eps, batch_size = "boasts", "", "linf", 0.01, 64

    def search(self, model, data, positions, layout):
        n = len(positions)
        nothing = torch.zeros(n, dtype=torch.bool)
        return Tried(1 - data.fetch(positions) + 0.5, ~nothing, nothing, 0, 0)


def test_is_the_share_that_the_attack_leaves_right_with_its_exact_interval(trained, some):
    attack = PGD(norm="l2", eps=0.6, steps=20)
    measured = robust_accuracy(trained, some, attack)
    assert measured == accuracy_of(~attack(trained, some).fooled)
    assert measured.n == len(some) and 0 < measured.low < measured.value < measured.high < 1
    wider = robust_accuracy(trained, some, attack, level=0.99)
    assert wider.value == measured.value and wider.low < measured.low


def test_falls_with_the_radius_from_the_plain_accuracy_to_none(trained, some):
    labels = some.labels.clone()
    labels[:10] = (labels[:10] + 1) % 10  # wrong already
    data = relabel(some, labels)
    plain = accuracy(logits_of(trained, data), labels)
    values = [robust_accuracy(trained, data, PGD(norm="l2", eps=eps, steps=20)).value for eps in (1e-5, 0.3, 0.6, 0.9, 5.0)]
    assert values[0] == plain.value <= 115 / 125
    assert values == sorted(values, reverse=True) and values[1] > values[3] > values[4] == 0


def test_an_attack_is_not_believed(trained, some):
    attacked = Boasts()(trained, some)
    assert (attacked.distances <= 0.01).all() and attacked.images.min() >= 0 and attacked.images.max() <= 1
    with torch.no_grad():
        assert torch.equal(attacked.labels, trained(attacked.images).argmax(1))
    assert robust_accuracy(trained, some, Boasts()).value > 0.9


def test_curve_of_a_nearest_attack_agrees_with_counting_and_with_pgd(trained, some, pgd_set):
    radii = [0.0, 0.2, 0.4, 0.6, 0.8, 100.0]
    curve = accuracy_within(pgd_set, radii)
    for r, point in zip(radii, curve, strict=True):
        right = [not (found and d <= r) for found, d in zip(pgd_set.found.tolist(), pgd_set.distances.tolist(), strict=True)]
        assert point == accuracy_of(torch.tensor(right))
    assert curve[0] == accuracy(logits_of(trained, some), some.labels)
    assert curve[-1].value == 1 - pgd_set.found.float().mean().item() == 0
    near = accuracy_within(NearestDDN()(trained, some), [0.4, 0.6, 0.8])
    for r, point in zip((0.4, 0.6, 0.8), near, strict=True):
        fixed = robust_accuracy(trained, some, PGD(norm="l2", eps=r, restarts=1))
        assert abs(point.value - fixed.value) < 0.05


def test_one_that_was_not_found_counts_as_right(pgd_set):
    lost = replace(pgd_set, found=pgd_set.found & (torch.arange(len(pgd_set)) >= 25))
    assert accuracy_within(lost, [100.0])[0].value == 25 / 125


@pytest.mark.parametrize("radius", [-0.1, float("nan"), float("inf"), True, "0.5"])
def test_bad_radii_are_refused(radius, pgd_set):
    with pytest.raises((ConfigError, TypeCheckError)):
        accuracy_within(pgd_set, [0.1, radius])


def test_bad_level_and_attacks_without_a_radius_are_refused_before_they_run(trained, some):
    with pytest.raises(ConfigError, match="level must be a confidence"):
        robust_accuracy(trained, some, PGD(), level=95.0)
    with pytest.raises((ConfigError, TypeCheckError)):
        robust_accuracy(trained, some, NearestDDN())
