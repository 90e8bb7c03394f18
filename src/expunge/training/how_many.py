"""How many models to train at a time on one device: found by trying, for it depends on the network, the batch and the chip."""

import dataclasses
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import final

import torch

from ..data.images import Samples
from ..device import resolve_device
from .captured import WARM_UP
from .recipe import Build, Recipe
from .together import Trained, open_place

MOST = 32  # models at a time: each needs memory for its activations
GAIN = 1.03  # a larger number of models must be this much faster


@final
@dataclasses.dataclass(frozen=True)
class Together:
    """How many models to train at a time.

    Attributes:
        n: ≥ 1.
        reason: in words.
        rates: images/s of all models together, by their number, as far as it was measured.
    """

    n: int
    reason: str
    rates: Mapping[int, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.n} model{'s' if self.n > 1 else ''} at a time: {self.reason}"


def choose_together(
    build: Build, train: Samples, recipe: Recipe, *, device: str | torch.device = "auto", most: int = MOST, seconds: float = 0.5
) -> Together:
    """How many models of a recipe to train at a time on this device, found by trying 1, 2, 4, … for a moment each while that makes them faster.

    Args:
        build: as of `train_together`. train: one of the training sets. recipe: of the models.
        device: "auto", "cpu", "cuda", …; on a CPU it is always 1.
        most: models at a time at most, ≥ 1.
        seconds: that each number is measured for, at least.

    Cost: about two seconds for each number that is tried; the models are thrown away.

    Example:
        >>> print(choose_together(None, None, Recipe(), device="cpu"))
        1 model at a time: on a CPU one model keeps a core busy, and fleets have one process for each core
    """
    device, rates, end = resolve_device(device), {}, ""
    if device.type == "cpu":
        return Together(1, "on a CPU one model keeps a core busy, and fleets have one process for each core")
    n = 1
    while n <= most and not end:
        try:
            rates[n] = measure_rate(build, train, recipe, n, device=device, seconds=seconds)
        except torch.OutOfMemoryError:
            if n == 1:
                raise
            end = f"{n} do not fit into memory"
        if rates.get(n, 0) < GAIN * rates.get(n // 2, 0):
            end = end or f"{n} are not faster"
        n *= 2
    return decide(rates, end)


def decide(rates: Mapping[int, float], end: str = "") -> Together:
    """The smallest number of models that is within `GAIN` of the fastest, and the reason in words.

    Example:
        >>> print(decide({1: 50_000, 2: 78_000, 4: 79_000}))
        2 models at a time: 78,000 images/s, 1 alone 50,000
    """
    n = min(n for n, rate in rates.items() if rate * GAIN >= max(rates.values()))
    measured = f"{rates[n]:,.0f} images/s" + (f", 1 alone {rates[1]:,.0f}" if n > 1 else " of one alone")
    return Together(n, measured + (f"; {end}" if end else ""), dict(rates))


def measure_rate(build: Build, train: Samples, recipe: Recipe, n: int, *, device: torch.device, seconds: float = 0.5) -> float:
    """Images/s that n models of a recipe train together, after their steps have been recorded."""
    endless = dataclasses.replace(recipe, lr=1e-9, epochs=10**6)  # it cannot diverge
    with ExitStack() as stack:
        places = [stack.enter_context(open_place(build, endless, device, k)) for k in range(n)]
        _check([place.begin(k, (train, k)) for k, place in enumerate(places)])
        for _ in range(2 * WARM_UP + 8):  # until the steps are recorded
            _check([place.advance() for place in places])
        _wait(device)
        rounds, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds or rounds < 5:
            _check([place.advance() for place in places])
            rounds += 1
        _wait(device)
        n_steps = -(-len(train) // recipe.batch_size)
        return rounds * n * len(train) / n_steps / (time.perf_counter() - start)


def _check(outcomes: list[Trained | None]) -> None:
    for outcome in outcomes:
        if outcome is not None and outcome.error is not None:
            raise outcome.error


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
