"""Tuning without the retrained model: the development split, the walk over values, and what it costs."""

import dataclasses

import pytest
import torch

import expunge
from expunge import FineTune, GradientAscent, Recipe, Retrain, forget_classes, forget_only, forget_random, tune
from expunge.errors import ConfigError, DataError, ModelError
from expunge.metrics.estimate import Estimate
from expunge.store import Store
from expunge.tuning import STEP, Trial, _walk, development_split, start_of
from toys import toy_net

RECIPE = Recipe(epochs=2, lr=0.05, batch_size=64)


@pytest.fixture(scope="module")
def problem():
    train, test = expunge.load_data("digits")
    train = dataclasses.replace(train, images=train.images[:400], labels=train.labels[:400])
    return expunge.train_model(toy_net, train, RECIPE), train, test


def tried(value, gap):
    return Trial(FineTune(lr=value), value, gap and Estimate(gap, gap, gap, 1), None, 0.0, 0.0)


def walked(gap_of, first, trials):
    """The values that are tried when the gap is this function of them."""
    done = []
    for value in _walk(first, done):
        done.append(tried(value, gap_of(value)))
        if len(done) == trials:
            break
    return [trial.value for trial in done]


def test_the_walk_goes_where_the_gap_falls_as_long_as_it_falls_and_then_looks_closer():
    values = walked(lambda v: abs(torch.tensor(v).log10().item() + 0.2) + 0.1, 1e-3, 9)
    assert values == pytest.approx([1e-3 * STEP**p for p in (0, 1, 2, 3, 4, 5, 6, 7, 6.5)])  # 10 ** -0.2 is nearer to 1 than to 0.316
    down = walked(lambda v: abs(torch.tensor(v).log10().item() + 4) + 0.1, 1e-3, 6)
    assert down == pytest.approx([1e-3 * STEP**p for p in (0, 1, -1, -2, -3, -1.5)])
    closer = walked(lambda v: abs(torch.tensor(v).log10().item() + 3) + 0.1, 1e-3, 7)
    assert closer == pytest.approx([1e-3 * STEP**p for p in (0, 1, -1, 0.5, -0.5, 0.25, -0.25)])


def test_the_walk_turns_away_from_settings_that_diverge_and_ends():
    values = walked(lambda v: None if v > 1e-3 else v, 1e-3, 5)
    assert values == pytest.approx([1e-3 * STEP**p for p in (0, 1, -1, -2, -3)])
    assert walked(lambda v: None, 1e-3, 5) == pytest.approx([1e-3 * STEP**p for p in (0, 1, -1, -2, -3)])
    assert list(_walk(1.0, [])) and len(list(_walk(1.0, []))) < 12  # no value can be used at all: it ends


def test_the_development_split_is_of_the_same_kind_and_touches_nothing_that_is_forgotten(problem):
    _, train, _ = problem
    split = forget_random(train, 30, seed=1)
    pretended = development_split(split)
    assert len(pretended.forget_indices) == 30 and not set(pretended.forget_indices.tolist()) & set(split.forget_indices.tolist())
    assert pretended.train is train and not pretended.forget_classes
    assert not torch.equal(pretended.forget_indices, development_split(split, seed=1).forget_indices)
    classes = forget_classes(train, [3, 5])
    other = development_split(classes)
    assert len(other.forget_classes) == 2 and not {3, 5} & set(other.forget_classes)


def test_it_cannot_pretend_with_too_little(problem):
    _, train, _ = problem
    with pytest.raises(DataError, match="no retain samples"):
        development_split(forget_only(train.subset(range(10))))
    assert len(development_split(forget_random(train, 300)).forget_indices) == 50  # half of what is retained
    with pytest.raises(DataError, match="at least 2 retain samples"):
        development_split(forget_random(train, len(train) - 1))
    with pytest.raises(DataError, match="more other classes than the 5"):
        development_split(forget_classes(train, [0, 1, 2, 3, 4]))


def test_it_chooses_the_trial_that_is_nearest_to_the_retrained_model_and_never_trains_without_the_forget_set(problem, tmp_path):
    model, train, test = problem
    split, store = forget_random(train, 40), Store(tmp_path)
    options = {"build": toy_net, "recipe": RECIPE, "store": store, "trials": 3}
    found = tune(FineTune(epochs=1, lr=0.01), model, split, test, **options)
    assert [t.value for t in found.trials] == pytest.approx([0.01, 0.01 * STEP, 0.01 / STEP])
    best = min(found.trials, key=lambda t: t.gap.value)
    assert found.method == FineTune(epochs=1, lr=best.value) == best.method and "→ lr" in str(found)
    assert found.passes == pytest.approx(3 * 0.9, rel=0.1) and found.to_dict()["best"] == best.value
    assert found.at_the_end == (best.value != 0.01)
    made = [cell.spec["forget"] for cell in store.cells()]
    assert len(made) == 4 and all(forgotten == made[0] for forgotten in made)
    assert not set(split.forget_indices.tolist()) & set(found.split.forget_indices.tolist())
    again = tune(FineTune(epochs=1, lr=0.01), model, split, test, **options)
    assert [t.gap.value for t in again.trials] == [t.gap.value for t in found.trials] and again.passes == found.passes


def test_a_known_retrained_model_is_not_trained_again_and_decides(problem):
    model, train, test = problem
    split = forget_random(train, 40)
    known = Retrain(build=toy_net, recipe=RECIPE)(model, development_split(split))
    with expunge.measure_cost() as cost:
        found = tune(FineTune(epochs=1), model, split, test, build=toy_net, recipe=RECIPE, trials=1, retrained=known)
    assert cost.backward.total() == len(train) - 40
    # The trial's gap is the audit's to that model, not to the one of the real split.
    by_hand = expunge.audit({"u": FineTune(epochs=1)(model, found.split), "retrained": known}, found.split, test).models[0].gaps.average
    assert found.trials[0].gap.value == by_hand.value and len(found.trials) == 1


def test_settings_outside_their_range_are_left_out_and_divergence_is_survived(problem):
    model, train, test = problem
    split = forget_random(train, 40)
    options = {"build": toy_net, "recipe": RECIPE, "retrained": model}
    found = tune(FineTune(epochs=1, lr=1e6), model, split, test, trials=2, **options)
    assert found.trials[0].gap is None or found.trials[1].gap is not None
    with pytest.raises(ModelError, match="diverged with lr = .*smaller lr"):
        tune(GradientAscent(epochs=3, lr=1e30, batchnorm="frozen_statistics"), model, split, test, trials=1, **options)
    share = tune(
        expunge.AMUN(epochs=1, mask_ratio=1.0, attack=expunge.NearestDDN(steps=20)),
        model,
        split,
        test,
        trials=2,
        field="mask_ratio",
        **options,
    )
    assert [t.value for t in share.trials] == pytest.approx([1.0, 1 / STEP])


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (FineTune(), {"trials": 0}, "trials must be an integer ≥ 1"),
        (FineTune(), {"field": "learning_rate"}, "field must name a setting of fine_tune.*'learning_rate'"),
        (expunge.TRW(), {"field": "until_when"}, "'until_when', which is None"),
        (expunge.TRW(use_retain=False), {}, "got trw, which finds its step itself"),
        (Retrain(build=toy_net), {}, "got retrain, which has no step size"),
    ],
)
def test_bad_requests_say_what_is_wrong(method, options, message, problem):
    model, train, test = problem
    with pytest.raises(ConfigError, match=message):
        tune(method, model, forget_random(train, 40), test, build=toy_net, recipe=RECIPE, **options)


def test_it_starts_from_the_value_that_a_method_really_uses():
    train, _ = expunge.load_data("digits")
    classes = expunge.forget_classes(train, [3])
    assert start_of(expunge.TRW(), classes) == ("lr", 0.01)
    assert start_of(expunge.SSD(), classes) == ("alpha", pytest.approx(0.5 * len(train) / len(classes.forget)))
    assert start_of(expunge.FineTune(lr=0.3), classes) == ("lr", 0.3)
    assert start_of(expunge.FineTune(), classes, "weight_decay") == ("weight_decay", 5e-4)
