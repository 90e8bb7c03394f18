import json

import pytest
import torch

import expunge
from expunge.audits import RMIA, LiRA, LossThreshold
from expunge.audits.tables import as_text
from expunge.data.images import ImageData
from expunge.errors import ConfigError, DataError, MissingError
from expunge.methods import FineTune, Retrain
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
    parts = [gaps.forget_accuracy, gaps.retain_accuracy, gaps.test_accuracy, gaps.auc]
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
    assert "two accuracies" in str(result) and result.model("original").gaps.retain_accuracy is None


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
