"""Calls in this process, one after another."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, final

import torch

from ...progress import Listener
from .base import Launcher, SharingExecutor, check_workers


@final
@dataclass(frozen=True, kw_only=True)
class Serial(Launcher):
    """Runs calls in this process, one after another: for a GPU, for one core, and to see where something crashes.

    Example:
        >>> with Serial().launch((2,), tasks=[3]) as executor:
        ...     executor.submit(pow, 3).result()
        8
    """

    name: ClassVar[str] = "serial"

    def launch(
        self, shared: tuple[Any, ...], *, tasks: Sequence[Any], workers: int | str = "auto", device: str = "cpu",
        listener: Listener | None = None, store: Path | None = None,
    ) -> SharingExecutor:  # fmt: skip
        check_workers(workers)
        return SerialExecutor(shared, device)


@final
class SerialExecutor(SharingExecutor):
    """Runs each call inside `submit`; progress goes to whoever listens around it.

    Args:
        shared: objects that come before the arguments of every call.
        device: on a CPU there is one torch thread inside the block: with more, sums are added in another order, and the bits differ from a worker's.
    """

    def __init__(self, shared: tuple[Any, ...] = (), device: str = "cpu") -> None:
        self._shared, self._device = shared, device

    def __enter__(self) -> Self:
        self._threads = torch.get_num_threads()
        if torch.device(self._device).type == "cpu":
            torch.set_num_threads(1)
        return self

    def __exit__(self, *error: Any) -> None:
        torch.set_num_threads(self._threads)

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*self._shared, *args))
        except Exception as error:
            future.set_exception(error)
        return future
