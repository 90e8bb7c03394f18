"""Models of both worlds: with the forgotten classes and without."""

import pytest
import torch

import worker_calls
from expunge.data.images import ImageData
from expunge.data.pool import pool
from expunge.data.split import forget_classes, forget_only, forget_samples
from expunge.errors import ConfigError, DataError
from expunge.training import fleet
from expunge.training.class_shadows import ClassShadows, train_class_shadows
from expunge.training.inference import logits_of
from expunge.training.recipe import Recipe, train_model

RECIPE = Recipe(epochs=2, lr=0.05, batch_size=16, precision="float32")


def data(n: int, seed: int) -> ImageData:
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return ImageData(images, torch.arange(n) % 4, ("a", "b", "c", "d"))


TRAIN, TEST = data(60, seed=0), data(40, seed=1)


def shadows(store, classes=("b",), **settings) -> ClassShadows:
    split = forget_classes(TRAIN, classes)
    return train_class_shadows(worker_calls.conv, split, TEST, **{"n": 3, "recipe": RECIPE, "store": store, "workers": 1} | settings)


@pytest.fixture
def trained(monkeypatch) -> list[int]:
    """The seeds of the models that were trained."""
    seeds = []
    monkeypatch.setattr(fleet, "train_model", lambda *args, **options: seeds.append(options["seed"]) or train_model(*args, **options))
    return seeds


def test_originals_saw_everything_and_retrained_models_all_but_the_class(tmp_path):
    models = shadows(tmp_path, seed=10)
    assert len(models) == 3 and models.seeds == (10, 12, 14)
    assert repr(models) == "ClassShadows(3 originals, 3 retrained models without b)"
    kept = models.split.retain
    for k in range(3):
        for model, samples, seed in ((models.original(k), TRAIN, 10 + 2 * k), (models.retrained_model(k), kept, 11 + 2 * k)):
            expected = train_model(worker_calls.conv, samples, RECIPE, seed=seed, device="cpu")
            torch.testing.assert_close(logits_of(model, TEST), logits_of(expected, TEST))


def test_logits_are_of_training_and_then_test_images(tmp_path):
    models, everything = shadows(tmp_path), pool(TRAIN, TEST)
    assert models.original_logits.shape == models.retrained_logits.shape == (3, 100, 4)
    torch.testing.assert_close(models.original_logits[1], logits_of(models.original(1), everything))
    torch.testing.assert_close(models.retrained_logits[2], logits_of(models.retrained_model(2), everything))


def test_originals_are_shared_and_more_models_keep_those_of_before(tmp_path, trained):
    few = shadows(tmp_path)
    assert sorted(trained) == [0, 1, 2, 3, 4, 5]
    shadows(tmp_path, classes=("c",))
    assert sorted(trained[6:]) == [1, 3, 5]
    many = shadows(tmp_path, n=4)
    assert sorted(trained[9:]) == [6, 7]
    assert torch.equal(many.retrained_logits[:3], few.retrained_logits)
    shadows(tmp_path, n=4)
    assert len(trained) == 11


@pytest.mark.parametrize("n", [2, True, 3.0])
def test_too_few_models_are_refused(tmp_path, n):
    with pytest.raises(ConfigError, match="integer ≥ 3"):
        shadows(tmp_path, n=n)


def test_only_splits_of_whole_classes_with_retain_data_will_do(tmp_path):
    bees = TRAIN.subset((TRAIN.labels == 1).nonzero().flatten())
    for split in (forget_samples(TRAIN, [0]), forget_only(bees, classes=["b"])):
        with pytest.raises(DataError, match="whole classes with retain data"):
            train_class_shadows(worker_calls.conv, split, TEST, n=3, recipe=RECIPE, store=tmp_path)
