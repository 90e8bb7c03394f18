import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge import attacks, audits, demo, rng
from expunge.errors import ConfigError


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_fork_repeats_every_generator():
    with rng.fork(3):
        first = draws()
    with rng.fork(3):
        assert draws() == first


def test_fork_leaves_the_world_as_it_was_even_after_an_error():
    with rng.fork(0):
        expected = draws()
    with rng.fork(0):
        with pytest.raises(RuntimeError), rng.fork(1):
            draws()
            raise RuntimeError
        assert draws() == expected


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "0", True, None])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ConfigError, match="seed must be an integer"), rng.fork(seed):
        pass


SEEDED = [
    kind
    for module in (attacks, audits, demo)
    for kind in vars(module).values()
    if dataclasses.is_dataclass(kind) and any(f.name == "seed" and "bounds" in f.metadata for f in dataclasses.fields(kind))
]


@pytest.mark.parametrize("kind", SEEDED, ids=lambda kind: kind.__name__)
def test_a_bad_seed_is_refused_where_it_is_given_and_not_deep_inside(kind):
    bounds = {f.name: f.metadata for f in dataclasses.fields(kind)}["seed"]["bounds"]
    highest = bounds["lt"] - 1
    assert bounds["ge"] == 0 and kind(seed=highest).seed == highest
    for seed in (-1, highest + 1):
        with pytest.raises(ConfigError, match=rf"seed must be an integer ≥ 0 and < 2\*\*\d\d; got {seed}"):
            kind(seed=seed)


@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_counter_draws_do_not_depend_on_neighbours(seed, counter, ids):
    together = rng.uniform(seed, counter, ids=torch.tensor(ids), high=9)
    alone = torch.cat([rng.uniform(seed, counter, ids=torch.tensor([i]), high=9) for i in ids])
    assert torch.equal(together, alone)
    assert ((together >= 0) & (together < 9)).all()


def test_counter_draws_are_uniform_and_uncorrelated():
    ids = torch.arange(90_000)
    for a, b in [((0, 1, 0), (0, 1, 1)), ((0, 1, 0), (1, 1, 0)), ((0, 1, 0), (0, 2, 0))]:
        x, y = (rng.uniform(*c, ids=ids, high=9) for c in (a, b))
        table = torch.bincount(x * 9 + y, minlength=81).double()
        chi2 = float(((table - table.mean()) ** 2 / table.mean()).sum())
        assert chi2 < 150  # 80 degrees of freedom: mean 80, standard deviation 12.6


@given(st.integers(1, 200), st.integers(0, 100))
def test_permutation_is_one(n, seed):
    assert torch.equal(rng.permutation(n, seed).sort().values, torch.arange(n))


def test_epochs_and_seeds_give_different_orders():
    orders = {tuple(rng.permutation(20, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_derived_seeds_differ_by_purpose():
    seeds = {rng.derive(s, a, b) for s in range(10) for a in range(10) for b in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= s < 2**63 for s in seeds)


def test_the_cpus_generators_are_forked_like_all_and_a_private_one_touches_none():
    with rng.fork(7):
        first, second = draws(), draws()
    with rng.fork(0):
        expected = draws()
    with rng.fork(0):
        with pytest.raises(RuntimeError), rng.fork_cpu(7):
            assert draws() == first
            torch.rand(3, generator=rng.generator(0))
            assert draws() == second
            raise RuntimeError
        assert draws() == expected
