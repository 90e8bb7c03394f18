"""Several processes that do one piece of work together, started by torchrun: who they are, and what they tell one another.

All of them run the same script with the same seeds, so that each has the same models, data and order of samples; what takes long is split between them. Outside of a `distributed`
block, and inside of `alone`, a process works by itself, whoever else there is.
"""

import atexit
import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, final

from .errors import ConfigError, ExpungeError
from .progress import silent

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class RankLost(ExpungeError):
    """Another of the processes that work together is gone, does not answer, or does something else.

    Example:
        >>> import expunge
        >>> issubclass(expunge.RankLost, expunge.ExpungeError)
        True
    """


@final
@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes of a `distributed` block, as one of them sees them.

    Attributes:
        rank: of this process, from 0 on. size: how many there are.
        shard: whether each holds only a part of a model's weights while it trains or answers.
        device: "cuda" or "cpu", where this process computes.
    """

    rank: int
    size: int
    shard: bool
    device: str

    def sizes(self, n: int) -> list[int]:
        """How many of n samples each rank takes: the first ones one more, where n cannot be divided."""
        return [n // self.size + (rank < n % self.size) for rank in range(self.size)]

    def share(self, rows: "Tensor") -> "Tensor":
        """This rank's part of the rows."""
        return rows.split(self.sizes(len(rows)))[self.rank]

    def gather(self, mine: "Tensor", sizes: Sequence[int]) -> "list[Tensor]":
        """The tensors of all ranks, which differ in length at most."""
        import torch
        import torch.distributed as dist

        padded = mine.new_zeros(max(sizes), *mine.shape[1:])  # collectives want one shape, and contiguous memory
        padded[: len(mine)] = mine
        found = [torch.empty_like(padded) for _ in sizes]
        with _answered():
            dist.all_gather(found, padded)
        return [rows[:n] for rows, n in zip(found, sizes, strict=True)]

    def sum(self, tensor: "Tensor") -> "Tensor":
        """The sum of the tensors of all ranks, in place."""
        import torch.distributed as dist

        with _answered():
            dist.all_reduce(tensor)
        return tensor

    def exchange(self, what: str, mine: Any) -> list[Any]:
        """What each rank has, by rank; anything that can be pickled.

        Raises:
            RankLost: a rank exchanges something else.
        """
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with _answered():
            dist.all_gather_object(found, (what, mine))
        for rank, (theirs, _) in enumerate(found):
            if theirs != found[0][0]:
                raise RankLost(
                    f"all ranks must do the same things in the same order; rank 0 is at {found[0][0]!r} and rank {rank} at {theirs!r}. "
                    "Call expunge's functions on every rank, not inside `if rank == 0`."
                )
        return [value for _, value in found]

    def together(self, what: str, work: Callable[[], T]) -> list[T]:
        """What `work` returns on each rank. An error of one rank is an error of all, so that none waits for it."""
        try:
            mine: tuple[Any, BaseException | None] = (work(), None)
        except ExpungeError as error:
            mine = (None, error)
        told = self.exchange(what, (mine[0], None if mine[1] is None else (type(mine[1]), str(mine[1]))))
        if mine[1] is not None:
            raise mine[1]
        for rank, (_, theirs) in enumerate(told):
            if theirs is not None:
                raise theirs[0](f"rank {rank}: {theirs[1]}")
        return [result for result, _ in told]

    def check_same(self, what: str, value: Any) -> None:
        """Raises RankLost unless every rank comes here with the same value."""
        told = self.exchange(what, value)
        for rank, theirs in enumerate(told):
            if theirs != told[0]:
                raise RankLost(
                    f"all ranks must have the same {what}; rank {rank} has another one than rank 0. Give every rank the same seeds and data; on GPUs, passes that each rank "
                    "makes for itself are alike only with torch.use_deterministic_algorithms(True)."
                )


_ranks: ContextVar[Ranks | None] = ContextVar("expunge_ranks", default=None)


def current() -> Ranks | None:
    """The ranks that work together here; None = this process works by itself."""
    return _ranks.get()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside the block this process works by itself: for independent pieces of work that ranks share out by a store."""
    token = _ranks.set(None)
    try:
        yield
    finally:
        _ranks.reset(token)


@contextlib.contextmanager
def distributed(*, shard: bool = False, timeout: float = 600.0) -> Iterator[None]:
    """Inside the block, the processes that `torchrun` has started train and score each model together; without torchrun, nothing changes.

    Every process runs the whole script. The result is that of one process up to rounding, and every process has it. Gradient steps and answers are split between them; what a
    method computes by passes of its own (attacks, Fisher information, masks) each process computes for itself. Models that go to a store, such as shadow models, are
    each trained by one process alone. Only rank 0 prints and reports progress.

    Args:
        shard: split the weights too (torch's FSDP2), for models that are too large for one GPU: they lie in the memory of the host, and only while they train or answer are
            they on the GPUs, a part on each. Device "auto" then means the host.
        timeout: seconds after which a process that does not answer is given up, > 0; the first block of a script decides.

    Raises:
        ConfigError: timeout is not > 0.
        RankLost: inside the block, where another process is gone, or the processes do different things.

    Example:
        >>> with distributed():  # not under torchrun: as if it were not there
        ...     current() is None
        True
    """
    if not timeout > 0:
        raise ConfigError(f"timeout must be > 0 seconds; got {timeout!r}. Pass timeout=600.")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if not dist.is_initialized():
        with _answered():
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=datetime.timedelta(seconds=timeout))
        atexit.register(
            dist.destroy_process_group
        )  # not at the end of the block: processes meet once, a second time they would read old addresses
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), shard, "cuda" if gpu else "cpu")
    token = _ranks.set(ranks)
    try:
        with contextlib.nullcontext() if ranks.rank == 0 else _silent():
            yield
    finally:
        _ranks.reset(token)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing goes to stdout, and no progress is reported."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), silent():
        yield


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # every failure of torch.distributed is one
        raise RankLost(
            f"a process that works with this one is gone or does not answer: {(str(error).splitlines() or [type(error).__name__])[0]}. What is in a store is kept; look for the "
            "first error of the other processes, and start all of them again."
        ) from error
