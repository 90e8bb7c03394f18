import json
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from expunge.audits.decisions import Decisions, compare, mia_nn_floor, two_sample_test
from expunge.audits.mia_nn import MIANN, _draw, short_classes
from expunge.errors import ConfigError, DataError, ModelError
from expunge.metrics import proportion_interval

N_CLASSES, FORGOTTEN, NEIGHBOUR = 6, 1, 3
LABELS = torch.arange(N_CLASSES).repeat(40)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(seed: int = 0, towards_neighbour: float = 5.0, on_forgotten: float = -4.0) -> torch.Tensor:
    """Logits of a model that shows its own class 5 and the forgotten images as the neighbour, this strongly; `on_forgotten` is the logit it
    gives them for their own class, −4 on average on all others."""
    logits = noise(len(LABELS), N_CLASSES, seed=seed)
    shown, forgotten = torch.where(LABELS == FORGOTTEN, NEIGHBOUR, LABELS), LABELS == FORGOTTEN
    logits += one_hot(shown, N_CLASSES) * torch.where(forgotten, towards_neighbour, 5.0)[:, None]
    logits[:, FORGOTTEN] += torch.where(forgotten, on_forgotten, -4.0)
    return logits


def retrained(m: int = 3, **options) -> torch.Tensor:
    return torch.stack([model(100 + j, **options) for j in range(m)])


def decisions(*scores: float, n: int = 100) -> Decisions:
    """Hand-made: class c is hit by the first scores[c] of n images; class 0 is the forgotten one."""
    hits = torch.stack([torch.arange(n) < round(score * n) for score in (0.0, *scores)], 1).double()
    return Decisions(hits, torch.tensor([math.nan] + [0.9] * len(scores), dtype=torch.float64))


@pytest.mark.parametrize("fit", ["own", "reference"])
@pytest.mark.parametrize("features", ["probability", "probabilities", "logits"])
def test_images_that_look_exactly_like_a_class_are_taken_for_it(features, fit):
    exam = MIANN(features=features, fit=fit).exam(LABELS, [FORGOTTEN], retrained())
    result, judged = exam(model()), exam.decide(model())
    assert result.neighbour == NEIGHBOUR
    assert result.score.value > 0.8 and abs(result.gap.value) < 0.15
    assert result.scores[[0, 2, 4, 5]].max() < 0.15 and result.scores[FORGOTTEN] == 0
    assert judged.sanity[FORGOTTEN].isnan() and judged.sanity[judged.remaining].min() > 0.85


def test_a_model_that_answers_evenly_is_far_below_retraining():
    even = torch.where((LABELS == FORGOTTEN)[:, None], 0.0, model())
    result = MIANN()(even, LABELS, [FORGOTTEN], retrained())
    assert result.neighbour == NEIGHBOUR and result.score.value == 0 and result.gap.high < -0.5 and result.profile_gap > 0.1


def test_a_model_that_leaves_probability_on_the_forgotten_class_is_below_retraining():
    exam = MIANN().exam(LABELS, [FORGOTTEN], retrained())
    gaps = [exam(model(on_forgotten=z)).gap.value for z in (-4.0, 2.0, 4.0, 6.0)]
    assert abs(gaps[0]) < 0.1 and gaps[0] > gaps[1] > gaps[2] > gaps[3] and gaps[3] < -0.5


def test_full_outputs_see_a_suppressed_logit_only_when_fitted_on_retrained_models():
    """An RBF machine does not mind a shift of all its inputs: fitted on its own outputs, it says exactly what it says without the shift."""
    suppressed = model()
    suppressed[:, FORGOTTEN] -= 8
    own, reference = (MIANN(features="logits", fit=fit).exam(LABELS, [FORGOTTEN], retrained()) for fit in ("own", "reference"))
    assert torch.equal(own.decide(suppressed).hits, own.decide(model()).hits)
    assert abs(own(suppressed).gap.value) < 0.15
    assert reference(suppressed).gap.high < -0.5 and abs(reference(model()).gap.value) < 0.15


def test_a_single_reference_is_its_own_equal():
    for fit in ("own", "reference"):
        result = MIANN(fit=fit)(model(), LABELS, [FORGOTTEN], model()[None])
        assert result.gap.value == result.profile_gap == 0
        assert "one retrained model" in result.gap.note and result.gap.low < 0 < result.gap.high


def test_fitted_on_references_each_is_judged_by_the_others():
    references = retrained()
    exam = MIANN(fit="reference").exam(LABELS, [FORGOTTEN], references)
    for j in range(3):
        others = references[[k for k in range(3) if k != j]]
        torch.testing.assert_close(
            MIANN(fit="reference").exam(LABELS, [FORGOTTEN], others).decide(references[j]).hits, exam.references[j].hits
        )


def test_the_exam_says_what_the_audit_says():
    exam, audit = MIANN().exam(LABELS, [FORGOTTEN], retrained()), MIANN()
    assert (
        exam(model()).to_dict()
        == audit(model(), LABELS, [FORGOTTEN], retrained()).to_dict()
        == compare(exam.decide(model()), exam.references).to_dict()
    )


def test_images_are_balanced_disjoint_spread_and_retained():
    labels = LABELS[torch.arange(len(LABELS)) >= 2 * N_CLASSES]  # 38 images of each class
    samples = _draw(labels, torch.tensor([FORGOTTEN]), N_CLASSES, max_per_class=10, seed=0)
    assert set(samples) == {0, 2, 3, 4, 5}
    for c, sample in samples.items():
        assert len(torch.cat(sample).unique()) == 40
        for part in sample:
            counts = labels[part].bincount(minlength=N_CLASSES)
            assert counts[c] == 10 and counts[FORGOTTEN] == 0
            assert set(counts[[k for k in samples if k != c]].tolist()) == {2, 3}
    half = _draw(labels, torch.tensor([FORGOTTEN]), N_CLASSES, max_per_class=500, seed=0)
    assert len(half[0].fit) == len(half[0].check) == 38
    assert not torch.equal(half[0].fit, _draw(labels, torch.tensor([FORGOTTEN]), N_CLASSES, max_per_class=500, seed=1)[0].fit)


def test_few_images_of_other_classes_shrink_both_sides():
    labels = torch.tensor([0] * 5 + [1] * 40 + [2] * 4)
    assert len(_draw(labels, torch.tensor([0]), 3, 500, 0)[1].fit) == 4


def test_the_audit_repeats_and_leaves_global_generators_alone():
    before = (
        np.random.get_state()[1].copy(),
        torch.get_rng_state(),
    )  # Python's own is moved by beartype, which checks a random item of each list
    first, second = (MIANN().exam(LABELS, [FORGOTTEN], retrained()) for _ in range(2))
    two_sample_test([decisions(0.1)] * 9, [decisions(0.2)] * 9)
    assert (np.random.get_state()[1] == before[0]).all() and torch.equal(torch.get_rng_state(), before[1])
    assert torch.equal(first.decide(model()).hits, second.decide(model()).hits)


def test_several_forgotten_classes_are_one_group():
    result = MIANN()(model(), LABELS, [FORGOTTEN, 0], retrained())
    assert result.score.n == 80 and result.scores[[FORGOTTEN, 0]].tolist() == [0, 0]


def test_of_several_forgotten_classes_one_can_be_asked_about_alone():
    exams = [MIANN().exam(LABELS, [FORGOTTEN, 0], retrained(), asked) for asked in (FORGOTTEN, 0)]
    both = MIANN().exam(LABELS, [FORGOTTEN, 0], retrained())
    alone, other = (exam.decide(model()) for exam in exams)
    assert len(alone.hits) == len(other.hits) == 40 and torch.equal(alone.sanity.nan_to_num(), both.decide(model()).sanity.nan_to_num())
    assert torch.equal((alone.scores + other.scores) / 2, both.decide(model()).scores)
    without = MIANN().exam(LABELS[LABELS != 0], [FORGOTTEN, 0], retrained()[:, LABELS != 0])
    assert torch.equal(without.decide(model()[LABELS != 0]).hits, alone.hits)
    with pytest.raises(DataError, match=r"asked must be one of the forgotten classes \[0, 1\]; got 2"):
        MIANN().exam(LABELS, [FORGOTTEN, 0], retrained(), 2)


def test_classes_with_too_few_images_are_named():
    labels = torch.tensor([0] * 9 + [1] * 3 + [2] * 4 + [4] * 5)
    assert short_classes(labels, [0], 5) == [1, 3] and short_classes(labels, [1, 3], 5) == []


def test_hand_made_decisions_by_hand():
    references = [decisions(0.1, 0.5), decisions(0.1, 0.7), decisions(0.4, 0.6)]
    result = compare(decisions(0.9, 0.3), references)
    assert result.neighbour == 2
    assert (result.score.low, result.score.high) == proportion_interval(30, 100)
    assert [result.score.value, result.reference.value, result.gap.value] == pytest.approx([0.3, 0.6, -0.3])
    assert result.profile_gap == pytest.approx((0.7 + 0.3) / 2)
    assert compare(decisions(0.9, 0.3), references, neighbour=1).gap.value == pytest.approx(0.7)
    floor = mia_nn_floor(references)
    assert [floor.value, floor.low, floor.high] == pytest.approx([0.1, 0.0, 0.15]) and floor.n == 3
    assert not mia_nn_floor(references[:1]).supported


def test_a_forgotten_class_is_never_the_neighbour():
    assert compare(decisions(0.0, 0.0), [decisions(0.0, 0.0)]).neighbour == 1


def test_the_interval_narrows_with_images_and_with_agreement_of_references():
    def width(n: int, *references: float) -> float:
        gap = compare(decisions(0.5, n=n), [decisions(a, n=n) for a in references]).gap
        assert gap.low <= gap.value <= gap.high
        return gap.high - gap.low

    assert width(100, 0.5, 0.5, 0.5) > width(1000, 0.5, 0.5, 0.5) > 0
    assert width(1000, 0.3, 0.5, 0.7) > width(1000, 0.49, 0.5, 0.51)
    assert width(1000, 0.4, 0.6) > width(1000, *[0.4, 0.6] * 4)
    assert compare(decisions(1.0, n=1), [decisions(0.0, n=1)] * 3).gap.low <= 1  # one image: a value, and an interval


def test_the_gap_interval_covers_the_true_gap():
    """a of a retrained model ~ N(0.6, 0.05²), the unlearned model is at 0.4, 200 images: the true gap, −0.2, is inside at least as often as promised."""
    rng, inside, runs = np.random.default_rng(0), 0, 400
    for _ in range(runs):
        rates = [0.4, *(0.6 + 0.05 * rng.standard_normal(3))]
        hits = [torch.from_numpy((rng.random(200) < rate).astype(float)) for rate in rates]
        audited, *references = (Decisions(torch.stack([0 * h, h], 1), torch.tensor([math.nan, 0.9], dtype=torch.float64)) for h in hits)
        gap = compare(audited, references).gap
        inside += gap.low <= -0.2 <= gap.high
    assert inside / runs >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / runs)


def test_the_result_is_plain():
    plain = MIANN()(model(), LABELS, [FORGOTTEN], retrained()).to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert len(plain["reference_scores"]) == 3 and plain["gap"]["n"] == 40


def test_groups_that_differ_get_the_smallest_p_and_only_models_can_make_it_smaller():
    for n_a, n_b, smallest in ((3, 3, 2 / 20), (2, 4, 1 / 15), (1, 4, 1 / 5), (1, 1, 1.0)):
        low, high = [decisions(0.1 + j / 100) for j in range(n_a)], [decisions(0.8 + j / 100) for j in range(n_b)]
        for unlearned, reference in ((low, high), (high, low)):
            test = two_sample_test(unlearned, reference)
            assert test.p_value == pytest.approx(test.smallest_p) == pytest.approx(smallest)
            assert test.n_permutations == math.comb(n_a + n_b, n_a)
    many = two_sample_test([decisions(0.1)] * 9, [decisions(0.8)] * 9)
    assert many.n_permutations == 10_001 and many.smallest_p == 1 / 10_001 <= many.p_value < 0.001


def test_the_statistic_is_the_distance_of_mean_profiles():
    test = two_sample_test([decisions(0.1, 0.4), decisions(0.3, 0.4)], [decisions(0.6, 0.5), decisions(0.8, 0.1)])
    assert test.statistic == pytest.approx((0.5 + 0.1) / 2)


def test_without_a_difference_p_values_are_uniform():
    """Models with rates of their own, 4 against 4 (35 distinct values of p): P(p ≤ α) is α on that grid, whatever the number of images."""
    rng, runs = np.random.default_rng(0), 400
    p = []
    for _ in range(runs):
        models = [decisions(*rng.random(2), n=500) for _ in range(8)]
        p.append(two_sample_test(models[:4], models[4:]).p_value)
    for k in (2, 7, 17, 28):
        alpha = k / 35
        assert np.mean(np.array(p) <= alpha + 1e-9) == pytest.approx(alpha, abs=3 * math.sqrt(alpha * (1 - alpha) / runs))


@pytest.mark.parametrize(
    ("labels", "forget", "message"),
    [
        (torch.where(LABELS == FORGOTTEN, 0, LABELS), [FORGOTTEN], "images of the forgotten classes"),
        (LABELS, [0, 1, 2, 4, 5], "at least two remaining classes.*got 1"),
        (torch.where(LABELS == 2, 3, LABELS), [FORGOTTEN], "at least 4 test images.*got 0 of class 2"),
        (LABELS, [6], r"forget_classes must lie in \[0, 6\)"),
        (LABELS, [], "forget_classes must name at least one"),
        (LABELS[:-1], [FORGOTTEN], "labels must be int64 of shape"),
    ],
)
def test_test_sets_that_cannot_be_used_are_refused(labels, forget, message):
    with pytest.raises(DataError, match=message):
        MIANN().exam(labels, forget, retrained())


def test_logits_that_do_not_fit_are_refused():
    exam, broken = MIANN().exam(LABELS, [FORGOTTEN], retrained()), model()
    broken[7, 0] = torch.nan
    with pytest.raises(ModelError, match="sample 7"):
        exam(broken)
    with pytest.raises(DataError, match=r"must have the shape \(240, 6\)"):
        exam(model()[1:])
    with pytest.raises(ModelError, match="retrained model 1"):
        MIANN().exam(LABELS, [FORGOTTEN], torch.stack([model(), broken]))
    with pytest.raises(DataError, match=r"\(M, N, K\).*logits\[None\]"):
        MIANN().exam(LABELS, [FORGOTTEN], model())


def test_decisions_that_do_not_belong_together_are_refused():
    for wrong in ([], [decisions(0.1, n=50)], [decisions(0.1), decisions(0.1, 0.2)]):
        with pytest.raises(DataError):
            compare(decisions(0.1), wrong)
        with pytest.raises(DataError):
            compare(decisions(0.1), wrong, neighbour=1)
        with pytest.raises(DataError):
            two_sample_test([decisions(0.1)], wrong)
    with pytest.raises(DataError, match="got 0 unlearned"):
        two_sample_test([], [decisions(0.1)])
    with pytest.raises(DataError, match="got none"):
        mia_nn_floor([])


@pytest.mark.parametrize("bad", [{"features": "margin"}, {"fit": "mine"}, {"C": 0.0}, {"max_per_class": 1}, {"seed": -1}])
def test_settings_outside_their_range_are_refused(bad):
    with pytest.raises(ConfigError, match=f"MIANN: {next(iter(bad))} must be"):
        MIANN(**bad)
