"""Calls in jobs of Slurm, submitted by submitit.

A job is a worker: it calls back to this machine, does one call after another, and ends with it. So a model of a minute does not pay for a
job of its own, and jobs that start late find what is left. The shared objects are written to a file once, which every job reads.
"""

import contextlib
import os
import pickle
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any, ClassVar, final

import torch

from ...checks import setting
from ...errors import ConfigError, MissingError
from ...progress import Listener
from ...store.files import make_folder, write_file
from .base import Launcher, SharingExecutor, WorkerDied, check_workers
from .reach import Mark, mark
from .serving import become_worker, serve
from .workers import ConnectedWorker, WorkerPool

MOST = 16  # jobs, unless more are asked for
LOOK = 0.5  # seconds between looks at whether a job has called, or ended
LEAVE = 60.0  # seconds that a job on this machine gets to end
SILENCE = {
    "TCP_KEEPIDLE": 60,
    "TCP_KEEPINTVL": 15,
    "TCP_KEEPCNT": 4,
}  # seconds, seconds, times: a machine without power is noticed in two minutes
_submitting = threading.Lock()


@final
@dataclass(frozen=True, kw_only=True)
class Slurm(Launcher):
    """Runs calls in jobs of Slurm: "auto" is one for each task, at most 16. The store must be on a file system that its nodes share.

    Nodes must be able to open a connection to this machine, as they must for srun.

    Args:
        folder: for submitit's files and the jobs' output, on the shared file system; None = "slurm" in the store.
        partition, account: as sbatch has them; None = its defaults.
        timeout_min: minutes that a job may take, ≥ 1. A model whose job comes to its end is trained again in another: give several models' time.
        cpus_per_task: cores of a job, ≥ 1; it computes on one. gpus_per_node: GPUs of a job, ≥ 0; it computes on the first.
        mem_gb: memory of a job in GB, > 0.
        retries: how often a model is trained again whose job ended, ≥ 0.
        host: the name by which nodes reach this machine; None = its own.
        cluster: "slurm", or "local" for jobs on this machine, to try things out.
        parameters: further ones of submitit's `update_parameters`, such as {"slurm_qos": "low"}.

    Raises:
        MissingError: submitit is not installed. ConfigError: there is no Slurm here, or a parameter that submitit does not know.

    Example:
        >>> Slurm(partition="gpu", gpus_per_node=1).device_for("auto")
        'cuda'
    """

    name: ClassVar[str] = "slurm"
    folder: Path | None = None
    partition: str | None = None
    account: str | None = None
    timeout_min: int = setting(240, ge=1)
    cpus_per_task: int = setting(1, ge=1)
    gpus_per_node: int = setting(0, ge=0)
    mem_gb: float = setting(8, gt=0)
    retries: int = setting(3, ge=0)
    host: str | None = None
    cluster: str = setting("slurm", choices=("slurm", "local"))
    parameters: Mapping[str, Any] = setting(factory=dict)

    def __post_init__(self) -> None:
        if self.folder is not None:
            object.__setattr__(self, "folder", Path(self.folder))
        super().__post_init__()

    def device_for(self, device: str | torch.device) -> str:
        return str(device) if str(device) != "auto" else "cuda" if self.gpus_per_node else "cpu"

    def launch(
        self, shared: tuple[Any, ...], *, tasks: Sequence[Any], workers: int | str = "auto", device: str = "cpu",
        listener: Listener | None = None, store: Path | None = None,
    ) -> SharingExecutor:  # fmt: skip
        check_workers(workers)
        if self.folder is not None:
            folder = self.folder.absolute()
        elif store is not None:
            folder = (store / "slurm").absolute()
        else:
            raise ConfigError("Slurm: folder must be given where there is no store; got None. Pass a folder on the shared file system.")
        submit = self._submitit(folder)
        import cloudpickle  # submitit depends on it

        file = folder / f"shared-{secrets.token_hex(6)}.pickle"
        write_file(file, cloudpickle.dumps(shared))
        host = self.host or ("127.0.0.1" if self.cluster == "local" else socket.gethostname())
        seen = mark(store or folder)
        return WorkerPool(
            max(1, min(MOST if isinstance(workers, str) else workers, len(tasks))),
            lambda: SlurmWorker(submit, self.cluster == "local", host, file, seen),
            dumps=cloudpickle.dumps,
            listener=listener,
            retries=self.retries,
            end=lambda: file.unlink(missing_ok=True),
        )

    def _submitit(self, folder: Path) -> Any:
        try:
            import submitit
        except ImportError:
            raise MissingError('submitit is not installed; got no module named "submitit". Run pip install "expunge[slurm]".') from None
        make_folder(folder)
        folder.chmod(0o700)  # a job runs what lies in it
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=self.cluster)
            executor.update_parameters(
                name="expunge", timeout_min=self.timeout_min, cpus_per_task=self.cpus_per_task, mem_gb=self.mem_gb,
                gpus_per_node=self.gpus_per_node or None, slurm_partition=self.partition, slurm_account=self.account, **self.parameters,
            )  # fmt: skip
        except (RuntimeError, NameError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"submitit must be able to submit jobs with these settings; got: {error} Run this where sbatch is, or pass Slurm(cluster='local') to try it here."
            ) from error
        return executor.submit


@final
class SlurmWorker(ConnectedWorker):
    """A job of Slurm that calls back here."""

    def __init__(self, submit: Any, local: bool, host: str, file: Path, seen: Mark) -> None:
        self._killed, self._local = False, local
        self._key = secrets.token_bytes(32)
        self._server = socket.create_server(("127.0.0.1" if host == "127.0.0.1" else "", 0))
        self._server.settimeout(LOOK)
        port = self._server.getsockname()[1]
        try:
            with _submitting:
                self._job = submit(work, host, port, self._key, file, sys.path, seen)
        except RuntimeError as error:
            self._server.close()
            raise ConfigError(f"Slurm must accept the job; got: {error} Correct the settings of Slurm(…).") from error

    def wait_until_ready(self) -> None:
        while self.pipe is None:
            with contextlib.suppress(TimeoutError):
                self.pipe = greet(self._server.accept()[0], self._key)
            if self.pipe is None and (self._killed or self._job.done()):
                raise WorkerDied(self.obituary("could not start"))
        if self._killed:  # between the job's call and now
            raise WorkerDied(self.obituary("could not start"))
        self.hear_ready()

    def kill(self) -> None:
        self._killed = True
        if self.pipe is None and self._local:  # submitit would interrupt it, which prints a traceback here
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(self._job.job_id), signal.SIGTERM)
        elif self.pipe is None:
            self._job.cancel(check=False)
        else:  # the job ends when nobody is there any more, and so does whoever reads its answers here
            with contextlib.suppress(OSError), socket.fromfd(self.pipe.fileno(), socket.AF_INET, socket.SOCK_STREAM) as line:
                line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if not self._killed:
            self.kill()
        self._server.close()
        if self.pipe is not None:
            self.pipe.close()
        deadline = time.monotonic() + LEAVE
        while self._local and not self._job.done() and time.monotonic() < deadline:  # a process of this machine must be waited for
            time.sleep(0.05)

    def obituary(self, problem: str) -> str:
        log = self._job.paths.stderr
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return (
            f"job {self._job.job_id} {problem}{f' ({lines[-1]})' if lines else ''}. Its output is in {log}. "
            "Raise timeout_min or mem_gb if it came to a limit; pass host=… if it could not reach this machine."
        )


def greet(line: socket.socket, key: bytes) -> Connection | None:
    """The connection to whoever called, if that is the job, which alone knows the key; None for a stranger."""
    keep_alive(line)
    pipe = Connection(line.detach())
    try:
        if pipe.poll(10 * LOOK):  # a stranger may say nothing
            answer_challenge(pipe, key)
            deliver_challenge(pipe, key)
            return pipe
    except (AuthenticationError, AssertionError, OSError, EOFError):
        pass
    pipe.close()
    return None


def keep_alive(line: socket.socket) -> None:
    """Has the system notice when the other machine has gone without a word."""
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in SILENCE.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def work(host: str, port: int, key: bytes, file: Path, path: list[str], seen: Mark) -> None:
    """The life of a job."""
    become_worker(path)
    line = socket.create_connection((host, port))
    keep_alive(line)
    pipe = Connection(line.detach())
    deliver_challenge(pipe, key)
    answer_challenge(pipe, key)

    def load() -> tuple[Any, ...]:
        seen.check()
        return pickle.loads(file.read_bytes())

    serve(pipe, load)
