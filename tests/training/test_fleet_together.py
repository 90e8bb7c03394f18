"""Fleets that train several models at a time in one process: the same models, the same store, the same errors. On a CPU for the bits; on a GPU for the speed."""

import threading

import pytest
import torch

import worker_calls
from expunge.data.images import Augment, ImageData
from expunge.errors import ConfigError, ModelError
from expunge.progress import listen
from expunge.store import Store
from expunge.training import fleet_together
from expunge.training.executors import Ray
from expunge.training.fleet import TrainTask, fleet_cells, train_fleet
from expunge.training.fleet_together import here
from expunge.training.how_many import Together
from expunge.training.recipe import Recipe
from expunge.training.schedules import Constant

RECIPE = Recipe(epochs=2, lr=0.05, batch_size=16, precision="float32")
generator = torch.Generator().manual_seed(0)
POOL = ImageData(
    torch.randint(0, 256, (70, 1, 8, 8), generator=generator, dtype=torch.uint8),
    torch.randint(0, 4, (70,), generator=generator),
    tuple("abcd"),
    Augment(pad=1),
)


def task(seed: int, **settings) -> TrainTask:
    positions = torch.arange(seed, 40 + seed)
    return TrainTask(**{"build": worker_calls.conv, "recipe": RECIPE, "positions": positions, "seed": seed} | settings)


def test_the_models_are_those_of_one_after_another(tmp_path):
    tasks = [task(seed) for seed in range(5)] + [task(7, recipe=Recipe(epochs=3, lr=0.01, batch_size=16, precision="float32"))]
    alone = train_fleet(tasks, POOL, tmp_path / "alone", workers=1)
    seen = []
    with listen(seen.append):
        both = train_fleet(tasks, POOL, tmp_path / "both", together=2, device="cpu")
    for one, two in zip(alone, both, strict=True):
        for file in ("weights", "scores"):
            assert all(torch.equal(value, two.tensors(file)[name]) for name, value in one.tensors(file).items())
        assert {k: v for k, v in one.result().items() if k != "seconds"} == {k: v for k, v in two.result().items() if k != "seconds"}
    assert (seen[-1].done, seen[-1].total, seen[-1].note) == (13, 13, "6 of 6 models")


def test_one_that_diverges_is_named_and_trained_once_and_the_others_are_kept(tmp_path, monkeypatch):
    wild = Recipe(epochs=2, lr=1e20, batch_size=16, precision="float32", schedule=Constant())
    tasks = [task(0), task(1), task(2, recipe=wild, name="the wild one")]
    monkeypatch.setattr("expunge.training.fleet.train_model", lambda *a, **k: pytest.fail("trained again, alone"))
    with pytest.raises(ModelError, match="1 of 3 models were not trained: the wild one"):
        train_fleet(tasks, POOL, tmp_path, together=2, device="cpu")
    assert [cell.done for cell in fleet_cells(tasks, POOL, Store(tmp_path))] == [True, True, False]


def test_a_model_that_another_process_trains_is_waited_for(tmp_path):
    tasks = [task(0), task(1)]
    first, _ = fleet_cells(tasks, POOL, Store(tmp_path))
    claimed, ready = threading.Event(), threading.Event()

    def other():
        with first.claim() as mine:
            assert mine
            claimed.set()
            ready.wait(300)
            first.finish({"by": "other"})

    thread = threading.Thread(target=other)
    thread.start()
    claimed.wait()
    threading.Timer(1.0, ready.set).start()
    cells = train_fleet(tasks, POOL, tmp_path, together=2, device="cpu")
    thread.join()
    assert cells[0].result() == {"by": "other"}
    assert cells[1].done


def test_auto_measures_where_it_is_worth_it_and_says_what_it_chose(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet_together, "here", lambda *a: True)
    monkeypatch.setattr("expunge.training.fleet.here", lambda *a: True)
    monkeypatch.setattr(fleet_together, "choose_together", lambda *a, **k: Together(3, "because"))
    notes = []
    with listen(lambda p: notes.append(p.note)):
        train_fleet([task(seed) for seed in range(4)], POOL, tmp_path, device="cpu")
    assert "3 models at a time: because" in notes


def test_where_several_at_a_time_make_sense():
    assert not here("pool", "cpu", "auto")
    assert not here("serial", "cpu", 1)
    assert here("serial", "cpu", 2)
    with pytest.raises(ConfigError, match="together must be 'auto' or an integer"):
        here("pool", "cpu", 0)
    with pytest.raises(ConfigError, match="whose workers train one model each"):
        here(Ray(), "cpu", 2)
