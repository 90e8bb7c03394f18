"""Leakage of whole methods: the ceiling is found, retraining is at chance, and what is stored is not computed again."""

import dataclasses
import json

import pytest
import torch

import expunge
from expunge.data.images import ImageData
from expunge.errors import ConfigError, DataError
from expunge.leakage import class_leakage, sample_leakage
from expunge.methods import DELETE, FineTune, Retrain
from expunge.progress import listen
from expunge.store import Store
from expunge.training import fleet
from expunge.training.class_shadows import train_class_shadows
from expunge.training.recipe import Recipe
from expunge.training.shadow import train_shadow_models
from toys import toy_net

RECIPE = Recipe(epochs=10, lr=0.1, batch_size=32)
METHODS = {"delete": DELETE(epochs=2, lr=0.01, batch_size=8), "fine-tune": FineTune(epochs=1, batch_size=32)}
KEYS = ["own train", "own unseen", "neighbour train", "neighbour unseen"]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("runs"))


def class_shadows(digits, store, classes, n, n_test=200):
    train, test = digits[0].subset(range(128)), digits[1].subset(range(n_test))
    return train_class_shadows(
        toy_net, expunge.forget_classes(train, classes), test, n=n, recipe=RECIPE, store=store, workers=1, device="cpu"
    )


@pytest.fixture(scope="module")
def six(digits, store):
    return class_shadows(digits, store, [3], 6)


@pytest.fixture(scope="module")
def leakage(six):
    return class_leakage(METHODS, six, device="cpu")


def test_models_that_know_the_class_are_told_from_those_that_never_saw_it(leakage):
    (result,) = leakage
    assert (result.name, result.n, list(result.rows)) == ("3", 6, ["original", "delete", "fine-tune"])
    assert result.neighbour in "012456789"
    assert all(list(row) == KEYS for row in result.rows.values())
    assert result.rows["original"]["own train"].auc.value >= 0.95 and result.rows["original"]["own unseen"].auc.value >= 0.95
    assert result.rows["original"]["own train"].n_samples == 11 and result.rows["original"]["own unseen"].n_unseen == 6


def test_a_method_that_forgets_nothing_stays_at_the_ceiling(leakage):
    """DELETE pushes the class away; a pass of fine-tuning over the other classes does not."""
    rows = leakage[0].rows
    assert rows["fine-tune"]["own train"].auc.value >= 0.95
    assert rows["delete"]["own train"].auc.value < rows["original"]["own train"].auc.value


def test_retrained_models_are_at_the_floor(six, leakage):
    assert list(leakage[0].floors) == KEYS and all(floor.n == 6 for floor in leakage[0].floors.values())
    again = class_leakage({"retrain": Retrain(build=toy_net, recipe=RECIPE)}, six, device="cpu")[0]
    for key, floor in leakage[0].floors.items():
        result = again.rows["retrain"][key]
        assert result.auc.low <= 0.5 <= result.auc.high and result.gap.value <= floor.high + 0.1
        assert floor.value < 0.35


def test_what_is_stored_is_not_made_again(digits, store, six, leakage, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("computed again")

    monkeypatch.setattr(fleet, "train_model", forbidden)
    monkeypatch.setattr(DELETE, "run", forbidden)
    monkeypatch.setattr(FineTune, "run", forbidden)
    again = class_leakage(METHODS, class_shadows(digits, store, [3], 6), device="cpu")
    assert again[0].to_dict() == leakage[0].to_dict()
    three = class_leakage(METHODS, class_shadows(digits, store, [3], 3), device="cpu")[0]
    assert three.rows["original"]["own train"].auc.value >= 0.95 and three.floors == {} and three.n == 3


def test_the_result_is_plain(leakage):
    plain = leakage[0].to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["name"] == "3" and [row["method"] for row in plain["rows"]] == ["original", "delete", "fine-tune"]
    assert list(plain["floors"]) == KEYS


def test_each_of_several_forgotten_classes_has_its_own_result(digits, store, six):
    shadows = class_shadows(digits, store, [0, 3], 3)
    assert [cell.folder for cell in shadows.originals] == [cell.folder for cell in six.originals[:3]]
    first, second = class_leakage({}, shadows, device="cpu")
    assert (first.name, second.name) == ("0", "3") and list(first.rows) == ["original"]
    samples = {name: (shadows.split.train.labels == int(name)).sum().item() for name in "03"}
    for result in (first, second):
        assert result.neighbour not in "03"
        assert result.rows["original"]["own train"].n_samples == samples[result.name]
        assert result.rows["original"]["own train"].auc.value >= 0.9


def test_progress_goes_from_nothing_to_all_models(six):
    seen = []
    with listen(seen.append):
        class_leakage(METHODS, six, device="cpu")
    assert [p.done for p in seen] == [*range(12), 12] and {p.total for p in seen} == {12}


def test_classes_that_cannot_be_judged_are_refused(digits, store, six):
    with pytest.raises(ConfigError, match="no method may be named 'original'"):
        class_leakage({"original": DELETE()}, six, device="cpu")
    with pytest.raises(ConfigError, match="fpr must be"):
        class_leakage({}, six, fpr=0.0)
    without = six.test.subset((six.test.labels != 3).nonzero().flatten())
    logits = six.retrained_logits[:, torch.cat([torch.arange(128), 128 + (six.test.labels != 3).nonzero().flatten()])]
    shadows = dataclasses.replace(six, test=without)
    vars(shadows)["retrained_logits"] = logits
    with pytest.raises(DataError, match=r"images of the forgotten classes \[3\]; got none"):
        class_leakage({}, shadows, device="cpu")


# Single samples


@pytest.fixture(scope="module")
def pooled(digits, store):
    """128 training digits, of which every third has a wrong label, that only memory tells: these are the candidates."""
    candidates = torch.arange(0, 120, 3)
    labels = digits[0].labels[:128].clone()
    labels[candidates] = (labels[candidates] + 1) % 10
    train, test = ImageData(digits[0].images[:128], labels, digits[0].classes), digits[1].subset(range(100))
    recipe = Recipe(epochs=30, lr=0.1, batch_size=32)
    shadows = train_shadow_models(toy_net, train, test, n=6, recipe=recipe, store=store, balanced=candidates, workers=1, device="cpu")
    return shadows, train, test, candidates


def test_each_shadow_model_has_half_of_the_candidates(pooled):
    shadows, _, _, candidates = pooled
    assert (shadows.included[:, candidates].sum(1) == 20).all() and (shadows.included.sum(0) == 3).all()


def test_memorised_samples_are_found_and_retraining_is_at_chance(pooled, store, monkeypatch):
    shadows, train, test, candidates = pooled
    methods = {"retrain": Retrain(build=toy_net, recipe=RECIPE), "delete": DELETE(epochs=1, lr=1e-4)}
    results = sample_leakage(methods, *pooled, store=store, device="cpu")
    assert list(results) == ["original", "retrain", "delete"]
    assert results["original"].auc.value > 0.9 and results["original"].n_samples == 40
    assert results["retrain"].auc.low <= 0.5 <= results["retrain"].auc.high and results["retrain"].gap.value < 0.15
    assert results["delete"].auc.value > 0.8
    for method in (Retrain, DELETE):
        monkeypatch.setattr(method, "run", lambda *_: pytest.fail("computed again"))
    shuffled = candidates.flip(0).tolist()
    again = sample_leakage(methods, shadows, train, test, shuffled, store=store, device="cpu")
    assert again["delete"].to_dict() == results["delete"].to_dict()


def test_shadow_models_that_do_not_serve_are_refused(pooled, store):
    shadows, train, test, candidates = pooled
    with pytest.raises(
        DataError, match=r"half of the candidates; got .* of 20. Train them with train_shadow_models\(…, balanced=candidates\)"
    ):
        sample_leakage({}, shadows, train, test, candidates[::2], store=store)
    with pytest.raises(DataError, match="of 39"):
        sample_leakage({}, shadows, train, test, candidates[1:], store=store)
    with pytest.raises(DataError, match="in a store"):
        sample_leakage({}, dataclasses.replace(shadows, build=None), train, test, candidates, store=store)
    with pytest.raises(DataError, match="other labels"):
        sample_leakage({}, shadows, train, test.subset(range(99)), candidates, store=store)
    with pytest.raises(DataError, match=r"candidates must lie in \[0, 128\)"):
        sample_leakage({}, shadows, train, test, [128, 0], store=store)
    with pytest.raises(ConfigError, match="no method may be named 'original'"):
        sample_leakage({"original": DELETE()}, *pooled, store=store)
