"""A plan as a value, and as a TOML file."""

import dataclasses
import pathlib

import pytest
import torch

import expunge
from expunge import AMUN, RMIA, FineTune, LossThreshold, Recipe
from expunge.bench import ForgetClasses, ForgetRandom, ForgetSamples, Plan, read_plan
from expunge.bench.point import points
from expunge.data.images import ImageData
from expunge.errors import ConfigError, MissingError
from expunge.training.recipes import recipe

PLANS = sorted((pathlib.Path(__file__).parents[2] / "plans").glob("*.toml"))
COLUMNS = {"average gap", "forget", "forget test", "retain", "test", "RMIA AUC", "LossThreshold AUC", "TV distance", "MIA-NN gap"}
TOML = """
data = ["digits", "mnist"]
arch = "small"
forget = [{ random = 0.1, seed = 3 }, { classes = ["3"] }, { indices = [1, 2] }]
recipe = { name = "amun", epochs = 7 }
attacks = ["lira:variance=fixed", "rmia"]
shadows = 16
augment = { pad = 1 }
[methods]
amun = { lr = 0.02, attack = "nearest_ddn:steps=7" }
gentle = { method = "amun", lr = 1e-4 }
[scales.small]
seeds = 1
recipe = "salun"
methods = { gentle = { method = "fine_tune" } }
[paper]
source = "a paper"
amun = { forget = "95.5 ± .2" }
"""


def plan(**changes):
    return Plan(**({"methods": [FineTune()], "recipe": Recipe(epochs=1), "forget": ForgetRandom(n=10)} | changes))


def written(folder, text=TOML):
    file = folder / "plan.toml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": []}, "at least one method"),
        ({"methods": [FineTune(), FineTune(lr=0.1)]}, "fine_tune twice"),
        ({"methods": {"original": FineTune()}}, "of its own"),
        ({"methods": [expunge.Retrain(build=expunge.architecture, recipe=Recipe())]}, "of its own"),
        ({"methods": ["amun"]}, r"such as AMUN\(\)"),
        ({"shadows": 0, "attacks": [RMIA()]}, "RMIA must have shadow models"),
        ({"shadows": 3}, "even"),
        ({"seeds": 0}, "seeds"),
        ({"retrained": 1}, "retrained"),
        ({"attacks": []}, "one at least"),
        ({"data": []}, "data must have one value"),
        ({"paper": {"amnu": {}}}, "amnu"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        plan(**changes)


def test_the_attack_is_rmia_with_shadow_models_and_the_loss_threshold_without():
    assert [type(a) for a in plan().attacks] == [RMIA]
    assert [type(a) for a in plan(shadows=0).attacks] == [LossThreshold]


def test_the_grid_has_every_combination_and_a_pair_of_data_sets_is_one_value():
    pair = expunge.load_data("digits")
    grid = plan(data=["digits", pair], forget=[ForgetRandom(n=1), ForgetClasses(classes="3"), ForgetSamples(indices=[1])]).grid()
    assert len(grid) == 6
    assert [point["data"] for point in grid] == ["digits"] * 3 + [pair] * 3
    assert len(plan(data=pair).grid()) == 1


@pytest.mark.parametrize("given", [{}, {"n": 5, "ratio": 0.1}])
def test_random_samples_are_a_number_or_a_share(given):
    with pytest.raises(ConfigError, match="n or ratio"):
        ForgetRandom(**given)


def test_forget_rules_make_splits_and_say_what_they_are():
    train, _ = expunge.load_data("digits")
    assert len(ForgetRandom(ratio=0.25)(train).forget_indices) == 250
    assert ForgetClasses(classes=["3"])(train).forget_classes == (3,)
    assert ForgetSamples(indices=[4, 2])(train).forget_indices.tolist() == [2, 4]
    assert list(map(str, (ForgetRandom(ratio=0.25), ForgetClasses(classes="3")))) == ["25 % random samples", "class 3"]


def test_a_file_says_what_a_plan_says(tmp_path):
    found = read_plan(written(tmp_path))
    assert found.data == ["digits", "mnist"]
    assert found.forget == [ForgetRandom(ratio=0.1, seed=3), ForgetClasses(classes=("3",)), ForgetSamples(indices=(1, 2))]
    assert found.recipe == recipe("amun", epochs=7)
    assert found.attacks == (expunge.LiRA(variance="fixed"), RMIA())
    assert found.augment == expunge.Augment(pad=1)
    assert found.methods == {"amun": AMUN(lr=0.02, attack=expunge.NearestDDN(steps=7)), "gentle": AMUN(lr=1e-4)}
    assert found.paper["amun"] == {"forget": "95.5 ± .2"}


def test_a_scale_replaces_what_it_names_and_of_the_methods_single_ones(tmp_path):
    found = read_plan(written(tmp_path), "small")
    assert (found.seeds, found.recipe, found.shadows) == (1, recipe("salun"), 16)
    assert found.methods == {"amun": AMUN(lr=0.02, attack=expunge.NearestDDN(steps=7)), "gentle": FineTune()}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("shadows", "shadow", "did you mean 'shadows'"),
        ("amun = { lr", "amnu = { lr", "did you mean 'amun'"),
        ("lr = 0.02", "learning_rate = 0.02", "no setting of amun"),
        ("lr = 0.02", "lr = -1.0", "lr must be"),
        ("{ random = 0.1, seed = 3 }", "{ randomly = 0.1 }", "forget must be one of"),
        ("{ random = 0.1, seed = 3 }", '{ classes = ["3"], seed = 3 }', "forget must be one of"),
        ('"rmia"]', '"rmai"]', "did you mean 'rmia'"),
        ('name = "amun"', 'name = "amnu"', "did you mean 'amun'"),
        ("recipe = {", "recipes = {", "did you mean 'recipe'"),
        ('method = "amun"', 'method = "retrain"', "retrains anyway"),
        ('arch = "small"', "arch = small", "must be a TOML file"),
        ('amun = { lr = 0.02, attack = "nearest_ddn:steps=7" }', "amun = 3", "table of settings"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, old, new, words):
    assert old in TOML
    with pytest.raises((ConfigError, MissingError), match=words):
        read_plan(written(tmp_path, TOML.replace(old, new, 1)))


def test_a_file_without_what_a_plan_needs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must say recipe"):
        read_plan(written(tmp_path, "forget = { random = 1 }\n[methods]\namun = {}"))
    with pytest.raises(MissingError, match="no plan"):
        read_plan(tmp_path / "none.toml")
    with pytest.raises(MissingError, match="did you mean 'small'"):
        read_plan(written(tmp_path), "smal")


@pytest.mark.parametrize("file", PLANS, ids=lambda file: file.stem)
@pytest.mark.parametrize("scale", [None, "cpu"])
def test_the_plans_of_the_repository_can_be_read_and_quote_papers_in_columns_that_there_are(file, scale):
    found = read_plan(file, scale)
    quoted = {column for name, columns in found.paper.items() if name != "source" for column in columns}
    assert quoted <= COLUMNS
    assert found.paper["source"]


@pytest.mark.parametrize("file", PLANS, ids=lambda file: file.stem)
@pytest.mark.parametrize("scale", [None, "cpu"])
def test_everything_that_the_plans_of_the_repository_train_can_be_laid_out(file, scale, tmp_path):
    forgotten = [name for each in read_plan(file, scale).grid() for name in getattr(each["forget"], "classes", ())]
    names = (*dict.fromkeys(forgotten), *(f"other {k}" for k in range(10)))[:10]
    pair = tuple(ImageData(torch.zeros(n, 3, 32, 32, dtype=torch.uint8), torch.arange(n) % 10, names) for n in (60, 40))
    found = dataclasses.replace(read_plan(file, scale), data=pair, n_train=None, arch="small")
    for point in points(found, tmp_path, "nowhere"):
        assert all(len(task.positions) for tasks in point.tasks.values() for task in tasks)


def test_a_whole_number_in_a_file_is_the_number_that_is_meant(tmp_path):
    assert read_plan(written(tmp_path, TOML.replace("lr = 0.02", "lr = 1"))).methods["amun"] == AMUN(
        lr=1.0, attack=expunge.NearestDDN(steps=7)
    )
    assert isinstance(read_plan(written(tmp_path, TOML.replace("lr = 0.02", "lr = 1"))).methods["amun"].lr, float)
