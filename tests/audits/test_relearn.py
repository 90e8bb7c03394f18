import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from expunge.audits.relearn import RelearnTime, ain_of, one_batch
from expunge.costs import measure_cost
from expunge.data.split import forget_classes
from expunge.errors import ConfigError, DataError
from expunge.rng import derive
from expunge.training.inference import logits_of
from expunge.training.orders import shuffled
from expunge.training.recipe import Recipe, train_model

FORGOTTEN = 3


def build() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def suppressed(model: nn.Module) -> nn.Module:
    """The cheapest forgetting there is: the class's bias goes down until it is never answered."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model[3].bias[FORGOTTEN] -= 12
    return model


@pytest.fixture(scope="module")
def forgotten(digits):
    split, recipe = forget_classes(digits[0].subset(range(300)), [FORGOTTEN]), Recipe(epochs=20, batch_size=50)
    original = train_model(build, split.train, recipe, seed=0, device="cpu")
    retrained = [train_model(build, split.retain, recipe, seed=k, device="cpu") for k in (1, 2)]
    return {"original": original, "suppressed": suppressed(original), "untouched": original, "retrained": retrained}, split.forget


def plain_steps(model, forget, target, lr, cap, seed) -> float:
    """Torch's own loop, one learning rate: steps until the loss is back."""
    model = copy.deepcopy(model)
    stepper = torch.optim.SGD(model.parameters(), lr=lr)
    batches = [visit.positions for epoch in range(cap) for visit in shuffled([len(forget)], 8, seed, epoch)][:cap]
    for step, positions in enumerate(batches, 1):
        stepper.zero_grad()
        nn.functional.cross_entropy(model(forget.fetch(positions)), forget.labels[positions]).backward()
        stepper.step()
        if float(nn.functional.cross_entropy(logits_of(model, forget), forget.labels)) <= target:
            return step
    return math.inf


def test_what_was_only_suppressed_comes_back_sooner_than_what_must_be_learnt_anew(forgotten):
    models, forget = forgotten
    assert (logits_of(models["suppressed"], forget).argmax(1) != FORGOTTEN).all()
    result = RelearnTime(measure="accuracy", alpha=0.05, batch_size=8, lrs=(0.05,), max_steps=100)(models, forget)
    assert result["suppressed"].ain.high < 0.5 and result["suppressed"].ain.value < result.floor.low
    assert result["untouched"].median.value == result["untouched"].ain.value == 0
    assert "original" not in {row.model for row in result.rows} and "retrained 2" in {row.model for row in result.rows}
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict() and "suppressed" in str(result)


def test_steps_are_those_of_plain_sgd_at_the_fastest_rate(forgotten):
    models, forget = forgotten
    audit = RelearnTime(lrs=(0.02, 0.3, 0.1), alpha=0.05, batch_size=8, seeds=5, max_steps=40, seed=7)
    result = audit({k: models[k] for k in ("original", "suppressed")} | {"retrained": models["retrained"][0]}, forget)
    target = 1.05 * float(nn.functional.cross_entropy(logits_of(models["original"], forget).double(), forget.labels))
    assert result.target == pytest.approx(target)
    for name, model in (("suppressed", models["suppressed"]), ("retrained", models["retrained"][0])):
        for k in range(2):
            steps = {lr: plain_steps(model, forget, target, lr, 40, derive(7, k)) for lr in audit.lrs}
            assert result[name].steps[k] == pytest.approx(min(steps.values()), abs=1)  # matrix products may be in bfloat16
    assert "one retrained model" in result["suppressed"].ain.note and not result.floor.supported


def test_an_epoch_of_one_batch_walks_through_all_batches_pass_by_pass():
    walked = [one_batch([10], 4, 5, step)[0].positions for step in range(6)]
    expected = [visit.positions for epoch in (0, 1) for visit in shuffled([10], 4, 5, epoch)]
    assert all(torch.equal(a, b) for a, b in zip(walked, expected, strict=True))
    assert sorted(torch.cat(walked[:3]).tolist()) == list(range(10))


def test_what_is_not_reached_is_censored_and_not_a_number(forgotten):
    models, forget = forgotten
    result = RelearnTime(max_steps=2, lrs=(1e-4,), seeds=5)(models, forget)
    row = result["suppressed"]
    assert set(row.steps) == {math.inf} and not row.median.supported and "5 of 5 beyond 2 steps" in row.median.note
    assert not row.ain.supported and not result.floor.supported
    assert result.to_dict()["rows"][0]["steps"] == [None] * 5


def test_a_rate_at_which_the_loss_diverges_is_not_the_fastest(forgotten):
    models, forget = forgotten
    result = RelearnTime(lrs=(1e20, 0.05), measure="accuracy", batch_size=8, seeds=5, max_steps=100)(models, forget)
    assert set(result["suppressed"].rates) == {0.05} and result["suppressed"].median.supported


def test_models_and_generators_stay_as_they_are_and_the_audit_repeats(forgotten):
    models, forget = forgotten
    before = {k: v.clone() for k, v in models["suppressed"].state_dict().items()}
    random = torch.get_rng_state(), np.random.get_state()[1].copy()
    audit = RelearnTime(measure="accuracy", batch_size=8, seeds=5, lrs=(0.05,), max_steps=30)
    assert audit(models, forget).to_dict() == audit(models, forget).to_dict()
    assert all(torch.equal(before[k], v) for k, v in models["suppressed"].state_dict().items())
    assert torch.equal(torch.get_rng_state(), random[0]) and (np.random.get_state()[1] == random[1]).all()
    assert all(p.grad is None for p in models["suppressed"].parameters())


def test_every_step_and_every_look_is_counted(forgotten):
    models, forget = forgotten
    models = {"original": models["original"], "retrained": models["retrained"][0]}
    with measure_cost() as cost:
        result = RelearnTime(measure="accuracy", lrs=(0.05,), batch_size=1000, seeds=5, max_steps=100)(models, forget)
    steps = int(sum(result["retrained"].steps))
    assert cost.backward.total() == steps * len(forget)
    assert cost.forward.total() == (2 * steps + 2) * len(forget)  # a step, a look after it, and one look at both models before


def test_where_there_is_nothing_to_relearn_there_is_no_ain(forgotten, digits):
    models, _ = forgotten
    known = digits[0].subset([k for k in range(60) if digits[0].labels[k] != FORGOTTEN])  # samples that every model was trained on
    result = RelearnTime(measure="accuracy", alpha=0.5, seeds=5)(models, known)
    assert not result["suppressed"].ain.supported and "nothing to relearn" in result["suppressed"].ain.note


def test_ain_is_a_median_of_ratios_with_the_same_batches():
    own, base = np.array([2.0, 4, 6, 8, 10, 12]), np.array([[10.0, 10, 10, 20, 20, 20], [30.0, 30, 30, 20, 20, 20]])
    found = ain_of(own, base, 100)
    ends = [f(own / one) for one in base for f in (np.min, np.max)]  # of six ratios the exact interval is the smallest and the largest
    assert (found.value, found.low, found.high) == pytest.approx((np.median(own / 20), min(ends), max(ends)))
    alone = ain_of(own, np.stack([base[0]] * 3), 100)
    assert (alone.low, alone.high) == pytest.approx(((own / base[0]).min(), (own / base[0]).max()))
    assert "one retrained model" in ain_of(own, base[:1], 100).note


def test_censored_parts_of_a_ratio_are_known_from_one_side():
    own, base = np.array([20.0, 20, 20, 20, 20, math.inf, 20]), np.full((1, 7), 10.0)
    found = ain_of(own, base, 50)
    assert (found.value, found.low, found.high) == (2, 2, math.inf)
    base[0, :2] = math.inf  # more than 50: the ratio is below 0.4
    found = ain_of(own, base, 50)
    assert found.low == 0 and found.value == 2
    assert not ain_of(np.full(6, math.inf), np.full((1, 6), 10.0), 50).supported
    assert not ain_of(np.full(6, math.inf), np.full((1, 6), math.inf), 50).supported
    # Two retrained models, one beyond the cap: their median may be anything above (10 + 50) / 2.
    half = ain_of(np.full(6, 20.0), np.array([[10.0] * 6, [math.inf] * 6]), 50)
    assert not half.supported


@pytest.mark.parametrize("bad", [{"lrs": ()}, {"lrs": (0.1, 0.0)}, {"measure": "margin"}, {"alpha": 1.0}, {"seeds": 4}, {"max_steps": 0}])
def test_settings_outside_their_range_are_refused(bad):
    with pytest.raises(ConfigError, match=f"RelearnTime: {next(iter(bad))} must be"):
        RelearnTime(**bad)


def test_models_that_are_missing_are_named(forgotten):
    models, forget = forgotten
    with pytest.raises(ConfigError, match="one 'original' and at least one 'retrained'"):
        RelearnTime()({"retrained": models["retrained"]}, forget)
    with pytest.raises(DataError):
        RelearnTime()(models, forget.subset([]))
