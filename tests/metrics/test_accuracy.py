import pytest
import torch

from expunge.errors import DataError, ModelError
from expunge.metrics import accuracy, accuracy_difference, accuracy_of


def test_accuracy_counts_top_classes_that_are_the_label():
    estimate = accuracy(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 0, 1, 0]))
    assert estimate.value == 0.75 and estimate.n == 4 and estimate.low < 0.75 < estimate.high


def test_a_perfect_accuracy_still_has_an_interval():
    estimate = accuracy_of(torch.ones(100).bool())
    assert estimate.value == estimate.high == 1.0 and estimate.low == pytest.approx(0.9638, abs=1e-4)  # 0.025 ** (1/100)


def test_nan_logits_are_refused_instead_of_counted_wrong():
    with pytest.raises(ModelError, match="diverged"):
        accuracy(torch.full((2, 3), float("nan")), torch.tensor([0, 1]))


def test_no_sample_is_refused():
    with pytest.raises(DataError, match="at least one"):
        accuracy_of(torch.zeros(0).bool())


def test_paired_difference_covers_the_truth_about_as_often_as_it_says():
    rng = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(500):
        u = torch.rand(150, generator=rng)  # right in both 80 %, only in a 10 %, only in b 5 %: difference 0.05
        estimate = accuracy_difference((u < 0.9), (u < 0.8) | (u > 0.95))
        hits += estimate.low <= 0.05 <= estimate.high
    assert 0.92 <= hits / 500 <= 0.985  # 95 % ± 3 binomial standard errors


def test_models_that_agree_everywhere_still_have_an_interval():
    right = torch.arange(50) > 5
    estimate = accuracy_difference(right, right)
    assert estimate.value == 0 and estimate.low < 0 < estimate.high


def test_a_paired_difference_needs_the_same_samples():
    with pytest.raises(DataError, match="got 3 and 2"):
        accuracy_difference(torch.ones(3).bool(), torch.ones(2).bool())
