"""The frozen protocol: what it trains, what it takes as given, and that it cannot be bent."""

import dataclasses

import pytest
import torch

import expunge
from expunge import PROTOCOLS, standard_audit
from expunge.audits.verdict import CANNOT_TELL, DISTINGUISHABLE
from expunge.errors import ConfigError, DataError, MissingError
from expunge.methods import FineTune, RandomLabel, Retrain
from expunge.protocol import _retrained
from expunge.store import Store
from expunge.training.recipe import Recipe
from toys import toy_net

RECIPE = Recipe(epochs=10, lr=0.1, batch_size=32)


SHORT = dataclasses.replace(PROTOCOLS["standard-1"], n_shadows=8)  # fewer shadow models, so that a test takes seconds; all else is as it is


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "standard-1", SHORT)


@pytest.fixture(scope="module")
def given(memorised):
    model, split, test = memorised
    return [model, FineTune(epochs=1, batch_size=16)(model, split), split, test]


@pytest.fixture(scope="module")
def audited(given, tmp_path_factory):
    """An audit with an empty store: the result, the kinds of all cells that are there afterwards, and the options."""
    options = {"build": toy_net, "recipe": RECIPE, "store": tmp_path_factory.mktemp("runs"), "workers": 1, "device": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROTOCOLS, "standard-1", SHORT)
        result = standard_audit(*given, **options)
    return result, [cell.kind for cell in Store(options["store"]).cells()], options


@pytest.fixture
def arguments(given, audited):
    """With the store of that audit: what the protocol has trained, it does not train again."""
    return given, audited[2]


def test_standard_1_is_what_it_was():
    """Frozen: who changes this line needs a new name."""
    assert repr(PROTOCOLS["standard-1"]) == (
        "Protocol(name='standard-1', n_retrained=3, n_shadows=32, attacks=(LossThreshold(), LiRA(online=True, variance='shrunk', prior_weight=10.0), "
        "RMIA(online=True, gamma=2.0, signal='softmax', offline_a=None)), control=RandomLabel(epochs=10, lr=0.01, batch_size=128, weight_decay=0.0005, "
        "schedule=Constant(), use_retain=True, exclude_true=False, draw='epoch', batchnorm='train', mix='shuffled')" + ", fpr=0.01, seed=0)"
    )


def test_what_is_missing_is_trained_once_and_every_anchor_is_there(short, given, audited):
    result, kinds, options = audited
    assert [m.name for m in result.models] == ["original", "unlearned", "control", "retrained", "retrained 2", "retrained 3"]
    assert [v.model for v in result.verdicts] == ["original", "unlearned", "control"] and result.protocol == "standard-1"
    assert result.sizes["shadow_models"] == 8 and result.floor is not None
    assert result.to_dict()["protocol"] == "standard-1"
    assert (kinds.count("retrained"), kinds.count("shadow"), kinds.count("unlearned")) == (3, 8, 1)
    with expunge.measure_cost() as cost:
        again = standard_audit(*given, **options)
    assert cost.backward.total() == 0  # nothing is trained again
    assert again["RMIA", "unlearned"].auc == result["RMIA", "unlearned"].auc


def test_the_original_that_knows_wrong_labels_by_heart_is_told_from_retraining(audited):
    result, _, _ = audited
    assert result.verdict("original").word == DISTINGUISHABLE
    assert "corrected for 3 comparisons" in result.verdict("original").text


class NothingTrained(Exception):
    """Instead of training."""


def test_a_second_request_is_held_against_models_of_the_samples_that_were_left(given, tmp_path, monkeypatch):
    """Positions, not ids: in a training set that is a part of another they differ."""
    asked = []

    def train_nothing(tasks, data, *args, **kwargs):
        asked.append(data.fetch(tasks[0].positions))
        raise NothingTrained

    monkeypatch.setattr("expunge.protocol.train_fleet", train_nothing)
    _, _, split, test = given
    second = expunge.forget_samples(split.retain, [0, 5])
    with pytest.raises(NothingTrained):
        _retrained(second, test, toy_net, RECIPE, Store(tmp_path), SHORT, [])
    assert torch.equal(asked[0], second.retain.fetch(torch.arange(len(second.retain))))


def test_retrained_models_that_are_there_are_taken_and_the_rest_is_trained(short, arguments):
    (model, unlearned, split, test), options = arguments
    mine = [Retrain(build=toy_net, recipe=RECIPE)(model, split, seed=s) for s in (7, 8)]
    result = standard_audit(model, {"mine": unlearned}, split, test, retrained=mine, **options)
    assert [m.name for m in result.models][-3:] == ["retrained", "retrained 2", "retrained 3"]
    direct = expunge.audit({"r": mine[0]}, split, test)
    assert result["LossThreshold", "retrained"].auc == direct["LossThreshold", "r"].auc


def test_a_retrained_model_that_the_protocol_would_train_itself_is_not_counted_twice(short, arguments):
    (model, unlearned, split, test), options = arguments
    mine = expunge.train_model(toy_net, split.retain, RECIPE, seed=1, device="cpu")  # the protocol's first seed
    result = standard_audit(model, unlearned, split, test, retrained=[mine], **options)
    margins = [result.model(name).margins["test"] for name in ("retrained", "retrained 2", "retrained 3")]
    assert not any(torch.equal(margins[i], margins[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_control_that_is_not_seen_raises_a_flag_and_one_that_is_does_not(audited, arguments, monkeypatch):
    (model, unlearned, split, test), options = arguments
    nothing_done = dataclasses.replace(SHORT, control=RandomLabel(epochs=1, lr=1e-12))
    monkeypatch.setitem(PROTOCOLS, "standard-1", nothing_done)
    retrained = Retrain(build=toy_net, recipe=RECIPE)(model, split, seed=9)  # an original that never saw the forget set: nothing to be seen
    blind = standard_audit(retrained, unlearned, split, test, **options)
    assert blind.verdict("control").word == CANNOT_TELL and "ControlUndetected" in {flag.name for flag in blind.flags}
    assert "ControlUndetected" not in {flag.name for flag in audited[0].flags}


def test_a_protocol_that_is_bent_is_refused(short, arguments):
    (model, unlearned, split, test), options = arguments
    with pytest.raises(MissingError, match="no protocol named 'standard-2'; did you mean 'standard-1'"):
        standard_audit(model, unlearned, split, test, protocol="standard-2", **options)
    with pytest.raises(ConfigError, match="not be called original, retrained, control"):
        standard_audit(model, {"control": unlearned}, split, test, **options)
    with pytest.raises(ConfigError, match="at least one"):
        standard_audit(model, {}, split, test, **options)
    with pytest.raises(DataError, match="a split without them"):
        standard_audit(model, unlearned, expunge.forget_only(split.forget), test, **options)
    few = expunge.train_shadow_models(
        toy_net, split.train, test, n=2, recipe=Recipe(epochs=1), store=options["store"], workers=1, device="cpu"
    )
    with pytest.raises(DataError, match="needs 8 shadow models; got 2"):
        standard_audit(model, unlearned, split, test, shadows=few, **options)


def test_whole_classes_are_held_against_their_answers_too(memorised_class, tmp_path, monkeypatch):
    model, split, test = memorised_class
    monkeypatch.setitem(PROTOCOLS, "standard-1", dataclasses.replace(SHORT, n_shadows=4))
    result = standard_audit(model, model, split, test, build=toy_net, recipe=RECIPE, store=tmp_path, workers=1, device="cpu")
    verdict = result.verdict("unlearned")
    assert verdict.word == DISTINGUISHABLE and any(c.name == "probability of 3" for c in verdict.contrasts)
    assert torch.isfinite(torch.tensor([c.gap.value for c in verdict.contrasts])).all()
