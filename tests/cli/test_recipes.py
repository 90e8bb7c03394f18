"""`--recipe NAME`, what `expunge list recipes` and `expunge show` say, and the warning where shadow models have another recipe than their target."""

import json

import pytest

import expunge as library
from expunge.cli.inputs import metadata_of, training_of
from expunge.cli.train import make_recipe
from expunge.training.recipes import RECIPES, recipe


def test_a_named_recipe_is_the_base_and_options_change_it():
    assert make_recipe({"recipe": "salun"}) == recipe("salun")
    assert make_recipe({"recipe": "salun", "epochs": 3}, library.Recipe(lr=0.7)) == recipe("salun", epochs=3)


def test_a_model_is_trained_by_a_named_recipe_and_its_checkpoint_knows(expunge, tmp_path, work):
    out = tmp_path / "model.safetensors"
    expunge("train", work.data, "small", "-o", out, "--recipe", "cifar10_fast", "--epochs", "1", "--batch-size", "32", "--device", "cpu")
    assert training_of(metadata_of(str(out)))["recipe"] == recipe("cifar10_fast", epochs=1, batch_size=32)
    assert "no recipe named 'amnu'" in expunge("train", work.data, "small", "-o", tmp_path / "x", "--recipe", "amnu", code=1).stderr


@pytest.mark.parametrize("name", RECIPES)
def test_show_has_the_values_of_a_recipe(name, expunge):
    out = expunge("show", name).stdout
    assert f"{name} (recipe)" in out and repr(recipe(name).schedule) in out


def test_a_method_and_a_recipe_of_one_name_are_both_explained(expunge):
    assert [line for line in expunge("show", "amun").stdout.splitlines() if line.startswith("amun (")] == ["amun (method)", "amun (recipe)"]
    shown = json.loads(expunge("show", "amun", "--json").stdout)
    assert shown["kind"] == "method" and [other["kind"] for other in shown["also"]] == ["recipe"]
    assert {"setting": "epochs", "range": "an integer ≥ 1", "value": "200"} in shown["also"][0]["settings"]


def test_shadow_models_of_another_recipe_than_their_target_give_a_warning_and_a_flag(expunge, tmp_path, work):
    shadows = ["--store", tmp_path / "runs", "--workers", "1", "--device", "cpu"]
    like = ["shadows", work.data, "--like", work.original, "--n", "4", *shadows]
    assert "another recipe than the original: lr=0.2" in expunge(*like, "--lr", "0.2").stderr
    assert "another recipe" not in expunge(*like).stderr
    audit = ["audit", "--original", work.original, "--data", work.data, *work.forget, "--shadows", "4", *shadows, "--json"]
    assert [f["name"] for f in json.loads(expunge(*audit, "--lr", "0.2").stdout)["flags"]].count("ShadowsUnlikeTarget") == 1
    assert "another recipe" not in expunge(*audit).stdout
