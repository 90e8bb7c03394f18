"""A training step recorded once and replayed, so that a GPU does not wait for Python: a ResNet-18 step of 128 images is some 250 kernels, which Python starts more slowly than an H200
computes them. A recording reads its batch from tensors that stay in place, and finds weights, momentum and learning rate where they were: whoever copies another model's weights
there (`EagerStep.restart`) trains another model with it.

What is recorded must be operations on the device and nothing else, for no line of Python runs again. So the first steps with batches of a shape are computed as ever, which also warms up
what libraries set up at their first call, and watched: a model that calls hooks, counts its calls in Python or draws random numbers on the CPU is never recorded, nor is an objective
that is not known here. Random numbers on the GPU (dropout) are those of steps computed one by one.
"""

import contextlib
import dataclasses
import functools
import random
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sized
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.hooks import RemovableHandle

from ..data.mixture import Batch, Drawn, Mixture
from .objectives import Objective, cross_entropy, negated_cross_entropy
from .step import EagerStep

Work = Callable[[], None]
Recorder = Callable[[Work], Work]
"""Takes work that is done in place; returns what does it again, and has done nothing yet."""

WARM_UP = 16  # steps; recording costs about as much as they would have saved
REPLAYABLE = {cross_entropy, negated_cross_entropy}  # objectives without a state of their own


class NotRecorded(RuntimeWarning):
    """Training steps are computed one by one although a recording would be faster; the message says why. The result is the same."""


@final
class CapturedStep:
    """A step that is recorded for each shape of batch when that has come up `WARM_UP` times, and replayed from then on.

    Batches whose pixels lie in one resident set are gathered and augmented within the recording.
    """

    def __init__(self, step: EagerStep, record: Recorder) -> None:
        self.step, self.record = step, record
        self.model, self.parameters, self.take_loss, self.set_lr = step.model, step.parameters, step.take_loss, step.set_lr
        self.met: Counter[Hashable] = Counter()
        self.recordings: dict[Hashable, _Recording] = {}
        self.obstacle: str | None = None
        self.replaying = False

    @property
    def mixture(self) -> Mixture:
        return self.step.mixture

    def __call__(self, drawn: Drawn | Batch, epoch: int) -> None:
        if not self.mixture.one_gather:
            drawn = self.mixture.batch(drawn)
        shape = _shape(drawn, self.mixture)
        if shape not in self.recordings and not self.obstacle:
            self.met[shape] += 1
            if self.met[shape] > WARM_UP:
                self._record(shape, drawn, epoch)
        self.replaying = shape in self.recordings
        if self.replaying:
            self.recordings[shape](drawn)
        elif self.obstacle:
            self.step.compute(self.mixture.batch(drawn), epoch)
        else:
            self._watched(drawn, epoch)
        self.step.after()

    def restart(self, weights: nn.Module, mixture: Mixture) -> None:
        self.step.restart(weights, mixture)
        self.replaying = False

    def register_step_post_hook(self, hook: Callable[..., None]) -> RemovableHandle:
        return self.step.register_step_post_hook(hook)

    def _watched(self, drawn: Drawn | Batch, epoch: int) -> None:
        before = _python_state(self.model)
        self.step.compute(self.mixture.batch(drawn), epoch)
        after = _python_state(self.model)
        self.obstacle = next((reason for reason in before if before[reason] != after[reason]), None)
        if any(module._forward_hooks or module._forward_pre_hooks for module in self.model.modules()):
            self.obstacle = "modules of the model have forward hooks"
        if any(map(is_parametrized, self.model.modules())):
            self.obstacle = "weights are computed by a parametrization, which comes and goes"
        self._say()

    def _record(self, shape: Hashable, drawn: Drawn | Batch, epoch: int) -> None:
        static, mixture, step = _map(torch.clone, drawn), self.mixture, self.step
        try:
            self.recordings[shape] = _Recording(static, self.record(lambda: step.compute(mixture.batch(static), epoch)))
        except (RuntimeError, ValueError, TypeError) as error:  # also out of memory; a real mistake shows again when the step is computed
            self.obstacle = f"{type(error).__name__}: {(str(_first(error)).splitlines() or [''])[0]}"
            self._say()

    def _say(self) -> None:
        if self.obstacle:
            self.recordings.clear()
            warnings.warn(
                f"training steps of this {type(self.model).__name__} are computed one by one, not recorded and replayed: {self.obstacle}. "
                "The result is the same, the GPU is used less.",
                NotRecorded,
                stacklevel=4,
            )


@dataclasses.dataclass(frozen=True, eq=False)
class _Recording:
    static: Drawn | Batch
    replay: Work

    def __call__(self, drawn: Drawn | Batch) -> None:
        for mine, given in zip(_tensors(self.static), _tensors(drawn), strict=True):
            mine.copy_(given)
        self.replay()


def recorder(objective: Objective, device: torch.device) -> Recorder | None:
    """What records steps with this objective on this device; None where they are computed one by one."""
    known = getattr(objective, "func", objective) in REPLAYABLE  # the function itself, or a partial of it
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return CudaGraphs(device) if device.type == "cuda" and known and not distributed else None


@final
class CudaGraphs:
    """Records by CUDA graphs, on the current stream, which must not be the default one. Recordings of one recorder share their memory: one is replayed at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = None

    def __call__(self, work: Work) -> Work:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            # Other threads may use the GPU meanwhile, such as one that stores the results of a model.
            with torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
                work()
        except Exception:
            # A recording that fails leaves the generator in a state that draws nothing; a copy has the numbers but not the state.
            generator = torch.cuda.default_generators[stream.device_index]
            generator.graphsafe_set_state(generator.clone_state())
            raise
        self.pool = self.pool or graph.pool()
        return graph.replay


@contextlib.contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Work inside the block goes to a stream of its own on a GPU, in order with the work before and after it; on a CPU nothing changes."""
    stream = side_stream(device)
    if stream is None:
        yield
        return
    outer = torch.cuda.current_stream(device)
    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outer.wait_stream(stream)


@functools.cache
def side_stream(device: torch.device, number: int = 0) -> torch.cuda.Stream | None:
    """A stream of the GPU that is not the default one, where nothing can be recorded; the same at every call, for memory that was used on one is not used on another."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def _tensors(item: Drawn | Batch) -> list[Tensor]:
    return [value for value in vars(item).values() if isinstance(value, Tensor)]


def _map(function: Callable[[Tensor], Tensor], item: Drawn | Batch) -> Drawn | Batch:
    mapped: dict[str, Any] = {name: function(v) for name, v in vars(item).items() if isinstance(v, Tensor)}
    return dataclasses.replace(item, **mapped)


def _shape(item: Drawn | Batch, mixture: Mixture) -> Hashable:
    """All that a recording depends on but the numbers in its tensors."""
    return (id(mixture.roots[0]), mixture.augments[0], type(item), *((t.shape, t.dtype) for t in _tensors(item)))


def _python_state(model: nn.Module) -> dict[str, Any]:
    """What a step might change outside the device, by what it is called in a message."""
    plain = [tuple(_plain(name, value) for name, value in vars(module).items()) for module in model.modules()]
    numpy: Any = np.random.get_state()
    return {
        "it draws random numbers on the CPU": (torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy[1].tobytes(), numpy[2]),
        "modules of the model change attributes of their own": plain,
    }


def _plain(name: str, value: object) -> tuple[str, object]:
    return name, value if isinstance(value, int | float | str) else len(value) if isinstance(value, Sized) and not isinstance(
        value, Tensor
    ) else None


def _first(error: BaseException) -> BaseException:
    """The error that began it: a recording that fails fails once more when it is ended."""
    return _first(error.__context__) if error.__context__ else error
