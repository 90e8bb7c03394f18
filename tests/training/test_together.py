"""Models that are trained together are those that are trained alone, to the last bit; on a CPU a tape stands for the GPU's recordings."""

import contextlib
import random

import numpy as np
import pytest
import torch
from torch import nn

import expunge
from expunge import Recipe
from expunge.data.images import Augment, ImageData
from expunge.errors import ConfigError
from expunge.progress import Progress
from expunge.training import captured, how_many, loop
from expunge.training.captured import NotRecorded
from expunge.training.how_many import Together, choose_together, decide, measure_rate
from expunge.training.recipe import train_model
from expunge.training.schedules import Constant
from expunge.training.together import train_together
from recording import Tape


@pytest.fixture(scope="module")
def data():
    images = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageData(images, torch.arange(40) % 3, tuple("abc"), Augment(1, True))


def plain():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )  # fmt: skip


def noisy():
    """Random in training, from three generators of the CPU."""

    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x) + random.random() + np.random.rand() if self.training else x

    return nn.Sequential(plain(), Noise())


RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05)


def trainings(data, n=5):
    """Sets of different sizes, so that models begin and end at different times."""
    return [(data.subset(range(k % 2, 40 - 3 * k, 2)), k) for k in range(n)]


def together(data, n, build=plain, recipe=RECIPE, **options):
    trained = sorted(train_together(build, trainings(data), recipe, together=n, device="cpu", **options), key=lambda t: t.number)
    return [t.model for t in trained]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@contextlib.contextmanager
def tapes(monkeypatch):
    """Steps are recorded from the third on, as on a GPU from the seventeenth."""
    made = []

    def recorder(objective, device):
        made.append(Tape())
        return made[-1]

    with monkeypatch.context() as patch:
        patch.setattr(captured, "WARM_UP", 2)
        patch.setattr(loop, "recorder", recorder)
        yield made


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("replayed", [False, True])
def test_models_trained_together_are_those_trained_alone(n, replayed, data, monkeypatch):
    alone = [train_model(plain, train, RECIPE, seed=seed, device="cpu") for train, seed in trainings(data)]
    with tapes(monkeypatch) if replayed else contextlib.nullcontext() as made:
        models = together(data, n)
    assert all(map(same, models, alone)) and not any(m.training for m in models)
    if replayed:
        assert len(made) == min(n, 5) and all(tape.replays for tape in made if tape.recordings) and sum(tape.replays for tape in made) > 3


@pytest.mark.parametrize("recipe", [
    Recipe(epochs=2, batch_size=8, lr=0.05, clip=expunge.Clip(max_norm=0.5, every=3)),
    Recipe(epochs=2, batch_size=8, lr=0.05, clip=expunge.SpectralNorm()),
    Recipe(epochs=2, batch_size=8, lr=0.05, label_smoothing=0.1, augment=False, precision="float32", nesterov=True),
], ids=["clip", "spectral norm", "others"])  # fmt: skip
def test_every_field_of_the_recipe_is_followed(recipe, data, monkeypatch):
    alone = [train_model(plain, train, recipe, seed=seed, device="cpu") for train, seed in trainings(data, 3)]
    parametrized = isinstance(recipe.clip, expunge.SpectralNorm)
    with tapes(monkeypatch), pytest.warns(NotRecorded, match="parametrization") if parametrized else contextlib.nullcontext():
        done = sorted(train_together(plain, trainings(data, 3), recipe, together=2, device="cpu"), key=lambda t: t.number)
    assert all(same(t.model, model) for t, model in zip(done, alone, strict=True))


def test_each_model_has_random_numbers_of_its_own_and_the_callers_stay(data):
    alone = [train_model(noisy, train, RECIPE, seed=seed, device="cpu") for train, seed in trainings(data)]
    with expunge.rng.fork(9):
        before = torch.rand(1), np.random.rand(), random.random()
    with expunge.rng.fork(9):
        models = together(data, 3, noisy)
        assert (torch.rand(1), np.random.rand(), random.random()) == before
    assert all(map(same, models, alone))


def test_one_place_records_once_for_all_its_models(data, monkeypatch):
    with tapes(monkeypatch) as made:
        list(train_together(plain, [(data.subset(range(40)), k) for k in range(4)], RECIPE, together=1, device="cpu"))
    assert [tape.recordings for tape in made] == [1] and made[0].replays == 4 * 2 * 5 - 2


def test_a_model_that_diverges_is_named_and_the_others_go_on(data):
    class Explodes(expunge.training.schedules.Schedule):
        def __call__(self, done, epochs):
            return 1.0 if torch.initial_seed() != 1 else float("inf")

    recipe = Recipe(epochs=2, batch_size=8, lr=0.05, schedule=Constant())
    object.__setattr__(recipe, "schedule", Explodes())
    done = sorted(train_together(plain, trainings(data, 4), recipe, together=2, device="cpu"), key=lambda t: t.number)
    assert [t.model is None for t in done] == [False, True, False, False]
    assert "diverged" in str(done[1].error)
    usual = Recipe(epochs=2, batch_size=8, lr=0.05, schedule=Constant())
    for k in (0, 2, 3):
        train, seed = trainings(data, 4)[k]
        assert same(done[k].model, train_model(plain, train, usual, seed=seed, device="cpu"))


def test_a_training_is_asked_for_when_a_place_is_free_and_a_model_is_handed_over_at_once(data):
    asked = []

    def claims():
        for training in trainings(data):
            asked.append(training[1])
            yield training

    models = train_together(plain, claims(), RECIPE, together=2, device="cpu")
    next(models)
    assert asked == [0, 1]
    models.close()
    assert asked == [0, 1]


def test_progress_says_whose_it_is(data):
    seen: dict[int, list[Progress]] = {}
    together(data, 2, progress=lambda number, p: seen.setdefault(number, []).append(p))
    assert sorted(seen) == [0, 1, 2, 3, 4]
    assert all([p.done for p in reports] == list(range(1, reports[0].total + 1)) for reports in seen.values())


def test_a_build_that_does_not_build_is_an_error_of_that_training(data):
    shared = plain()
    outcomes = list(train_together(lambda: shared, trainings(data, 2), RECIPE, device="cpu"))
    assert ["same weights twice" in str(t.error) for t in outcomes] == [True, True]
    with pytest.raises(ConfigError, match="together must be an integer ≥ 1; got 'auto'"):
        list(train_together(plain, [], RECIPE, together="auto", device="cpu"))


def test_the_smallest_number_of_models_that_is_about_as_fast_as_the_fastest_is_chosen():
    assert decide({1: 100, 2: 102}).n == 1
    assert decide({1: 100, 2: 180, 4: 181, 8: 150}).n == 2
    assert decide({1: 100, 2: 180, 4: 300}, "8 do not fit into memory").n == 4
    reason = str(decide({1: 51_000, 2: 78_000, 4: 82_000}, "8 are not faster"))
    assert reason == "4 models at a time: 82,000 images/s, 1 alone 51,000; 8 are not faster"


@pytest.mark.parametrize(
    ("rates", "n", "word"),
    [
        ({1: 100, 2: 101}, 1, "2 are not faster"),
        ({1: 100, 2: 190, 4: 191}, 2, "4 are not faster"),
        ({1: 100, 2: 190}, 2, "4 do not fit into memory"),
        ({1: 100, 2: 190, 4: 350, 8: 500}, 8, "500 images/s, 1 alone 100"),
    ],
)
def test_more_models_are_tried_until_they_gain_nothing_or_do_not_fit(rates, n, word, monkeypatch):
    def measured(build, train, recipe, n, **options):
        if n not in rates:
            raise torch.OutOfMemoryError("no memory is left")
        return rates[n]

    monkeypatch.setattr(how_many, "resolve_device", torch.device)
    monkeypatch.setattr(how_many, "measure_rate", measured)
    chosen = choose_together(plain, None, RECIPE, device="cuda", most=8)
    assert chosen.n == n and word in chosen.reason and chosen.rates == rates


def test_a_cpu_trains_one_model_at_a_time():
    assert isinstance(choose_together(plain, None, RECIPE, device="cpu"), Together)
    assert choose_together(plain, None, RECIPE, device="cpu").n == 1


def test_a_rate_is_measured_on_steps_of_the_recipe(data, monkeypatch):
    monkeypatch.setattr(how_many, "WARM_UP", 1)
    assert measure_rate(plain, data, RECIPE, 2, device=torch.device("cpu"), seconds=0.01) > 0
    with pytest.raises(expunge.ExpungeError, match="same weights twice"):
        shared = plain()
        measure_rate(lambda: shared, data, RECIPE, 1, device=torch.device("cpu"))
