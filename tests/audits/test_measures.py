"""Further measures as lines of an audit: what the original and a retrained model show, and which measures fit which request."""

import functools

import pytest
import torch
from torch import nn

import expunge
from expunge.audits import IDI, MEASURES, measure, measures
from expunge.audits.audited import unseen_groups
from expunge.audits.compared import few
from expunge.audits.measures import check_measures
from expunge.audits.svc_mia import SVCMIA, SVCMIAResult
from expunge.errors import ConfigError, DataError, MissingError
from expunge.methods import Retrain
from expunge.metrics import agreement, unsupported
from expunge.training.inference import logits_of
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
    monkeypatch.setattr(measures, "IDI", functools.partial(IDI, steps=3, seeds=2))
    lines = measure([name], *(sample_models if name in ("idi", "probes") else class_models), device="cpu")
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
    with pytest.raises(ConfigError, match="must have one 'original'"):
        check_measures(["idi"], {"retrained": models["retrained"]}, split)
    with pytest.raises(ConfigError, match="at least one 'retrained'"):
        measure(["agreement"], {"original": models["original"]}, split, test)


@pytest.mark.parametrize("name", ["agreement", "cka", "over_unlearning", "prototypes", "svc_mia"])
def test_the_line_of_a_retrained_model_that_is_passed_off_as_unlearned_lies_beside_numbers_of_the_same_kind(
    name, sample_models, class_models
):
    """The floor was the level between retrained models, 0.05 nats say, beside an excess over it, 0.00: every value below the level looked like chance."""
    models, split, test = sample_models if name in ("agreement", "cka", "svc_mia") else class_models
    retrained = models["retrained"]
    floors = {line.quantity: line.floor for line in measure([name], models, split, test, device="cpu")}
    each: dict[str, list[float]] = {what: [] for what in floors}
    for k, one in enumerate(retrained):
        others = [model for j, model in enumerate(retrained) if j != k]
        for line in measure([name], {"original": models["original"], "one": one, "retrained": others}, split, test, device="cpu"):
            if line.model == "one":
                each[line.quantity].append(line.value.value)
    for what, floor in floors.items():
        assert [floor.low, floor.high] == pytest.approx([min(each[what]), max(each[what])], abs=1e-6) and floor.n == len(retrained)


def test_two_retrained_models_have_no_excess_over_one_another(sample_models):
    models, split, test = sample_models
    lines = measure(["agreement", "cka"], models | {"retrained": models["retrained"][:2]}, split, test, device="cpu")
    assert lines and all("needs three retrained models, got 2" in line.floor.note for line in lines)


def test_what_is_retrained_goes_by_the_name_of_the_reference(sample_models):
    models, split, test = sample_models
    first, second, third = models["retrained"]
    flat = {
        "original": models["original"],
        "unlearned": models["unlearned"],
        "retrained": first,
        "retrained 2": second,
        "retrained 3": third,
    }
    other = {"original": models["original"], "unlearned": models["unlearned"], "gold": [first, second], "gold 3": third}
    expected = [line.to_dict() for line in measure(["agreement", "probes"], models, split, test, device="cpu")]
    assert {line["model"] for line in expected} == {"original", "unlearned"}
    assert [line.to_dict() for line in measure(["agreement", "probes"], flat, split, test, device="cpu")] == expected
    assert [line.to_dict() for line in measure(["agreement", "probes"], other, split, test, reference="gold", device="cpu")] == expected


def test_a_model_twice_under_one_name_or_the_original_as_reference_is_refused(sample_models):
    models, split, _ = sample_models
    one = models["unlearned"]
    with pytest.raises(ConfigError, match="'retrained 2' twice"):
        check_measures(["cka"], {"retrained": [one, one], "retrained 2": one}, split)
    with pytest.raises(ConfigError, match="must be a retrained model; got 'original'"):
        check_measures(["cka"], models, split, reference="original")
    with pytest.raises(ConfigError, match="at least one 'gold'; got original, unlearned, retrained"):
        check_measures(["cka"], {"original": one, "unlearned": one, "retrained": one}, split, reference="gold")


def test_what_does_not_fit_is_refused_without_asking_any_model(sample_models):
    _, split, _ = sample_models

    class Untouched(nn.Module):
        def forward(self, x):
            raise AssertionError("a model was asked")

    one = Untouched()
    assert check_measures(["probes", "cka", "probes"], {"original": one, "retrained": one}, split) == ["probes", "cka"]
    assert check_measures([], {"unlearned": one}, split) == []
    with pytest.raises(MissingError, match="no measure named 'probe'"):
        check_measures(["probe"], {"retrained": one}, split)
    with pytest.raises(DataError, match="over_unlearning is a measure of whole classes"):
        check_measures(["over_unlearning"], {"original": one, "retrained": one}, split)
    with pytest.raises(DataError, match="probes reads retain samples"):
        check_measures(["probes"], {"original": one, "retrained": one}, expunge.forget_only(split.forget))
    with pytest.raises(ConfigError, match="one 'original'"):
        check_measures(["relearn"], {"retrained": one}, split)
    assert check_measures(["agreement", "cka", "svc_mia"], {"retrained": one}, split) == ["agreement", "cka", "svc_mia"]


def test_unseen_images_of_forgotten_classes_are_a_group_of_their_own(class_models):
    models, split, test = class_models
    groups = {name: test.subset(where) for name, where in unseen_groups(test.labels, split.forget_classes, test.classes).items()}
    lines = {line.quantity: line.value for line in measure(["agreement"], models, split, test, device="cpu") if line.model == "unlearned"}
    assert len(lines) == 3
    for name, images in groups.items():
        own, *references = (logits_of(model, images) for model in (models["unlearned"], *models["retrained"]))
        expected = agreement(own, torch.stack(references)).excess
        assert lines[f"JSD to retrained on {name.replace('_', ' ')} images, above that between retrained, nats"].value == pytest.approx(
            expected.value
        )
    answers = [(logits_of(models["unlearned"], images), images.labels) for images in (split.retain, groups["test"], split.forget)]
    (line,) = [line for line in measure(["svc_mia"], models, split, test, device="cpu") if line.model == "unlearned"]
    assert line.value == SVCMIA()(*answers, features=["confidence"]).efficacy["confidence"]


def test_where_the_rule_of_a_retrained_model_is_refused_nobody_knows_what_retraining_shows(sample_models, monkeypatch):
    refused = unsupported("no threshold tells retain from test samples", 9)
    monkeypatch.setattr(SVCMIA, "__call__", lambda *_, **__: SVCMIAResult({"confidence": refused}, {"confidence": refused}, {}, 9, 9))
    for line in lines_of("svc_mia", sample_models).values():
        assert line.like == "n/a" and not line.floor.supported and "no threshold" in line.floor.note


def test_no_measure_asks_about_more_images_of_a_group_than_it_promises(class_models, monkeypatch):
    monkeypatch.setattr(measures, "RELEARNING_STEPS", 2)
    monkeypatch.setattr(measures, "MOST_IMAGES", 6)
    models, split, test = class_models
    labels = {measures.RelearnTime: [], measures.PrototypicalRelearning: [], measures.OverUnlearning: []}
    for audit, seen in labels.items():
        whole = audit.__call__

        def watched(self, models, *data, _whole=whole, _seen=seen, **rest):
            _seen.append(data[-1])
            found = _whole(self, models, *data, **rest)
            _seen.append(found.n)
            return found

        monkeypatch.setattr(audit, "__call__", watched)
    measure(["relearn", "prototypes", "over_unlearning", "agreement", "svc_mia", "cka"], models, split, test, device="cpu")
    assert len(split.forget) > 6 and labels[measures.RelearnTime][1] == 6 and labels[measures.OverUnlearning][1] == 6
    asked, n = labels[measures.PrototypicalRelearning]
    forgotten = torch.isin(asked.labels, torch.tensor(split.forget_classes))
    assert (
        n == int(forgotten.sum()) == min(6, int(torch.isin(test.labels, torch.tensor(split.forget_classes)).sum()))
        and int((~forgotten).sum()) == 6
    )
    assert set(asked.ids.tolist()) <= set(test.ids.tolist())
    assert few(test, 6).ids.tolist() == sorted(few(test, 6).ids.tolist()) and len(few(test, 6)) == 6 and few(test, len(test)) is test
