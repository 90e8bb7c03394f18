"""Fleets: a model is a function of task and pool; interrupting is an ordinary way to stop; what is finished is never trained again."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn

import worker_calls
from expunge.data.images import Augment, ImageData
from expunge.data.pool import pool
from expunge.errors import ConfigError, DataError, ModelError, StoreError
from expunge.progress import listen
from expunge.store import DamagedFile, Store
from expunge.training import fleet, side_by_side
from expunge.training.executors import WorkerDied
from expunge.training.fleet import TrainTask, fleet_cells, load_trained, train_fleet
from expunge.training.inference import logits_of
from expunge.training.recipe import Recipe, train_model
from expunge.training.shadow import ShadowModels, halves, train_shadow_models

CLASSES = ("a", "b", "c", "d")
RECIPE = Recipe(epochs=2, lr=0.05, batch_size=16, precision="float32")


def data(n: int, seed: int) -> ImageData:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageData(images, torch.randint(0, 4, (n,), generator=generator), CLASSES, Augment(pad=1))


TRAIN, TEST = data(60, seed=0), data(41, seed=1)
POOL = pool(TRAIN, TEST)


def task(seed: int = 0, **settings) -> TrainTask:
    return TrainTask(
        **{"build": worker_calls.conv, "recipe": RECIPE, "positions": torch.arange(40), "seed": seed, "kind": "shadow"} | settings
    )


def shadows(store, n=4, **settings) -> ShadowModels:
    return train_shadow_models(worker_calls.conv, TRAIN, TEST, **{"n": n, "recipe": RECIPE, "store": store, "workers": 1} | settings)


@pytest.fixture
def trained(monkeypatch) -> list[int]:
    """The seeds of the models that were trained in this process."""
    seeds = []

    def counted(*args, **kwargs):
        seeds.append(kwargs["seed"])
        return train_model(*args, **kwargs)

    monkeypatch.setattr(fleet, "train_model", counted)
    return seeds


# One model


def test_a_task_gives_the_same_bits_as_train_model(tmp_path):
    (cell,) = train_fleet([task(seed=3)], POOL, tmp_path)
    expected = train_model(worker_calls.conv, POOL.subset(range(40)), RECIPE, seed=3, device="cpu")
    for name, weight in load_trained(cell, worker_calls.conv).state_dict().items():
        assert torch.equal(weight, expected.state_dict()[name])
    assert torch.equal(cell.tensors("scores")["logits"], logits_of(expected, POOL))


def test_a_result_says_how_good_the_model_is_and_where_it_was_made(tmp_path):
    (cell,) = train_fleet([task()], POOL, tmp_path)
    result = cell.result()
    correct = cell.tensors("scores")["logits"].argmax(1) == POOL.labels
    assert result["train_accuracy"] == pytest.approx(correct[:40].double().mean().item())
    assert result["held_out_accuracy"] == pytest.approx(correct[40:].double().mean().item())
    assert (result["n_train"], result["device"], result["torch"]) == (40, "cpu", torch.__version__)
    assert result["seconds"] > 0
    (whole,) = train_fleet([task(positions=torch.arange(101))], POOL, tmp_path)
    assert whole.result()["held_out_accuracy"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"build": worker_calls.linear},
        {"recipe": dataclasses.replace(RECIPE, lr=0.06)},
        {"positions": torch.arange(39)},
        {"kind": "retrained"},
    ],
)
def test_whatever_a_model_depends_on_gives_it_another_cell(tmp_path, change):
    first, second = fleet_cells([task(), task(**change)], POOL, Store(tmp_path))
    assert first.folder != second.folder


def test_a_cell_depends_on_the_data_and_on_their_augmentation(tmp_path):
    pools = [POOL, pool(TRAIN, data(41, seed=2)), dataclasses.replace(POOL, augment=Augment())]
    assert len({fleet_cells([task()], p, Store(tmp_path))[0].folder for p in pools}) == 3


def test_a_function_that_builds_another_model_than_before_has_another_cell(tmp_path, monkeypatch):
    (before,) = fleet_cells([task()], POOL, Store(tmp_path))
    monkeypatch.setattr(nn.Conv2d, "extra_repr", lambda self: "wider")
    (after,) = fleet_cells([task()], POOL, Store(tmp_path))
    assert before.folder != after.folder


def test_the_order_of_positions_and_the_name_do_not_matter(tmp_path):
    first, second = fleet_cells([task(), task(positions=torch.arange(40).flip(0), name="mine")], POOL, Store(tmp_path))
    assert first == second


# Many models


def test_bits_are_equal_for_any_number_of_workers_and_any_order_and_a_killed_worker_is_named(tmp_path):
    tasks = [task(seed, kind=kind) for seed, kind in enumerate(["original", "retrained", "shadow"])]
    doomed = task(3, build=worker_calls.deadly, name="the doomed")
    serial = train_fleet(tasks, POOL, tmp_path / "one", workers=1)
    seen = []
    with listen(seen.append), pytest.raises(WorkerDied, match=r"1 of 4 models were not trained: the doomed\. .*SIGKILL"):
        train_fleet([doomed, *tasks[::-1]], POOL, tmp_path / "two", workers=2)
    assert (seen[-1].done, seen[-1].total, seen[-1].note) == (8, 8, "4 of 4 models")
    lost, *parallel = fleet_cells([doomed, *tasks], POOL, Store(tmp_path / "two"))
    assert not lost.done
    for one, two in zip(serial, parallel, strict=True):
        assert one.folder.relative_to(tmp_path / "one") == two.folder.relative_to(tmp_path / "two")
        for file in ("weights.safetensors", "scores.safetensors"):
            assert (one.folder / file).read_bytes() == (two.folder / file).read_bytes()
    assert len({cell.folder.parent.name for cell in serial}) == 3
    assert train_fleet([doomed], POOL, tmp_path / "two", workers=1)[0].done  # the dead worker's claim is taken over at once


def test_a_second_run_trains_nothing(tmp_path, trained):
    tasks = [task(0), task(1), task(0)]
    cells = train_fleet(tasks, POOL, tmp_path, workers=1)
    assert trained == [0, 1]  # equal tasks are trained once
    assert cells[0] == cells[2]
    assert train_fleet(tasks, POOL, tmp_path, workers=2) == cells
    assert trained == [0, 1]


def test_a_damaged_model_is_trained_again_to_the_same_bits(tmp_path, trained):
    cells = train_fleet([task(0), task(1)], POOL, tmp_path, workers=1)
    weights = cells[1].folder / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-8])
    with pytest.warns(DamagedFile, match="weights.safetensors"):
        train_fleet([task(0), task(1)], POOL, tmp_path, workers=1)
    assert trained == [0, 1, 1]
    assert weights.read_bytes() == content


def test_a_model_that_diverges_is_named_and_the_others_are_kept(tmp_path):
    bad = task(1, recipe=Recipe(epochs=2, lr=1e30, batch_size=16, precision="float32"), name="shadow model 7")
    with pytest.raises(ModelError, match=r"1 of 3 models were not trained: shadow model 7\. .*diverged.*run again"):
        train_fleet([task(0), bad, task(2)], POOL, tmp_path, workers=1)
    assert [cell.done for cell in fleet_cells([task(0), bad, task(2)], POOL, Store(tmp_path))] == [True, False, True]


def test_a_full_disk_stops_the_fleet(tmp_path, trained, monkeypatch):
    def refuse(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreError, match="Free some space"):
        train_fleet([task(0), task(1)], POOL, tmp_path, workers=1)
    assert len(trained) <= 1


def test_a_model_that_another_process_trains_is_waited_for(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(side_by_side, "POLL", 0.01)
    store = Store(tmp_path)
    cells = fleet_cells([task(0), task(1)], POOL, store)

    def other() -> None:
        with cells[0].claim() as mine:
            assert mine
            claimed.set()
            time.sleep(0.3)
            cells[0].finish({"by": "other"}, {}, scores={})

    claimed, thread = threading.Event(), threading.Thread(target=other)
    thread.start()
    claimed.wait()
    train_fleet([task(0), task(1)], POOL, store, workers=1)
    thread.join()
    assert trained == [1]
    assert cells[0].result() == {"by": "other"}


def test_what_another_machine_has_written_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, "POLL", 0.01)
    (cell,) = fleet_cells([task()], POOL, Store(tmp_path))
    late = threading.Timer(0.2, lambda: cell.finish({}))
    late.start()
    side_by_side._wait_until_seen([cell])
    late.join()
    assert cell.done
    monkeypatch.setattr(side_by_side, "LATE", 0.05)
    (never,) = fleet_cells([task(1)], POOL, Store(tmp_path))
    side_by_side._wait_until_seen([never])  # the message of the missing file says the rest


def test_models_of_several_versions_are_flagged(tmp_path, monkeypatch, recwarn):
    train_fleet([task(0)], POOL, tmp_path, workers=1)
    train_fleet([task(1)], POOL, tmp_path, workers=1)
    assert not recwarn.list
    monkeypatch.setattr(fleet, "version", lambda name: "99.0")
    with pytest.warns(fleet.MixedVersions, match=r"one version of expunge; these were by .* \(2 models\), 99.0 \(1 models\)"):
        train_fleet([task(seed) for seed in range(3)], POOL, tmp_path, workers=1)


def test_a_store_in_the_folder_of_the_moment_is_found_by_workers_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (cell,) = fleet_cells([task()], POOL, Store("runs"))
    assert side_by_side._anywhere(cell).folder == tmp_path / cell.folder
    assert train_fleet([task()], POOL, "runs", executor="serial") == [cell]


def test_progress_counts_epochs_and_models_to_the_end(tmp_path):
    seen = []
    with listen(seen.append):
        train_fleet([task(seed) for seed in range(3)], POOL, tmp_path, workers=1)
    assert {(p.stage, p.total) for p in seen} == {("train models", 6)}
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert {p.done for p in seen} == set(range(7))
    assert seen[-1].note == "3 of 3 models"


def test_the_number_of_threads_is_put_back(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train_fleet([task()], POOL, tmp_path, workers=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "all"])
def test_a_wrong_number_of_workers_is_refused(tmp_path, workers):
    with pytest.raises(ConfigError, match="workers must be 'auto' or an integer ≥ 1"):
        train_fleet([task()], POOL, tmp_path, workers=workers)


def test_a_build_that_workers_cannot_import_is_refused_before_training(tmp_path, trained):
    with pytest.raises(StoreError, match="another process can import"):
        train_fleet([task(build=lambda: nn.Linear(64, 4))], POOL, tmp_path)
    assert trained == []


def test_positions_outside_the_pool_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"positions of the mine must lie in \[0, 101\)"):
        train_fleet([task(positions=torch.tensor([101]), name="mine")], POOL, tmp_path)


def test_weights_of_another_model_are_refused(tmp_path):
    (cell,) = train_fleet([task()], POOL, tmp_path)
    with pytest.raises(ModelError, match="must make the model that was stored"):
        load_trained(cell, worker_calls.linear)


# Shadow models


def test_every_sample_is_in_exactly_half_of_the_shadow_models():
    included = halves(101, 6, seed=0)
    assert (included.sum(0) == 3).all()
    assert torch.equal(included[0::2], ~included[1::2])
    assert included.sum(1).tolist() == [50, 51] * 3
    assert not torch.equal(included[0], included[2])
    assert not torch.equal(included, halves(101, 6, seed=1))


def test_each_shadow_model_can_have_exactly_half_of_some_samples():
    balanced = torch.tensor([3, 50, 7, 100, 8, 9])
    included = halves(101, 20, seed=0, balanced=balanced)
    assert (included[:, balanced].sum(1) == 3).all() and (included.sum(0) == 10).all()
    assert torch.equal(included[0::2], ~included[1::2]) and set(included.sum(1).tolist()) == {50, 51}
    assert len(included[::2, balanced].unique(dim=0)) > 3  # which half is drawn anew for each pair
    assert torch.equal(halves(101, 6, seed=0, balanced=torch.empty(0, dtype=torch.int64)), halves(101, 6, seed=0))
    with pytest.raises(DataError, match="even number of samples.*got 5. Leave one out"):
        halves(101, 2, seed=0, balanced=balanced[1:])


def test_balanced_samples_are_positions_in_the_training_set(tmp_path):
    models = shadows(tmp_path, n=2, balanced=[5, 2, 40, 1])
    assert torch.equal(models.included, halves(101, 2, seed=0, balanced=torch.tensor([1, 2, 5, 40])))
    with pytest.raises(DataError, match=r"balanced must lie in \[0, 60\)"):
        shadows(tmp_path, n=2, balanced=[60, 1])


def test_more_shadow_models_keep_those_of_before(tmp_path, trained):
    few = shadows(tmp_path, n=2)
    many = shadows(tmp_path, n=4)
    assert len(trained) == 4
    assert torch.equal(many.logits[:2], few.logits)
    assert len(set(trained)) == 4


def test_shadow_models_hold_what_they_were_trained_on_and_answer(tmp_path):
    models = shadows(tmp_path, n=2)
    assert models.logits.shape == (2, 101, 4)
    assert torch.equal(models.labels, POOL.labels)
    assert models.n_train == 60
    assert torch.equal(models.included, halves(101, 2, seed=0))
    expected = train_model(
        worker_calls.conv, POOL.subset(models.included[1].nonzero().flatten()), RECIPE, seed=models.cells[1].spec["seed"], device="cpu"
    )
    assert torch.equal(logits_of(expected, POOL), models.logits[1])
    assert torch.equal(logits_of(models.model(1), TEST), models.logits[1, 60:])
    correct = models.logits.argmax(2) == models.labels
    assert models.accuracy.included == pytest.approx(correct[models.included].double().mean().item())
    assert models.accuracy.excluded == pytest.approx(correct[~models.included].double().mean().item())
    assert "2 models, 60 training + 41 test samples" in repr(models)
    with pytest.raises(DataError, match=r"m must be in \[0, 2\)"):
        models.model(2)


@pytest.mark.parametrize("n", [0, 1, 3, 2.0, True])
def test_an_odd_number_of_shadow_models_is_refused(tmp_path, n):
    with pytest.raises(ConfigError, match="even integer ≥ 2"):
        shadows(tmp_path, n=n)


# Interrupted from outside

SCRIPT = """
import sys
sys.path[:0] = {path!r}
import test_fleet_script as script
from expunge.training.shadow import train_shadow_models
print("once", flush=True)
train_shadow_models(script.build, script.TRAIN, script.TEST, n=6, recipe=script.RECIPE, store={store!r}, workers=2)
"""
SHARED = """
import pathlib, time, worker_calls
import torch
from expunge.data.images import Augment, ImageData
from expunge.training.recipe import Recipe
FOLDER = pathlib.Path(__file__).parent
def build():
    # However slow the test is, the fleet is not finished before it is interrupted.
    while list(FOLDER.glob("runs/shadow/*/result.json")) and not (FOLDER / "interrupted").exists():
        time.sleep(0.02)
    return worker_calls.conv()
RECIPE = Recipe(epochs=10, lr=0.05, batch_size=16, precision="float32")
images = torch.arange(101 * 64).reshape(101, 1, 8, 8).mul(37).remainder(251).to(torch.uint8)
whole = ImageData(images, torch.arange(101) % 4, ("a", "b", "c", "d"), Augment(pad=1))
TRAIN = ImageData(whole.images[:60], whole.labels[:60], whole.classes, whole.augment)
TEST = ImageData(whole.images[60:], whole.labels[60:], whole.classes, whole.augment)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_fleet_resumes_where_it_was(tmp_path, trained, monkeypatch, number):
    """The script has no `if __name__ == "__main__":`; the parent alone is killed, or the whole group gets Ctrl-C as from a terminal."""
    store = tmp_path / "runs"
    tests = os.path.dirname(worker_calls.__file__)
    (tmp_path / "test_fleet_script.py").write_text(SHARED)
    (tmp_path / "script.py").write_text(SCRIPT.format(path=[str(tmp_path), tests], store=str(store)))
    command = [sys.executable, tmp_path / "script.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            wait_for(lambda: [cell for cell in Store(store).cells() if cell.done], process)
        finally:
            if number == signal.SIGKILL:
                process.kill()
            else:
                os.killpg(process.pid, number)
        out, err = process.communicate(timeout=300)  # ends only when the workers, which hold the pipes too, have ended
    assert out == "once\n"
    assert err.count("Traceback") == (number == signal.SIGINT)  # the parent's own
    assert ("KeyboardInterrupt" in err) == (number == signal.SIGINT)
    finished = [cell for cell in Store(store).cells() if cell.done]
    assert 1 <= len(finished) < 6
    (tmp_path / "interrupted").touch()
    monkeypatch.syspath_prepend(tmp_path)
    script = __import__("test_fleet_script")
    try:
        resumed = train_shadow_models(script.build, script.TRAIN, script.TEST, n=6, recipe=script.RECIPE, store=store, workers=1)
    finally:
        del sys.modules["test_fleet_script"]
    assert len(trained) == 6 - len(finished)
    assert all(cell.done for cell in resumed.cells)
    assert not list(store.glob("*/*/.*.tmp"))


def wait_for(condition, process) -> None:
    deadline = time.monotonic() + 300  # seconds, for machines under load
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
