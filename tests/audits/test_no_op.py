"""An unlearner that does nothing must score as the original in every measure, and one more retrained model as the floor.

Published code of SCRUB builds its optimiser on the teacher, so that the student never changes (D5): its "unlearned" models are the original. A measure that
takes them for unlearned would have passed it.
"""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import nn

from expunge import LiRA, LossThreshold, audit
from expunge.audits import RMIA, u_lira_class
from expunge.audits.cka import cka_to_retrained
from expunge.audits.forgetting_score import forgetting_score
from expunge.audits.klom import klom
from expunge.data.split import Split
from expunge.metrics import auc, correct, total_variation, total_variation_floor
from expunge.metrics.agreement import agreement
from expunge.metrics.epsilon import epsilon_bounds
from expunge.metrics.tug_of_war import tug_of_war, tug_of_war_floor
from expunge.metrics.zrf import rf_jsd, zrf
from expunge.rng import fork
from expunge.training.features import features_at, stages
from expunge.training.inference import logits_of
from expunge.training.recipe import Recipe, train_model
from toys import toy_net


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scrub_with_the_optimiser_of_the_teacher(model: nn.Module, split: Split) -> nn.Module:
    """What the published code amounts to: the student's gradients are computed, and the teacher's weights are stepped, which have none."""
    teacher, student = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.1)
    images = split.forget.fetch(torch.arange(len(split.forget)))
    for _ in range(3):
        loss = -nn.functional.kl_div(student(images).log_softmax(1), teacher(images).softmax(1).detach(), reduction="batchmean")
        loss = loss - nn.functional.cross_entropy(student(images), split.forget.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert any(bool(p.grad.abs().max() > 0) for p in student.parameters())
    return student


class Trained(NamedTuple):
    original: nn.Module
    no_op: nn.Module
    retrained: list[nn.Module]
    split: Split
    test: object


@pytest.fixture(scope="module")
def trained(memorised) -> Trained:
    model, split, test = memorised
    recipe = Recipe(epochs=20, lr=0.1, batch_size=16)
    retrained = [train_model(toy_net, split.retain, recipe, seed=k + 1, device="cpu") for k in range(4)]
    return Trained(model, scrub_with_the_optimiser_of_the_teacher(model, split), retrained, split, test.subset(range(200)))


def on(trained: Trained, group: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of the original, of the no-op, and of all retrained models."""
    data = trained.test if group == "test" else getattr(trained.split, group)
    return logits_of(trained.original, data), logits_of(trained.no_op, data), torch.stack([logits_of(m, data) for m in trained.retrained])


def test_the_optimiser_of_the_teacher_changes_nothing(trained):
    for a, b in zip(trained.original.state_dict().values(), trained.no_op.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_audit_of_a_no_op_is_that_of_the_original(trained):
    models = {"original": trained.original, "unlearned": trained.no_op, "retrained": trained.retrained[:3]}
    result = audit(models, trained.split, trained.test, attacks=[LossThreshold()])
    rows = {row.name: row for row in result.models}
    assert rows["unlearned"].gaps == rows["original"].gaps
    assert rows["unlearned"].forget == rows["original"].forget and rows["unlearned"].test == rows["original"].test
    assert result["LossThreshold", "unlearned"].auc == result["LossThreshold", "original"].auc
    assert rows["unlearned"].gaps.average.low > result.floor.value  # far above what retraining differs by


@pytest.mark.parametrize("measure", ["jsd", "tv"])
def test_answers_of_a_no_op_are_those_of_the_original_and_of_a_retrained_model_the_floor(trained, measure):
    original, no_op, retrained = on(trained, "forget")
    found = [agreement(x, retrained[1:], measure=measure) for x in (original, no_op, retrained[0])]
    assert found[1].to_dict() == found[0].to_dict()
    assert found[1].excess.low > 0
    assert found[2].excess.low <= 0 <= found[2].excess.high


def test_total_variation_of_a_no_op_is_that_of_the_original_and_above_the_floor(trained):
    original, no_op, retrained = on(trained, "forget")
    assert total_variation(no_op, retrained) == total_variation(original, retrained)
    assert total_variation(no_op, retrained).low > total_variation_floor(retrained).high
    assert total_variation(retrained[0], retrained[1:]).value < total_variation(no_op, retrained[1:]).low


def test_scalars_of_papers_do_not_take_a_no_op_for_unlearned(trained):
    original, no_op, _ = on(trained, "forget")
    with fork(0):
        incompetent = logits_of(toy_net(), trained.split.forget)
    assert zrf(no_op, incompetent) == zrf(original, incompetent)
    seen, labels, test_labels = on(trained, "test")[0], trained.split.forget.labels, trained.test.labels
    assert rf_jsd(seen, test_labels, no_op, labels) == rf_jsd(seen, test_labels, original, labels)

    def accuracies(models: list[nn.Module]) -> torch.Tensor:
        groups = (trained.split.forget, trained.split.retain, trained.test)
        return torch.tensor([[correct(logits_of(m, g), g.labels).double().mean() for g in groups] for m in models])

    rows = accuracies([trained.original, trained.no_op, *trained.retrained])
    theirs = rows[2:]
    assert torch.equal(rows[0], rows[1])
    assert tug_of_war(rows[1].expand(4, -1), theirs).high < tug_of_war_floor(theirs).low
    assert tug_of_war(theirs, theirs).value == 1


def test_features_of_a_no_op_are_those_of_the_original(trained):
    layers = stages(trained.original, trained.test)
    original, no_op, *retrained = (features_at(m, layers, trained.test) for m in (trained.original, trained.no_op, *trained.retrained))
    found, expected = cka_to_retrained(no_op, retrained), cka_to_retrained(original, retrained)
    assert {k: v.to_dict() for k, v in found.items()} == {k: v.to_dict() for k, v in expected.items()}
    itself = cka_to_retrained(no_op, [original])
    assert all(layer.to_retrained.value == pytest.approx(1, abs=1e-9) for layer in itself.values())
    one_more = cka_to_retrained(retrained[0], retrained[1:])
    assert all(layer.gap.low <= 0 <= layer.gap.high for layer in one_more.values())


def test_attacks_with_shadow_models_score_a_no_op_as_the_original_and_a_retrained_model_at_chance():
    """Two classes, margins of members 3 higher; the first 300 samples are to be forgotten."""
    n, labels = 600, torch.zeros(600, dtype=torch.int64)
    half = torch.rand(16, n, generator=torch.Generator().manual_seed(0)) < 0.5
    included = torch.cat([half, ~half])
    base = 2 * noise(n, seed=1)

    def logits(margins: torch.Tensor) -> torch.Tensor:
        return torch.stack([margins, torch.zeros_like(margins)], -1)

    shadow, member = logits(base + noise(32, n, seed=2) + 3 * included), torch.arange(n) < 300
    original, retrained = logits(base + noise(n, seed=3) + 3 * member), logits(base + noise(n, seed=4))
    no_op = original.clone()
    for attack in (LossThreshold(), LiRA(), RMIA()):
        scores = [attack(x, labels, shadow, included) for x in (original, no_op, retrained)]
        assert torch.equal(scores[0], scores[1])
        areas = [auc(s[:300], s[300:]) for s in scores]
        assert areas[1].low > 0.65 and areas[2].low <= 0.5 <= areas[2].high


class Populations(NamedTuple):
    original: torch.Tensor
    no_op: torch.Tensor
    one_more: torch.Tensor
    retrained: torch.Tensor


@pytest.fixture(scope="module")
def populations() -> Populations:
    """Margins of 48 models each on 60 forget samples; the original remembers them."""
    centre = 2 * noise(60, seed=1)
    original = centre + 6 + noise(48, 60, seed=2)
    return Populations(original, original.clone(), centre + noise(48, 60, seed=3), centre + noise(48, 60, seed=4))


def test_the_forgetting_score_of_a_no_op_is_that_of_the_original_and_of_retraining_the_floor(populations):
    p = populations
    found = [forgetting_score(x, p.retrained, intervals=False, replicates=20) for x in (p.original, p.no_op, p.one_more)]
    assert found[1].to_dict() == found[0].to_dict()
    assert found[1].normalised.high < 0.2 and found[1].certified.low > 0.9
    assert found[2].normalised.low <= 1 <= found[2].normalised.high and found[2].certified.value <= 0.1


@pytest.mark.parametrize("measure", ["histogram", "gaussian", "wasserstein"])
def test_klom_of_a_no_op_is_that_of_the_original_and_of_retraining_the_null(populations, measure):
    p = populations
    found = [klom(x, p.retrained, measure=measure, replicates=20) for x in (p.original, p.no_op, p.one_more)]
    assert found[1].to_dict() == found[0].to_dict()
    assert found[1].excess_mean.low > 1
    assert found[2].excess_mean.low <= 0 <= found[2].excess_mean.high


def test_models_that_a_no_op_left_are_told_from_retrained_ones_and_retrained_ones_are_not(populations):
    p = populations
    found = [u_lira_class(x[:8], p.retrained[:8], fpr=0.1) for x in (p.original, p.no_op, p.one_more)]
    assert found[1].to_dict() == found[0].to_dict()
    assert found[1].auc.low > 0.9 and found[2].auc.low <= 0.5 <= found[2].auc.high
    proven = [epsilon_bounds(x, p.retrained).bounds for x in (p.original, p.no_op, p.one_more)]
    assert torch.equal(proven[0], proven[1])
    assert proven[1].min() > 1 and (proven[2] == 0).double().mean() >= 0.9
