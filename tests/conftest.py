"""Shapes and types are checked in every test of the numerical layers; one torch thread, so that bits and times can be compared."""

import os
import pathlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# A shell without job control starts background jobs deaf to Ctrl-C, and so would be the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook(
    ["expunge.attacks", "expunge.audits", "expunge.metrics"],
    "beartype.beartype",
)

import pytest

import expunge  # light; torch and the toys are imported where they are needed, for the process that hands tests to workers needs neither


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> "tuple[expunge.ImageData, expunge.ImageData]":
    """The digits that come with scikit-learn: 1000 to train, 797 to test."""
    return expunge.load_data("digits")


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real image sets in torchvision's layouts; tests that need it are marked `data`."""
    folder = pathlib.Path(os.environ.get("EXPUNGE_TEST_DATA", "data"))
    if not folder.is_dir():
        pytest.skip(f"no image sets at {folder}; set EXPUNGE_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def memorised(digits) -> "tuple[nn.Module, expunge.Split, expunge.ImageData]":
    """A network that has learnt 128 digits by heart, 16 of which must leave; and 400 test digits.

    The 16 carry wrong labels: nothing but memory tells them, so that forgetting shows.
    """
    train = part(digits[0], 128)
    forget = range(0, 128, 8)
    train.labels[forget] = (train.labels[forget] + 1) % 10
    return trained(train, epochs=60), expunge.forget_samples(train, forget), part(digits[1], 400)


@pytest.fixture(scope="session")
def memorised_class(digits) -> "tuple[nn.Module, expunge.Split, expunge.ImageData]":
    """A network that has learnt 128 digits, all threes of which must leave; and 400 test digits."""
    train = part(digits[0], 128)
    return trained(train, epochs=30), expunge.forget_classes(train, [3]), part(digits[1], 400)


def part(data: "expunge.ImageData", n: int) -> "expunge.ImageData":
    return expunge.ImageData(data.images[:n], data.labels[:n].clone(), data.classes)


def trained(train: "expunge.ImageData", epochs: int) -> "nn.Module":
    from toys import toy_net

    recipe = expunge.Recipe(epochs=epochs, lr=0.1, batch_size=16)
    return expunge.train_model(toy_net, train, recipe, seed=0, device="cpu")
