"""One exam for every executor: the same answers and bits, killed workers, tasks that arrive twice, lost nodes, and a fleet that is killed as a whole.

Ray is real, a cluster of two nodes on this machine; Slurm is submitit's jobs on this machine. What takes many processes is marked `slow`; one fleet on each of
them is not.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest
import torch

import worker_calls
from expunge.data.images import Augment, ImageData
from expunge.errors import ModelError
from expunge.store import Store
from expunge.training import fleet
from expunge.training.executors import Launcher, ProcessPool, Ray, Serial, Slurm, WorkerDied, launcher_of
from expunge.training.fleet import TrainTask, fleet_cells, train_fleet
from expunge.training.recipe import Recipe

RECIPE = Recipe(epochs=2, lr=0.05, batch_size=16, precision="float32")
slow = pytest.mark.slow
KINDS = ["serial", "pool", "given", "ray", "slurm"]
QUICK_CALLS = ["serial", "pool", pytest.param("given", marks=slow), pytest.param("ray", marks=slow), pytest.param("slurm", marks=slow)]


def samples() -> ImageData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageData(images, torch.randint(0, 4, (60,), generator=generator), tuple("abcd"), Augment(pad=1))


POOL = samples()


@pytest.fixture(scope="module")
def short_folder():
    """Ray's sockets need a path of less than a hundred letters."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ex", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(short_folder):
    """A Ray cluster of two nodes, each with a core, and a GPU that it only says to have."""
    ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(short_folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        (short_folder / "ray").mkdir()
        node = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 * 2**20}
        cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def launch(request, short_folder):
    """Makes the launcher of a kind, with one retry. What it needs is started, or the test skipped."""
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:  # starts a process when it gets a call

        def make(kind: str) -> Launcher:
            if kind == "slurm":
                pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
            if kind == "ray":
                request.getfixturevalue("cluster")
            makers = {
                "serial": Serial,
                "pool": lambda: ProcessPool(retries=1),
                "given": lambda: launcher_of(pool),
                "ray": lambda: Ray(retries=1),
                "slurm": lambda: Slurm(cluster="local", retries=1, folder=short_folder / "slurm"),
            }
            return makers[kind]()

        yield make


def answers_once(path: pathlib.Path) -> int:
    """How many models were built in workers; each training builds its model twice."""
    return len((path / "built").read_text().split()) if (path / "built").exists() else 0


# Calls


@pytest.mark.parametrize("kind", QUICK_CALLS)
def test_calls(kind, launch, tmp_path):
    """Results, order, errors, threads and progress; then a worker is killed."""
    seen = []
    launcher = launch(kind)
    with launcher.launch((torch.ones(1000),), tasks=range(9), workers=2, listener=seen.append, store=tmp_path) as executor:
        assert list(executor.map(worker_calls.add, range(9))) == [1000.0 + i for i in range(9)]
        error = executor.submit(worker_calls.fail).exception()
        assert type(error) is ModelError and str(error) == "the model failed"
        assert executor.submit(worker_calls.torch_threads).result() == 1
        assert executor.submit(worker_calls.reporting, 10).result() == 10
        if kind not in ("serial", "given"):
            assert any(p.stage == "counting" and p.total == 10 for p in seen)
            marker = tmp_path / "marker"
            killed, neighbour = executor.submit(worker_calls.die_once, marker), executor.submit(worker_calls.add, 1)
            assert (killed.result(), neighbour.result(), marker.exists()) == ("done", 1001.0, True)
    assert not list(tmp_path.rglob("shared-*"))


def test_an_executor_of_the_users_that_breaks_is_a_dead_worker(tmp_path):
    with (
        concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
        launcher_of(pool).launch((torch.ones(1),), tasks=[1], store=tmp_path) as executor,
        pytest.raises(WorkerDied, match="broke"),
    ):
        executor.submit(worker_calls.die, signal.SIGKILL).result()


# Fleets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Twice(Launcher):
    """Delivers every call twice, as a queue may that lost an acknowledgement."""

    name = "twice"
    inner: Launcher

    def launch(self, *args, **options):
        executor = self.inner.launch(*args, **options)
        submit = executor.submit

        def twice(fn, *arguments):
            first, _ = submit(fn, *arguments), submit(fn, *arguments)
            return first

        executor.submit = twice
        return executor


def tasks_of(folder: pathlib.Path, **firsts: str) -> list[TrainTask]:
    """Models that note when they are built, and do what `firsts` says when they are the first time."""
    tasks = []
    for seed, (name, first) in enumerate(firsts.items()):
        (folder / name).mkdir()
        build = worker_calls.Logged(str(folder / name), first)
        tasks.append(TrainTask(build=build, recipe=RECIPE, positions=torch.arange(40), seed=seed, name=name))
    return tasks


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The files of the same models, trained one after another."""
    folder = tmp_path_factory.mktemp("serial")
    tasks = [TrainTask(build=worker_calls.conv, recipe=RECIPE, positions=torch.arange(40), seed=seed) for seed in range(3)]
    return [files(cell) for cell in train_fleet(tasks, POOL, folder, executor="serial")]


def files(cell) -> list[bytes]:
    return [(cell.folder / name).read_bytes() for name in ("weights.safetensors", "scores.safetensors")]


@pytest.mark.parametrize("kind", [pytest.param("given", marks=slow), "pool", "ray", "slurm"])
def test_a_fleet_has_the_same_bits_though_a_worker_is_killed_and_every_task_comes_twice(kind, launch, tmp_path, expected):
    tasks = tasks_of(tmp_path, calm="", killed="" if kind == "given" else "die", again="")
    tasks.append(dataclasses.replace(tasks[0], recipe=dataclasses.replace(RECIPE, lr=1e30), name="the one that diverges"))
    with pytest.raises(ModelError, match="1 of 4 models were not trained: the one that diverges"):
        train_fleet(tasks, POOL, tmp_path / "runs", executor=Twice(inner=launch(kind)), workers=2)
    cells = fleet_cells(tasks, POOL, Store(tmp_path / "runs"))
    assert [files(cell) for cell in cells[:3]] == expected
    assert answers_once(tmp_path / "again") == 2  # trained once, whoever delivers it
    assert answers_once(tmp_path / "killed") == (2 if kind == "given" else 3)
    assert not cells[3].done
    before = [cell.folder.joinpath("result.json").stat().st_mtime_ns for cell in cells[:3]]
    assert train_fleet(tasks[:3], POOL, tmp_path / "runs", executor=launch(kind), workers=2) == cells[:3]
    assert before == [cell.folder.joinpath("result.json").stat().st_mtime_ns for cell in cells[:3]]


def test_parts_of_a_gpu_are_given_to_workers_by_ray(launch, cluster):
    """No GPU is needed to see which one a worker would use."""
    launch("ray")
    with Ray(num_cpus=0, num_gpus=0.5).launch((torch.ones(1),), tasks=[1]) as executor:
        assert executor.submit(worker_calls.visible).result() == "0"
    assert Ray(num_cpus=0, num_gpus=0.5)._fitting(__import__("ray")) == 4
    with pytest.raises(Exception, match="needs 1 CPU and 2 GPU; the nodes have 1 CPU and 1 GPU; 1 CPU and 1 GPU"):
        Ray(num_gpus=2).launch((torch.ones(1),), tasks=[1])


@slow
def test_a_node_that_is_lost_in_the_middle_costs_nothing_but_time(launch, cluster, tmp_path, expected):
    launch("ray")
    node = cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=80 * 2**20)
    tasks = tasks_of(tmp_path, one="wait", two="wait", three="wait")
    failed = []

    def run():
        try:
            train_fleet(tasks, POOL, tmp_path / "runs", executor=Ray(retries=1), workers=3)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_for(lambda: all(answers_once(tmp_path / name) for name in ("one", "two", "three")))
    builders = [int(pid) for name in ("one", "two", "three") for pid in (tmp_path / name / "built").read_text().split()]
    cluster.remove_node(node, allow_graceful=False)
    wait_for(lambda: not all(alive(pid) for pid in builders))  # the worker goes with its node
    for name in ("one", "two", "three"):
        (tmp_path / name / "go").touch()
    thread.join()
    assert failed == []
    assert [files(cell) for cell in fleet_cells(tasks, POOL, Store(tmp_path / "runs"))] == expected
    assert sum(answers_once(tmp_path / name) for name in ("one", "two", "three")) == 7  # one training was begun twice


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch, worker_calls
from expunge import Recipe
from expunge.data.images import Augment, ImageData
from expunge.training.executors import *
from expunge.training.fleet import TrainTask, train_fleet
images = torch.arange(60 * 64).reshape(60, 1, 8, 8).mul(37).remainder(251).to(torch.uint8)
pool = ImageData(images, torch.arange(60) % 4, tuple("abcd"), Augment(pad=1))
recipe = Recipe(epochs=60, lr=0.05, batch_size=16, precision="float32")
tasks = [TrainTask(build=worker_calls.conv, recipe=recipe, positions=torch.arange(40), seed=seed) for seed in range(6)]
if __name__ == "__main__":
    train_fleet(tasks, pool, {store!r}, executor={executor}, workers=2)
"""


@slow
@pytest.mark.parametrize("kind", ["ray", "slurm"])
def test_a_fleet_that_is_killed_as_a_whole_resumes_where_it_was(kind, launch, tmp_path, request, monkeypatch):
    launch(kind)
    address = request.getfixturevalue("cluster").address if kind == "ray" else ""
    executor = {"ray": f"Ray(address={address!r})", "slurm": "Slurm(cluster='local')"}[kind]
    store, script = tmp_path / "runs", tmp_path / "script_of_the_test.py"
    script.write_text(SCRIPT.format(tests=os.path.dirname(worker_calls.__file__), store=str(store), executor=executor))
    with subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: [cell for cell in Store(store).cells() if cell.done] or process.poll() is not None)
        finally:
            process.kill()
        assert process.communicate()[1] == ""
    wait_for(lambda: not claimed(store))  # the workers end with the process that started them
    finished = {cell for cell in Store(store).cells() if cell.done}
    assert 1 <= len(finished) < 6
    trained, train_model = [], fleet.train_model
    monkeypatch.setattr(fleet, "train_model", lambda *args, **options: trained.append(options["seed"]) or train_model(*args, **options))
    variables = {"__name__": "resumed"}
    exec(compile(script.read_text(), script, "exec"), variables)
    cells = train_fleet(variables["tasks"], variables["pool"], store, executor="serial")
    assert len(trained) == 6 - len(finished)
    calm = train_fleet(variables["tasks"], variables["pool"], tmp_path / "calm", executor="serial")
    assert [files(cell) for cell in cells] == [files(cell) for cell in calm]


def claimed(store: pathlib.Path) -> list[int]:
    """Processes that are alive and work on a cell."""
    import json

    holders = []
    for path in store.glob("*/*/claim.*"):
        try:
            holders.append(json.loads(path.read_text())["pid"])
        except (FileNotFoundError, ValueError):
            continue
    return [pid for pid in holders if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition) -> None:
    deadline = time.monotonic() + 300  # seconds, for machines under load
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
