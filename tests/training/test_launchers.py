"""Settings of executors: what is refused, what has a name, and whether all machines see the store."""

import concurrent.futures
import sys
import time

import pytest
import torch

import worker_calls
from expunge.errors import ConfigError, MissingError, ModelError, StoreError
from expunge.settings import named
from expunge.training.executors import EXECUTORS, ProcessPool, Ray, Serial, SerialExecutor, Slurm, launcher_of
from expunge.training.executors.given import Given
from expunge.training.executors.reach import FILE, mark
from expunge.training.executors.sending import pack, unpack

SHARED = (torch.ones(10),)


def test_every_executor_has_a_name_and_prints_as_its_own_recipe():
    for name, cls in EXECUTORS.items():
        assert launcher_of(name) == cls() == eval(repr(cls()), {c.__name__: c for c in EXECUTORS.values()})
    assert named("ray:num_gpus=0.25,retries=1", "executor", EXECUTORS, "") == Ray(num_gpus=0.25, retries=1)
    assert named("slurm:partition=gpu,gpus_per_node=1", "executor", EXECUTORS, "") == Slurm(partition="gpu", gpus_per_node=1)


@pytest.mark.parametrize(
    ("executor", "error", "words"),
    [
        ("rai", MissingError, "did you mean 'ray'"),
        (3, ConfigError, "executor must be one of 'serial', 'pool', 'ray', 'slurm'.*got 3"),
        (concurrent.futures.ThreadPoolExecutor(1), ConfigError, "threads share random generators"),
    ],
)
def test_what_is_no_executor_is_refused(executor, error, words):
    with pytest.raises(error, match=words):
        launcher_of(executor)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ray(num_cpus=0), "num_cpus or num_gpus must be above 0"),
        (lambda: Ray(num_gpus=-1), "num_gpus must be a number ≥ 0"),
        (lambda: Slurm(timeout_min=0), "timeout_min must be an integer ≥ 1"),
        (lambda: Slurm(cluster="debug"), "cluster must be one of 'slurm', 'local'"),
        (lambda: ProcessPool(retries=-1), "retries must be an integer ≥ 0"),
        (lambda: Slurm().launch(SHARED, tasks=[1]), "folder must be given where there is no store"),
        (lambda: Serial().launch(SHARED, tasks=[1], workers=0), "workers must be 'auto' or an integer ≥ 1"),
    ],
)
def test_bad_settings_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize(("name", "extra"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_extra_that_is_not_installed_is_named(tmp_path, monkeypatch, name, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(MissingError, match=rf"pip install \"expunge\[{name}\]\""):
        launcher_of(name).launch(SHARED, tasks=[1], store=tmp_path)


def test_slurm_is_refused_where_there_is_none(tmp_path):
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    with pytest.raises(ConfigError, match="Slurm\\(cluster='local'\\)"):
        Slurm().launch(SHARED, tasks=[1], store=tmp_path)
    with pytest.raises(ConfigError, match="slurm_nonsense|nonsense"):
        Slurm(cluster="local", parameters={"slurm_nonsense": 1}).launch(SHARED, tasks=[1], store=tmp_path)


COMMANDS = {
    "sbatch": 'cp "$1" {folder}/submitted.sh; echo Submitted batch job 4711',
    "srun": "exit 1",
    "sacct": "echo 'JobID|State|NodeList'; echo '4711|PENDING|'",
    "scancel": "echo $1 >> {folder}/cancelled",
}


def test_slurm_gets_what_was_asked_for_and_a_job_that_waits_is_cancelled(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    for name, body in COMMANDS.items():
        (tmp_path / name).write_text("#!/bin/sh\n" + body.format(folder=tmp_path))
        (tmp_path / name).chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    launcher = Slurm(partition="gpu", account="me", gpus_per_node=1, mem_gb=4, timeout_min=90, parameters={"slurm_qos": "low"})
    with pytest.raises(KeyboardInterrupt), launcher.launch(SHARED, tasks=[1, 2], workers=1, store=tmp_path / "runs") as executor:
        future = executor.submit(worker_calls.add, 1)
        while not (tmp_path / "submitted.sh").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert future.cancelled()
    script = (tmp_path / "submitted.sh").read_text()
    for line in ("partition=gpu", "account=me", "gpus-per-node=1", "mem=4GB", "time=90", "qos=low", "cpus-per-task=1"):
        assert f"#SBATCH --{line}\n" in script
    assert (tmp_path / "cancelled").read_text() == "4711\n"
    assert not list((tmp_path / "runs" / "slurm").glob("shared-*"))


def test_remote_workers_compute_where_they_are_not_where_the_fleet_is_started():
    assert (Ray().device_for("auto"), Ray(num_gpus=0.5).device_for("auto"), Ray(num_gpus=1).device_for("cuda:1")) == (
        "cpu",
        "cuda",
        "cuda:1",
    )
    assert (Slurm().device_for("auto"), Slurm(gpus_per_node=1).device_for("auto")) == ("cpu", "cuda")
    with pytest.raises(ConfigError, match="device must be"):
        Serial().device_for("nonsense")


def test_a_machine_that_does_not_see_the_store_says_so(tmp_path):
    seen = mark(tmp_path / "runs")
    assert mark(tmp_path / "runs") == seen  # for good
    seen.check()
    (tmp_path / "runs" / FILE).write_text("other")
    with pytest.raises(StoreError, match="all machines share; got on .*another folder of the same name"):
        seen.check()
    (tmp_path / "runs" / FILE).unlink()
    with pytest.raises(StoreError, match="all machines share; got on .*No such file"):
        seen.check()
    with Given(SerialExecutor()).launch(SHARED, tasks=[1], store=tmp_path / "mine") as executor:
        assert executor.submit(worker_calls.add, 1).result() == 11.0
        (tmp_path / "mine" / FILE).write_text("other")
        with pytest.raises(StoreError, match="all machines share"):
            executor.submit(worker_calls.add, 1).result()


def test_an_executor_of_the_users_answers_like_any_other():
    with Given(SerialExecutor()).launch(SHARED, tasks=[1, 2]) as executor:
        assert list(executor.map(worker_calls.add, [1, 2])) == [11.0, 12.0]
        with pytest.raises(ModelError, match="the model failed"):
            executor.submit(worker_calls.fail).result()


def test_tensors_are_unpacked_where_they_lie():
    cloudpickle = pytest.importorskip("cloudpickle", reason="neither extra is installed")
    tensors = {
        "a": torch.arange(6).reshape(2, 3),
        "b": torch.arange(6.0)[::2],
        "c": torch.empty(0, 3),
        "d": torch.nn.Linear(2, 2),
        "e": torch.tensor(True),
    }
    packed = pack(tensors, cloudpickle.Pickler)
    assert len(packed) == 1 + 5  # the tensors lie outside of the pickle, those of the layer too; an empty one has nothing to lie there
    for buffer in packed[1:]:
        buffer.flags.writeable = False  # as in Ray's object store
    found = unpack(packed)
    for name in "abce":
        assert torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype
    assert torch.equal(found["d"].weight, tensors["d"].weight)
    assert found["a"].data_ptr() == packed[1].ctypes.data
