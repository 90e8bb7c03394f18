"""The demonstration of forgetting a class: it audits what it says, ends where it was interrupted, and the second time only reads."""

import dataclasses

import pytest

from expunge import demo_classes
from expunge.data.load import load_data
from expunge.demo_classes import ClassDemo
from expunge.errors import ConfigError
from expunge.methods import DELETE, FineTune
from expunge.progress import listen
from expunge.store import Store
from expunge.training.recipe import Recipe

SMALL = ClassDemo(
    digit=3, n=6, recipe=Recipe(epochs=2, lr=0.05, batch_size=16),
    methods={"DELETE": DELETE(epochs=1, lr=1e-3, until=None), "FineTune": FineTune(epochs=1, batch_size=32)},
)  # fmt: skip


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, at a known moment."""


@pytest.fixture(scope="module", autouse=True)
def few_digits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_classes, "load_data", lambda name: tuple(part.subset(range(300)) for part in load_data(name)))
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def result(store):
    """Made by a run that is interrupted half-way through unlearning, and one that goes on."""

    def interrupt(progress):
        if progress.stage == "unlearning shadow models" and progress.done == 8:
            raise Interrupted

    with pytest.raises(KeyboardInterrupt), listen(interrupt):
        SMALL.run(store, workers=1, device="cpu")
    assert sum(cell.done for cell in Store(store).cells("unlearned")) == 8
    return SMALL.run(store, workers=1, device="cpu")


def test_every_model_and_every_measure_is_there(result):
    names = ["original", "DELETE", "FineTune", "retrained", *(f"retrained {k}" for k in range(2, 7))]
    assert [model["name"] for model in result["models"]] == names and result["title"] == "Forgetting the digit 3"
    assert all(model["details"] for model in result["models"][:4]) and all(model["seconds"] > 0 for model in result["models"][:4])
    (answers,) = result["classes"]
    assert answers["name"] == "3" and [row["model"] for row in answers["rows"]] == names and answers["neighbour"] != "3"
    assert [row["method"] for row in answers["leakage"]["rows"]] == ["original", "DELETE", "FineTune"] and answers["leakage"]["n"] == 6
    assert result["models"][3]["forget_test"]["value"] == 0 < result["models"][0]["forget_test"]["value"]


def test_the_second_run_only_reads(result, store, monkeypatch):
    monkeypatch.setattr(ClassDemo, "_audit", lambda *_: pytest.fail("computed again"))
    reports = []
    with listen(reports.append):
        assert SMALL.run(store, workers=1, device="cpu") == result
    assert not reports


def test_other_settings_are_another_demonstration_that_shares_its_models(result, store, monkeypatch):
    monkeypatch.setattr(DELETE, "run", lambda *_: pytest.fail("computed again"))
    fewer = dataclasses.replace(SMALL, methods={"DELETE": SMALL.methods["DELETE"]}).run(store, workers=1, device="cpu")
    assert [row for row in result["models"] if row["name"] != "FineTune"] == fewer["models"]


def test_settings_outside_their_range_are_refused():
    with pytest.raises(ConfigError, match="digit"):
        ClassDemo(digit=10)
    with pytest.raises(ConfigError, match="n must"):
        ClassDemo(n=5)
