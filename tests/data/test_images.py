import pytest
import torch

from expunge.data.augment import augmented
from expunge.data.images import Augment, ImageData, relabel
from expunge.errors import ConfigError, DataError

PIXELS = torch.arange(4 * 3 * 5 * 6, dtype=torch.uint8).reshape(4, 3, 5, 6)
LABELS = torch.tensor([0, 1, 2, 1])
CLASSES = ("a", "b", "c")


@pytest.fixture
def data():
    return ImageData(PIXELS, LABELS, CLASSES)


def test_items_are_float_images_in_the_unit_range_with_int_labels(data):
    image, label = data[-1]
    assert image.dtype == torch.float32 and torch.equal(image, PIXELS[3] / 255)
    assert label == 1 and isinstance(label, int)


def test_iteration_ends(data):
    assert len(list(data)) == 4


def test_a_subset_keeps_the_ids_and_shares_the_pixels(data):
    subset = data.subset([3, 1]).subset([1])
    assert subset.ids.tolist() == [3]
    assert torch.equal(subset.fetch(torch.tensor([0]))[0], PIXELS[3] / 255)
    assert subset.labels.tolist() == [1] and len(subset) == 1


def test_fingerprints_tell_pixels_labels_names_and_order_apart(data):
    changed = PIXELS.clone()
    changed[0, 0, 0, 0] += 1
    others = [
        ImageData(changed, LABELS, CLASSES),
        ImageData(PIXELS, LABELS.flip(0), CLASSES),
        ImageData(PIXELS, LABELS, ("a", "b", "d")),
        data.subset([0, 1]),
        data.subset([0, 2]),
        relabel(data, LABELS.flip(0)),
    ]
    prints = {data.fingerprint, *(o.fingerprint for o in others)}
    assert len(prints) == 7
    assert ImageData(PIXELS.clone(), LABELS.clone(), list(CLASSES)).fingerprint == data.fingerprint


def test_relabel_changes_labels_only(data):
    soft = torch.eye(3)[LABELS]
    assert torch.equal(relabel(data, soft).labels, soft)
    with pytest.raises(DataError, match="one label for each of 4"):
        relabel(data, soft[:2])


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        (PIXELS.permute(0, 2, 3, 1)[0], LABELS, CLASSES, r"\(N, C, H, W\)"),
        (PIXELS.double(), LABELS, CLASSES, "uint8 or float32"),
        (PIXELS.float(), LABELS, CLASSES, r"must lie in \[0, 1\]; got values from 0 to 255"),
        (torch.full((4, 1, 2, 2), torch.nan), LABELS, CLASSES, r"must lie in \[0, 1\]"),
        (PIXELS, LABELS[:3], CLASSES, r"shape \(4,\)"),
        (PIXELS, LABELS.float(), CLASSES, "int64"),
        (PIXELS, LABELS, ("a", "b"), r"lie in \[0, 2\).*got 2"),
        (PIXELS, LABELS - 1, CLASSES, "got -1"),
        (PIXELS, LABELS, ("a", "a", "b"), "unique"),
    ],
)
def test_bad_images_and_labels_are_refused_with_a_reason(images, labels, classes, message):
    with pytest.raises(DataError, match=message):
        ImageData(images, labels, classes)


def test_augmentation_shifts_and_mirrors_each_image_by_its_own_counter():
    pixels, ids = torch.randint(256, (64, 3, 6, 7), dtype=torch.uint8), torch.arange(100, 164)
    augment = Augment(pad=2, flip=True)
    changed = augmented(pixels, ids, augment, 0, 3)
    padded = torch.nn.functional.pad(pixels, (2,) * 4)
    shifts = set()
    for image, out in zip(padded, changed, strict=True):
        found = [
            (dy, dx, mirror)
            for dy in range(5)
            for dx in range(5)
            for mirror in (False, True)
            if torch.equal(out.flip(-1) if mirror else out, image[:, dy : dy + 6, dx : dx + 7])
        ]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) > 25
    alone = torch.cat([augmented(p[None], i[None], augment, 0, 3) for p, i in zip(pixels, ids, strict=True)])
    assert torch.equal(alone, changed)
    assert not torch.equal(augmented(pixels, ids, augment, 0, 4), changed)


def test_no_augmentation_leaves_the_pixels_alone():
    assert augmented(PIXELS, LABELS, Augment(), 0, 0) is PIXELS


@pytest.mark.parametrize(("images", "labels"), [("meta", "cpu"), ("cpu", "meta")])
def test_data_on_a_device_are_refused(images, labels):
    # "meta" stands for a GPU: fingerprints and indexing expect the CPU, and failed there without a word about why.
    with pytest.raises(DataError, match="on the CPU"):
        ImageData(torch.zeros(2, 1, 4, 4, device=images), torch.zeros(2, dtype=torch.int64, device=labels), ("a",))


@pytest.mark.parametrize("bad", [{"pad": -1}, {"pad": 1.5}, {"flip": "no"}])
def test_an_augmentation_that_cannot_be_is_refused(bad):
    with pytest.raises(ConfigError, match="Augment"):
        Augment(**bad)
