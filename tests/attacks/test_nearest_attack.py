"""What holds for every attack, and the chores of the seam."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from expunge.attacks import ATTACKS, NearestL2PGD
from expunge.attacks.active_set import margin, project, unit
from expunge.data.images import ImageData, relabel
from expunge.errors import AdversarialSearchFailed, ConfigError, DataError, ModelError, ZeroGradients
from expunge.progress import listen

CLASSES = ("a", "b", "c")


class Constant(nn.Module):
    """Answers class 0 whatever it sees; with `through`, its gradient is not zero."""

    def __init__(self, through: float = 0.0) -> None:
        super().__init__()
        self.through = through

    def forward(self, x):
        push = self.through * torch.tanh(x.flatten(1).mean(1))
        return torch.stack([push * 0 + 5, push, push * 0], 1)


@pytest.fixture
def noise() -> ImageData:
    return ImageData(torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(5, dtype=torch.int64), CLASSES)


def distances(adversarial, data):
    return (adversarial.images.double() - data.fetch(torch.arange(len(data))).double()).flatten(1).norm(dim=1)


def test_label_is_the_models_own_prediction_and_not_the_true_one(attack, trained, some):
    adversarial = attack(trained, some)
    with torch.no_grad():
        answers = trained(adversarial.images).argmax(1)
    assert adversarial.found.float().mean() > 0.9
    assert torch.equal(adversarial.labels, answers)
    assert torch.equal(adversarial.true_labels, some.labels)
    assert torch.equal(adversarial.found, adversarial.labels != some.labels)


def test_images_stay_in_the_box_and_in_the_ball(attack, trained, some):
    adversarial = attack(trained, some)
    assert adversarial.images.min() >= 0 and adversarial.images.max() <= 1
    true = distances(adversarial, some)
    assert (true <= adversarial.epsilons.double() * (1 + 1e-6)).all()
    assert torch.allclose(true.float(), adversarial.distances, rtol=1e-5)


def test_same_bits_every_time(attack, trained, some):
    first, second = attack(trained, some), attack(trained, some)
    assert first.fingerprint == second.fingerprint


def test_a_sample_does_not_depend_on_its_batch_mates(attack, trained, some):
    few = some.subset(range(0, 125, 25))
    alone = dataclasses.replace(attack, batch_size=1)(trained, few)
    together = attack(trained, some).for_ids(few.ids)
    assert torch.equal(alone.labels, together.labels)
    # The kernels of convolutions depend on the batch size and round differently; an iterate that is on the border may fall on either side
    # of it.
    assert torch.allclose(alone.distances, together.distances, atol=1e-4)
    assert (alone.forward_passes - together.forward_passes).abs().max() <= 1


def test_order_of_the_data_does_not_matter(attack, trained, few_digits):
    one = attack(trained, few_digits.subset([3, 50, 100]))
    many = attack(trained, few_digits.subset(range(0, 101)))
    assert torch.allclose(one.distances, many.for_ids([3, 50, 100]).distances, atol=1e-4)


def test_model_and_generators_are_left_as_they_were(attack, trained, some):
    trained[0].weight.requires_grad_(False)
    trained.train()
    trained[1].eval()
    trained[4].weight.grad = torch.ones_like(trained[4].weight)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # not Python's: the type checker of these tests draws from it
    try:
        attack(trained, some.subset(range(9)))
        assert [m.training for m in trained] == [True, False, *[True] * 7]
        assert [p.requires_grad for p in trained.parameters()] == [False, *[True] * 7]
        assert [p.grad is not None for p in trained.parameters()].count(True) == 1
        assert (trained[4].weight.grad == 1).all()
        assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
        assert torch.equal(states[0], torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()
    finally:
        trained.eval().requires_grad_(True)
        trained.zero_grad(set_to_none=True)


def test_model_is_put_back_after_an_error(noise):
    class Breaks(Constant):
        def forward(self, x):
            if x.requires_grad:
                raise KeyboardInterrupt
            return super().forward(x)

    model = Breaks().train()
    with pytest.raises(KeyboardInterrupt):
        NearestL2PGD()(model, noise)
    assert model.training


@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_surrounding_modes_change_nothing(surrounding, trained, some):
    few, attack = some.subset(range(20)), NearestL2PGD(eps_init=0.2, steps=12)
    with surrounding():
        inside = attack(trained, few)
    assert torch.equal(inside.images, attack(trained, few).images)


def test_misclassified_samples_are_kept_as_they_are(attack, trained, some):
    wrong = relabel(some, (some.labels + 1) % 10)
    adversarial = attack(trained, wrong)
    with torch.no_grad():
        clean = trained(some.images).argmax(1)
    assert adversarial.already_wrong.float().mean() > 0.95
    kept = adversarial.already_wrong
    assert torch.equal(kept, clean != wrong.labels)
    assert torch.equal(adversarial.images[kept], some.images[kept])
    assert torch.equal(adversarial.labels[kept], clean[kept]) and adversarial.found[kept].all() and (adversarial.distances[kept] == 0).all()


def test_a_model_that_flattens_with_view_is_fine(attack, trained, some):
    """Such a model cannot run channels-last, which is the faster layout where it can."""

    class Viewing(nn.Module):
        def forward(self, x):
            features = trained[:6](x)
            return trained[8](features.view(len(x), -1))

    few = some.subset(range(20))
    assert torch.allclose(attack(Viewing(), few).distances, attack(trained, few).distances, atol=1e-4)


def test_one_sample_is_enough(attack, trained, some):
    adversarial = attack(trained, some.subset([2]))
    assert len(adversarial) == 1 and adversarial.found.all()


def test_zero_gradients_are_flagged_and_stop_the_search(attack, noise):
    with pytest.warns(ZeroGradients, match="5 of 5"), pytest.warns(AdversarialSearchFailed, match="5 of 5"):
        adversarial = attack(Constant(), noise)
    assert not adversarial.found.any()
    assert (adversarial.forward_passes == 2).all()
    with pytest.raises(DataError, match="no adversarial example was found"):
        adversarial.succeeded()


def test_failures_are_counted_and_left_out_by_succeeded(attack, noise):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adversarial = attack(Constant(through=1.0), noise)
    assert [w.category for w in caught] == [AdversarialSearchFailed]
    assert not adversarial.found.any() and (adversarial.labels == 0).all()


def test_margin_does_not_fade_where_cross_entropy_does():
    logits = torch.tensor([[300.0, 0.0, 0.0]], requires_grad=True)
    label = torch.tensor([0])
    faded = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, label), logits)[0]
    there = torch.autograd.grad(margin(logits, label).sum(), logits)[0]
    assert (faded == 0).all()
    assert there.tolist() == [[1.0, -0.5, -0.5]]


def test_direction_is_that_of_the_cross_entropy(trained, some):
    x = some.images[:8].requires_grad_()
    label = (some.labels[:8] + 1) % 10  # where cross-entropy still has a gradient
    ours = unit(-torch.autograd.grad(margin(trained(x), label).sum(), x)[0])
    theirs = unit(torch.autograd.grad(torch.nn.functional.cross_entropy(trained(x), label), x)[0])
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_unit_vectors_of_tiny_gradients_have_length_one():
    vectors = torch.stack([torch.full((1, 2, 2), 1e-30), torch.zeros(1, 2, 2), torch.full((1, 2, 2), -3.0)])
    assert unit(vectors).flatten(1).norm(dim=1).tolist() == [1.0, 0.0, 1.0]


def test_projected_images_lie_in_the_ball_after_rounding():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(50, 3, 32, 32, generator=generator)
    points = x + torch.randn(x.shape, generator=generator)
    radius = torch.full((50,), 0.01)
    moved = project(points, x, radius)
    lengths = (moved.double() - x.double()).flatten(1).norm(dim=1)
    assert (lengths <= 0.01).all() and moved.min() >= 0 and moved.max() <= 1
    assert torch.equal(project(x, x, radius), x)


def test_bisections_shorten_the_distance(attack, trained, some):
    coarse, fine = attack(trained, some), dataclasses.replace(attack, bisections=6)(trained, some)
    assert (fine.distances <= coarse.distances + 1e-6).all()
    assert fine.distances.mean() < coarse.distances.mean()
    assert torch.equal(fine.found, coarse.found)
    assert (fine.forward_passes == coarse.forward_passes + 6).all()


def test_active_set_keeps_batches_full(trained, some):
    """Every pass but those of the last stragglers has batch_size samples, and no sample is looked at after it has finished."""
    sizes = []
    handle = trained.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)) if inputs[0].requires_grad else None)
    try:
        adversarial = NearestL2PGD(eps_init=0.2, steps=12, batch_size=16)(trained, some.subset(range(48)))
    finally:
        handle.remove()
    assert sum(sizes) == int((adversarial.forward_passes - 1).sum())
    partial = [i for i, size in enumerate(sizes) if size < 16]
    assert partial == list(range(partial[0], len(sizes)))


def test_progress_ends_at_the_total(trained, some):
    seen = []
    with listen(seen.append):
        NearestL2PGD(eps_init=0.2, steps=12, batch_size=16)(trained, some.subset(range(48)))
    done = [p.done for p in seen]
    assert done == sorted(done) and (done[-1], seen[-1].total) == (48, 48)


def test_what_is_wrong_only_by_rounding_is_searched_for_again(trained, some, monkeypatch):
    """As on GPUs, whose fast matrix products are not quite float32: the first search takes one answer for wrong that is right."""
    from expunge.attacks import active_set, base

    calls = []
    true_look = active_set.look

    def look(model, rows):
        answers, uphill = true_look(model, rows)
        if not calls and rows.passes.min() >= 1:  # one wrong answer of the first search
            calls.append(int(rows.positions[0]))
            answers[0] = (rows.y[0] + 1) % 10
        return answers, uphill

    monkeypatch.setattr(base, "look", look)
    adversarial = NearestL2PGD(eps_init=0.2, steps=12, batch_size=64)(trained, some)
    assert calls and adversarial.found.all()


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_bad_settings_name_field_range_and_value(name):
    with pytest.raises(ConfigError, match="batch_size must be an integer ≥ 1; got 0"):
        ATTACKS[name](batch_size=0)
    with pytest.raises(ConfigError, match="steps must be an integer ≥ 1; got 0"):
        ATTACKS[name](steps=0)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_repr_rebuilds_the_attack(name):
    attack = ATTACKS[name](bisections=3)
    assert eval(repr(attack), {cls.__name__: cls for cls in ATTACKS.values()}) == attack


def test_labels_must_be_class_numbers(attack, trained, some):
    with pytest.raises(DataError, match="class numbers"):
        attack(trained, relabel(some, torch.full((len(some), 10), 0.1)))


def test_model_must_be_float32_and_finite(attack, noise):
    class Double(Constant):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    with pytest.raises(ModelError, match="float32"):
        attack(Double(), noise)

    class Explodes(nn.Module):
        def forward(self, x):
            z = x.flatten(1)[:, :3]
            return z / 0 if x.requires_grad else z

    with pytest.raises(ModelError, match="finite"):
        attack(Explodes(), noise)
