"""Pooled sets: training samples first, and nothing else changed."""

import dataclasses

import pytest
import torch

from expunge.data.images import Augment, ImageData, relabel
from expunge.data.pool import Pooled, pool
from expunge.data.stream import StreamedData
from expunge.errors import DataError

TRAIN = ImageData(torch.arange(3 * 64, dtype=torch.uint8).view(3, 1, 8, 8), torch.tensor([0, 1, 1]), ("a", "b"), Augment(pad=2))
TEST = ImageData(200 + torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).remainder(50), torch.tensor([0]), ("a", "b"))
FLOATS = dataclasses.replace(TEST, images=TEST.images / 255)


@pytest.mark.parametrize("test", [TEST, FLOATS, TEST.subset([0])], ids=["in memory", "floats", "subset"])
def test_training_samples_come_first_and_ids_are_positions(test):
    both = pool(TRAIN, test)
    assert torch.equal(both.ids, torch.arange(4))
    assert torch.equal(both.labels, torch.tensor([0, 1, 1, 0]))
    assert torch.equal(both.fetch(torch.tensor([3, 1])), torch.cat([TEST.fetch(torch.tensor([0])), TRAIN.fetch(torch.tensor([1]))]))
    assert (both.augment, both.classes, both.shape, len(both)) == (TRAIN.augment, ("a", "b"), (1, 8, 8), 4)


def test_images_of_one_type_become_one_set_in_memory():
    assert isinstance(pool(TRAIN, TEST), ImageData)
    assert isinstance(pool(TRAIN, FLOATS), Pooled)
    assert "Pooled(ImageData(3 images" in repr(pool(TRAIN, FLOATS))


def test_fingerprint_tells_which_part_is_which():
    prints = {
        pool(TRAIN, FLOATS).fingerprint,
        pool(FLOATS, TRAIN).fingerprint,
        pool(TRAIN, TEST).fingerprint,
        pool(TRAIN, TRAIN.subset([0])).fingerprint,
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (dataclasses.replace(TEST, classes=("a", "c")), "same classes"),
        (dataclasses.replace(TEST, images=TEST.images[..., :7]), "one shape"),
        (relabel(TEST, torch.tensor([[0.5, 0.5]])), "one class number"),
    ],
)
def test_sets_that_do_not_fit_are_refused(test, message):
    with pytest.raises(DataError, match=message):
        pool(TRAIN, test)


def test_a_subset_of_streamed_data_keeps_its_own_augmentation_and_its_readers():
    # Shadow models are trained on a pool; a subset that forgot its training view trained them on clean images.
    brighter = [(torch.full((1, 8, 8), 0.5), 0) for _ in range(3)]
    streamed = StreamedData(TRAIN, brighter, n_workers=2)
    both = pool(streamed.subset([1, 2]), TEST)
    assert both.n_workers == 2
    images = both.fetch_training(torch.tensor([0, 2]), seed=0)
    assert torch.equal(images[0], brighter[0][0]) and torch.equal(images[1], TEST.fetch(torch.tensor([0]))[0])
