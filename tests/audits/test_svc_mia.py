import json
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from expunge.audits.svc_mia import (
    FEATURES,
    SCALARS,
    SVCMIA,
    SVCMIAResult,
    copied_modified_entropy,
    efficacy_difference,
    efficacy_floor,
    threshold_verdicts,
)
from expunge.errors import ConfigError, DataError, MissingError, ModelError
from expunge.metrics import Estimate
from expunge.metrics.balanced import balanced_accuracy


def sample(n: int, sure: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of images of which a model is this sure."""
    labels = torch.arange(n) % 4
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) + sure * one_hot(labels, 4), labels


RETAIN, TEST = sample(400, 6, 0), sample(400, 2, 1)


def best_by_trying(members, nonmembers) -> float:
    """The best balanced accuracy over all thresholds, one after the other."""
    return max(((members >= t).double().mean() + (nonmembers < t).double().mean()).item() / 2 for t in torch.cat([members, nonmembers]))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("ties", [False, True])
def test_the_threshold_is_the_best_of_all(seed, ties):
    rng = torch.Generator().manual_seed(seed)
    members, nonmembers = torch.randn(37, generator=rng) + 0.8, torch.randn(53, generator=rng)
    if ties:
        members, nonmembers = members.round(), nonmembers.round()
    below = threshold_verdicts(members, nonmembers, members)
    found = ((~below[0]).double().mean() + below[1].double().mean()).item() / 2
    assert found == pytest.approx(best_by_trying(members, nonmembers), abs=1e-12)
    assert torch.equal(below[0], below[2])


def test_no_threshold_is_made_up_where_none_beats_guessing():
    assert threshold_verdicts(torch.zeros(5), torch.zeros(7), torch.zeros(2)) is None
    assert threshold_verdicts(torch.tensor([0.0]), torch.tensor([1.0]), torch.zeros(1)) is None  # members below: the wrong side
    constant = torch.zeros(20, 4), torch.arange(20) % 4
    result = SVCMIA()(constant, constant, constant)
    assert all(not e.supported and "no threshold" in e.note for e in result.efficacy.values()) and not result.verdicts


def test_neighbours_in_floating_point_are_told_apart():
    low, high = torch.tensor([1.0], dtype=torch.float64), torch.tensor([math.nextafter(1.0, 2.0)], dtype=torch.float64)
    assert [bool(side) for side in threshold_verdicts(high, low, low)] == [False, True, True]


@pytest.mark.parametrize("rule", ["threshold", "svc"])
def test_forget_samples_like_the_test_set_are_taken_for_nonmembers_and_those_like_the_retain_set_are_not(rule):
    audit = SVCMIA(rule=rule)
    like_test, like_retain = (audit(RETAIN, TEST, sample(300, sure, 2)) for sure in (2, 6))
    for feature in set(audit(RETAIN, TEST, TEST).efficacy) - {"correctness"}:
        assert like_test.efficacy[feature].low > 0.6 and like_retain.efficacy[feature].high < 0.2, feature
    assert list(like_test.efficacy) == list(FEATURES if rule == "svc" else SCALARS)


def test_correctness_alone_finds_the_share_of_errors():
    forget = sample(300, 2, 2)
    result = SVCMIA()(RETAIN, TEST, forget)
    assert result.efficacy["correctness"].value == pytest.approx(float((forget[0].argmax(1) != forget[1]).double().mean()))


def test_the_machine_is_scikit_learns_on_the_correct_features():
    from sklearn.svm import SVC

    forget = sample(150, 3, 2)
    result = SVCMIA(rule="svc")(RETAIN, TEST, forget, ["confidence"])
    columns = [z.double().softmax(1).gather(1, y[:, None]).numpy() for z, y in (RETAIN, TEST, forget)]
    machine = SVC(C=3, gamma=1.0).fit(np.concatenate(columns[:2]), [1] * 400 + [0] * 400)
    assert torch.equal(result.verdicts["confidence"], torch.tensor(machine.predict(columns[2]) == 0))


def published_modified_entropy(p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Element by element: each row's value takes 1 − p for the labels of all rows, and log p everywhere."""
    wanted = set(labels.tolist())
    rows = [[(1 - q if j in wanted else q) * -math.log(max(q, 1e-30)) for j, q in enumerate(row)] for row in p.tolist()]
    return torch.tensor(rows).sum(1)


def test_compatible_mode_reproduces_the_published_feature_and_the_default_does_not():
    from sklearn.svm import SVC

    forget = sample(150, 3, 2)
    forget = forget[0][::4], forget[1][::4]  # one class: the published feature of the forget set is then another one than that of the rest
    result = SVCMIA(compatible=True)(RETAIN, TEST, forget, ["modified_entropy"])
    columns = [published_modified_entropy(z.softmax(1), y)[:, None].numpy() for z, y in (RETAIN, TEST, forget)]
    machine = SVC(C=3, gamma="auto").fit(np.concatenate(columns[:2]), [1] * 400 + [0] * 400)
    assert torch.equal(result.verdicts["modified_entropy"], torch.tensor(machine.predict(columns[2]) == 0))
    assert result.efficacy["modified_entropy"].value != SVCMIA(rule="svc")(RETAIN, TEST, forget).efficacy["modified_entropy"].value


def test_the_copied_entropy_survives_probabilities_of_zero():
    p = torch.tensor([[1.0, 0.0], [1e-35, 1.0]])
    torch.testing.assert_close(copied_modified_entropy(p, torch.tensor([0, 0])), torch.tensor([0.0, 35 * math.log(10)]))
    assert torch.isfinite(copied_modified_entropy(p, torch.tensor([1, 1]))).all()


def test_compatible_mode_takes_the_first_retain_samples_and_the_default_draws_them():
    longer = tuple(torch.cat([a, b]) for a, b in zip(RETAIN, sample(400, 0, 5), strict=True))
    old, new = (SVCMIA(compatible=c)(longer, TEST, TEST, ["confidence"]) for c in (True, False))
    assert old.fit["confidence"].value > 0.9 > new.fit["confidence"].value and old.n_retain == new.n_retain == 400
    state = torch.get_rng_state()
    again = SVCMIA(seed=0)(longer, TEST, TEST, ["confidence"])
    assert torch.equal(again.verdicts["confidence"], new.verdicts["confidence"]) and torch.equal(state, torch.get_rng_state())


def test_a_rule_that_is_chance_is_noted():
    null = SVCMIA()(sample(400, 3, 0), sample(400, 3, 1), sample(100, 3, 2), ["confidence"])
    assert "may be chance" in null.efficacy["confidence"].note
    assert SVCMIA()(RETAIN, TEST, TEST).efficacy["confidence"].note is None


def test_the_interval_is_exact():
    efficacy = SVCMIA()(RETAIN, TEST, sample(50, 2, 7)).efficacy["confidence"]
    from scipy.stats import binomtest

    interval = binomtest(round(efficacy.value * 50), 50).proportion_ci(method="exact")
    assert (efficacy.low, efficacy.high) == pytest.approx((interval.low, interval.high), abs=1e-9) and efficacy.n == 50


def test_the_difference_is_paired():
    forget = sample(300, 4, 2)
    moved = forget[0] + 0.1 * torch.randn(300, 4, generator=torch.Generator().manual_seed(3)), forget[1]
    a, b = (SVCMIA()(RETAIN, TEST, x) for x in (forget, moved))
    difference = efficacy_difference(a, b)["confidence"]
    assert difference.value == pytest.approx(a.efficacy["confidence"].value - b.efficacy["confidence"].value)
    apart = a.efficacy["confidence"].high - a.efficacy["confidence"].low
    assert difference.low <= 0 <= difference.high and difference.high - difference.low < apart
    unknown = SVCMIAResult({"confidence": a.efficacy["confidence"]}, {}, {}, 1, 1)
    assert not efficacy_difference(a, unknown)["confidence"].supported


def test_the_floor_is_the_distance_between_retrained_models():
    models = [SVCMIA()(RETAIN, TEST, sample(200, 4, seed)) for seed in range(3)]
    values = [m.efficacy["confidence"].value for m in models]
    expected = [abs(v - (sum(values) - v) / 2) for v in values]
    floor = efficacy_floor(models)
    assert (floor.value, floor.low, floor.high) == pytest.approx((np.mean(expected), min(expected), max(expected)))
    assert not efficacy_floor(models[:1]).supported


def test_the_result_is_plain_values():
    result = SVCMIA()(RETAIN, TEST, TEST)
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["efficacy"]["entropy"]["value"] == result.efficacy["entropy"].value and plain["n_test"] == 400


def test_balanced_accuracy_does_not_depend_on_the_sizes_of_groups_and_its_interval_covers():
    assert balanced_accuracy(torch.arange(10) < 6, torch.arange(1000) < 500).value == pytest.approx(0.55)
    perfect = balanced_accuracy(torch.ones(20).bool(), torch.ones(30).bool())
    assert perfect.value == perfect.high == 1 and 0.85 < perfect.low < 1
    rng, covered = torch.Generator().manual_seed(0), 0
    for _ in range(1000):
        e = balanced_accuracy(torch.rand(40, generator=rng) < 0.7, torch.rand(90, generator=rng) < 0.4)
        covered += e.low <= 0.55 <= e.high
    assert covered >= 940
    with pytest.raises(DataError, match="at least one non-member; got none"):
        balanced_accuracy(torch.ones(2).bool(), torch.ones(0).bool())


def test_wrong_input_is_refused():
    broken = RETAIN[0].clone()
    broken[3] = math.nan
    with pytest.raises(ModelError, match="retain logits must be finite"):
        SVCMIA()((broken, RETAIN[1]), TEST, TEST)
    with pytest.raises(DataError, match="4 classes for retain and 3 for forget"):
        SVCMIA()(RETAIN, TEST, (torch.zeros(5, 3), torch.zeros(5).long()))
    with pytest.raises(DataError, match="labels must lie in"):
        SVCMIA()(RETAIN, (TEST[0], TEST[1] + 1), TEST)
    with pytest.raises(DataError, match="test logits must be floating point"):
        SVCMIA()(RETAIN, (TEST[0][:0], TEST[1][:0]), TEST)
    with pytest.raises(MissingError, match="did you mean 'entropy'"):
        SVCMIA()(RETAIN, TEST, TEST, ["entropie"])
    with pytest.raises(ConfigError, match='one number a sample.*rule="svc"'):
        SVCMIA()(RETAIN, TEST, TEST, ["probabilities"])
    with pytest.raises(ConfigError, match="rule must be one of 'threshold', 'svc'"):
        SVCMIA(rule="tree")
    with pytest.raises(DataError, match="share a feature; got entropy and confidence"):
        one = {"x": Estimate(0.5, 0.4, 0.6, 2)}
        efficacy_difference(SVCMIAResult({"entropy": one["x"]}, {}, {}, 1, 1), SVCMIAResult({"confidence": one["x"]}, {}, {}, 1, 1))
