"""CIFAR-10, which takes a second to read, once for all tests that look at it."""

import pytest

from expunge.data.load import DataPair, load_data


@pytest.fixture(scope="session")
def cifar10(real_data) -> DataPair:
    return load_data("cifar10", root=real_data, download=False)
