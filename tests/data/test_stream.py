"""Streamed samples are the resident ones, read one by one."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset
from torch.utils.data import Subset as TorchSubset

from expunge.data.images import ImageData
from expunge.data.stream import StreamedData, labels_of
from expunge.data.view import View
from expunge.errors import ConfigError, DataError


class Items:
    """A map-style dataset of a list; counts how often it is read."""

    def __init__(self, items, **attributes):
        self.items, self.reads = items, 0
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, position):
        self.reads += 1
        return self.items[position]


class Noisy(Items):
    """Adds noise of torch's, NumPy's and Python's generators."""

    def __getitem__(self, position):
        import random

        image, label = super().__getitem__(position)
        return image + torch.rand(()) + np.random.rand() + random.random(), label


@pytest.fixture
def pixels():
    return torch.randint(256, (7, 3, 8, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def items(pixels):
    return list(zip(pixels, LABELS.tolist(), strict=True))


def test_streamed_samples_equal_resident_ones(pixels):
    streamed, resident = StreamedData(Items(items(pixels)), classes=["a", "b", "c"]), ImageData(pixels, LABELS, ("a", "b", "c"))
    positions = torch.tensor([5, 0, 5])
    assert torch.equal(streamed.fetch(positions), resident.fetch(positions))
    assert torch.equal(streamed.labels, resident.labels) and torch.equal(streamed.ids, resident.ids)
    assert (len(streamed), streamed.shape, streamed.classes) == (len(resident), resident.shape, resident.classes)
    assert torch.equal(streamed[3][0], resident[3][0]) and streamed[3][1] == resident[3][1]
    assert torch.equal(streamed.subset([1, 4]).fetch(torch.tensor([1])), resident.fetch(torch.tensor([4])))


def test_streamed_and_resident_fingerprints_agree(pixels):
    floats = pixels.float() / 255
    between = torch.cat([floats[:3], floats[3:] * 0.999])  # the first images are whole 255ths, the others not
    for images, resident in ((pixels, pixels), (floats, pixels), (floats * 0.999, floats * 0.999), (between, between)):
        streamed = StreamedData(Items(items(images)), classes=["a", "b", "c"])
        assert streamed.fingerprint == ImageData(resident, LABELS, ("a", "b", "c")).fingerprint


def test_a_changed_pixel_or_label_changes_the_fingerprint(pixels):
    before = StreamedData(Items(items(pixels))).fingerprint
    changed = pixels.clone()
    changed[6, 0, 0, 0] ^= 1
    assert StreamedData(Items(items(changed))).fingerprint != before
    assert StreamedData(Items([*items(pixels)[:-1], (pixels[6], 1)])).fingerprint != before


def test_the_fingerprint_is_read_once(pixels):
    dataset = Items(items(pixels))
    streamed = StreamedData(dataset, classes=["a", "b", "c"])
    first, reads = streamed.fingerprint, dataset.reads
    assert streamed.fingerprint == first and dataset.reads == reads


@pytest.mark.parametrize("attributes", [{"targets": LABELS.tolist()}, {"labels": LABELS}, {"samples": [("file", int(k)) for k in LABELS]}])
def test_labels_come_from_the_datasets_list_without_a_pass(pixels, attributes):
    dataset = Items(
        items(pixels) * 20, **{name: value * 20 if isinstance(value, list) else value.repeat(20) for name, value in attributes.items()}
    )
    assert torch.equal(labels_of(View(dataset)), LABELS.repeat(20))
    assert dataset.reads <= 8


def test_labels_of_parts_come_from_the_whole(pixels):
    dataset = Items(items(pixels) * 20, targets=LABELS.tolist() * 20)
    part = TorchSubset(dataset, list(range(139, 19, -1)))
    assert torch.equal(labels_of(View(ConcatDataset([part, part]))), LABELS.repeat(20).flip(0)[:120].repeat(2))
    assert dataset.reads <= 8


def test_a_list_that_disagrees_with_the_items_is_not_believed(pixels):
    dataset = Items(items(pixels), targets=(LABELS + 1).tolist())  # as where a target_transform is at work
    assert torch.equal(labels_of(View(dataset)), LABELS)


def test_without_a_training_view_training_reads_clean_images(pixels):
    streamed = StreamedData(Items(items(pixels)))
    assert torch.equal(streamed.fetch_training(torch.arange(7)), streamed.fetch(torch.arange(7)))


def test_seeded_training_images_do_not_depend_on_their_batch_and_leave_generators_alone(pixels):
    floats = pixels.float() / 255
    streamed = StreamedData(Items(items(floats)), Noisy(items(floats)))
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    together = streamed.fetch_training(torch.arange(7), seed=1, epoch=2)
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]
    alone = torch.cat([streamed.fetch_training(torch.tensor([p]), seed=1, epoch=2) for p in range(6, -1, -1)]).flip(0)
    assert torch.equal(together, alone)
    assert not torch.equal(together, streamed.fetch_training(torch.arange(7), seed=1, epoch=3))
    noise = (together - floats).flatten(1).mean(1)
    assert noise.sort().values.diff().min() > 1e-4  # each image has its own
    assert torch.equal(streamed.fetch(torch.arange(7)), floats)


def test_streamed_data_pickles_for_the_workers_of_a_dataloader(pixels):
    streamed = pickle.loads(pickle.dumps(StreamedData(Items(items(pixels)), Items(items(pixels)))))
    images, labels = next(iter(DataLoader(streamed, batch_size=7)))
    assert torch.equal(images, pixels.float() / 255) and torch.equal(labels, LABELS)
    assert torch.equal(copy.deepcopy(streamed).fetch_training(torch.arange(7)), images)


def test_clean_images_in_memory_serve_beside_a_streamed_training_view(pixels):
    dataset = Noisy(items(pixels.float() / 255))
    resident = ImageData(pixels, LABELS, ("a", "b", "c"))
    streamed = StreamedData(resident, dataset)
    assert torch.equal(streamed.fetch(torch.tensor([2])), resident.fetch(torch.tensor([2])))
    assert streamed.fingerprint == resident.fingerprint and streamed.classes == ("a", "b", "c") and dataset.reads == 0


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ([(torch.zeros(1, 4, 4), 0), (torch.zeros(1, 4, 5), 0)], "images must all be of one size, 1×4×4 as the first; got 1×4×5 at item 1"),
        ([(torch.full((1, 4, 4), -2.0), 0)], r"values from -2 to -2 at item 0: .*with_normalize"),
        ([(torch.full((1, 4, 4), 255.0), 0)], r"values from 255 to 255 at item 0: divide 8-bit pixels by 255"),
        ([(torch.full((1, 4, 4), float("nan")), 0)], r"float images must lie in \[0, 1\]"),
        ([(torch.zeros(1, 4, 4), 0, "more")], r"expected a pair \(image, label\); got a tuple of 3"),
        ([{"image": torch.zeros(1, 4, 4)}], r"expected a pair \(image, label\); got a dict of 1"),
        ([(torch.zeros(1, 4, 4), -1)], r"labels must lie in \[0, 0\)"),
        ([], "at least one sample"),
    ],
)
def test_items_that_cannot_be_used_are_named(made, message):
    with pytest.raises(DataError, match=message):
        data = StreamedData(Items(made))
        data.fetch(torch.arange(len(made)))


def test_two_views_of_different_length_are_refused(pixels):
    with pytest.raises(DataError, match="got 7 and 6"):
        StreamedData(Items(items(pixels)), Items(items(pixels)[:6]))


def test_the_number_of_workers_is_checked(pixels):
    assert StreamedData(Items(items(pixels)), n_workers=2).n_workers == 2
    with pytest.raises(ConfigError, match="n_workers must be an integer ≥ 0; got -1"):
        StreamedData(Items(items(pixels)), n_workers=-1)


def test_a_tensor_dataset_works():
    streamed = StreamedData(TensorDataset(torch.full((3, 1, 8, 8), 0.3), torch.tensor([0, 1, 1])))
    assert streamed.classes == ("0", "1") and streamed.labels.tolist() == [0, 1, 1]
    assert (streamed.fetch(torch.arange(3)) == torch.tensor(0.3)).all()
