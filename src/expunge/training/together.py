"""Models of one recipe side by side in one process, for a GPU that one of them leaves idle. Each has a place on the device, with a stream, a recorded step and random numbers of its own; what a
place has recorded serves every model that is trained there. The models are those that `train_model` makes.
"""

import copy
import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import final

import torch
from torch import nn

from ..checks import is_integer
from ..data.images import Samples
from ..data.mixture import Mixture
from ..device import resolve_device
from ..errors import ConfigError, ModelError
from ..progress import Progress, listen
from ..rng import check_seed, cpu_states, draw_seed, seed_cpu, set_cpu_states
from .captured import side_stream
from .loop import prepared, steps
from .objectives import smoothed_cross_entropy
from .recipe import Build, Recipe, new_model
from .step import Stepper, copy_weights


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """What became of one training.

    Attributes:
        number: which one, counted from 0 in the order in which they were given.
        model: in eval mode on the device; None = it failed.
        error: why it failed, such as a loss that diverged; the others go on.
    """

    number: int
    model: nn.Module | None
    error: ModelError | None = None


def train_together(
    build: Build,
    trainings: Iterable[tuple[Samples, int]],
    recipe: Recipe,
    *,
    together: int = 1,
    device: str | torch.device = "auto",
    progress: Callable[[int, Progress], None] | None = None,
) -> Iterator[Trained]:
    """The models of these trainings as they are done, each the one that `train_model` makes of the same arguments, whatever the others are and how many are at work.

    A training is asked for when a place is free for it, so that an iterator can claim it then. Closing the iterator ends what is at work.

    Args:
        build: returns a freshly initialised model; called once for each training, and always the same architecture.
        trainings: training set and seed of each model.
        recipe: of all of them.
        together: models at a time, ≥ 1 (`choose_together` finds out how many).
        device: "auto", "cpu", "cuda", …
        progress: called with the number of a training and its `Progress` after every step.

    Raises:
        ConfigError: `together` is no integer ≥ 1.

    Cost: `recipe.epochs` forward and backward passes over its samples for each model. Memory: weights, momentum and activations, for each place.

    Example:
        >>> import expunge
        >>> train, _ = expunge.load_data("digits")
        >>> halves = [(train.subset(range(k, 1000, 2)), k) for k in range(2)]
        >>> build = expunge.architecture("small", train)
        >>> [trained.number for trained in train_together(build, halves, Recipe(epochs=1), together=2, device="cpu")]
        [0, 1]
    """
    if not is_integer(together, 1):
        raise ConfigError(f"together must be an integer ≥ 1; got {together!r}. Pass choose_together(…).n, or 1.")
    waiting = enumerate(trainings)
    with ExitStack() as stack:
        places = [stack.enter_context(open_place(build, recipe, resolve_device(device), k)) for k in range(together)]
        while places:
            for place in list(places):
                if place.course is None:
                    training = next(waiting, None)
                    if training is None:
                        places.remove(place)
                        continue
                    done = place.begin(*training)
                else:
                    done = place.advance(progress)
                if done is not None:
                    yield done


@contextmanager
def open_place(build: Build, recipe: Recipe, device: torch.device, number: int) -> Iterator["Place"]:
    """A place on the device for the time of the block; what is at work there at its end, ends."""
    with ExitStack() as stack:
        place = Place(build, recipe, device, number, stack)
        try:
            yield place
        finally:
            if place.course is not None:
                place.course.close()
            place.join()


@final
class Place:
    """Where one model after another is trained."""

    def __init__(self, build: Build, recipe: Recipe, device: torch.device, number: int, stack: ExitStack) -> None:
        self.build, self.recipe, self.device, self.stack = build, recipe, device, stack
        self.stream, self.host, self.gpu = side_stream(device, number), _HostRandomness(), _GpuRandomness(device)
        self.step: Stepper | None = None
        self.course: Generator[None, None, None] | None = None

    def begin(self, number: int, training: tuple[Samples, int]) -> Trained | None:
        """Starts a training; what became of it if it could not even begin."""
        train, seed = training
        check_seed(seed)
        self.number = number
        try:
            with torch.inference_mode(False), torch.enable_grad(), self.host, self.gpu:
                self.host.seed(seed)
                self.gpu.seed(seed)
                self.model = new_model(self.build, train, self.device)
                mixture = Mixture([train], self.device, augment=self.recipe.augment, seed=draw_seed())
                if self.stream is not None:
                    self.stream.wait_stream(torch.cuda.current_stream(self.device))
                with torch.cuda.stream(self.stream):
                    self._take(mixture)
        except ModelError as error:
            return Trained(number, None, error)
        return None

    def _take(self, mixture: Mixture) -> None:
        recipe = self.recipe
        if self.step is None:
            self.step = self.stack.enter_context(
                prepared(
                    copy.deepcopy(self.model), mixture, smoothed_cross_entropy(recipe.label_smoothing), lr=recipe.lr, momentum=recipe.momentum,
                    weight_decay=recipe.weight_decay, nesterov=recipe.nesterov, precision=recipe.precision,
                )
            )  # fmt: skip
        else:
            self.step.restart(self.model, mixture)
        self.course = steps(
            self.step, epochs=recipe.epochs, lr=recipe.lr, batch_size=recipe.batch_size, schedule=recipe.schedule, clip=recipe.clip
        )

    def advance(self, progress: Callable[[int, Progress], None] | None = None) -> Trained | None:
        """One more step; the model when it is done."""
        assert self.step is not None and self.course is not None  # it has begun
        # A step that is replayed draws nothing from the CPU's generators, and to change these takes longer than to start it.
        host = nullcontext() if self.step.replaying and self.recipe.clip is None else self.host
        heard = listen(lambda p: progress(self.number, p)) if progress else nullcontext()
        try:
            with torch.inference_mode(False), torch.enable_grad(), torch.cuda.stream(self.stream), heard, host, self.gpu:
                next(self.course)
        except StopIteration:
            return self._finish(self.step)
        except ModelError as error:
            self.course = None
            return Trained(self.number, None, error)
        return None

    def join(self) -> None:
        """Whatever comes next on the caller's stream, comes after the work of this place."""
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def _finish(self, step: Stepper) -> Trained:
        self.join()
        copy_weights(step.model, self.model)
        self.course, model = None, self.model
        return Trained(self.number, model.eval())


class _HostRandomness:
    """The CPU's generators as a training alone would find them, inside the block; outside, they wait where they were left."""

    def __init__(self) -> None:
        self.states = cpu_states()

    def seed(self, seed: int) -> None:
        """As `fork` does, inside the block."""
        seed_cpu(seed)

    def __enter__(self) -> None:
        self.outer = cpu_states()
        set_cpu_states(self.states)

    def __exit__(self, *error: object) -> None:
        self.states = cpu_states()
        set_cpu_states(self.outer)


class _GpuRandomness:
    """The same for the generator of a GPU: not a copy of its state is changed but the state itself, for that is what a recording draws from."""

    def __init__(self, device: torch.device) -> None:
        self.generator = None
        if device.type == "cuda":
            self.generator = torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
            self.state = self.generator.clone_state()

    def seed(self, seed: int) -> None:
        if self.generator is not None:
            self.generator.manual_seed(seed)

    def __enter__(self) -> None:
        if self.generator is not None:
            self.outer = self.generator.graphsafe_get_state()
            self.generator.graphsafe_set_state(self.state)

    def __exit__(self, *error: object) -> None:
        if self.generator is not None:
            self.state = self.generator.graphsafe_get_state()
            self.generator.graphsafe_set_state(self.outer)
