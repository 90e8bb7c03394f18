"""What every place to run calls is: frozen settings that launch an executor."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from ...checks import check_settings, is_integer
from ...device import resolve_device
from ...errors import ConfigError, ExpungeError
from ...progress import Listener


class WorkerDied(ExpungeError):
    """A worker ended before it answered: killed from outside, out of memory, crashed in native code, or its machine has gone."""


class SharingExecutor(Executor, ABC):
    """An executor that puts shared objects before the arguments of every call."""

    @abstractmethod
    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:  # type: ignore[override]  # the arguments are not all that fn takes
        """A future of `fn(*shared, *args)`."""


@dataclass(frozen=True, kw_only=True)
class Launcher(ABC):
    """Where calls run, as settings. A launcher's only base is this class.

    Class attributes:
        name: as the command line and `executor="…"` spell it.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_settings(self)

    @abstractmethod
    def launch(
        self,
        shared: tuple[Any, ...],
        *,
        tasks: Sequence[Any],
        workers: int | str = "auto",
        device: str = "cpu",
        listener: Listener | None = None,
        store: Path | None = None,
    ) -> SharingExecutor:
        """A running executor, to be used as a context manager: leaving the block by an exception ends its workers at once.

        Args:
            shared: objects that come before the arguments of every call; each worker gets them once.
            tasks: the arguments of the calls to come: how many, and whether they can be sent.
            workers: how many at most, ≥ 1; "auto" = as many as are of use.
            device: where the calls compute, from `device_for`.
            listener: is called, from another thread, with the progress that calls report.
            store: a folder that every worker must see, because results travel through it.

        Raises:
            ConfigError: settings that cannot be met here. StoreError: something cannot be sent.
        """

    def device_for(self, device: str | torch.device) -> str:
        """What this device is called in the workers. "auto" is a GPU if they have one.

        Raises:
            ConfigError: there is no such device.
        """
        return str(resolve_device(device))


def check_workers(workers: int | str) -> None:
    """Raises ConfigError unless `workers` is "auto" or an integer ≥ 1."""
    if workers != "auto" and not is_integer(workers, 1):
        raise ConfigError(f"workers must be 'auto' or an integer ≥ 1; got {workers!r}. Pass the number of processes to train in.")
