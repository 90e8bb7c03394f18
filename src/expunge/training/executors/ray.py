"""Calls in actors of a Ray cluster: many machines, parts of a GPU, nodes that come and go.

Ray places one actor a worker, as soon as a node has what it needs. The shared objects are put into Ray's object store once, and the actors
of a node read the same copy of their tensors.
"""

import logging
import math
import os
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch

from ...checks import setting
from ...errors import ConfigError, MissingError
from ...progress import Listener, Progress
from .base import Launcher, SharingExecutor, WorkerDied, check_workers
from .reach import Mark, mark
from .sending import pack, unpack
from .serving import Answer, answer, become_worker, failure
from .workers import Worker, WorkerPool

USAGE = "RAY_USAGE_STATS_ENABLED"
LOOK = 0.5  # seconds between looks at the progress of a worker


@final
@dataclass(frozen=True, kw_only=True)
class Ray(Launcher):
    """Runs calls on a Ray cluster. The store must be on a file system that its nodes share, and expunge installed on all of them.

    A cluster that is connected already is used as it is. Otherwise one is connected to, or started on this machine, and left afterwards.

    Args:
        address: of the cluster, "auto" for the one on this machine; None = RAY_ADDRESS if that is set, else a new one here.
        num_cpus: cores that Ray keeps for each worker, ≥ 0. A worker uses one for computing.
        num_gpus: GPUs that Ray keeps for each worker, ≥ 0; 0.25 puts four workers on one. A worker computes on the GPU that Ray gives it.
        retries: how often a model is trained again whose worker died or whose node has gone, ≥ 0.

    Raises:
        MissingError: Ray is not installed. ConfigError: a worker needs more than any node has, or nothing at all.

    Example:
        >>> Ray(num_gpus=0.25).device_for("auto")
        'cuda'
    """

    name: ClassVar[str] = "ray"
    address: str | None = None
    num_cpus: float = setting(1, ge=0)
    num_gpus: float = setting(0, ge=0)
    retries: int = setting(3, ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.num_cpus and not self.num_gpus:
            raise ConfigError("Ray: num_cpus or num_gpus must be above 0; got 0 and 0: Ray would start all workers on one node.")

    def device_for(self, device: str | torch.device) -> str:
        return str(device) if str(device) != "auto" else "cuda" if self.num_gpus else "cpu"

    def launch(
        self, shared: tuple[Any, ...], *, tasks: Sequence[Any], workers: int | str = "auto", device: str = "cpu",
        listener: Listener | None = None, store: Path | None = None,
    ) -> SharingExecutor:  # fmt: skip
        check_workers(workers)
        ray = _ray()
        started = not ray.is_initialized()
        if started:
            _connect(self.address)
        try:
            fitting = self._fitting(ray) if isinstance(workers, str) else workers
            cloudpickle = ray.cloudpickle
            # An actor gets what the reference stands for, a list whose arrays lie in the node's object store.
            arguments = (ray.put(pack(shared, cloudpickle.Pickler)), sys.path, None if store is None else mark(store))
            host = ray.remote(_Host).options(num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_concurrency=2, max_restarts=0)
        except BaseException:
            if started:
                ray.shutdown()
            raise
        return WorkerPool(
            max(1, min(fitting, len(tasks))),
            lambda: RayWorker(host.remote(*arguments)),
            dumps=cloudpickle.dumps,
            listener=listener,
            retries=self.retries,
            end=ray.shutdown if started else lambda: None,
        )

    def _fitting(self, ray: Any) -> int:
        """How many workers the nodes have room for."""
        needs = {name: need for name, need in {"CPU": self.num_cpus, "GPU": self.num_gpus}.items() if need}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        # A hair more, because 1 / 0.1 is not quite 10.
        n = sum(min(math.floor(node.get(name, 0) / need + 1e-6) for name, need in needs.items()) for node in nodes)
        if not n:
            have = "; ".join(f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes)
            raise ConfigError(
                f"a worker must fit on a node of the Ray cluster: it needs {self.num_cpus:g} CPU and {self.num_gpus:g} GPU; the nodes have {have}. "
                "Ask for less, or pass a number of workers to wait for nodes that are to come."
            )
        return n


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingError('Ray is not installed; got no module named "ray". Run pip install "expunge[ray]".') from None
    return ray


def _connect(address: str | None) -> None:
    import ray

    silenced = USAGE not in os.environ
    if silenced:
        os.environ[USAGE] = "0"  # a cluster that starts here sends nothing home
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # of many classes, among them Exception itself
        raise ConfigError(
            f"Ray's address must be that of a running cluster, or None for a new one here; got {address!r}: {error} Start one with `ray start --head`, "
            "or try again when the machine is less busy: Ray gives up after half a minute."
        ) from error
    finally:
        if silenced:
            os.environ.pop(USAGE)


@final
class RayWorker(Worker):
    """An actor of a Ray cluster."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def wait_until_ready(self) -> None:
        self._value(self._actor.ready.remote(), "could not start")

    def call(self, data: bytes, listener: Listener | None) -> Any:
        import ray

        answer = self._actor.call.remote(data)
        while not ray.wait([answer], timeout=LOOK)[0]:
            progress = self._value(self._actor.progress.remote(), "ended before its work was done")
            if listener and progress:
                listener(progress)
        return self._value(answer, "ended before its work was done")

    def kill(self) -> None:
        import ray

        if ray.is_initialized():
            ray.kill(self._actor)

    def close(self) -> None:
        self.kill()

    def _value(self, answer: Any, problem: str) -> Any:
        import ray
        from ray.exceptions import RayError

        try:
            made: Answer = pickle.loads(ray.get(answer))
        except RayError as error:
            why = str(error).strip().splitlines()
            raise WorkerDied(
                f"a Ray worker {problem} ({type(error).__name__}: {why[0] if why else 'no reason given'}). "
                "If its node has gone, run again; if its memory was short, let Ray(num_cpus=…) put fewer workers on a node."
            ) from error
        if made.error is not None:
            raise made.error
        return made.value


class _Host:
    """What runs in the actor: one thread computes, another one tells how far it is."""

    def __init__(self, packed: Sequence[Any], path: list[str], seen: Mark | None) -> None:
        become_worker(path)
        self._packed, self._seen = packed, seen
        self._progress: Progress | None = None

    def ready(self) -> bytes:
        try:
            if self._seen is not None:
                self._seen.check()
            self._shared = unpack(self._packed)
        except Exception as error:
            return failure(error)
        return pickle.dumps(Answer())

    def call(self, data: bytes) -> bytes:
        self._progress = None
        return answer(data, self._shared, self._note)

    def progress(self) -> bytes:
        return pickle.dumps(Answer(self._progress))

    def _note(self, progress: Progress) -> None:
        self._progress = progress
