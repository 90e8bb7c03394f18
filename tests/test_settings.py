"""Hyperparameters as text."""

import pytest

from expunge import AMUN, Constant, Cosine, NearestDDN, Recipe, Retrain, Step
from expunge.errors import ConfigError, MissingError
from expunge.settings import configured, value_of


@pytest.mark.parametrize(
    "text, value", [("false", False), ("False", False), ("no", False), ("off", False), ("true", True), ("yes", True), ("on", True)]
)
def test_words_for_booleans_mean_what_they_say(text, value):
    assert configured(AMUN, [f"use_retain={text}"]).use_retain is value


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ("use_retain=maybe", "AMUN: use_retain must be True or False; got 'maybe'"),
        ("epochs=0", "AMUN: epochs must be an integer ≥ 1; got 0"),
        ("epochs=2.5", "AMUN: epochs must be an integer ≥ 1; got '2.5'"),
        ("lr=fast", "AMUN: lr must be a number > 0; got 'fast'"),
        ("lr=nan", "AMUN: lr must be a number > 0; got nan"),
        ("epochs=", "AMUN: epochs must be an integer ≥ 1; got ''"),
        ("epochs", "field=value; got 'epochs'"),
        ("attack=nearest_ddn:steps=0", "NearestDDN: steps must be an integer ≥ 1; got 0"),
    ],
)
def test_a_bad_value_gives_the_library_s_sentence(setting, sentence):
    with pytest.raises(ConfigError, match=sentence.replace("(", r"\(")):
        configured(AMUN, [setting])


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ("epohcs=1", "no setting of amun named 'epohcs'; did you mean 'epochs'"),
        ("attack=nearest_dnn", "no attack named 'nearest_dnn'; did you mean 'nearest_ddn'"),
        ("schedule=stepp", "no schedule named 'stepp'; did you mean 'step'"),
        ("attack=nearest_ddn:step=1", "no setting of nearest_ddn named 'step'; did you mean 'steps'"),
    ],
)
def test_unknown_names_get_the_nearest(setting, sentence):
    with pytest.raises(MissingError, match=sentence):
        configured(AMUN, [setting])


def test_fields_that_are_objects_take_their_own_settings():
    method = configured(AMUN, ["attack=nearest_ddn:steps=7,gamma=0.1", "schedule=step:every=2", "adversarial=none"])
    assert method == AMUN(attack=NearestDDN(steps=7, gamma=0.1), schedule=Step(every=2))
    assert configured(AMUN, ["schedule=constant"]).schedule == Constant()
    assert configured(Recipe, ["schedule=cosine:warmup=0"]).schedule == Cosine(warmup=0.0)


def test_a_setting_twice_is_refused():
    with pytest.raises(ConfigError, match="got lr twice"):
        configured(AMUN, ["lr=0.1", "lr=0.2"])


def test_what_is_given_fills_only_fields_that_exist_and_are_not_set():
    assert configured(AMUN, ["epochs=3"], {"epochs": 9, "lr": 0.5, "build": None}) == AMUN(epochs=3, lr=0.5)


def test_a_required_field_without_a_value_is_named():
    with pytest.raises(ConfigError, match="retrain needs a value for build"):
        configured(Retrain, [])


def test_integers_are_kept_apart_from_numbers():
    assert isinstance(value_of("3", int), int) and isinstance(value_of("3", float), float)
    assert value_of("none", int | None) is None
    assert value_of("none", int) == "none"
