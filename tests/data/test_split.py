import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.data.images import ImageData
from expunge.data.split import Split, forget_classes, forget_only, forget_random, forget_samples, share_of
from expunge.errors import ConfigError, DataError, MissingError

TRAIN = ImageData(torch.zeros(20, 1, 2, 2, dtype=torch.uint8), torch.arange(20) % 4, ("cat", "deer", "dog", "frog"))


@given(st.sets(st.integers(0, 19), min_size=1, max_size=19))
def test_a_split_is_a_partition(indices):
    split = forget_samples(TRAIN, list(indices))
    forget, retain = set(split.forget.ids.tolist()), set(split.retain.ids.tolist())
    assert forget == indices and forget | retain == set(range(20)) and not forget & retain


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "at least one"),
        ([1, 2, 1, 2], r"2 duplicates \(first: 1\)"),
        ([20], r"\[0, 20\); got 1 outside \(first: 20\)"),
        ([-1], "first: -1"),
        ([0.5], "integers"),
        ([True, False], "integers"),
        ([[1, 2]], "flat list"),
        (["1", "2"], "flat list of integers; got \\['1', '2'\\]"),
        ({1, 2}, "flat list"),
        (None, "flat list"),
        ([[1], [2, 3]], "flat list"),
        ([2**70], "flat list"),
        (list(range(20)), "forget_only"),
    ],
)
def test_bad_indices_get_a_clear_error(indices, message):
    with pytest.raises(DataError, match=message):
        forget_samples(TRAIN, indices)
    with pytest.raises(DataError, match=message):
        Split(TRAIN, indices)


def test_indices_come_from_lists_arrays_and_tensors():
    for indices in ([3, 1], np.array([3, 1]), torch.tensor([3, 1], dtype=torch.int32)):
        assert forget_samples(TRAIN, indices).forget_indices.tolist() == [1, 3]


def test_a_random_forget_set_is_repeatable_and_of_the_size_asked_for():
    assert torch.equal(forget_random(TRAIN, 5, seed=1).forget_indices, forget_random(TRAIN, 5, seed=1).forget_indices)
    assert not torch.equal(forget_random(TRAIN, 5, seed=1).forget_indices, forget_random(TRAIN, 5, seed=2).forget_indices)
    assert len(forget_random(TRAIN, 5).forget) == 5
    for n in (0, 20, -1, 2.5, True):
        with pytest.raises(DataError, match="n must be an integer"):
            forget_random(TRAIN, n)
    for seed in (1.5, -1):
        with pytest.raises(ConfigError, match="seed must be an integer"):
            forget_random(TRAIN, 5, seed=seed)


def test_classes_are_forgotten_by_name_or_number():
    split = forget_classes(TRAIN, ["deer", 3])
    assert split.forget_classes == (1, 3)
    assert set(split.forget.labels.tolist()) == {1, 3} and set(split.retain.labels.tolist()) == {0, 2}
    for several in (np.array([1, 3]), torch.tensor([3, 1]), ("frog", "deer", 1)):
        assert forget_classes(TRAIN, several).forget_classes == (1, 3)
    for one in ("deer", 1, np.int64(1), torch.tensor(1)):
        assert forget_classes(TRAIN, one).forget_classes == forget_only(TRAIN.subset([1, 5]), one).forget_classes == (1,)


def test_a_class_of_one_sample_can_be_forgotten():
    split = forget_classes(TRAIN.subset([0, 1, 2, 4]), ["deer"])
    assert split.forget.ids.tolist() == [1] and split.retain.ids.tolist() == [0, 2, 4]


def test_an_unknown_class_is_named_with_the_nearest_one():
    with pytest.raises(MissingError, match="no class named 'der'; did you mean 'deer'"):
        forget_classes(TRAIN, ["der"])
    with pytest.raises(MissingError, match=r"no class named '4'; known: cat, .*number from 0 to 3\."):
        forget_classes(TRAIN, [4])


def test_classes_that_cannot_be_forgotten_say_why():
    with pytest.raises(
        DataError, match="at least one class for the model to know; got all 4: 'cat', 'deer', 'dog', …. If everything must go"
    ):
        forget_classes(TRAIN, [0, 1, 2, 3])
    for none in ([], (), None, torch.tensor([], dtype=torch.int64)):
        with pytest.raises(DataError, match=r"at least one class with samples; got .*such as \['cat'\]"):
            forget_classes(TRAIN, none)
    cats = TRAIN.subset([0, 1, 4, 5])
    with pytest.raises(DataError, match="got 'frog' without any"):
        forget_classes(cats, ["cat", "frog"])
    with pytest.raises(DataError, match=r"all 4 are of 'cat', 'deer'. .*use forget_only\(train, classes=\[...\]\), or --no-retain"):
        forget_classes(cats, ["cat", "deer"])


def test_without_retain_data_asking_for_them_is_an_error():
    split = forget_only(TRAIN.subset([1, 2]))
    assert len(split.forget) == 2 and split.forget.ids.tolist() == [1, 2]
    with pytest.raises(DataError, match="no retain samples"):
        _ = split.retain


def test_without_retain_data_the_classes_can_be_told_and_are_checked():
    gone = TRAIN.subset([1, 3, 5, 7])  # deer and frogs
    assert forget_only(gone).forget_classes == ()
    assert forget_only(gone, ["frog", 1]).forget_classes == (1, 3)
    with pytest.raises(DataError, match="all classes of the forget set; got 'deer', and samples of 'frog' too"):
        forget_only(gone, ["deer"])
    with pytest.raises(DataError, match="got 'cat' without any"):
        forget_only(gone, ["deer", "frog", "cat"])
    with pytest.raises(DataError, match="got all 4: .*If everything must go, delete the model"):
        forget_only(TRAIN, range(4))
    alone = ImageData(gone.images, torch.zeros(4, dtype=torch.int64), ("deer",))  # as a folder of one class is read
    with pytest.raises(DataError, match="name the model's other classes too"):
        forget_only(alone, ["deer"])


@given(st.floats(0.01, 1), st.integers(0, 99))
def test_a_share_takes_the_same_part_of_each_class(ratio, seed):
    counts = share_of(TRAIN, ratio, seed).labels.bincount(minlength=4).tolist()
    assert len(set(counts)) == 1 and 5 * ratio <= counts[0] < 5 * ratio + 1
