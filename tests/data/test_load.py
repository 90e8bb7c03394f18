"""Data by name or path: the sets are what they should be, and files that are not right say what is wrong."""

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.data.images import Augment
from expunge.data.load import DATASETS, load_data
from expunge.errors import ConfigError, DataError, MissingError
from expunge.models.architecture import channel_statistics


def test_digits_are_scikit_learns_scaled_to_bytes_and_split_in_equal_shares():
    from sklearn.datasets import load_digits

    train, test = load_data("digits")
    assert (len(train), len(test), train.shape) == (1000, 797, (1, 8, 8))
    assert int(train.images.max()) == 255 and int(train.images.min()) == 0
    share = train.labels.bincount() / (train.labels.bincount() + test.labels.bincount())
    assert ((share - 1000 / 1797).abs() < 0.005).all()
    found = load_digits()
    whole = {image.astype(np.uint8).tobytes(): label for image, label in zip(np.rint(found.images * 255 / 16), found.target, strict=True)}
    rows = {image.numpy().tobytes(): int(label) for part in (train, test) for image, label in zip(part.images, part.labels, strict=True)}
    assert rows == whole


def test_the_split_of_digits_never_changes():
    train, _ = load_data("digits")
    # Made by this code on 2026-11-21, NumPy 2.4, scikit-learn 1.9: published results refer to this split.
    assert train.fingerprint.startswith("5c59c50b")


def test_augment_replaces_the_sets_own():
    assert load_data("digits").train.augment == Augment()
    pair = load_data("digits", augment=Augment(pad=1))
    assert pair.train.augment == pair.test.augment == Augment(pad=1)


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(MissingError, match=r"no dataset named 'cifar_10'; did you mean 'cifar10'\? .*\.npz file or a folder"):
        load_data("cifar_10")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_a_set_that_is_absent_says_where_its_files_go(tmp_path, name):
    with pytest.raises(DataError, match=r"is not below .*put the official files there: .*(MNIST|cifar-10-batches-py|cifar-100-python)/"):
        load_data(name, root=tmp_path, download=False)


@pytest.mark.parametrize("error", [RuntimeError("Error downloading train-images"), OSError("<urlopen error no network>")])
def test_a_failed_download_says_where_the_files_go(tmp_path, monkeypatch, capsys, error):
    def fail(self):
        print("Failed to download (trying next)")
        raise error

    monkeypatch.setattr("torchvision.datasets.MNIST.download", fail)
    with pytest.raises(DataError, match=r"could not be downloaded \(.*(Error downloading|no network).*put the official files there"):
        load_data("mnist", root=tmp_path)
    assert capsys.readouterr().out == ""  # stdout is for results


def arrays(**changes):
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(256, size=(6, 8, 9, 3), dtype=np.uint8),
        "labels": np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8),
        "test_images": rng.integers(256, size=(3, 8, 9, 3), dtype=np.uint8),
        "test_labels": np.array([2, 1, 0]),
        "classes": np.array(["a", "b", "c"]),
    } | changes


def save(path, **changes):
    np.savez(path, **{key: value for key, value in arrays(**changes).items() if value is not None})
    return path


def test_arrays_come_back_channels_first(tmp_path):
    train, test = load_data(save(tmp_path / "own.npz"))
    assert (train.shape, test.shape, train.classes) == ((3, 8, 9), (3, 8, 9), ("a", "b", "c"))
    assert np.array_equal(train.images.numpy(), arrays()["images"].transpose(0, 3, 1, 2))
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2] and test.labels.tolist() == [2, 1, 0]
    assert train.augment == Augment()


def test_arrays_may_be_grey_or_channels_first_or_floats(tmp_path):
    colour = arrays()
    grey = save(tmp_path / "grey.npz", images=colour["images"][..., 0], test_images=colour["test_images"][..., 0])
    assert load_data(grey).train.shape == (1, 8, 9)
    first = save(tmp_path / "first.npz", **{k: colour[k].transpose(0, 3, 1, 2) for k in ("images", "test_images")})
    assert load_data(first).train.fingerprint == load_data(save(tmp_path / "last.npz")).train.fingerprint
    floats = save(tmp_path / "floats.npz", **{k: colour[k] / 255 for k in ("images", "test_images")})
    assert load_data(floats).train.images.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"test_labels": None},
            r"arrays images, labels, test_images, test_labels, classes; got classes, images, labels, test_images\.",
        ),
        ({"labels": np.array([0, 1, 2, 0, 1, 3])}, r"labels must lie in \[0, 3\), the number of class names; got 3"),
        ({"labels": np.array([0.0, 1, 2, 0, 1, 2])}, "labels must be integers .* got float64"),
        ({"labels": np.array([0, 1])}, r"labels must be int64 of shape \(6,\)"),
        ({"images": np.zeros((6, 8, 9, 5), np.uint8)}, "1 or 3 channels, on axis 1 or 3"),
        ({"images": np.zeros((6, 3, 9, 3), np.uint8)}, "1 or 3 channels, on axis 1 or 3"),
        ({"images": np.zeros((6, 8, 9, 3), np.int64)}, "must be uint8, or floats in"),
        ({"images": np.full((6, 8, 9, 3), 200.0)}, r"float images must lie in \[0, 1\]"),
        ({"images": np.zeros((6, 8, 8, 3), np.uint8)}, "images and test_images must have one shape"),
        ({"classes": np.array(["a", "b", "a"])}, "class names must be unique"),
        ({"classes": np.array(["a", None, "c"], dtype=object)}, "cannot be read as an .npz file of plain arrays"),
    ],
)
def test_arrays_that_do_not_fit_are_explained(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        load_data(save(tmp_path / "own.npz", **changes))


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_damaged_npz_is_named(tmp_path, content):
    path = save(tmp_path / "own.npz")
    path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    with pytest.raises(DataError, match=r"own\.npz"):
        load_data(path)


def image_folder(root, *, mode="RGB", size=(9, 8), suffix="png"):
    rng = np.random.default_rng(0)
    for part, n in ("train", 3), ("test", 2):
        for name in ("bee", "ant"):
            folder = root / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for k in range(n):
                pixels = rng.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).convert(mode).save(folder / f"{k}.{suffix}")
    return root


def test_a_folder_gives_sorted_classes_and_exact_pixels(tmp_path):
    train, test = load_data(image_folder(tmp_path))
    assert (len(train), len(test), train.shape, train.classes) == (6, 4, (3, 8, 9), ("ant", "bee"))
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = np.asarray(Image.open(tmp_path / "train" / "bee" / "1.png")).transpose(2, 0, 1)
    assert np.array_equal(train.images[4].numpy(), expected)


def test_a_grey_folder_stays_grey_and_a_mixed_one_becomes_colour(tmp_path):
    image_folder(tmp_path, mode="L")
    assert load_data(tmp_path).train.shape == (1, 8, 9)
    Image.new("RGB", (9, 8), (10, 20, 30)).save(tmp_path / "test" / "ant" / "0.png")
    train, test = load_data(tmp_path)
    assert train.shape == (3, 8, 9)
    assert torch.equal(train.images[:, 0], train.images[:, 2])
    assert test.images[0, :, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1"])
def test_every_mode_of_png_is_read(tmp_path, mode):
    shape = load_data(image_folder(tmp_path, mode=mode)).train.shape
    assert shape == ((1, 8, 9) if mode in ("LA", "1") else (3, 8, 9))


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    image_folder(tmp_path, mode="L")
    Image.fromarray(np.full((8, 9), 128 * 257, np.uint16)).save(tmp_path / "train" / "ant" / "0.png")
    assert load_data(tmp_path).train.images[0].unique().tolist() == [128]


def test_other_files_in_a_folder_are_skipped(tmp_path):
    image_folder(tmp_path)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "ant" / ".hidden.png").write_text("not an image")
    (tmp_path / "train" / ".cache").mkdir()
    assert len(load_data(tmp_path).train) == 6


def test_a_broken_image_is_named(tmp_path):
    image_folder(tmp_path, size=(64, 64))
    path = tmp_path / "train" / "bee" / "1.png"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"bee.1\.png cannot be read as an image"):
        load_data(tmp_path)
    path.write_bytes(b"text")
    with pytest.raises(DataError, match=r"bee.1\.png cannot be read as an image"):
        load_data(tmp_path)


def test_images_of_several_sizes_need_size(tmp_path):
    image_folder(tmp_path)
    Image.new("RGB", (20, 10), (10, 20, 30)).save(tmp_path / "train" / "ant" / "9.png")
    with pytest.raises(DataError, match=r"got 8×9 and 10×20 .*Pass size=\(H, W\)"):
        load_data(tmp_path)
    train, _ = load_data(tmp_path, size=(16, 12))
    assert train.shape == (3, 16, 12)
    assert train.images[3].flatten(1).unique(dim=1).flatten().tolist() == [10, 20, 30]


def test_a_folder_of_another_layout_is_explained(tmp_path):
    (tmp_path / "ant").mkdir()
    with pytest.raises(DataError, match=r"train/CLASS/… and test/CLASS/…; got ant\. Move.*n_test=N"):
        load_data(tmp_path)
    image_folder(tmp_path)
    (tmp_path / "test" / "wasp").mkdir()
    with pytest.raises(DataError, match=r"no other classes than train; got wasp.*train'?, n_test=N"):
        load_data(tmp_path)
    (tmp_path / "test" / "wasp").rmdir()
    for file in (tmp_path / "test").rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match="got none with a suffix"):
        load_data(tmp_path)


def test_a_folder_without_a_test_set_holds_out_images_of_each_class(tmp_path):
    def held_out(root):
        train, test = load_data(root, n_test=2)
        assert train.classes == test.classes == tuple(sorted(p.name for p in root.iterdir()))
        assert (test.labels.bincount() == 2).all() and (train.labels.bincount() == 3).all()
        seen, unseen = ({image.numpy().tobytes() for image in part.images} for part in (train, test))
        assert len(seen | unseen) == 5 * len(train.classes)  # every image is in one of the two
        return unseen

    rng = np.random.default_rng(0)

    def person(name):
        (tmp_path / name).mkdir()
        for k in range(5):
            Image.fromarray(rng.integers(256, size=(8, 9), dtype=np.uint8)).save(tmp_path / name / f"{k}.png")

    person("ann"), person("cai")
    before = held_out(tmp_path)
    person("ben")
    assert before < held_out(tmp_path)  # another class changes nothing for these
    with pytest.raises(DataError, match="more than n_test=5 images; got 5 of 'ann'"):
        load_data(tmp_path, n_test=5)


def test_n_test_is_for_folders_without_a_test_set(tmp_path):
    for wrong in (0, 1.5, True):
        with pytest.raises(ConfigError, match="n_test must be an integer ≥ 1"):
            load_data(tmp_path, n_test=wrong)
    with pytest.raises(ConfigError, match="for folders of images only; got 2 with 'digits'"):
        load_data("digits", n_test=2)
    with pytest.raises(DataError, match=r"image files in its class folders; got none"):
        load_data(tmp_path, n_test=1)
    with pytest.raises(ConfigError, match="has train/ and test/"):
        load_data(image_folder(tmp_path), n_test=1)


def test_size_is_for_folders_only(tmp_path):
    with pytest.raises(ConfigError, match="for folders of images only"):
        load_data("digits", size=(8, 8))
    with pytest.raises(ConfigError, match="height, width"):
        load_data(image_folder(tmp_path), size=(8, 0))


def test_every_set_describes_itself():
    assert list(DATASETS) == sorted(DATASETS)
    assert all(load.__doc__ for load in DATASETS.values())


@pytest.mark.data
def test_cifar10_has_the_published_statistics(cifar10):
    train, test = cifar10
    assert (len(train), len(test), train.shape) == (50_000, 10_000, (3, 32, 32))
    assert train.classes[4] == "deer" and train.augment == Augment(pad=4, flip=True)
    mean, std = channel_statistics(train)
    assert mean == (0.4914, 0.4822, 0.4465)  # as in every published recipe
    assert std == (0.247, 0.2435, 0.2616)


@pytest.mark.data
def test_cifar10_as_arrays_is_the_same_set(real_data, cifar10):
    if not (real_data / "cifar10.npz").is_file():
        pytest.skip("no cifar10.npz")
    assert load_data(real_data / "cifar10.npz").test.fingerprint == cifar10.test.fingerprint


@pytest.mark.data
def test_mnist_is_complete(real_data):
    train, test = load_data("mnist", root=real_data, download=False)
    assert (len(train), len(test), train.shape) == (60_000, 10_000, (1, 28, 28))
    assert channel_statistics(train) == ((0.1307,), (0.3081,))  # as in every published recipe
    assert train.classes == tuple("0123456789") and train.augment == Augment(pad=2)


@pytest.mark.data
def test_faces_load_from_a_folder_of_oblong_grey_images(real_data):
    if not (real_data / "orl_faces").is_dir():
        pytest.skip("no orl_faces")
    train, test = load_data(real_data / "orl_faces")
    assert (len(train), len(test), train.shape, len(train.classes)) == (320, 80, (1, 112, 92), 40)
    assert (train.labels.bincount() == 8).all() and (test.labels.bincount() == 2).all()
