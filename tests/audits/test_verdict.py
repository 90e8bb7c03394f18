"""Verdicts: false alarms under the null, power where something is planted, and what the audit says it needs."""

import pytest
import torch

from expunge.audits.verdict import (
    CANNOT_TELL,
    DISTINGUISHABLE,
    INDISTINGUISHABLE,
    area_contrast,
    class_contrasts,
    judge,
    share_contrast,
)
from expunge.metrics import auc


def model_scores(rng, difficulty, *, shift=0.0, wobble=0.1, own=0.3):
    """Scores of one trained model: what is common to all models, what is this one's alone, and a shift of members that training itself draws."""
    members, nonmembers = difficulty
    drawn = shift + wobble * torch.randn((), generator=rng)
    return (
        members + own * torch.randn(len(members), generator=rng) + drawn,
        nonmembers + own * torch.randn(len(nonmembers), generator=rng),
    )


def difficulties(rng, n_members, n_nonmembers):
    return torch.randn(n_members, generator=rng), torch.randn(n_nonmembers, generator=rng)


def verdict_of(seed, *, shift, n=(200, 800), n_references=3, wobble=0.1, attacks=2):
    rng = torch.Generator().manual_seed(seed)
    contrasts = []
    for k in range(attacks):
        common = difficulties(rng, *n)
        mine = model_scores(rng, common, shift=shift, wobble=wobble)
        references = [model_scores(rng, common, wobble=wobble) for _ in range(n_references)]
        contrasts.append(area_contrast(f"attack {k}", mine, *references))
    return judge("unlearned", contrasts, n_references=n_references)


@pytest.mark.parametrize("n_references", [3, 6])
def test_a_model_that_is_one_more_retrained_model_is_called_distinguishable_in_at_most_five_per_cent(n_references):
    alarms = sum(verdict_of(seed, shift=0.0, n_references=n_references).word == DISTINGUISHABLE for seed in range(60))
    assert alarms <= 8  # 60 draws at 5 %: 8 or fewer with probability 0.997


def test_without_the_spread_between_retrained_models_the_null_would_alarm_far_more_often():
    """The faulty verdict: a paired interval over samples alone, against the mean of the retrained models."""

    def alarms(seed):
        contrast = verdict_of(seed, shift=0.0, attacks=1).contrasts[0]
        return abs(contrast.gap.value) > 1.96 * (contrast.member_variance + contrast.nonmember_variance) ** 0.5

    assert sum(alarms(seed) for seed in range(100)) > 20


def test_a_planted_difference_is_found():
    assert verdict_of(0, shift=2.0, n_references=4).word == DISTINGUISHABLE


def test_many_models_and_samples_that_agree_are_indistinguishable():
    verdict = verdict_of(1, shift=0.0, n=(20_000, 20_000), n_references=10, wobble=0.01)
    assert verdict.word == INDISTINGUISHABLE and "AUC difference within ±0.02, 95 %; 10 retrained models" in verdict.text
    assert not verdict.needs


def test_few_samples_cannot_tell_and_say_what_is_needed():
    verdict = verdict_of(2, shift=0.0)
    assert verdict.word == CANNOT_TELL and verdict.needs and any(need in verdict.text for need in verdict.needs)


def test_what_an_audit_says_it_needs_is_enough():
    """With so many retrained models and test samples as it asked for, and the same gap and errors, the interval decides."""
    contrast = share_contrast("p", torch.full((4000,), 0.505), [torch.full((4000,), v) for v in (0.46, 0.51, 0.53)])
    verdict = judge("unlearned", [contrast], n_references=3)
    assert verdict.word == CANNOT_TELL and "more retrained models" in verdict.needs[0]
    more = 3 + int(verdict.needs[0].split()[0])
    gap = abs(contrast.gap.value)

    def decides(references):
        return gap + contrast.reach(references) <= contrast.margin or gap > contrast.chance(1, references)

    assert decides(more) and not decides(more - 1)


def test_what_few_models_do_not_decide_is_said_with_its_cause():
    few = share_contrast("p", torch.arange(60) % 2 * 1.0, [torch.full((60,), 0.5)] * 3)  # 60 samples: ± 0.13, whatever the models
    assert "more forget samples than there are" in judge("unlearned", [few], n_references=3).needs[0]
    many = share_contrast("p", torch.full((10**5,), 0.56), [torch.full((10**5,), v) for v in (0.44, 0.5, 0.56)])
    assert "more than 30 retrained models" in judge("unlearned", [many], n_references=3).needs[0]


@pytest.mark.parametrize("n_references", [1, 2])
def test_too_few_retrained_models_cannot_tell_whatever_the_numbers(n_references):
    verdict = verdict_of(0, shift=5.0, n_references=n_references)
    assert verdict.word == CANNOT_TELL and f"{3 - n_references} more retrained model" in verdict.text


def test_the_gap_is_to_the_mean_of_the_retrained_models_and_its_interval_is_the_formula():
    rng = torch.Generator().manual_seed(0)
    common = difficulties(rng, 200, 300)
    models = [model_scores(rng, common) for _ in range(4)]
    contrast = area_contrast("x", *models)
    areas = torch.tensor([auc(*scores).value for scores in models], dtype=torch.float64)
    assert contrast.gap.value == pytest.approx(float(areas[0] - areas[1:].mean()))
    assert contrast.spread == pytest.approx(float(areas[1:].std()))
    z, t = 1.959964, 4.302653  # Student, 2 degrees of freedom
    images = contrast.member_variance + contrast.nonmember_variance
    assert contrast.gap.high - contrast.gap.value == pytest.approx((z**2 * images + t**2 * contrast.spread**2 / 3) ** 0.5, rel=1e-5)
    assert contrast.chance(1) == pytest.approx(max(z * images**0.5, t * contrast.spread * (1 + 1 / 3) ** 0.5), rel=1e-5)


def test_the_variance_over_samples_is_that_of_many_draws_of_samples():
    rng, gaps, claimed = torch.Generator().manual_seed(0), [], []
    for _ in range(300):
        common = difficulties(rng, 100, 150)
        mine, other = (model_scores(rng, common, shift=s, wobble=0.0) for s in (0.5, 0.0))
        contrast = area_contrast("x", mine, other)
        gaps.append(contrast.gap.value)
        claimed.append(contrast.member_variance + contrast.nonmember_variance)
    assert torch.tensor(gaps).var() == pytest.approx(sum(claimed) / 300, rel=0.2)  # 300 draws know a variance to 8 %


def test_no_interval_has_zero_width_where_all_samples_agree():
    ones = torch.ones(50)
    contrast = share_contrast("p", ones, [ones, ones, ones])
    assert contrast.gap.value == 0 and contrast.gap.high - contrast.gap.low > 0.05


def test_a_forgotten_class_is_held_against_its_own_name_and_its_neighbour():
    labels = torch.zeros(200, dtype=torch.int64)
    retrained = [torch.tensor([0.0, 0.0, 5.0]).repeat(200, 1) + 0.01 * k for k in range(3)]
    knows = torch.tensor([5.0, 0.0, 0.0]).repeat(200, 1)
    own, neighbour = class_contrasts(knows, *retrained, labels=labels, names=["cat", "dog", "fox"])
    assert own.name == "probability of cat" and neighbour.name == "probability of fox on images of cat"
    assert own.gap.value > 0.9 and neighbour.gap.value < -0.9
    assert judge("unlearned", [own, neighbour], n_references=3).word == DISTINGUISHABLE


def test_a_verdict_is_plain_values():
    plain = verdict_of(0, shift=0.0).to_dict()
    assert set(plain) == {"model", "word", "text", "contrasts", "needs"}
    assert {"name", "kind", "gap", "margin"} <= set(plain["contrasts"][0]) and plain["contrasts"][0]["margin"] == 0.02
