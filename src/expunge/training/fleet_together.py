"""A fleet on one GPU, in this process: models of one recipe side by side, as many as the chip has room for."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from ..checks import is_integer
from ..data.images import Samples
from ..errors import ConfigError, ExpungeError
from ..progress import Progress, listen, report
from ..store import canonical
from .board import Board
from .executors import ProcessPool, Serial, SerialExecutor, launcher_of
from .how_many import MOST, choose_together
from .side_by_side import Work
from .together import train_together

if TYPE_CHECKING:
    from .fleet import TrainTask

WORTH = 4  # models, for which to measure how many to train at a time


def here(executor: Any, device: str | torch.device, together: int | str) -> bool:
    """Whether models are trained in this process, several at a time: on a GPU unless an executor has its own, elsewhere if it is asked for.

    Raises:
        ConfigError: `together` is neither "auto" nor an integer ≥ 1, or more than 1 where an executor has workers of its own.
    """
    launcher = launcher_of(executor)
    local = isinstance(launcher, Serial | ProcessPool)
    if together != "auto" and not is_integer(together, 1):
        raise ConfigError(
            f"together must be 'auto' or an integer ≥ 1; got {together!r}. It is how many models are trained at a time on one device."
        )
    if together not in ("auto", 1) and not local:
        raise ConfigError(
            f"together={together} is for a fleet in this process; got executor={launcher.name!r}, whose workers train one model each. Leave one out."
        )
    on_gpu = local and torch.device(launcher.device_for(device)).type == "cuda"
    return on_gpu if isinstance(together, str) else together > 1


def finish_together(works: Sequence[Work], pool: Samples, board: Board, *, together: int | str, device: str) -> dict[Work, ExpungeError]:
    """Trains what is not done and not being trained elsewhere; returns what failed. The models are those that `TrainTask.finish` makes, to the bit on a CPU."""
    groups: dict[str, list[Work]] = {}
    for work in {w.cell.folder.name: w for w in works if not w.cell.done}.values():
        groups.setdefault(canonical([_training(work).build, _training(work).recipe]), []).append(work)
    failures: dict[Work, ExpungeError] = {}
    with SerialExecutor(device=device):  # one thread on a CPU, as in a worker
        for group in groups.values():
            n = _how_many(group, pool, together, device)
            with listen(board):
                failures |= _group(group, pool, board, n, device)
    return failures


def _training(work: Work) -> "TrainTask":
    """The task, which in this module is always a training."""
    return cast("TrainTask", work.task)


def _how_many(group: Sequence[Work], pool: Samples, together: int | str, device: str) -> int:
    if not isinstance(together, str):
        return together
    if len(group) < WORTH:
        return 1
    first = _training(group[0])
    choice = choose_together(first.build, pool.subset(first.positions), first.recipe, device=device, most=min(MOST, len(group)))
    report("measure how many models to train at a time", 1, 1, str(choice))
    return choice.n


def _group(group: Sequence[Work], pool: Samples, board: Board, together: int, device: str) -> dict[Work, ExpungeError]:
    failures: dict[Work, ExpungeError] = {}
    begun: dict[int, tuple[Work, contextlib.ExitStack, float]] = {}
    with contextlib.ExitStack() as claims:

        def claimed() -> Iterator[tuple[Samples, int]]:
            """A model is claimed when there is a place for it, so that other processes may take those that wait."""
            for work in group:
                claim = claims.enter_context(contextlib.ExitStack())
                if claim.enter_context(work.cell.claim()):
                    begun[len(begun)] = work, claim, time.perf_counter()
                    yield pool.subset(_training(work).positions), _training(work).seed

        def heard(number: int, progress: Progress) -> None:
            board(Progress(begun[number][0].cell.folder.name, progress.done, progress.total))

        task = _training(group[0])
        for trained in train_together(task.build, claimed(), task.recipe, together=together, device=device, progress=heard):
            work, claim, start = begun[trained.number]
            if trained.error is not None:
                failures[work] = trained.error
            else:
                # The chip's share of one model, as if it had been alone.
                assert trained.model is not None
                _training(work).keep(work.cell, trained.model, pool, device, (time.perf_counter() - start) / together)
            claim.close()
            board.finish(work.cell.folder.name)
    return failures
