import math

import numpy as np
import pytest
import torch

from expunge.errors import DataError
from expunge.metrics import GapInputs, accuracy_difference, auc, average_absolute, average_gap, gaps
from expunge.metrics.bootstrap import ResampledAUC, draw_counts
from expunge.metrics.gap import _resampled_gaps
from expunge.rng import generator


def model(rng: torch.Generator, forget=0.9, retain=0.95, test=0.85, shift=0.0, *, n=(200, 500, 300)) -> GapInputs:
    """Correctness and scores of a model with these true accuracies."""
    right = [torch.rand(size, generator=rng) < p for size, p in zip(n, (forget, retain, test), strict=True)]
    scores = torch.randn(n[0], generator=rng) + shift, torch.randn(n[2], generator=rng)
    return GapInputs(forget=right[0], retain=right[1], test=right[2], forget_scores=scores[0], test_scores=scores[1])


def test_average_absolute_reproduces_the_published_row():
    """AMUN, ICML 2025, table 1, 10 % with retain data: AMUN against Retrain; printed there as 0.62 (a mean over runs)."""
    amun, retrain = (95.45, 99.57, 93.45, 50.18), (94.49, 100.0, 94.33, 50.00)
    assert average_absolute([a - r for a, r in zip(amun, retrain, strict=True)]) == pytest.approx(0.6125, abs=1e-9)


def test_gaps_are_signed_unlearned_minus_retrained():
    rng = generator(0)
    unlearned, retrained = model(rng, forget=1.0, test=0.5, shift=1.0), model(rng)
    result = gaps(unlearned, retrained, replicates=50)
    assert result.forget.value > 0 > result.test.value and result.auc.value > 0.1
    assert result.retain == accuracy_difference(unlearned.retain, retrained.retain)
    values = [result.forget.value, result.retain.value, result.test.value, result.auc.value]
    assert result.average.value == pytest.approx(np.mean(np.abs(values)))


def test_a_model_has_no_gap_to_itself():
    inputs = model(generator(0))
    estimate = average_gap(inputs, inputs, replicates=50)
    assert (estimate.value, estimate.low, estimate.high) == (0, 0, 0)


@pytest.mark.parametrize(("worse", "shift"), [(0.0, 0.0), (0.1, 0.8)])
def test_average_gap_interval_covers_the_truth_at_least_as_often_as_it_says(worse, shift):
    """Also where the true gap is 0, where the percentiles of an absolute value would never cover."""
    rng, hits = generator(1), 0
    truth = average_absolute([worse, worse, worse, 0.5 * math.erf(shift / 2)])  # AUC − ½ = Φ(Δ/√2) − ½
    for _ in range(60):
        unlearned, retrained = model(rng, 0.9 - worse, 0.95 - worse, 0.85 - worse, shift, n=(80, 100, 80)), model(rng, n=(80, 100, 80))
        estimate = average_gap(unlearned, retrained, replicates=100)
        hits += estimate.low <= truth <= estimate.high
        assert estimate.low <= estimate.value <= estimate.high
    assert hits >= 53  # below the 3-sigma line of 95 % of 60


def test_a_gap_without_retain_data_has_three_parts():
    full = model(generator(0)), model(generator(9))
    bare = [GapInputs(forget=x.forget, test=x.test, forget_scores=x.forget_scores, test_scores=x.test_scores) for x in full]
    result = gaps(*bare, replicates=20)
    assert result.retain is None
    assert result.average.value == pytest.approx(np.mean([abs(e.value) for e in (result.forget, result.test, result.auc)]))


def test_resampled_auc_is_that_of_the_repeated_samples():
    rng = generator(2)
    for decimals in (6, 0):  # without ties, with ties
        members, nonmembers = (torch.randn(n, generator=rng, dtype=torch.float64).round(decimals=decimals) for n in (30, 40))
        counts = draw_counts(30, 5, rng), draw_counts(40, 5, rng)
        fast = ResampledAUC(members, nonmembers)(*counts)
        slow = [
            auc(members.repeat_interleave(a.long()), nonmembers.repeat_interleave(b.long())).value for a, b in zip(*counts, strict=True)
        ]
        assert fast.tolist() == pytest.approx(slow, abs=1e-6)


def test_resamples_have_the_spread_of_the_estimates():
    rng = generator(3)
    unlearned, retrained = model(rng, shift=0.5), model(rng)
    drawn = _resampled_gaps(unlearned, retrained, 1000, seed=0)
    result = gaps(unlearned, retrained, replicates=10)
    for column, estimate in zip(drawn.T, (result.forget, result.retain, result.test, result.auc), strict=True):
        assert column.mean() == pytest.approx(estimate.value, abs=0.01)
        assert 2 * 1.96 * column.std() == pytest.approx(estimate.high - estimate.low, rel=0.15)


def test_the_same_seed_gives_the_same_interval():
    rng = generator(4)
    pair = model(rng), model(rng)
    assert average_gap(*pair, replicates=70) == average_gap(*pair, replicates=70) != average_gap(*pair, replicates=70, seed=1)


def test_a_gap_needs_the_same_samples():
    with pytest.raises(DataError, match="retain samples for both models; got 500 and 400"):
        gaps(model(generator(0)), model(generator(0), n=(200, 400, 300)))
    with pytest.raises(DataError, match="one score for each sample"):
        GapInputs(forget=torch.ones(3).bool(), test=torch.ones(2).bool(), forget_scores=torch.zeros(2), test_scores=torch.zeros(2))
