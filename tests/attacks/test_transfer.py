"""Transfer counted by hand on models with one border each, and its intervals."""

import pytest
import torch
from torch import nn

from expunge.attacks import NearestL2PGD, transfer
from expunge.attacks.transfer import transferred
from expunge.data.images import ImageData
from expunge.errors import ConfigError, DataError, ModelError
from expunge.metrics.accuracy import accuracy_of

GREYS = torch.linspace(0.05, 0.95, 10)  # of one pixel


def threshold(border: float) -> nn.Module:
    """Answers 1 where the pixel is brighter than the border; its third output is never the largest."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[-10.0], [10.0], [0.0]]))
        net[1].bias.copy_(torch.tensor([10 * border, -10 * border, -50.0]))
    return net


@pytest.fixture
def greys():
    return ImageData(GREYS.reshape(-1, 1, 1, 1), (GREYS > 0.5).long(), ("dark", "bright", "neither"))


def test_a_model_is_fooled_by_its_own_examples(greys):
    examples = NearestL2PGD(bisections=5)(threshold(0.5), greys)
    found = transfer(examples, greys, threshold(0.5))
    assert [share.value for share in found] == [1.0] * 4 and found.same.n == 10
    assert found.same == accuracy_of(torch.ones(10).bool())  # Clopper and Pearson's interval, not a point


def test_only_what_was_right_before_can_be_fooled(greys):
    examples = NearestL2PGD(bisections=10)(threshold(0.5), greys)  # all end next to 0.5
    # Border at 0.3: right on 3 dark and all 5 bright images; of the examples, all beside 0.5, it calls every one bright.
    found = transfer(examples, greys, threshold(0.3))
    assert found.same.value == found.any.value == 3 / 8 and found.same.n == 8
    assert found.same_of_all.value == 5 / 10 and found.same_of_all.n == 10


def test_examples_of_images_that_were_wrong_already_or_not_found_count_nowhere(greys):
    original = threshold(0.32)  # wrong on two dark images
    examples = NearestL2PGD(bisections=10)(original, greys)
    assert examples.already_wrong.sum() == 2
    assert transfer(examples, greys, original).same.n == transfer(examples, greys, original).same_of_all.n == 8
    with pytest.warns(UserWarning, match="no adversarial example"):
        nothing = NearestL2PGD(eps_init=1e-4, steps=1, max_doublings=0)(original, greys)
    found = transfer(nothing, greys, original)
    assert not any(share.supported for share in found) and "any of 10 images" in found.same.note


def test_the_kind_of_error_matters(greys):
    y, y_adv = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 2, 0, 2])
    clean = torch.tensor([[0, 0, 1, 2]])
    found = transferred(y_adv, y, torch.tensor([[1, 1, 1, 2]]), clean)
    assert (found.same.value, found.any.value, found.same.n) == (1 / 3, 2 / 3, 3)
    assert (found.same_of_all.value, found.any_of_all.value, found.any_of_all.n) == (2 / 4, 3 / 4, 4)


def test_a_part_of_the_attacked_images_in_another_order(greys):
    examples = NearestL2PGD(bisections=10)(threshold(0.5), greys)
    part = greys.subset([9, 4, 0])
    assert transfer(examples, part, threshold(0.3)).same_of_all.value == 2 / 3  # of 0.95 the label "dark", 0.3 says bright


def test_several_models_are_averaged_with_an_interval_that_does_not_count_images_twice():
    generator = torch.Generator().manual_seed(0)
    y, y_adv = torch.zeros(100).long(), torch.ones(100).long()
    one = (torch.rand(100, generator=generator) < 0.3).long()[None]
    clean = torch.zeros(1, 100).long()
    single, eight = (transferred(y_adv, y, one.expand(m, -1), clean.expand(m, -1)) for m in (1, 8))
    assert (eight.same.value, eight.same.n) == (pytest.approx(single.same.value), 100)
    assert eight.same.high - eight.same.low == pytest.approx(single.same.high - single.same.low)  # the same answers eight times
    different = transferred(y_adv, y, torch.stack([one[0], torch.zeros(100).long()]), clean.expand(2, -1))
    assert different.same.value == pytest.approx(single.same.value / 2)
    assert different.same.low == 0 and different.same.high == 1  # two models that disagree say nothing about a third
    never = transferred(y_adv, y, torch.zeros(4, 100).long(), clean.expand(4, -1))
    assert never.same.low == never.same.value == 0 < never.same.high < 0.05


def test_a_smaller_level_gives_a_smaller_interval():
    y = torch.zeros(50).long()
    attacked, clean = torch.tensor([[0, 1] * 25, [1, 1] * 25]), torch.zeros(2, 50).long()
    wide, narrow = (transferred(y + 1, y, attacked, clean, level).same for level in (0.95, 0.5))
    assert wide.low <= narrow.low < narrow.value < narrow.high <= wide.high


def test_a_model_that_is_never_right_cannot_be_fooled(greys):
    found = transferred(torch.ones(3).long(), torch.zeros(3).long(), torch.ones(2, 3).long(), torch.tensor([[0, 0, 0], [2, 2, 2]]))
    assert not found.same.supported and found.same_of_all.value == 1.0


def test_what_does_not_fit_is_refused(greys):
    examples = NearestL2PGD()(threshold(0.5), greys)
    with pytest.raises(ConfigError, match="at least one model"):
        transfer(examples, greys, [])
    with pytest.raises(DataError, match="made from another"):
        transfer(examples, ImageData(1 - greys.images, greys.labels, greys.classes), threshold(0.3))
    with pytest.raises(ModelError):
        transfer(examples, greys, nn.Sequential(nn.Flatten(), nn.Linear(1, 1)))
