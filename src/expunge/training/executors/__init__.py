"""Where independent pieces of work run: in this process, in a pool of processes, on a Ray cluster, on Slurm, or in an executor of yours.

A `Launcher` is frozen settings, which `launch` turns into a running `SharingExecutor`, a `concurrent.futures.Executor`. What all of them keep:

    shared objects come before the arguments of every call, and reach each worker once
    progress that a call reports comes back
    a worker that dies fails its own call only, is replaced, and the call is made again `retries` times
    one torch thread a worker on a CPU, so that the bits are the same wherever a call runs
    leaving the block by an exception, Ctrl-C included, ends the workers at once

Large results do not travel this way: they are written to the store, which all machines must see.
"""

from concurrent.futures import Executor, ThreadPoolExecutor

from ...checks import choose
from ...errors import ConfigError
from .base import Launcher, SharingExecutor, WorkerDied, check_workers
from .given import Given
from .processes import ProcessPool
from .ray import Ray
from .serial import Serial, SerialExecutor
from .slurm import Slurm

AnyExecutor = str | Launcher | Executor
EXECUTORS: dict[str, type[Launcher]] = {cls.name: cls for cls in (Serial, ProcessPool, Ray, Slurm)}

__all__ = [
    "EXECUTORS",
    "AnyExecutor",
    "Launcher",
    "ProcessPool",
    "Ray",
    "Serial",
    "SerialExecutor",
    "SharingExecutor",
    "Slurm",
    "WorkerDied",
    "check_workers",
    "launcher_of",
]


def launcher_of(executor: AnyExecutor) -> Launcher:
    """The launcher that is meant: one by its name with default settings, itself, or one around an executor of the user's.

    Raises:
        MissingError: no executor has this name.
        ConfigError: threads, which would share random generators; or something else.

    Example:
        >>> launcher_of("pool"), launcher_of(Ray(num_gpus=0.25)).num_gpus
        (ProcessPool(retries=0), 0.25)
    """
    if isinstance(executor, str):
        return EXECUTORS[choose("executor", executor, EXECUTORS, "Pass one of these names, or its settings such as Ray(num_gpus=0.25).")]()
    if isinstance(executor, ThreadPoolExecutor):
        raise ConfigError(
            f"an executor must run each call in a process of its own; got {type(executor).__name__}: threads share random generators, and the bits "
            'of one model would depend on the others. Pass "pool", or a ProcessPoolExecutor.'
        )
    if isinstance(executor, Launcher):
        return executor
    if isinstance(executor, Executor):
        return Given(executor)
    raise ConfigError(
        f"executor must be one of {', '.join(map(repr, EXECUTORS))}, their settings, or a concurrent.futures.Executor; got {executor!r}."
    )
