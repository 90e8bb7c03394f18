"""What a method makes of its toy problem, made once for all tests that look at it."""

import pytest
from torch import nn


@pytest.fixture(scope="session")
def results() -> dict[str, nn.Module]:
    return {}


@pytest.fixture
def unlearned(method, learnt, results) -> nn.Module:
    """The method's result with seed 0, which tests leave as it is."""
    name = repr(method)
    if name not in results:
        model, split, _ = learnt
        results[name] = method(model, split)
    return results[name]
