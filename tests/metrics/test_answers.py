import math

import pytest
import torch

from expunge.errors import ConfigError, DataError, ModelError
from expunge.metrics.answers import half_width, mean_answer, mean_total_variation, predicted_shares, total_variation, total_variation_floor


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logits_of(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


HAND_MADE = logits_of([0.5, 0.3, 0.2], [0.1, 0.1, 0.8])


def test_mean_answer_and_shares_of_hand_made_probabilities():
    torch.testing.assert_close(mean_answer(HAND_MADE), torch.tensor([0.3, 0.2, 0.5], dtype=torch.float64))
    assert predicted_shares(HAND_MADE).tolist() == [0.5, 0.0, 0.5]


def test_total_variation_by_hand():
    """p̄ = (0.4, 0.4, 0.2) and (0.2, 0.2, 0.6): distances 0.1 and 0.2; means (0.3, 0.2, 0.5) and (0.3, 0.3, 0.4): 0.1."""
    references = torch.stack([logits_of([0.6, 0.2, 0.2], [0.3, 0.1, 0.6]), logits_of([0.2, 0.6, 0.2], [0.1, 0.3, 0.6])])
    assert total_variation(HAND_MADE, references).value == pytest.approx(0.15, abs=1e-12)
    assert mean_total_variation(HAND_MADE, references) == pytest.approx(0.1, abs=1e-12)
    assert total_variation_floor(references).value == pytest.approx((0.4 + 0.2) / 2, abs=1e-12)


def test_the_interval_is_that_of_images_and_of_the_jackknife_over_references():
    logits, references = noise(50, 4, seed=1), noise(3, 50, 4, seed=2)
    distances = (logits.softmax(1) - references.softmax(2).mean(0)).abs().sum(1) / 2
    without = torch.tensor([total_variation(logits, references[[j for j in range(3) if j != left]]).value for left in range(3)])
    jackknife = 2 / 3 * float(((without - without.mean()) ** 2).sum())
    estimate = total_variation(logits, references)
    expected = math.sqrt(
        1.959964**2 * float(distances.var()) / 50 + 4.302653**2 * jackknife
    )  # quantiles of z, and of t with 2 degrees of freedom
    assert estimate.high - estimate.value == pytest.approx(expected, rel=1e-6)
    assert estimate.value - estimate.low == pytest.approx(expected, rel=1e-6)
    assert estimate.note is None


def test_one_reference_has_the_term_of_images_alone_and_says_so():
    estimate = total_variation(noise(50, 4, seed=1), noise(1, 50, 4, seed=2))
    assert "one retrained model" in estimate.note and 0 < estimate.low < estimate.value < estimate.high < 1


def test_one_image_has_no_interval():
    estimate = total_variation(HAND_MADE[:1], HAND_MADE[None, 1:])
    assert (estimate.low, estimate.high) == (0, 1) and estimate.value == pytest.approx(0.6)


def test_a_model_has_no_distance_to_itself_and_identical_references_no_floor():
    logits = noise(20, 5)
    estimate, floor = total_variation(logits, logits.expand(3, -1, -1)), total_variation_floor(logits.expand(3, -1, -1))
    assert max(abs(x) for x in (estimate.value, estimate.high, mean_total_variation(logits, logits[None]), floor.value, floor.high)) < 1e-12


def test_distances_lie_in_the_unit_interval_and_that_of_means_is_the_smaller():
    for seed in range(10):
        logits, references = 20 * noise(8, 3, seed=seed), 20 * noise(2, 8, 3, seed=seed + 100)
        estimate = total_variation(logits, references)
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert 0 <= mean_total_variation(logits, references) <= estimate.value


def test_a_constant_added_to_the_logits_of_an_image_changes_nothing():
    logits, references = noise(9, 4), noise(3, 9, 4, seed=1)
    shift = 30 * noise(9, 1, seed=2)
    before, after = total_variation(logits, references), total_variation(logits + shift, references - shift)
    assert after.value == pytest.approx(before.value, abs=1e-12) and after.high == pytest.approx(before.high, abs=1e-12)
    assert torch.equal(predicted_shares(logits), predicted_shares(logits + shift))


def test_the_floor_of_one_model_is_not_supported():
    assert not total_variation_floor(noise(1, 5, 3)).supported


def test_the_interval_covers_the_difference_of_two_noisy_means():
    """4 references and 100 images from normal distributions: the truth, 0, is inside at least as often as promised."""
    inside, runs = 0, 2000
    references, images = noise(runs, 4, seed=1), noise(runs, 100, seed=2) * 5  # both terms have a standard error of 0.5
    for r, x in zip(references, images, strict=True):
        reach = half_width(float(x.var()) / 100, float(r.var()) / 4, 4)
        inside += abs(float(x.mean() - r.mean())) <= reach
    assert 0.94 <= inside / runs <= 0.995  # 0.95 less two standard errors of the simulation; not wastefully wide


@pytest.mark.parametrize("references", [noise(9, 4), noise(2, 8, 4), noise(2, 9, 3), noise(0, 9, 4)])
def test_references_of_another_shape_are_refused(references):
    for function in (total_variation, mean_total_variation):
        with pytest.raises(DataError, match=r"\(M, 9, 4\).*got"):
            function(noise(9, 4), references)


def test_broken_logits_and_levels_are_refused():
    broken = noise(9, 4)
    broken[2, 1] = torch.nan
    with pytest.raises(ModelError, match="sample 2"):
        total_variation(broken, noise(2, 9, 4))
    with pytest.raises(ModelError, match="retrained model 1"):
        total_variation(noise(9, 4), torch.stack([noise(9, 4), broken]))
    with pytest.raises(DataError, match="N, K"):
        mean_answer(noise(9))
    with pytest.raises(DataError, match=r"\(M, N, K\)"):
        total_variation_floor(noise(9, 4))
    with pytest.raises(ConfigError, match="level"):
        total_variation(noise(9, 4), noise(2, 9, 4), level=95.0)
