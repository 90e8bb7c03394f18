"""Shapes and types are checked in every test of the numerical layers; one torch thread, so that bits and times can be compared."""

import os
import pathlib
import signal

# A shell without job control starts background jobs deaf to Ctrl-C, and so would be the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook(
    ["expunge.attacks", "expunge.audits", "expunge.metrics"],
    "beartype.beartype",
)

import pytest
import torch
from torch import nn

import expunge
from expunge.data.images import ImageData
from expunge.data.split import Split, forget_classes, forget_samples
from expunge.training.recipe import Recipe, train_model
from toys import toy_net

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> tuple[ImageData, ImageData]:
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
def memorised(digits) -> tuple[nn.Module, Split, ImageData]:
    """A network that has learnt 128 digits by heart, 16 of which must leave; and 400 test digits.

    The 16 carry wrong labels: nothing but memory tells them, so that forgetting shows.
    """
    labels, forget = digits[0].labels[:128].clone(), torch.arange(0, 128, 8)
    labels[forget] = (labels[forget] + 1) % 10
    train = ImageData(digits[0].images[:128], labels, digits[0].classes)
    test = ImageData(digits[1].images[:400], digits[1].labels[:400], digits[1].classes)
    model = train_model(toy_net, train, Recipe(epochs=60, lr=0.1, batch_size=16), seed=0, device="cpu")
    return model, forget_samples(train, forget), test


@pytest.fixture(scope="session")
def memorised_class(digits) -> tuple[nn.Module, Split, ImageData]:
    """A network that has learnt 128 digits, all threes of which must leave; and 400 test digits."""
    train = ImageData(digits[0].images[:128], digits[0].labels[:128], digits[0].classes)
    test = ImageData(digits[1].images[:400], digits[1].labels[:400], digits[1].classes)
    model = train_model(toy_net, train, Recipe(epochs=30, lr=0.1, batch_size=16), seed=0, device="cpu")
    return model, forget_classes(train, [3]), test
