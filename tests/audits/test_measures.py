"""Further measures as lines of an audit: what the original and a retrained model show, and which measures fit which request."""

import pytest
import torch

import expunge
from expunge.audits import MEASURES, measure, measures
from expunge.errors import ConfigError, DataError, MissingError
from expunge.methods import Retrain
from expunge.training.recipe import Recipe
from toys import toy_net

RECIPE = Recipe(epochs=10, lr=0.1, batch_size=32)


@pytest.fixture(scope="module")
def sample_models(memorised):
    model, split, test = memorised
    retrain = Retrain(build=toy_net, recipe=RECIPE)
    one_more, *retrained = (retrain(model, split, seed=s) for s in range(4))
    return {"original": model, "unlearned": one_more, "retrained": retrained}, split, test


@pytest.fixture(scope="module")
def class_models(memorised_class):
    model, split, test = memorised_class
    retrain = Retrain(build=toy_net, recipe=RECIPE)
    one_more, *retrained = (retrain(model, split, seed=s) for s in range(3))
    return {"original": model, "unlearned": one_more, "retrained": retrained}, split, test


def lines_of(name, models):
    return {(line.quantity, line.model): line for line in measure([name], *models, device="cpu")}


def test_answers_of_an_original_that_knows_wrong_labels_are_far_from_retrained_ones_and_one_more_retrained_is_not(sample_models):
    found = {key[1]: line.value for key, line in lines_of("agreement", sample_models).items() if "forget" in key[0]}
    assert found["original"].low > 0.1 and found["unlearned"].low <= 0 <= found["unlearned"].high


def test_efficacy_of_the_original_is_below_that_of_retraining(sample_models):
    (original,), (unlearned,) = (
        [line for key, line in lines_of("svc_mia", sample_models).items() if key[1] == name] for name in ("original", "unlearned")
    )
    assert original.value.value < float(original.like) and abs(unlearned.value.value - float(unlearned.like)) < 0.4


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_every_measure_has_a_line_for_the_unlearned_model_and_none_for_retrained_ones(name, sample_models, class_models, monkeypatch):
    monkeypatch.setattr(measures, "RELEARNING_STEPS", 3)
    lines = measure([name], *(sample_models if name == "probes" else class_models), device="cpu")
    assert "unlearned" in {line.model for line in lines} and not any(line.model.startswith("retrained") for line in lines)
    for line in lines:
        assert line.measure == name and line.like and (line.value.supported or line.value.note)


def test_models_stay_as_they_are_and_the_order_of_names_does_not_matter(class_models):
    models, split, test = class_models
    before = {key: value.clone() for key, value in models["unlearned"].state_dict().items()}
    both = measure(["cka", "agreement"], models, split, test, device="cpu")
    assert all(torch.equal(before[key], value) for key, value in models["unlearned"].state_dict().items())
    assert [m.to_dict() for m in measure(["agreement"], models, split, test, device="cpu")] == [
        m.to_dict() for m in both if m.measure == "agreement"
    ]


def test_an_audit_prints_and_draws_the_measures_that_it_was_asked_for(class_models, tmp_path):
    models, split, test = class_models
    result = expunge.audit(models, split, test, measures=["agreement"])
    assert "Further measures" in str(result) and "JSD to retrained on forget images" in str(result)
    result.to_html(tmp_path / "audit.html")
    page = (tmp_path / "audit.html").read_text()
    assert "Further measures" in page and page.count("JSD to retrained on forget images") >= 1
    assert expunge.audit(models, split, test).measures == []


def test_measures_that_do_not_fit_are_refused(sample_models):
    models, split, test = sample_models
    with pytest.raises(MissingError, match="no measure named 'probe'; did you mean 'probes'"):
        measure(["probe"], models, split, test)
    with pytest.raises(DataError, match="prototypes is a measure of whole classes"):
        measure(["prototypes"], models, split, test)
    with pytest.raises(DataError, match="svc_mia reads retain samples"):
        measure(["svc_mia"], models, expunge.forget_only(split.forget), test)
    with pytest.raises(ConfigError, match="at least one 'retrained'"):
        measure(["agreement"], {"original": models["original"]}, split, test)
