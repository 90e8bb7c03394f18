"""A recorded step is the step: same bits, less Python. The tape records as strictly as a CUDA graph does; what only a GPU can show is in tests/test_gpu.py."""

import copy
import warnings

import pytest
import torch
from torch import nn

import expunge
from expunge.data.images import Augment, ImageData, relabel
from expunge.errors import ModelError
from expunge.training import captured, loop
from expunge.training.captured import CapturedStep, CudaGraphs, NotRecorded, recorder
from expunge.training.loop import sgd
from expunge.training.objectives import cross_entropy, negated_cross_entropy, smoothed_cross_entropy
from expunge.training.orders import paired
from expunge.training.saliency import saliency_mask
from expunge.training.schedules import Cosine, Schedule
from recording import Tape


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (45, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return ImageData(images, torch.arange(45) % 3, tuple("abc"), Augment(1, True))


@pytest.fixture
def tape(monkeypatch):
    tape = Tape()
    monkeypatch.setattr(captured, "WARM_UP", 2)
    monkeypatch.setattr(loop, "recorder", lambda objective, device: tape)
    return tape


def tiny():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )  # fmt: skip


def net(*extra, seed=1):
    with expunge.rng.fork(seed):
        return nn.Sequential(tiny(), *extra)


def trained(data, monkeypatch=None, model=None, **settings):
    """A model after training; with `monkeypatch`, its steps computed one by one."""
    model = copy.deepcopy(model or net())
    options = {"epochs": 4, "lr": 0.1, "batch_size": 10, "seed": 3, "schedule": Cosine()} | settings
    with monkeypatch.context() if monkeypatch else warnings.catch_warnings() as patch:
        if monkeypatch:
            patch.setattr(loop, "recorder", lambda objective, device: None)
        sgd(model, data, **options)
    return model


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "float32", "weight_decay": 0.0},
        {"precision": "bfloat16"},
        {"momentum": 0.0},
        {"nesterov": True},
        {"optimizer": "adam", "lr": 0.01},
        {"objective": smoothed_cross_entropy(0.2)},
        {"objective": negated_cross_entropy, "lr": 1e-4},
        {"batchnorm": "frozen_statistics"},
        {"batch_size": 1, "epochs": 1},
        {"augment": False},
        {"clip": expunge.Clip(max_norm=0.5, every=3)},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_replayed_steps_give_the_bits_of_computed_ones(settings, data, tape, monkeypatch):
    assert same(trained(data, **settings), trained(data, monkeypatch, **settings))
    assert tape.replays > 2


def test_masked_weights_are_put_back_within_the_recording(data, tape, monkeypatch):
    model = net()
    mask = saliency_mask(model, data, 0.3)
    with_tape = trained(data, model=model, mask=mask, weight_decay=0.1)
    assert same(with_tape, trained(data, monkeypatch, model=model, mask=mask, weight_decay=0.1)) and tape.replays
    assert all(torch.equal(p[~mask[n]], dict(model.named_parameters())[n][~mask[n]]) for n, p in with_tape.named_parameters())


def sets(kind, data):
    other = ImageData(data.images.flip(0), data.labels, data.classes)
    return {
        "soft labels": relabel(data, torch.full((45, 3), 1 / 3)),
        "one root": [data.subset(range(20)), data.subset(range(20, 45))],
        "two roots": [data, other],
        "streamed": expunge.StreamedData(data),
    }[kind]


@pytest.mark.parametrize("kind", ["soft labels", "one root", "two roots", "streamed"])
def test_every_kind_of_data_can_be_replayed(kind, data, tape, monkeypatch):
    mixed = sets(kind, data)
    assert same(trained(mixed), trained(mixed, monkeypatch)) and tape.replays


def test_sets_in_pairs_can_be_replayed(data, tape, monkeypatch):
    pair = [data.subset(range(10)), data.subset(range(10, 45))]
    assert same(trained(pair, order=paired, batch_size=5), trained(pair, monkeypatch, order=paired, batch_size=5)) and tape.replays


def test_a_smaller_last_batch_has_a_recording_of_its_own(data, tape):
    trained(data, epochs=4)  # 10, 10, 10, 10, 5 in each epoch: two of each shape are computed, the others replayed
    assert tape.recordings == 2 and tape.replays == (4 * 4 - 2) + (4 - 2)


def test_no_line_of_python_runs_again(data, tape):
    calls = []

    def objective(model, batch):
        calls.append(len(batch.images))
        return cross_entropy(model, batch)

    trained(data.subset(range(40)), objective=objective)
    assert len(calls) == 3 and tape.replays == 14  # two computed, one recorded


def test_the_mean_loss_is_that_of_replayed_steps_as_well(data, tape):
    with pytest.raises(ModelError, match="diverged: the mean loss of epoch 3"):
        trained(data.subset(range(40)), lr=1.0, schedule=Explodes())
    assert tape.replays == 10


class Explodes(Schedule):
    """A step of infinite size in the third epoch, when all steps are replayed."""

    def __call__(self, done, epochs):
        return float("inf") if done >= 2 else 0.01


class CountsCalls(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(None)
        return x * len(self.seen)


class Waits(nn.Module):
    def forward(self, x):
        return x if x.mean().item() > 0 else 2 * x


def hooked():
    layer = nn.Identity()
    layer.register_forward_hook(lambda module, args, out: out * 2)
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: nn.Dropout(0.5), "draws random numbers on the CPU"),
        (CountsCalls, "change attributes"),
        (Remembers, "change attributes"),
        (hooked, "forward hooks"),
        (Waits, "RuntimeError: aten._local_scalar_dense"),
    ],
)
def test_a_model_that_cannot_be_recorded_is_trained_step_by_step_and_the_reason_is_named(layer, reason, data, tape, monkeypatch):
    model = net(layer())
    with pytest.warns(NotRecorded, match=reason), expunge.rng.fork(0):
        ours = trained(data, model=model)
    with expunge.rng.fork(0):
        assert same(ours, trained(data, monkeypatch, model=model))
    assert not tape.replays


def test_a_recording_that_fails_once_is_not_tried_again(data, tape, monkeypatch):
    attempts = []

    def fails(work):
        attempts.append(None)
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setattr(loop, "recorder", lambda objective, device: fails)
    with pytest.warns(NotRecorded, match="OutOfMemoryError: no memory is left") as caught:
        ours = trained(data)
    assert len(attempts) == len(caught) == 1 and same(ours, trained(data, monkeypatch))


def test_one_recording_trains_any_number_of_models(data, tape, monkeypatch):
    from expunge.data.mixture import Mixture
    from expunge.training.loop import prepared, steps

    course = {"epochs": 2, "lr": 0.1, "batch_size": 10}
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False, "precision": "auto"}
    stage, seen = net(), []
    halves = [data.subset(range(k, 45, 3)) for k in range(3)]
    mixtures = [Mixture([half], torch.device("cpu"), seed=k) for k, half in enumerate(halves)]
    with prepared(stage, mixtures[0], cross_entropy, **settings) as step:
        assert isinstance(step, CapturedStep)
        for k, mixture in enumerate(mixtures):
            with expunge.rng.fork(k):
                step.restart(net(seed=k), mixture)
            for _ in steps(step, **course):
                pass
            seen.append(copy.deepcopy(stage))
    assert tape.recordings == 2  # batches of 10 and of 5, for all three models
    for k, half in enumerate(halves):
        alone = trained(half, monkeypatch, model=net(seed=k), seed=k, schedule=None, **course)
        assert same(seen[k], alone)


def test_only_objectives_without_a_state_are_recorded_and_only_on_a_gpu():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    for objective in (cross_entropy, negated_cross_entropy, smoothed_cross_entropy(0.1)):
        assert isinstance(recorder(objective, cuda), CudaGraphs) and recorder(objective, cpu) is None
    assert recorder(lambda model, batch: 2 * cross_entropy(model, batch), cuda) is None
