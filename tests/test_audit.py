import json

import pytest
import torch

import expunge
import expunge.report
from expunge.audits import RMIA, LiRA, LossThreshold
from expunge.audits.tables import as_text
from expunge.data.images import ImageData
from expunge.errors import ConfigError, DataError, MissingError
from expunge.methods import DELETE, FineTune, Retrain
from expunge.store import Store
from expunge.training.recipe import Recipe
from expunge.training.shadow import train_shadow_models
from toys import toy_net

RECIPE = Recipe(epochs=10, lr=0.1, batch_size=32)


@pytest.fixture(scope="module")
def shadows(memorised, tmp_path_factory):
    _, split, test = memorised
    return train_shadow_models(
        toy_net, split.train, test, n=8, recipe=RECIPE, store=tmp_path_factory.mktemp("runs"), workers=1, device="cpu"
    )


@pytest.fixture(scope="module")
def models(memorised):
    model, split, _ = memorised
    retrain = Retrain(build=toy_net, recipe=RECIPE)
    return {
        "original": model,
        "unlearned": FineTune(epochs=2, batch_size=16)(model, split),
        "retrained": [retrain(model, split, seed=s) for s in (1, 2)],
    }


@pytest.fixture(scope="module")
def result(models, memorised, shadows):
    _, split, test = memorised
    return expunge.audit(models, split, test, shadows=shadows, fpr=0.05)


def test_the_default_attacks_and_every_model_have_a_row(result):
    assert [m.name for m in result.models] == ["original", "unlearned", "retrained", "retrained 2"]
    assert {(r.attack, r.model) for r in result.attacks} == {(a, m.name) for a in ("LossThreshold", "LiRA", "RMIA") for m in result.models}


def test_accuracies_are_those_of_the_models(result, models, memorised):
    _, split, test = memorised
    for name, group, samples in [("original", "forget", split.forget), ("unlearned", "retain", split.retain), ("unlearned", "test", test)]:
        answers = expunge.logits_of(models[name], samples).argmax(1)
        assert getattr(result.model(name), group).value == pytest.approx((answers == samples.labels).double().mean().item())


def test_an_original_that_knows_wrong_labels_by_heart_is_found_out(result):
    for attack in ("LossThreshold", "LiRA", "RMIA"):
        assert result[attack, "original"].auc > result[attack, "retrained"].auc + 0.3


def test_gaps_are_to_the_retrained_model_on_the_same_samples(result):
    row = result["LiRA", "unlearned"]
    assert row.gap.value == pytest.approx(row.auc - result["LiRA", "retrained"].auc)
    assert result["LiRA", "retrained"].gap is None and result.model("retrained").gaps is None
    gaps = result.model("unlearned").gaps
    parts = [gaps.forget, gaps.retain, gaps.test, gaps.auc]
    assert gaps.average.value == pytest.approx(sum(abs(g.value) for g in parts) / 4)
    assert gaps.auc.value == pytest.approx(result["RMIA", "unlearned"].auc - result["RMIA", "retrained"].auc)


def test_the_null_floor_is_the_gap_between_retrained_models(result):
    assert result.floor == result.model("retrained 2").gaps.average


def test_a_model_audited_against_itself_has_no_gap(models, memorised):
    model, split, test = memorised
    result = expunge.audit({"copy": model, "retrained": model}, split, test)
    assert result.model("copy").gaps.average.value == 0 and result["LossThreshold", "copy"].gap.value == 0


def test_swapping_members_and_non_members_mirrors_the_auc(models, memorised):
    model, split, test = memorised
    forward = expunge.audit({"m": model}, split, test)["LossThreshold", "m"]
    assert expunge.metrics.auc(forward.nonmembers, forward.members).value == pytest.approx(1 - forward.auc)


def test_text_json_and_page_carry_the_same_numbers(result, tmp_path):
    plain = json.loads(result.to_json(tmp_path / "audit.json"))
    assert json.loads((tmp_path / "audit.json").read_text()) == plain
    assert as_text(plain) == str(result)
    auc = f"{result['RMIA', 'unlearned'].auc:.3f}"
    assert auc in str(result)
    result.to_html(tmp_path / "audit.html")
    assert auc in (tmp_path / "audit.html").read_text()


def test_unknown_attacks_and_models_are_named(result):
    with pytest.raises(MissingError, match="no attack named 'RMA'; did you mean 'RMIA'"):
        result["RMA", "original"]
    with pytest.raises(MissingError, match="no model named 'unlearnt'"):
        result["RMIA", "unlearnt"]


def test_flags_say_what_is_missing(result, models, memorised):
    model, split, test = memorised
    alone = expunge.audit({"original": model}, split, test, fpr=0.001)
    assert {"NoNullFloor", "TooFewNonMembers"} <= {flag.name for flag in alone.flags}
    assert not {"NoNullFloor", "ModelNeverMemorised"} & {flag.name for flag in result.flags}
    fresh = expunge.audit({"original": models["retrained"][0]}, split, test)
    assert "ModelNeverMemorised" in {flag.name for flag in fresh.flags}
    assert alone.reference is None and alone.model("original").gaps is None


def test_each_forget_sample_has_a_risk_under_each_model_and_the_most_exposed_have_pictures(result, memorised):
    _, split, _ = memorised
    assert set(result.risks) == {"original", "unlearned", "retrained", "retrained 2"}
    risk = result.risks["original"]
    assert torch.equal(risk.ids, split.forget.ids) and ((risk.low <= risk.probability) & (risk.probability <= risk.high)).all()
    assert risk.probability.mean() > result.risks["retrained"].probability.mean() + 0.2  # wrong labels, known by heart
    shown = result.to_dict()["risks"]
    assert shown["by"] == "unlearned" and shown["n"] == 16
    values = [example["risks"]["unlearned"]["value"] for example in shown["examples"]]
    assert values == sorted(values, reverse=True)
    first = shown["examples"][0]
    position = int((split.forget.ids == first["id"]).nonzero())
    assert first["label"] == split.train.classes[int(split.forget.labels[position])]
    assert first["image"] == expunge.report.thumbnail(split.forget.fetch(torch.tensor([position]))[0])


def test_a_result_with_all_its_parts_can_be_kept_in_a_store(result, tmp_path):
    cell = Store(tmp_path).cell("audit", {"of": "everything"})
    cell.ensure(lambda: cell.finish(result.to_dict()))
    assert cell.result() == json.loads(result.to_json())


def test_measures_that_do_not_fit_are_refused_before_anything_is_scored(models, memorised, monkeypatch):
    _, split, test = memorised
    monkeypatch.setattr("expunge.auditing.logits_of", None)
    with pytest.raises(DataError, match="prototypes is a measure of whole classes"):
        expunge.audit(models, split, test, measures=["prototypes"])


def test_a_name_that_a_list_has_taken_is_refused_instead_of_losing_a_model(models, memorised):
    _, split, test = memorised
    with pytest.raises(ConfigError, match="got 'retrained 2' twice"):
        expunge.audit({"retrained": models["retrained"], "retrained 2": models["original"]}, split, test)


def test_retrained_models_by_the_names_of_the_command_line_are_retrained_for_measures_too(models, memorised):
    _, split, test = memorised
    flat = {"original": models["original"], "retrained": models["retrained"][0], "retrained 2": models["retrained"][1]}
    lines = expunge.audit(flat, split, test, measures=["agreement"]).measures
    assert {line.model for line in lines} == {"original"} and all(line.value.supported for line in lines)
    named = {"original": models["original"], "gold": models["retrained"][0], "gold 2": models["retrained"][1]}
    assert expunge.audit(named, split, test, measures=["agreement"], reference="gold").measures == lines


def test_without_shadow_models_there_are_no_risks(models, memorised):
    _, split, test = memorised
    assert expunge.audit({"original": models["original"]}, split, test).to_dict()["risks"] is None


def test_verdicts_are_on_every_model_that_was_not_retrained(result, models, memorised):
    _, split, test = memorised
    assert [verdict.model for verdict in result.verdicts] == ["original", "unlearned"]
    assert "needs 1 more retrained model," in result.verdict("original").text and result.verdict("original").text in str(result)
    with pytest.raises(MissingError, match="no verdict on a model named 'retrained'"):
        result.verdict("retrained")
    assert expunge.audit({"original": models["original"]}, split, test).verdicts == []


def test_every_flag_that_can_be_raised_is_documented():
    import pathlib

    page = (pathlib.Path(__file__).parents[1] / "docs" / "flags.md").read_text()
    flags = [cls.__name__ for cls in expunge.HealthFlag.__subclasses__()]
    assert flags and all(f"### {name}\n" in page for name in flags)


def test_bad_requests_are_refused(models, memorised, shadows):
    model, split, test = memorised
    with pytest.raises(ConfigError, match="LiRA and RMIA need shadow models"):
        expunge.audit({"m": model}, split, test, attacks=[LiRA(), RMIA()])
    with pytest.raises(ConfigError, match="at least one attack"):
        expunge.audit({"m": model}, split, test, attacks=[])
    with pytest.raises(ConfigError, match="at least one model"):
        expunge.audit({}, split, test)
    other = ImageData(test.images, (test.labels + 1) % 10, test.classes)
    with pytest.raises(DataError, match="halves of the audited training and test set"):
        expunge.audit({"m": model}, split, other, shadows=shadows)
    with pytest.raises(DataError, match="training set's kind"):
        expunge.audit({"m": model}, split, ImageData(test.images[..., :4], test.labels, test.classes))


def test_a_subset_of_the_test_set_finds_its_shadow_columns(models, memorised, shadows):
    model, split, test = memorised
    few = expunge.audit({"m": model}, split, test.subset(range(100, 300)), attacks=[RMIA()], shadows=shadows)
    whole = expunge.audit({"m": model}, split, test, attacks=[RMIA()], shadows=shadows)
    assert torch.allclose(few["RMIA", "m"].nonmembers, whole["RMIA", "m"].nonmembers[100:300], atol=1e-6)
    assert few.sizes["test"] == 200


def test_the_audit_leaves_models_and_the_world_alone(memorised):
    model, split, test = memorised
    model.train()
    state, before = torch.get_rng_state(), [t.clone() for t in model.state_dict().values()]
    expunge.audit({"m": model}, split, test, attacks=[LossThreshold()])
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    model.eval()


def test_shadow_models_of_subsets_find_their_columns(memorised, tmp_path):
    # Ids count through the set that both halves were cut from. All labels are equal here, as when a class is forgotten, so that labels cannot tell.
    model, split, _ = memorised
    whole = ImageData(split.train.images[:60], torch.zeros(60, dtype=torch.int64), split.train.classes)
    train, test = whole.subset(range(25, 60)), whole.subset(range(20))
    shadows = train_shadow_models(toy_net, train, test, n=4, recipe=Recipe(epochs=1), store=tmp_path, workers=1, device="cpu")
    forget = expunge.forget_samples(train, [2, 9])
    assert shadows.columns(forget.forget, test.subset([3, 5])).tolist() == [2, 9, 38, 40]
    assert shadows.columns(whole.subset([0, 25]), test.subset([0])).tolist() == [-1, 0, 35]
    result = expunge.audit({"m": model}, forget, test, attacks=[RMIA()], shadows=shadows)
    assert result.sizes["test"] == 20
    with pytest.raises(DataError, match="halves of the audited"):
        expunge.audit({"m": model}, expunge.forget_samples(whole.subset(range(20, 60)), [0]), test, attacks=[RMIA()], shadows=shadows)


def test_one_attack_with_two_settings_gives_two_answers(memorised, shadows):
    model, split, test = memorised
    attacks = [LossThreshold(), LiRA(), LiRA(variance="per_example")]
    result = expunge.audit({"original": model}, split, test, attacks=attacks, shadows=shadows)
    assert [row.attack for row in result.attacks] == ["LossThreshold", repr(LiRA()), repr(LiRA(variance="per_example"))]
    only = expunge.audit({"original": model}, split, test, attacks=[LiRA()], shadows=shadows)
    assert torch.equal(result[repr(LiRA()), "original"].members, only["LiRA", "original"].members)
    assert not torch.equal(result.attacks[1].members, result.attacks[2].members)
    with pytest.raises(ConfigError, match="must differ"):
        expunge.audit({"m": model}, split, test, attacks=[LossThreshold(), LossThreshold()])


def test_only_retrained_models_make_the_null_floor(models, memorised):
    _, split, test = memorised
    first, second = models["retrained"]
    numbered = expunge.audit({"1": models["original"], "2": models["unlearned"], "retrained": first}, split, test)
    assert numbered.floor is None
    own_name = expunge.audit({"1": models["original"], "yard": [first, second]}, split, test, reference="yard")
    assert own_name.floor == own_name.model("yard 2").gaps.average
    with pytest.raises(MissingError, match="no model named 'retrain'"):
        expunge.audit({"1": first}, split, test, reference="retrain")


def test_without_retain_data_the_average_is_of_two_accuracies(models, memorised):
    model, split, test = memorised
    gone = expunge.forget_only(split.train.subset(split.forget_indices))
    result = expunge.audit({"original": model, "retrained": models["retrained"][0]}, gone, test)
    assert "two accuracies" in str(result) and result.model("original").gaps.retain is None


def test_a_model_that_answers_everything_alike_is_audited(memorised, tmp_path):
    _, split, test = memorised
    constant = toy_net()
    torch.nn.init.zeros_(constant[-1].weight), torch.nn.init.zeros_(constant[-1].bias)
    result = expunge.audit({"constant": constant}, split, test)
    assert result["LossThreshold", "constant"].auc == 0.5
    result.to_json(tmp_path / "audit.json")


def test_training_images_cannot_pass_for_test_images(memorised):
    # Every model, the original too, would look as if it had never seen the forget set.
    model, split, _ = memorised
    twin = ImageData(split.train.images.clone(), split.train.labels, split.train.classes)
    for seen in (split.train, split.train.subset(range(64)), split.retain, twin):
        with pytest.raises(DataError, match="no model was trained on"):
            expunge.audit({"m": model}, split, seen)
    part = expunge.forget_samples(split.train.subset(range(64)), [0])
    expunge.audit({"m": model}, part, split.train.subset(range(64, 128)))


# Whole classes


@pytest.fixture(scope="module")
def class_models(memorised_class):
    model, split, _ = memorised_class
    retrain = Retrain(build=toy_net, recipe=RECIPE)
    return {
        "original": model,
        "unlearned": DELETE(epochs=3, lr=0.01, batch_size=8)(model, split),
        "retrained": [retrain(model, split, seed=s) for s in (1, 2, 3)],
    }


@pytest.fixture(scope="module")
def class_result(class_models, memorised_class):
    _, split, test = memorised_class
    return expunge.audit(class_models, split, test, fpr=0.1)


def test_unseen_images_of_a_forgotten_class_are_a_group_and_the_non_members(class_result, class_models, memorised_class):
    _, split, test = memorised_class
    threes = test.subset((test.labels == 3).nonzero().flatten())
    assert class_result.sizes == {"forget": len(split.forget), "forget_test": len(threes), "retain": 128 - len(split.forget), "test": 400 - len(threes), "shadow_models": 0}  # fmt: skip
    right = (expunge.logits_of(class_models["original"], threes).argmax(1) == 3).double().mean().item()
    assert class_result.model("original").forget_test.value == pytest.approx(right) and right > 0.8
    assert class_result.model("retrained").forget_test.value == class_result.model("retrained").forget.value == 0
    assert torch.equal(class_result["LossThreshold", "original"].nonmembers, expunge.audits.LossThreshold()(expunge.logits_of(class_models["original"], threes), threes.labels))  # fmt: skip


def test_gaps_of_class_forgetting_have_five_measures(class_result):
    gaps = class_result.model("original").gaps
    parts = [gaps.forget, gaps.forget_test, gaps.retain, gaps.test, gaps.auc]
    assert gaps.forget_test.value > 0.8
    assert gaps.average.value == pytest.approx(sum(abs(gap.value) for gap in parts) / 5)
    assert class_result.floor == max((class_result.model(f"retrained {k}").gaps.average for k in (2, 3)), key=lambda gap: gap.value)
    assert gaps.average.low > class_result.floor.value


def test_the_answers_on_a_forgotten_class_are_those_of_the_models(class_result, class_models, memorised_class):
    (answers,) = class_result.classes
    threes = memorised_class[2].subset((memorised_class[2].labels == 3).nonzero().flatten())
    assert (answers.name, answers.n, answers.classes) == ("3", len(threes), memorised_class[2].classes)
    assert [row.model for row in answers.rows] == ["original", "unlearned", "retrained", "retrained 2", "retrained 3"]
    logits = expunge.logits_of(class_models["unlearned"], threes)
    torch.testing.assert_close(answers["unlearned"].answer, logits.double().softmax(1).mean(0))
    torch.testing.assert_close(answers["unlearned"].predicted, logits.argmax(1).bincount(minlength=10).double() / len(threes))
    assert answers["original"].answer.argmax() == 3 and answers["retrained"].answer[3] < 0.05


def test_models_are_held_against_the_retrained_ones_and_these_against_one_another(class_result):
    (answers,) = class_result.classes
    assert answers.neighbour in set(answers.classes) - {"3"} and answers.short == ()
    for row in answers.rows:
        assert answers.classes[row.neighbour.neighbour] == answers.neighbour
        assert len(row.neighbour.reference_scores) == (2 if row.model.startswith("retrained") else 3)
    assert answers["original"].distance.low > answers.distance_floor.high
    assert answers["original"].neighbour.gap.value < 0
    twins = [answers[name].distance.value for name in ("retrained", "retrained 2", "retrained 3")]
    assert answers.distance_floor.value == pytest.approx(sum(twins) / 3) and answers.distance_floor.n == 3
    assert answers.neighbour_floor.supported and answers.neighbour_floor.n == 3
    assert "TooFewTestImages" not in {flag.name for flag in class_result.flags}


def test_text_and_json_of_a_class_carry_the_same_numbers(class_result, tmp_path):
    plain, text = json.loads(class_result.to_json()), str(class_result)
    assert as_text(plain) == text
    assert plain["classes"][0]["name"] == "3" and len(plain["classes"][0]["rows"]) == 5
    for part in ("four accuracies", "test samples of their classes", "forget test", "Answers on ", "Null floor on 3, ", "TV to retrained"):
        assert part in text
    assert f"which retrained models take for {class_result.classes[0].neighbour}" in text
    class_result.to_html(tmp_path / "audit.html")


def test_a_test_set_without_a_class_is_refused(memorised_class):
    model, split, test = memorised_class
    threes = test.labels == 3
    with pytest.raises(DataError, match="got none of '3'. Leave them in the test set"):
        expunge.audit({"m": model}, split, test.subset((~threes).nonzero().flatten()))
    with pytest.raises(DataError, match="got none of the other classes"):
        expunge.audit({"m": model}, split, test.subset(threes.nonzero().flatten()))


def test_each_of_several_forgotten_classes_is_answered_for_alone(class_models, memorised_class):
    _, split, test = memorised_class
    both = expunge.forget_classes(split.train, [3, 5])
    result = expunge.audit(class_models, both, test)
    assert [answers.name for answers in result.classes] == ["3", "5"]
    for answers, k in zip(result.classes, (3, 5), strict=True):
        assert answers.n == (test.labels == k).sum() and answers.neighbour not in ("3", "5")
        assert answers["original"].answer.argmax() == k
        assert answers["original"].neighbour.score.n == answers.n
    assert result.sizes["forget_test"] == sum(answers.n for answers in result.classes)
    assert str(result).count("Null floor on") == 2


def test_without_retrained_models_the_answers_stand_alone(memorised_class):
    model, split, test = memorised_class
    result = expunge.audit({"original": model}, split, test)
    (answers,) = result.classes
    assert answers["original"].distance is answers["original"].neighbour is answers.neighbour is answers.distance_floor is None
    assert "Answers on" in str(result) and "Null floor" not in str(result) and "MIA-NN, %" in str(result)
    assert as_text(json.loads(result.to_json())) == str(result)


def test_one_retrained_model_has_nobody_to_be_held_against(class_models, memorised_class):
    _, split, test = memorised_class
    result = expunge.audit({"original": class_models["original"], "retrained": class_models["retrained"][0]}, split, test)
    (answers,) = result.classes
    assert answers["retrained"].distance is answers["retrained"].neighbour is None
    assert answers["original"].neighbour.gap.note and not answers.neighbour_floor.supported
    assert "Null floor on" not in str(result) and json.loads(result.to_json())["classes"][0]["neighbour_floor"]["value"] is None


def test_a_class_can_be_audited_when_its_retain_data_are_gone(class_models, memorised_class):
    _, split, test = memorised_class
    gone = expunge.forget_only(split.train.subset(split.forget_indices), classes=[3])
    result = expunge.audit(class_models, gone, test)
    assert list(result.sizes) == ["forget", "forget_test", "test", "shadow_models"] and "three accuracies" in str(result)
    assert result.model("original").gaps.retain is None and result.classes[0]["unlearned"].neighbour is not None


def test_a_class_with_few_test_images_leaves_out_the_neighbour_and_raises_a_flag(class_models, memorised_class):
    _, split, test = memorised_class
    sevens = (test.labels == 7).nonzero().flatten()
    few = test.subset(torch.cat([(test.labels != 7).nonzero().flatten(), sevens[:3]]))
    result = expunge.audit(class_models, split, few)
    (answers,) = result.classes
    assert answers.short == ("7",) and answers.neighbour is None and all(row.neighbour is None for row in answers.rows)
    assert answers["original"].distance.low > answers.distance_floor.high
    (flag,) = (flag for flag in result.flags if flag.name == "TooFewTestImages")
    assert "needs 4 test images of every remaining class; 7 got fewer" in flag.message
    assert "Null floor on 3, a retrained model against the others (mean, smallest to largest): TV" in str(result)
    assert as_text(json.loads(result.to_json())) == str(result)
    alone = expunge.audit({"original": class_models["original"]}, split, few)
    assert "TooFewTestImages" not in {flag.name for flag in alone.flags}  # nobody to ask about


def test_with_one_remaining_class_there_is_no_neighbour_to_choose(memorised_class):
    _, split, test = memorised_class

    def binary(samples):
        return ImageData(samples.fetch(torch.arange(len(samples))), (samples.labels == 3).long(), ("other", "three"))

    train, test = binary(split.train), binary(test)
    nets = [toy_net(n_classes=2) for _ in range(3)]
    result = expunge.audit({"original": nets[0], "retrained": nets[1:]}, expunge.forget_classes(train, ["three"]), test)
    (answers,) = result.classes
    assert answers.neighbour is None and answers.short == () and answers["original"].distance.supported
    assert as_text(json.loads(result.to_json())) == str(result)


def test_a_model_may_have_more_outputs_than_there_are_classes(memorised_class):
    _, split, test = memorised_class
    nets = [toy_net(n_classes=12) for _ in range(3)]
    result = expunge.audit({"original": nets[0], "retrained": nets[1:]}, split, test)
    (answers,) = result.classes
    assert answers.classes[-2:] == ("output 10", "output 11") == answers.short and len(answers["original"].answer) == 12
    assert "Answers on" in str(result)
