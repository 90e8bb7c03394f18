"""What the tests of executors and fleets run in worker processes, which can import this file but not a test."""

import multiprocessing
import os
import pathlib
import signal
import time
from dataclasses import dataclass, field

import torch
from torch import nn

from expunge.errors import ModelError
from expunge.progress import report


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))


def deadly() -> nn.Module:
    """A model whose construction kills a worker, as a machine without memory does, but not the parent."""
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


@dataclass(frozen=True)
class Logged:
    """A model that notes each of its constructions in a worker, and does there, the first time, what a test wants: "", "die" or "wait"."""

    folder: str
    first: str = ""
    parent: int = field(default_factory=os.getpid)

    def __call__(self) -> nn.Module:
        if os.getpid() != self.parent:
            folder = pathlib.Path(self.folder)
            with open(folder / "built", "a") as file:
                file.write(f"{os.getpid()}\n")
            if self.first == "die" and not (folder / "died").exists():
                (folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            while self.first == "wait" and not (folder / "go").exists():
                time.sleep(0.02)
        return conv()


def share(shared: torch.Tensor) -> tuple[int, float, bool]:
    return os.getpid(), shared.sum().item(), shared.is_shared()


def threads(shared: torch.Tensor) -> tuple[int, str]:
    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


def torch_threads(shared: torch.Tensor) -> int:
    return torch.get_num_threads()


def visible(shared: torch.Tensor) -> str | None:
    time.sleep(0.5)
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def add(shared: torch.Tensor, number: float) -> float:
    return shared.sum().item() + number


def die_once(shared: torch.Tensor, marker: pathlib.Path) -> str:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def fail(shared: torch.Tensor) -> None:
    raise ModelError("the model failed")


class Awkward(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("awkward")


def fail_awkwardly(shared: torch.Tensor) -> None:
    raise Awkward(1, 2)


def reporting(shared: torch.Tensor, n: int) -> int:
    for i in range(n):
        time.sleep(0.15)
        report("counting", i + 1, n)
    return n


def die(shared: torch.Tensor, number: int) -> None:
    os.kill(os.getpid(), number)


def nap(shared: torch.Tensor, seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def meet(shared: torch.Tensor, folder: str, me: int, other: int) -> int:
    """Returns when the other call is at work as well."""
    (pathlib.Path(folder) / str(me)).touch()
    deadline = time.monotonic() + 300
    while not (pathlib.Path(folder) / str(other)).exists():
        assert time.monotonic() < deadline, "the other call has not begun"
        time.sleep(0.01)
    return os.getpid()
