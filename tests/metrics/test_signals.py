import math

import pytest
import torch

from expunge.errors import DataError, ModelError
from expunge.metrics import entropy, hinge, jsd, logit_margin, loss, modified_entropy, taylor_softmax, true_log_prob
from expunge.metrics.signals import check_logits
from oracles import copied_modified_entropy
from oracles import entropy as slow_entropy
from oracles import jsd as slow_jsd
from oracles import margin as slow_margin
from oracles import modified_entropy as slow_modified_entropy
from oracles import taylor_softmax as slow_taylor_softmax


@pytest.fixture
def logits() -> torch.Tensor:
    """From undecided rows to rows that are sure of one class."""
    scale = torch.logspace(-1, 1.3, 60)[:, None]
    return torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) * scale


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.arange(60) % 5


@pytest.mark.parametrize(
    ("fast", "slow"),
    [(logit_margin, slow_margin), (modified_entropy, slow_modified_entropy), (taylor_softmax, slow_taylor_softmax)],
)
def test_signal_equals_its_formula(fast, slow, logits, labels):
    expected = [slow(row, int(y)) for row, y in zip(logits.double(), labels, strict=True)]
    torch.testing.assert_close(fast(logits.double(), labels), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(fast(logits, labels).double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=2e-5)  # float32


def test_entropy_equals_its_formula(logits):
    expected = torch.tensor([slow_entropy(row) for row in logits.double()], dtype=torch.float64)
    torch.testing.assert_close(entropy(logits.double()), expected, rtol=1e-9, atol=1e-12)


def test_margin_keeps_counting_where_probabilities_round_to_one():
    logits = torch.tensor([[50.0, 0.0], [200.0, 0.0]])
    assert logit_margin(logits, torch.tensor([0, 0])).tolist() == [50.0, 200.0]


def test_log_probability_of_a_sure_sample_is_not_zero():
    surer = true_log_prob(torch.tensor([[30.0, 0.0], [60.0, 0.0]]), torch.tensor([0, 0]))
    assert surer[0] < surer[1] < 0
    assert surer[0].item() == pytest.approx(-math.exp(-30), rel=1e-5)


def test_loss_is_the_cross_entropy(logits, labels):
    torch.testing.assert_close(
        loss(logits, labels), torch.nn.functional.cross_entropy(logits, labels, reduction="none"), rtol=1e-5, atol=1e-5
    )


def test_margin_lies_below_hinge_by_at_most_log_of_the_other_classes(logits, labels):
    difference = hinge(logits, labels) - logit_margin(logits, labels)
    assert (difference >= -1e-5).all() and (difference <= math.log(4) + 1e-5).all()


def test_a_leading_axis_of_models_is_scored_model_by_model(logits, labels):
    both = torch.stack([logits, logits.flip(1)])
    for signal in (logit_margin, true_log_prob, modified_entropy, taylor_softmax, hinge):
        torch.testing.assert_close(signal(both, labels)[1], signal(both[1], labels))


def test_modified_entropy_depends_on_the_label_and_not_on_the_batch(logits, labels):
    whole = modified_entropy(logits, labels)
    alone = torch.cat([modified_entropy(logits[i : i + 1], labels[i : i + 1]) for i in range(60)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=0)
    assert (modified_entropy(logits, (labels + 1) % 5) - whole).abs().min() > 0


def test_the_copied_modified_entropy_fails_the_same_exam(logits, labels):
    whole = copied_modified_entropy(logits.double(), labels)
    assert (copied_modified_entropy(logits.double(), labels.flip(0)) == whole).all()  # it does not read the label of a row …
    assert abs(copied_modified_entropy(logits[:1].double(), labels[:1])[0] - whole[0]) > 0.1  # … but those of its batch mates
    assert abs(torch.tensor(whole) - modified_entropy(logits.double(), labels)).median() > 0.1


def test_modified_entropy_is_small_when_right_and_large_when_wrong():
    logits = torch.tensor([[8.0, 0.0], [8.0, 0.0]])
    right, wrong = modified_entropy(logits, torch.tensor([0, 1])).tolist()
    assert right < 1e-3 and wrong > 15


def test_taylor_softmax_may_be_negative_far_below_zero():
    assert taylor_softmax(torch.tensor([[-6.0, 6.0]]), torch.tensor([0])).item() < 0


def test_jsd_equals_its_formula_and_stays_below_ln_2(logits):
    values = jsd(logits.double(), logits.double().flip(0))
    expected = torch.tensor([slow_jsd(a, b) for a, b in zip(logits.double(), logits.double().flip(0), strict=True)], dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-12)
    opposite = jsd(torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.0, 1000.0]]))  # KL with its arguments swapped is unbounded here
    assert opposite.item() == pytest.approx(math.log(2), rel=1e-6)
    assert jsd(logits, logits).max() < 1e-12


@pytest.mark.parametrize(
    ("bad", "labels", "error", "match"),
    [
        (torch.zeros(3, 1), torch.zeros(3).long(), DataError, "K ≥ 2"),
        (torch.zeros(3, 2), torch.zeros(2).long(), DataError, "one for each row"),
        (torch.zeros(3, 2), torch.tensor([0, 2, 1]), DataError, r"\[0, 2\).*got 2"),
        (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), torch.tensor([0, 1]), ModelError, "first: sample 1"),
        (torch.tensor([[0.0, float("inf")]]), torch.tensor([0]), ModelError, "NaN or infinity"),
    ],
)
def test_bad_logits_are_refused_with_the_reason(bad, labels, error, match):
    with pytest.raises(error, match=match):
        check_logits(bad, labels)
