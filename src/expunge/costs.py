"""What a computation costs, counted where images go through a model: `count` is called by training, inference and attacks, `measure_cost` listens."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

KINDS = ("forward", "backward", "input_gradients")
STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@final
@dataclass
class Cost:
    """What was spent inside a `measure_cost` block.

    Attributes:
        forward: images that went forward through a model, by source: "forget", "retain", "other" (no part of the training set, such as noise), and "data" where no
            method was at work.
        backward: images whose loss went backward to the weights; per-sample gradients count as well, one for each loss.
        input_gradients: images whose loss went backward to the image alone, as in attacks; that is half the work.
        seconds: wall time.
        peak_memory: bytes, by which memory in use rose at most: of the GPU where there is one, else of the process (Linux). None = unknown.

    Example:
        >>> with measure_cost() as cost:
        ...     count(torch.arange(30), forward=1, backward=1)
        >>> dict(cost.forward), cost.passes(30)
        ({'data': 30}, 1.0)
    """

    forward: Counter[str] = field(default_factory=Counter)
    backward: Counter[str] = field(default_factory=Counter)
    input_gradients: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    peak_memory: int | None = None

    def passes(self, n: int) -> float:
        """All of it as passes over n images, forward and backward: an image forward is a third of that, backward to the weights two thirds, to the image one."""
        return (self.forward.total() + 2 * self.backward.total() + self.input_gradients.total()) / (3 * n)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        counts = {kind: dict(sorted(getattr(self, kind).items())) for kind in KINDS}
        return counts | {"seconds": round(self.seconds, 3), "peak_memory": self.peak_memory}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Cost":
        """What `to_dict` wrote."""
        counts = {kind: Counter(found[kind]) for kind in KINDS}
        return cls(**counts, seconds=found["seconds"], peak_memory=found["peak_memory"])

    def __str__(self) -> str:
        parts = [f"{kind.replace('_', ' ')}: {n:,} {source}" for kind in KINDS for source, n in sorted(getattr(self, kind).items())]
        memory = "" if self.peak_memory is None else f", {self.peak_memory / 2**20:,.0f} MiB more memory at most"
        return f"{self.seconds:.1f} s{memory}; images {', '.join(parts) or 'none'}"

    def __repr__(self) -> str:
        return f"<Cost: {self}>"


_meters: ContextVar[tuple[tuple[Cost, "_Memory"], ...]] = ContextVar("expunge_costs", default=())
_sources: ContextVar[dict[str, Tensor]] = ContextVar("expunge_cost_sources", default={})  # noqa: B039, never changed


@contextlib.contextmanager
def measure_cost() -> Iterator[Cost]:
    """Counts what is computed inside the block, in this process; blocks may be nested.

    Example:
        >>> with measure_cost() as cost:
        ...     pass
        >>> cost.forward.total()
        0
    """
    cost, memory, start = Cost(), _Memory([memory for _, memory in _meters.get()]), time.perf_counter()
    token = _meters.set((*_meters.get(), (cost, memory)))
    try:
        yield cost
    finally:
        _meters.reset(token)
        cost.seconds, cost.peak_memory = time.perf_counter() - start, memory.risen()


@contextlib.contextmanager
def sources(**ids: Tensor) -> Iterator[None]:
    """Names the samples with these ids, int64 (N,), in what is counted inside the block; an id belongs to the first set that has it, others to "other"."""
    token = _sources.set(ids)
    try:
        yield
    finally:
        _sources.reset(token)


def count(ids: Tensor, *, forward: int = 0, backward: int = 0, input_gradients: int = 0, source: str | None = None) -> None:
    """Notes that the samples with these ids went through a model so many times. Costs next to nothing where nobody measures.

    Args:
        ids: int64 (B,), a sample that went twice may be there twice.
        source: for images that are no samples, such as noise; their ids mean nothing then.
    """
    if not _meters.get():
        return
    numbers = {"forward": forward, "backward": backward, "input_gradients": input_gradients}
    for name, n in _by_source(ids.cpu(), source).items():
        for cost, _ in _meters.get():
            for kind, times in numbers.items():
                if n * times:
                    getattr(cost, kind)[name] += n * times


def _by_source(ids: Tensor, source: str | None) -> dict[str, int]:
    if source is not None or not _sources.get():
        return {source or "data": len(ids)}
    found: dict[str, int] = {}
    for name, members in _sources.get().items():
        inside = torch.isin(ids, members)
        found[name], ids = int(inside.sum()), ids[~inside]
    return found | {"other": len(ids)}


class _Memory:
    """By how much the memory in use has risen since this was made. The system keeps one peak for all: who starts it anew first notes it for the others."""

    def __init__(self, others: Sequence["_Memory"]) -> None:
        for other in others:
            other.note()
        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):
                REFERENCES.write_text("5")  # the peak that Linux notes starts anew
        self.first = torch.cuda.memory_allocated() if self.cuda else _resident("VmRSS")
        self.peak = self.first

    def note(self) -> None:
        peak = torch.cuda.max_memory_allocated() if self.cuda else _resident("VmHWM")
        self.peak = None if peak is None or self.peak is None else max(peak, self.peak)

    def risen(self) -> int | None:
        self.note()
        return None if self.peak is None or self.first is None else self.peak - self.first


def _resident(kind: str) -> int | None:
    """Bytes of memory that the process holds (VmRSS) or held at most (VmHWM); None where the system does not tell."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:")), None)
