"""Datasets of users as they come: normalised, augmented, wrapped, or odd. What comes out is always the clean image in [0, 1]."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, IterableDataset
from torch.utils.data import Subset as TorchSubset
from torchvision import transforms as v1
from torchvision.transforms import v2

from expunge.data.from_dataset import from_dataset, normalization_of
from expunge.data.images import Augment, ImageData
from expunge.data.stream import StreamedData
from expunge.errors import ConfigError, DataError
from expunge.models.normalize import with_normalize

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
N, SIDE = 20, 12


class Photos:
    """Like torchvision's CIFAR10: PIL images, a transform, targets and classes."""

    classes = ("ant", "bee", "cow")

    def __init__(self, transform=None, side=SIDE):
        generator = torch.Generator().manual_seed(0)
        self.data = torch.randint(256, (N, side, side, 3), dtype=torch.uint8, generator=generator).numpy()
        self.targets = [k % 3 for k in range(N)]
        self.transform = transform

    def __len__(self):
        return N

    def __getitem__(self, position):
        image = Image.fromarray(self.data[position])
        return (image if self.transform is None else self.transform(image)), self.targets[position]


class Noisy(Photos):
    """Its augmentation is in its own code, where nothing can find it."""

    def __getitem__(self, position):
        image, label = super().__getitem__(position)
        return (image + 0.1 * torch.rand(())).clamp(0, 1), label


class Hidden(Photos):
    """Normalises in its own code."""

    def __getitem__(self, position):
        image, label = super().__getitem__(position)
        return v1.functional.normalize(image, MEAN, STD), label


PIXELS = torch.from_numpy(Photos().data).permute(0, 3, 1, 2).contiguous()


def is_the_clean_set(data) -> bool:
    images = torch.cat([images for images, _ in data.batches(7)])
    return torch.equal(images, PIXELS.float() / 255) and data.labels.tolist() == Photos().targets and data.classes == ("ant", "bee", "cow")


V2_TENSOR = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
PLAIN = {
    "PIL images": None,
    "tensors": v1.ToTensor(),
    "uint8 tensors": v1.PILToTensor(),
    "arrays": np.asarray,
    "v2": v2.Compose(V2_TENSOR),
    "normalised": v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD)]),
    "normalised by v2": v2.Compose([*V2_TENSOR, v2.Normalize(MEAN, STD)]),
    "normalised in a nest": v1.Compose([v1.Compose([v1.ToTensor(), nn.Sequential(v1.Normalize(MEAN, STD))])]),
    "normalised twice": v1.Compose([v1.ToTensor(), v1.Normalize(0.5, 0.5), v1.Normalize(0.1, 2.0)]),
}


@pytest.mark.parametrize("transform", PLAIN.values(), ids=PLAIN.keys())
def test_images_come_back_as_exact_bytes(transform):
    data = from_dataset(Photos(transform))
    assert type(data) is ImageData and data.augment == Augment()
    assert torch.equal(data.images, PIXELS) and is_the_clean_set(data)


SIMPLE = {
    "the usual recipe": (
        v1.Compose([v1.RandomCrop(SIDE, 2), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)]),
        (2, True),
    ),
    "the same in v2": (v2.Compose([v2.RandomCrop(SIDE, 2), v2.RandomHorizontalFlip(), *V2_TENSOR, v2.Normalize(MEAN, STD)]), (2, True)),
    "a crop": (v1.Compose([v1.RandomCrop(SIDE, padding=3), v1.ToTensor()]), (3, False)),
    "a pad and a crop": (v1.Compose([v1.Pad(2), v1.RandomCrop(SIDE), v1.ToTensor()]), (2, False)),
    "a flip of tensors": (v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD), v1.RandomHorizontalFlip()]), (0, True)),
}


@pytest.mark.parametrize(("transform", "expected"), SIMPLE.values(), ids=SIMPLE.keys())
def test_a_padded_crop_and_a_mirror_become_ours_on_resident_data(transform, expected):
    data = from_dataset(Photos(transform))
    assert type(data) is ImageData and data.augment == Augment(*expected)
    assert is_the_clean_set(data)


OTHER = {
    "colours": v1.Compose([v1.ColorJitter(0.5), v1.ToTensor()]),
    "a wide choice": v1.Compose([v1.RandAugment(), v1.RandomRotation(20), v1.ToTensor(), v1.RandomErasing(1.0)]),
    "v2 noise": v2.Compose([v2.RandomApply([v2.ColorJitter(0.5)], p=0.9), *V2_TENSOR, v2.GaussianNoise()]),
    "a rare flip": v1.Compose([v1.RandomHorizontalFlip(0.3), v1.ToTensor()]),
    "a reflecting crop": v1.Compose([v1.RandomCrop(SIDE, 2, padding_mode="reflect"), v1.ToTensor()]),
    "a white crop": v1.Compose([v1.RandomCrop(SIDE, 2, fill=255), v1.ToTensor()]),
    "an oblong padding": v1.Compose([v1.RandomCrop(SIDE, (2, 1)), v1.ToTensor()]),
    "a crop of normalised images": v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD), v1.RandomCrop(SIDE, 2)]),
}


@pytest.mark.parametrize("transform", OTHER.values(), ids=OTHER.keys())
def test_other_augmentations_stay_the_users_for_training(transform):
    data = from_dataset(Photos(transform))
    assert type(data) is StreamedData and data.augment == Augment()
    assert is_the_clean_set(data)
    everything = torch.arange(N)
    varied = [data.fetch_training(everything, seed=0, epoch=epoch) for epoch in range(3)]
    assert not torch.equal(varied[0], varied[1])
    assert torch.equal(varied[0], data.fetch_training(everything, seed=0, epoch=0))
    assert all(v.min() > -1 and v.max() < 2 for v in varied)  # pixels, not normalised values


def test_training_images_are_the_users_own_up_to_the_normalisation():
    dataset = Photos(v1.Compose([v1.ColorJitter(0.5), v1.ToTensor(), v1.Normalize(MEAN, STD), v1.RandomErasing(1.0)]))
    data = from_dataset(dataset)
    torch.manual_seed(5)
    ours = data.fetch_training(torch.arange(4))
    torch.manual_seed(5)
    theirs = torch.stack([dataset[k][0] for k in range(4)])
    wrapped = with_normalize(nn.Identity(), *normalization_of(dataset))
    torch.testing.assert_close(wrapped(ours), theirs, rtol=0, atol=1e-5)  # float32: undoing and redoing a division


CROPS = {
    "crop of larger images": (v1.RandomCrop(SIDE), v1.CenterCrop(SIDE)),
    "resized crop": (v1.RandomResizedCrop(8), v1.Compose([v1.Resize(8), v1.CenterCrop(8)])),
    "resized crop of v2": (v2.RandomResizedCrop((6, 8)), v2.Compose([v2.Resize(8), v2.CenterCrop((6, 8))])),
}


@pytest.mark.parametrize(("random", "central"), CROPS.values(), ids=CROPS.keys())
def test_random_crops_of_larger_images_become_central_ones(random, central):
    data = from_dataset(Photos(v1.Compose([random, v1.ToTensor()]), side=20))
    expected = from_dataset(Photos(v1.Compose([central, v1.ToTensor()]), side=20))
    assert type(data) is StreamedData  # a shift of the central crop is not a crop of the larger image
    assert data.fingerprint == expected.fingerprint


def test_the_users_dataset_and_the_generators_are_left_alone():
    certain = v1.RandomHorizontalFlip(1.0)  # it draws a number all the same
    transform = v1.Compose([v1.RandomCrop(SIDE, 2), certain, v1.ToTensor(), v1.Normalize(MEAN, STD)])
    dataset, parts = Photos(transform), list(transform.transforms)
    before = torch.get_rng_state()
    from_dataset(dataset)
    assert torch.equal(torch.get_rng_state(), before)
    assert dataset.transform is transform and transform.transforms == parts


def test_a_dataset_of_torchvision_works(tmp_path):
    for k in range(4):
        folder = tmp_path / ["ant", "bee", "cow"][k % 3]
        folder.mkdir(exist_ok=True)
        Image.fromarray(Photos().data[k]).save(folder / f"{k}.png")
    transform = v1.Compose([v1.RandomCrop(SIDE, 1), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)])
    data = from_dataset(torchvision.datasets.ImageFolder(tmp_path, transform))
    assert data.classes == ("ant", "bee", "cow") and data.labels.tolist() == [0, 0, 1, 2] and data.augment == Augment(1, True)
    assert torch.equal(data.images, PIXELS[[0, 3, 1, 2]])


def test_parts_and_joined_sets_are_walked():
    dataset = Photos(v1.Compose([v1.RandomCrop(SIDE, 2), v1.ToTensor(), v1.Normalize(MEAN, STD)]))
    joined = ConcatDataset([TorchSubset(dataset, range(5, N)), TorchSubset(dataset, range(5))])
    data = from_dataset(joined)
    assert type(data) is ImageData and data.augment == Augment(2) and data.classes == ("ant", "bee", "cow")
    assert torch.equal(data.images, PIXELS.roll(-5, 0))
    assert data.labels.tolist() == [k % 3 for k in [*range(5, N), *range(5)]]


def test_a_wrapper_with_its_own_transform_is_walked():
    class Wrapper:
        def __init__(self, dataset, transform):
            self.dataset, self.transform = dataset, transform

        def __len__(self):
            return len(self.dataset)

        def __getitem__(self, position):
            image, label = self.dataset[position]
            return self.transform(image), label

    wrapped = Wrapper(Photos(v1.RandomHorizontalFlip()), v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD)]))
    data = from_dataset(wrapped)
    assert data.augment == Augment(0, True) and is_the_clean_set(data)
    assert normalization_of(wrapped) == (MEAN, STD)


def test_parts_normalised_differently_are_refused():
    joined = ConcatDataset([Photos(PLAIN["normalised"]), Photos(PLAIN["tensors"])])
    with pytest.raises(DataError, match="all parts of a dataset must be normalised alike"):
        from_dataset(joined)


def test_what_was_found_can_be_asked_for():
    assert normalization_of(Photos(PLAIN["tensors"])) is None
    assert normalization_of(Photos(PLAIN["normalised in a nest"])) == (MEAN, STD)
    mean, std = normalization_of(Photos(PLAIN["normalised twice"]))
    assert mean == pytest.approx((0.55,) * 3) and std == pytest.approx((1.0,) * 3)  # ((x − .5)/.5 − .1)/2 = x − .55


def test_a_hidden_normalisation_is_undone_when_it_is_named():
    hidden = Hidden(v1.ToTensor())
    with pytest.raises(DataError, match=r"values from -.*pass mean= and std= to from_dataset, and wrap the model"):
        from_dataset(hidden)
    data = from_dataset(hidden, mean=MEAN, std=STD)
    assert torch.equal(data.images, PIXELS)


def test_a_hidden_normalisation_under_a_padded_crop_is_undone_too():
    data = from_dataset(Hidden(v1.Compose([v1.RandomCrop(SIDE, 2), v1.ToTensor()])), mean=MEAN, std=STD)
    assert data.augment == Augment(2) and is_the_clean_set(data)


def test_a_dataset_that_keeps_normalised_images_is_undone():
    class Cached(Photos):
        def __init__(self, transform):
            super().__init__(transform)
            self.cache = [super(Cached, self).__getitem__(k) for k in range(N)]

        def __getitem__(self, position):
            return self.cache[position]

    assert is_the_clean_set(from_dataset(Cached(PLAIN["normalised"])))


def test_given_numbers_that_contradict_the_dataset_are_refused():
    with pytest.raises(DataError, match="must agree with the Normalize found"):
        from_dataset(Photos(PLAIN["normalised"]), mean=(0.5, 0.5, 0.5), std=STD)
    assert is_the_clean_set(from_dataset(Photos(PLAIN["normalised"]), mean=MEAN, std=STD))
    with pytest.raises(DataError, match="to undo mean and std of 3 channels, float images of as many are expected"):
        from_dataset(Photos(), mean=MEAN, std=STD)


def test_hidden_augmentation_needs_a_clean_dataset():
    with pytest.raises(DataError, match=r"item 0 changed between two readings, .* Pass clean="):
        from_dataset(Noisy(v1.ToTensor()))
    data = from_dataset(Noisy(v1.ToTensor()), clean=Photos(PLAIN["normalised"]))
    assert type(data) is StreamedData and is_the_clean_set(data)
    assert not torch.equal(data.fetch_training(torch.arange(N)), data.fetch(torch.arange(N)))
    with pytest.raises(DataError, match="item 0 changed between two readings"):
        from_dataset(Photos(v1.ToTensor()), clean=Noisy(v1.ToTensor()))


def test_a_crop_of_a_hidden_augmentation_is_not_taken_for_all_of_it():
    noisy = Noisy(v1.Compose([v1.RandomCrop(SIDE, 2), v1.ToTensor()]))
    assert type(from_dataset(noisy, clean=Photos())) is StreamedData
    assert type(from_dataset(Photos(noisy.transform), clean=Photos())) is ImageData


def test_an_augmentation_of_a_few_samples_is_noticed_beside_a_crop():
    class FewNoisy(Noisy):
        def __getitem__(self, position):
            return super().__getitem__(position) if position == 1 else Photos.__getitem__(self, position)

    noisy = FewNoisy(v1.Compose([v1.RandomCrop(SIDE, 2), v1.ToTensor()]))
    assert type(from_dataset(noisy, clean=Photos())) is StreamedData


def test_parts_augmented_differently_keep_their_own_augmentation():
    joined = ConcatDataset([Photos(SIMPLE["a crop"][0]), Photos(PLAIN["tensors"])])
    assert type(from_dataset(joined)) is StreamedData


def test_a_transform_that_makes_other_sizes_needs_a_clean_dataset():
    transform = v2.Compose([v2.RandomShortestSize([8, 10]), *V2_TENSOR])
    with pytest.raises(DataError, match="cannot be derived from RandomShortestSize"):
        from_dataset(Photos(transform))
    assert is_the_clean_set(from_dataset(Photos(transform), clean=Photos()))


def test_certain_transforms_are_not_taken_for_random_ones():
    data = from_dataset(Photos(v1.Compose([v1.RandomHorizontalFlip(1.0), v1.GaussianBlur(3, 1.0), v1.ToTensor()])))
    assert type(data) is ImageData and data.augment == Augment()
    expected = v1.functional.to_tensor(
        v1.functional.gaussian_blur(v1.functional.hflip(Image.fromarray(Photos().data[0])), [3, 3], [1.0, 1.0])
    )
    assert torch.equal(data.fetch(torch.tensor([0]))[0], expected)


def test_augment_replaces_the_datasets_own():
    data = from_dataset(Photos(OTHER["colours"]), augment=Augment(1, True))
    assert type(data) is ImageData and data.augment == Augment(1, True) and is_the_clean_set(data)


def test_clean_must_be_of_the_same_length():
    with pytest.raises(DataError, match="clean must hold the same 20 samples as dataset; got 3"):
        from_dataset(Photos(), clean=TorchSubset(Photos(), range(3)))


@pytest.mark.parametrize("name", ["PIL images", "normalised"])
def test_above_the_memory_limit_images_are_streamed(name):
    n_bytes = PIXELS.nbytes
    assert type(from_dataset(Photos(PLAIN[name]), memory_limit=n_bytes)) is ImageData
    data = from_dataset(Photos(PLAIN[name]), memory_limit=n_bytes - 1)
    assert type(data) is StreamedData and is_the_clean_set(data)
    assert data.fingerprint == ImageData(PIXELS, data.labels, data.classes).fingerprint


def test_a_streamed_set_keeps_its_crop_and_mirror():
    data = from_dataset(Photos(SIMPLE["the usual recipe"][0]), memory_limit=0)
    assert type(data) is StreamedData and data.training_view is None and data.augment == Augment(2, True)
    assert is_the_clean_set(data)


def test_images_that_are_no_bytes_stay_floats():
    def shade(image):  # the first is black, and so a byte; the others are not
        return v1.functional.to_tensor(image) * 0.999

    dataset = Photos(shade)
    dataset.data[0] = 0
    data = from_dataset(dataset)
    assert data.images.dtype == torch.float32
    assert torch.equal(data.images[1:], PIXELS[1:].float() / 255 * 0.999) and not data.images[0].any()
    assert type(from_dataset(dataset, memory_limit=PIXELS.nbytes * 4 - 1)) is StreamedData


def test_class_names_may_be_given():
    assert from_dataset(Photos(), classes=["x", "y", "z"]).classes == ("x", "y", "z")
    with pytest.raises(DataError, match=r"labels must lie in \[0, 2\)"):
        from_dataset(Photos(), classes=["x", "y"])


def test_samples_pass_through():
    data = from_dataset(Photos())
    assert from_dataset(data) is data


class Endless(IterableDataset):
    def __iter__(self):
        yield 1


@pytest.mark.parametrize(("given", "message"), [(Endless(), "got Endless"), (7, "got int"), ([], "at least one sample")])
def test_what_has_no_positions_is_refused(given, message):
    with pytest.raises(DataError, match=message):
        from_dataset(given)


def test_a_list_of_pairs_is_a_dataset():
    data = from_dataset([(torch.zeros(1, 8, 8), 0), (torch.ones(1, 8, 8), torch.tensor(1))])
    assert data.images.flatten(1).unique(dim=1).tolist() == [[0], [255]] and data.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    "options",
    [{"mean": MEAN}, {"mean": (0.5,), "std": (0.0,)}, {"mean": (0.5,), "std": (1, 1)}, {"memory_limit": -1}, {"memory_limit": 1.5}],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError, match="must be"):
        from_dataset(Photos(), **options)


@pytest.mark.data
def test_cifar10_behind_the_usual_transforms_is_cifar10(real_data, cifar10):
    transform = v1.Compose([v1.RandomCrop(32, padding=4), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)])
    dataset = TorchSubset(torchvision.datasets.CIFAR10(real_data, train=False, transform=transform), range(500))
    data = from_dataset(dataset)
    expected = cifar10.test
    assert torch.equal(data.images, expected.images[:500]) and torch.equal(data.labels, expected.labels[:500])
    assert data.augment == expected.augment and data.classes == expected.classes
