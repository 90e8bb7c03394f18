"""Randomness that a result can be repeated from.

`fork(seed)` seeds every generator for the time of a block and puts the old states back; `generator(seed)` is a private one. `uniform` and `permutation` need no state at all: they are
functions of counters such as (seed, epoch, example), so that an example's crop does not depend on its batch, its neighbours, the number of workers or the device.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import setting
from .errors import ConfigError

SEEDS = 2**63  # a seed lies in [0, SEEDS)

# Multipliers of the splitmix64 finaliser (Steele et al., 2014), as signed 64-bit integers because torch has no arithmetic on uint64.
GOLDEN = -7046029254386353131
MIX_1 = -4658895280553007687
MIX_2 = -7723592293110705685


@contextlib.contextmanager
def fork(seed: int) -> Iterator[None]:
    """Seeds Python, NumPy and torch (all devices) inside the block; restores every state afterwards, also after an error.

    Args:
        seed: any integer in [0, 2**63).

    Raises:
        ConfigError: the seed is not an integer in that range.

    Example:
        >>> with fork(0):
        ...     first = torch.rand(1).item()
        >>> with fork(0):
        ...     assert torch.rand(1).item() == first
    """
    check_seed(seed)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    with fork_cpu(seed):
        try:
            torch.manual_seed(seed)
            yield
        finally:
            if cuda:
                torch.cuda.set_rng_state_all(cuda)


@contextlib.contextmanager
def fork_cpu(seed: int) -> Iterator[None]:
    """Like `fork`, for the CPU's generators only: CUDA's cannot be touched in a forked worker."""
    states = cpu_states()
    try:
        seed_cpu(seed)
        yield
    finally:
        set_cpu_states(states)


def seed_cpu(seed: int) -> None:
    """Seeds the global generators of the CPU."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def cpu_states() -> tuple[Any, ...]:
    """The states of the global generators of the CPU, for `set_cpu_states`."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_cpu_states(states: tuple[Any, ...]) -> None:
    """Puts back what `cpu_states` gave."""
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def generator(seed: int) -> torch.Generator:
    """A private generator on the CPU: the global ones are not touched.

    Example:
        >>> torch.equal(torch.rand(2, generator=generator(0)), torch.rand(2, generator=generator(0)))
        True
    """
    return torch.Generator().manual_seed(seed)


def seed_setting() -> Any:
    """A setting (see checks.py) that is a seed: 0, or what is given, in [0, 2**63)."""
    return setting(0, ge=0, lt=SEEDS)


def check_seed(seed: int) -> None:
    """Raises ConfigError unless `seed` is an integer in [0, 2**63)."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise ConfigError(f"seed must be an integer in [0, 2**63); got {seed!r}. Pass seed=0, 1, 2, …")


def draw_seed() -> int:
    """A fresh seed from torch's global generator: inside `fork` it is the same one every time."""
    return int(torch.randint(2**62, ()).item())


def derive(seed: int, *counters: int) -> int:
    """A seed in [0, 2**63) for one purpose among many; different counters give unrelated seeds.

    Example:
        >>> derive(0, 1) != derive(0, 2) != derive(1, 1)
        True
    """
    return int(bits(seed, *counters, ids=torch.zeros(1, dtype=torch.int64)).item()) & (2**63 - 1)


def bits(seed: int, *counters: int | Tensor, ids: Tensor) -> Tensor:
    """64 random bits for each id, as int64 (N,), on the device of `ids`; a function of (seed, counters, id) alone."""
    state = torch.full_like(ids, 0, dtype=torch.int64)
    words: tuple[int | Tensor, ...] = (seed, *counters, ids)
    for word in words:
        state = _mix(state * 31 + GOLDEN + word)
    return state


def uniform(seed: int, *counters: int | Tensor, ids: Tensor, high: int) -> Tensor:
    """Integers in [0, high), one for each id, int64 (N,); `high` ≤ 2**31 (the bias of the modulus is then below 2**-31)."""
    return _shift(bits(seed, *counters, ids=ids), 1) % high


def permutation(n: int, seed: int, *counters: int) -> Tensor:
    """A random order of 0 … n − 1, int64 (n,) on the CPU."""
    return torch.argsort(bits(seed, *counters, ids=torch.arange(n)), stable=True)


def _shift(x: Tensor, n: int) -> Tensor:
    """Logical right shift (torch's is arithmetic)."""
    return (x >> n) & (2 ** (64 - n) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * MIX_1
    x = (x ^ _shift(x, 27)) * MIX_2
    return x ^ _shift(x, 31)
