"""AutoAttack through its authors' library, whose success is measured by us; skipped without the extra."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from expunge.attacks.auto_attack import AutoAttack, _square_fits
from expunge.attacks.bounded import NORMS, robust_accuracy
from expunge.attacks.pgd import PGD
from expunge.data.images import ImageData, relabel
from expunge.errors import ConfigError, DataError, MissingError, ModelError

EPS = {"l2": 0.5, "linf": 0.1}


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("pyautoattack")


@pytest.fixture
def brief(library, monkeypatch):
    """Square asks 5000 times for what withstands all else, and the others take 100 steps towards each target; fewer are enough to see that they run."""
    original = library.AutoAttack.__init__

    def shorter(self, *args, **options):
        original(self, *args, **options)
        self.square.n_queries = 20
        for each in (self.apgd, self.apgd_targeted, self.fab):
            each.n_iter = each.n_iter_orig = 20

    monkeypatch.setattr(library.AutoAttack, "__init__", shorter)


@pytest.fixture
def few(some):
    return some.subset(range(0, 125, 10))


@pytest.mark.parametrize("norm", NORMS)
def test_accuracy_is_measured_on_images_in_the_ball_and_not_above_that_of_pgd(norm, brief, trained, few):
    attack = AutoAttack(norm=norm, eps=EPS[norm])
    attacked = attack(trained, few)
    change = (attacked.images.double() - few.fetch(torch.arange(len(few))).double()).flatten(1)
    far = change.norm(dim=1) if norm == "l2" else change.abs().amax(1)
    assert (far <= EPS[norm]).all() and attacked.images.min() >= 0 and attacked.images.max() <= 1
    with torch.no_grad():
        assert torch.equal(attacked.labels, trained(attacked.images).argmax(1))
    weak = PGD(norm=norm, eps=EPS[norm])(trained, few)
    assert 0 < attacked.fooled.float().mean() < 1
    assert attacked.fooled.sum() >= weak.fooled.sum()
    assert attacked.forward_passes > attacked.backward_passes > 100


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_model_is_fooled_exactly_where_the_closed_form_says(norm, brief):
    """Its targets find the nearest class also where PGD heads for another; L2: margin / ‖w_y − w_j‖₂, L∞: margin / ‖w_y − w_j‖₁."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(75, 4))
    with torch.no_grad():
        model[1].weight.copy_(5 * torch.randn(4, 75, generator=generator))
        images = 0.5 + 0.03 * torch.randn(40, 3, 5, 5, generator=generator)
        logits = model(images).double()
    y, w = logits.argmax(1), model[1].weight.detach().double()
    gaps, sizes = logits.gather(1, y[:, None]) - logits, (w[y][:, None] - w[None]).norm(p=2 if norm == "l2" else 1, dim=2)
    exact = torch.where(sizes > 0, gaps / sizes, torch.inf).min(1).values
    eps = float(exact.sort().values[19:21].mean())
    attacked = AutoAttack(norm=norm, eps=eps)(model, ImageData(images, y, tuple("abcd")))
    assert torch.equal(attacked.fooled, exact <= eps) and int(attacked.fooled.sum()) == 20


def test_same_bits_every_time_and_model_generators_and_trace_as_they_were(brief, trained, some):
    few = some.subset(range(0, 125, 30))
    trained.train()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    states, trace = (torch.get_rng_state(), np.random.get_state()[1].copy()), sys.gettrace()

    def watch(frame, event, argument):
        return None

    try:
        sys.settrace(watch)
        first = AutoAttack(eps=EPS["linf"])(trained, few)
        left = sys.gettrace()
    finally:
        sys.settrace(trace)
    try:
        assert left is watch
        assert all(m.training for m in trained) and all(p.requires_grad and p.grad is None for p in trained.parameters())
        assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
        assert torch.equal(states[0], torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()
        assert torch.equal(AutoAttack(eps=EPS["linf"])(trained, few).images, first.images)
    finally:
        trained.eval()


def test_a_channels_last_model_with_colour_is_fine(brief):
    """Its gradients are channels-last as well, which the library's `view` cannot flatten."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))
    model = model.to(memory_format=torch.channels_last).eval()
    images = torch.rand(12, 3, 9, 7)
    with torch.no_grad():
        labels = model(images).argmax(1)
    for version in ("standard", "plus"):
        measured = robust_accuracy(model, ImageData(images, labels, tuple("abcde")), AutoAttack(eps=0.3, version=version))
        assert measured.value == 0  # five classes: four targets


def test_what_is_wrong_already_never_reaches_the_library(brief, trained, few):
    with torch.no_grad():
        answers = trained(few.images).argmax(1)
    attacked = AutoAttack()(trained, relabel(few, (answers + 1) % 10))
    assert attacked.fooled.all() and (attacked.forward_passes, attacked.backward_passes) == (len(few), 0)


def test_too_few_classes_are_refused(library):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images = torch.rand(5, 1, 2, 2)
    with torch.no_grad():
        data = ImageData(images, model(images).argmax(1), tuple("abc"))
    with pytest.raises(ModelError, match="at least 4 classes.*got 3"):
        AutoAttack()(model, data)


@pytest.mark.parametrize("shape", [(4, 4), (12, 12), (9, 7), (7, 9), (12, 30), (30, 12), (14, 14), (11, 16)])
def test_sizes_on_which_the_library_fails_are_refused_and_no_others(shape, brief):
    """If a new release of the library takes them all, the refusal can go."""
    from pyautoattack.square import SquareAttack

    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1], 5)), torch.rand(3, 1, *shape)
    with torch.no_grad():
        labels = model(images).argmax(1)
    square = SquareAttack(model, norm="L2", n_queries=3, eps=1e-3, seed=0, device="cpu")
    try:
        square.perturb(images, labels)
        fails = False
    except (ZeroDivisionError, RuntimeError):
        fails = True
    assert fails == (not _square_fits(*shape))
    if fails:
        with pytest.raises(DataError, match=f"{shape[0]} × {shape[1]} pixels"):
            AutoAttack(norm="l2")(model, ImageData(images, labels, tuple("abcde")))


def test_without_the_library_the_remedy_is_named(trained, few, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(MissingError, match=r"optional extra.*pip install 'expunge\[autoattack\]'"):
        AutoAttack()(trained, few)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": -1.0}, "eps must be a number > 0; got -1.0"),
        ({"norm": "L2"}, "norm must be one of 'l2', 'linf'; got 'L2'"),
        ({"version": "rand"}, "version must be one of 'standard', 'plus'; got 'rand'"),
    ],
)
def test_bad_settings_name_field_range_and_value(settings, message):
    with pytest.raises(ConfigError, match=message):
        AutoAttack(**settings)
