"""PGD against closed forms and a plain loop, and the chores of attacks within a fixed radius."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from expunge.attacks.active_set import length
from expunge.attacks.bounded import NORMS
from expunge.attacks.pgd import PGD
from expunge.data.images import Augment, ImageData, Samples, relabel
from expunge.errors import ConfigError, DataError, InputsOutsideUnitRange, ModelError, ZeroGradients
from expunge.progress import listen

EPS = {"l2": 0.6, "linf": 0.12}  # about half of the digits are fooled


@pytest.fixture(params=NORMS)
def attack(request) -> PGD:
    return PGD(norm=request.param, eps=EPS[request.param], steps=20, batch_size=64)


def linear_model(weight: torch.Tensor):
    """A linear model, 60 grey images that it gets right, and in each norm the exact distance of each to the nearest other class."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, len(weight), bias=False))
    with torch.no_grad():
        model[1].weight.copy_(weight)
        images = 0.5 + 0.03 * torch.randn(60, 3, 4, 4, generator=generator)  # the box is far
        logits = model(images).double()
    y, w = logits.argmax(1), weight.double()
    gaps, normals = logits.gather(1, y[:, None]) - logits, w[y][:, None] - w[None]
    exact = {}
    for norm, dual in (("l2", 2), ("linf", 1)):
        sizes = normals.norm(p=dual, dim=2)
        exact[norm] = torch.where(sizes > 0, gaps / sizes, torch.inf).min(1).values
    return model, ImageData(images, y, tuple("abcd")[: len(weight)]), exact


def slopes(k: int, kind: str) -> torch.Tensor:
    """Weights (k, 48), so steep that the log-sum over the wrong classes is their maximum, whose ascent the closed form describes."""
    weight = 300 * torch.randn(k, 48, generator=torch.Generator().manual_seed(k))
    if kind == "equal":  # each class has pixels of its own: from one to another, slopes are the same in both norms
        weight = 300 * weight.sign() * torch.eye(k).repeat_interleave(48 // k, 1)
    return weight


def check_inside(attack, attacked, data):
    change = (attacked.images.double() - data.fetch(torch.arange(len(data))).double()).flatten(1)
    far = change.norm(dim=1) if attack.norm == "l2" else change.abs().amax(1)
    assert (far <= attack.eps).all()  # without any tolerance
    assert attacked.images.min() >= 0 and attacked.images.max() <= 1
    assert torch.allclose(attacked.distances.double(), far, rtol=1e-6)


@pytest.mark.parametrize(("k", "kind", "random_start"), [(2, "any", False), (2, "any", True), (4, "equal", False)])
@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_model_is_fooled_exactly_where_the_closed_form_says(norm, k, kind, random_start):
    """L2: margin / ‖w_y − w_j‖₂; L∞: margin / ‖w_y − w_j‖₁; the nearest wrong class counts."""
    model, data, exact = linear_model(slopes(k, kind))
    ordered = exact[norm].sort().values
    for share in (5, 20, 40, 55):
        eps = float(ordered[share - 1] + ordered[share]) / 2
        attacked = PGD(norm=norm, eps=eps, random_start=random_start, steps=50 if random_start else 20, batch_size=40)(model, data)
        assert torch.equal(attacked.fooled, exact[norm] <= eps)
        assert int(attacked.fooled.sum()) == share
        check_inside(PGD(norm=norm, eps=eps), attacked, data)


@pytest.mark.parametrize("norm", NORMS)
def test_where_slopes_differ_nothing_is_found_beyond_the_closed_form_and_most_within(norm):
    model, data, exact = linear_model(slopes(4, "any"))
    eps = float(exact[norm].median())
    attacked = PGD(norm=norm, eps=eps, restarts=3)(model, data)
    possible = exact[norm] <= eps
    assert (possible | ~attacked.fooled).all()
    assert 0.85 < attacked.fooled.sum() / possible.sum() < 1  # it heads for the class that is ahead, not always for the nearest


@pytest.mark.parametrize("norm", NORMS)
def test_equals_a_plain_loop_over_samples(norm, trained, some):
    attack = PGD(norm=norm, eps=EPS[norm], steps=8, random_start=False, batch_size=4)
    few = some.subset(range(0, 125, 9))
    attacked = attack(trained, few)
    forward = backward = 0
    for i in range(len(few)):
        x, y = few[i]
        point = x
        for step in range(attack.steps + 1):
            probe = point.clone().requires_grad_()
            logits = trained(probe[None])
            forward += 1
            if logits.argmax() != y or step == attack.steps:
                break
            (gradient,) = torch.autograd.grad(functional.cross_entropy(logits.double(), torch.tensor([y])), probe)
            if norm == "l2":
                change = point + 0.1 * attack.eps * gradient / gradient.norm() - x
                change = change * min(1.0, attack.eps / change.norm())
            else:
                change = (point + 0.1 * attack.eps * gradient.sign() - x).clamp(-attack.eps, attack.eps)
            point = (x + change).clamp(0, 1)
        backward += min(step + 1, attack.steps)
        assert bool(attacked.fooled[i]) == (logits.argmax().item() != y)
        assert torch.allclose(attacked.images[i], point, atol=2e-4)
    assert attacked.forward_passes == forward + 2 * len(few)  # the first look and the last
    assert attacked.backward_passes == backward


def test_answers_are_the_models_own_and_images_lie_in_the_ball(attack, trained, some):
    attacked = attack(trained, some)
    with torch.no_grad():
        assert torch.equal(attacked.labels, trained(attacked.images).argmax(1))
    assert 0.2 < attacked.fooled.float().mean() < 0.9
    assert torch.equal(attacked.fooled, attacked.labels != some.labels)
    assert torch.equal(attacked.ids, some.ids) and torch.equal(attacked.true_labels, some.labels)
    check_inside(attack, attacked, some)


@pytest.mark.parametrize("eps", [1e-6, 0.01, 3.0])
@pytest.mark.parametrize("norm", NORMS)
def test_moved_images_lie_in_the_ball_without_tolerance(norm, eps):
    generator, attack = torch.Generator().manual_seed(0), PGD(norm=norm, eps=eps)
    x = torch.rand(20, 3, 64, 64, generator=generator)
    moved = attack.into_ball(x + 2 * torch.randn(x.shape, generator=generator), x)
    assert (attack.distances(moved, x) <= eps).all()
    if eps == 0.01:  # and are not drawn back further than that needs
        assert (attack.distances(moved, x) > eps * 0.99).all()
    assert moved.min() >= 0 and moved.max() <= 1
    assert torch.equal(attack.into_ball(x, x), x)


def test_batch_size_and_order_do_not_matter(attack, trained, some):
    together = attack(trained, some)
    few = [120, 3, 77, 40, 5]
    turned = ImageData(some.images[few], some.labels[few], some.classes)
    turned.__dict__["ids"] = some.ids[few]  # randomness is a function of the id
    alone = replace(attack, batch_size=1)(trained, turned)
    # Kernels of convolutions depend on the batch size and round differently.
    assert torch.equal(alone.fooled, together.fooled[few])
    assert torch.allclose(alone.images, together.images[few], atol=1e-3)


def test_same_bits_every_time_and_other_starts_with_another_seed(attack, trained, some):
    first, second, other = attack(trained, some), attack(trained, some), replace(attack, seed=1)(trained, some)
    assert torch.equal(first.images, second.images) and first.forward_passes == second.forward_passes
    assert not torch.equal(first.images, other.images)


def test_random_starts_fill_the_ball(attack):
    x, ids, walk = torch.full((500, 1, 8, 8), 0.5), torch.arange(500), torch.zeros(500, dtype=torch.int64)
    attack = replace(attack, eps=0.2)
    change = attack.start(x, ids, walk) - x
    # Means of 500 draws with standard deviation 0.2 / √3 (L∞) or 0.2 / 8 (L2).
    assert change.mean(0).abs().max() < 4 * 0.2 / (3 * 500) ** 0.5
    if attack.norm == "l2":
        assert torch.allclose(length(change), torch.tensor(0.2), rtol=1e-4)
    else:
        assert change.min() < -0.199 and change.max() > 0.199
        assert change.std() == pytest.approx(0.2 / 3**0.5, rel=0.02)
    assert not torch.equal(attack.start(x, ids, walk + 1), attack.start(x, ids, walk))
    assert torch.equal(attack.start(x[3:5], ids[3:5], walk[3:5]), attack.start(x, ids, walk)[3:5])


@pytest.mark.parametrize("random_start", [False, True])
def test_restarts_never_make_it_worse_and_only_the_unfooled_pay(attack, random_start, trained, some):
    one = replace(attack, steps=3, random_start=random_start)
    first, more = one(trained, some), replace(one, restarts=6)(trained, some)
    assert (more.fooled | ~first.fooled).all()
    assert more.fooled.sum() > first.fooled.sum()
    assert torch.equal(more.images[first.fooled], first.images[first.fooled])
    left = int((~first.fooled).sum())
    assert first.forward_passes < more.forward_passes <= first.forward_passes + 6 * 4 * left


def test_fooled_samples_leave_and_batches_stay_full(trained, some):
    sizes = []
    attack = PGD(eps=EPS["linf"], steps=20, batch_size=16)
    handle = trained.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)) if inputs[0].requires_grad else None)
    try:
        attacked = attack(trained, some)
    finally:
        handle.remove()
    assert sum(sizes) == attacked.backward_passes < 20 * len(some) * 0.9
    # Only last looks, which need no gradient, and the stragglers at the end leave a batch short.
    assert sum(size == 16 for size in sizes) > 0.6 * len(sizes)


def test_what_is_wrong_already_is_kept_and_costs_one_pass(attack, trained, some):
    with torch.no_grad():
        answers = trained(some.images).argmax(1)
    attacked = attack(trained, relabel(some, (answers + 1) % 10))
    assert attacked.already_wrong.all() and attacked.fooled.all() and (attacked.distances == 0).all()
    assert torch.equal(attacked.images, some.images)
    assert (attacked.forward_passes, attacked.backward_passes) == (len(some), 0)


def test_model_and_generators_are_left_as_they_were(attack, trained, some):
    trained[0].weight.requires_grad_(False)
    trained.train()
    trained[1].eval()
    trained[4].weight.grad = torch.ones_like(trained[4].weight)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    strides = [p.stride() for p in trained.parameters()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    try:
        attack(trained, some.subset(range(9)))
        assert [m.training for m in trained] == [True, False, *[True] * 7]
        assert [p.requires_grad for p in trained.parameters()] == [False, *[True] * 7]
        assert [p.grad is not None for p in trained.parameters()].count(True) == 1
        assert (trained[4].weight.grad == 1).all()
        assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
        assert strides == [p.stride() for p in trained.parameters()]
        assert torch.equal(states[0], torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()
    finally:
        trained.eval().requires_grad_(True)
        trained.zero_grad(set_to_none=True)


@pytest.mark.parametrize("surrounding", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_surrounding_modes_change_nothing(surrounding, attack, trained, some):
    few = some.subset(range(40))
    outside = attack(trained, few)
    with surrounding():
        inside = attack(trained, few)
    assert torch.equal(inside.images, outside.images)


class Masked(nn.Module):
    """Answers 1 where the first pixel is above 0.6; its gradient is zero everywhere."""

    def forward(self, x):
        bright = (x[:, 0, 0, 0] > 0.6).float()
        return 5 * torch.stack([1 - bright, bright], 1) + 0 * x.sum((1, 2, 3))[:, None]


def test_zero_gradients_are_flagged_and_random_starts_still_try():
    data = ImageData(torch.full((40, 1, 2, 2), 0.55), torch.zeros(40, dtype=torch.int64), ("a", "b"))
    with pytest.warns(ZeroGradients, match="40 of 40"):
        stuck = PGD(eps=0.1, random_start=False)(Masked(), data)
    assert not stuck.fooled.any() and stuck.forward_passes == 3 * 40
    # A random start is above 0.6 with probability 1/4: one of 30 fails for all with 1.8e-4.
    assert PGD(eps=0.1, random_start=False, restarts=100)(Masked(), data).fooled.all()


def test_images_outside_the_unit_range_are_flagged(trained, some):
    class Shifted(Samples):
        labels, ids, classes, augment = some.labels, some.ids, some.classes, Augment()
        shape, fingerprint = some.shape, "shifted"

        def fetch(self, positions):
            return some.fetch(positions) - 0.01

    with pytest.warns(InputsOutsideUnitRange, match=r"125 of 125 images lie outside \[0, 1\]"):
        PGD(steps=2)(trained, Shifted())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "eps must be a number > 0; got 0.0"),
        ({"eps": float("nan")}, "eps must be a number > 0; got nan"),
        ({"norm": "l1"}, "norm must be one of 'l2', 'linf'; got 'l1'"),
        ({"norm": "Linf"}, "norm must be one of 'l2', 'linf'; got 'Linf'"),
        ({"steps": 0}, "steps must be an integer ≥ 1; got 0"),
        ({"step_ratio": 0.0}, "step_ratio must be a number > 0"),
        ({"restarts": -1}, "restarts must be an integer ≥ 0"),
        ({"batch_size": 0}, "batch_size must be an integer ≥ 1; got 0"),
    ],
)
def test_bad_settings_name_field_range_and_value(settings, message):
    with pytest.raises(ConfigError, match=message):
        PGD(**settings)


def test_repr_rebuilds_the_attack(attack):
    assert eval(repr(attack)) == attack


def test_bad_data_and_models_are_refused(attack, trained, some):
    with pytest.raises(DataError, match="class numbers"):
        attack(trained, relabel(some, torch.full((len(some), 10), 0.1)))

    class Double(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def forward(self, x):
            return trained(x)

    with pytest.raises(ModelError, match="float32"):
        attack(Double(), some)

    class Explodes(nn.Module):
        def forward(self, x):
            z = x.flatten(1)[:, :10]
            return z / 0 if x.requires_grad else z

    with pytest.raises(ModelError, match="finite"):
        attack(Explodes(), some)


def test_progress_ends_at_the_number_of_samples_that_were_right(trained, some):
    seen = []
    with listen(seen.append):
        attacked = PGD(eps=0.05, steps=5, batch_size=16)(trained, some)
    done, right = [p.done for p in seen], int((~attacked.already_wrong).sum())
    assert done == sorted(done) and (done[-1], seen[-1].total) == (right, right)


def test_what_is_wrong_only_by_rounding_is_searched_for_again(trained, some, monkeypatch):
    """As on GPUs, whose fast matrix products are not quite float32: the first search takes one answer for wrong that is right."""
    from expunge.attacks import active_set, pgd

    calls = []

    def look(model, rows):
        answers, uphill = active_set.look(model, rows)
        if not calls:
            calls.append(int(rows.ids[0]))
            answers[0] = (rows.y[0] + 1) % 10
        return answers, uphill

    attack = PGD(norm="l2", eps=3.0, batch_size=64)
    monkeypatch.setattr(pgd, "look", look)
    assert attack(trained, some).fooled.all() and calls


def test_without_early_stop_the_images_lie_deeper_behind_the_border(attack, memorised):
    model, split, _ = memorised
    some = split.retain.subset(range(40))
    first, last = attack(model, some), replace(attack, early_stop=False)(model, some)
    assert torch.equal(last.fooled, first.fooled) and first.fooled.any()
    check_inside(attack, last, some)
    surer = lambda found: functional.cross_entropy(model(found.images[found.fooled]), some.labels[found.fooled]).item()  # noqa: E731
    assert surer(last) > surer(first) + 1
    assert last.forward_passes > first.forward_passes


def test_without_early_stop_the_last_wrong_image_is_kept_where_the_end_is_right_again():
    class Waves(nn.Module):
        """Right at 0.5, wrong at 0.6, right at 0.7, and always steeper upwards."""

        def forward(self, x):
            margin = torch.cos(torch.pi * (0.25 + (x.flatten(1) - 0.5) * 20 / 3))
            return torch.cat([margin, -margin], 1)

    data = ImageData(torch.full((3, 1, 1, 1), 0.5), torch.zeros(3, dtype=torch.int64), ("a", "b"))
    attacked = PGD(eps=0.2, steps=2, step_ratio=0.5, random_start=False, early_stop=False)(Waves(), data)
    assert attacked.fooled.all() and torch.allclose(attacked.images, torch.tensor(0.6))
