"""train → unlearn → audit on real digits: what is printed, what is written, and that it is what the library says."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import expunge as library
from expunge.cli.audited_models import name_models
from expunge.cli.train import make_recipe
from expunge.errors import ConfigError
from expunge.models import read_metadata
from expunge.store import plain

RECIPE = library.Recipe(epochs=2, batch_size=32, lr=0.05)


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_train_writes_the_model_that_the_library_trains(work):
    train, _ = library.load_data(work.data)
    expected = library.train_model(library.architecture("small", train), train, RECIPE, seed=1, device="cpu")
    assert same(library.load_model(work.original), expected)


def test_a_checkpoint_knows_how_it_was_made(work):
    known = read_metadata(work.original)
    train, _ = library.load_data(work.data)
    assert known["recipe"] == plain(RECIPE)
    assert known["data"]["fingerprint"] == train.fingerprint
    assert known["seed"] == 1 and known["architecture"]["name"] == "small" and "torch" in known["provenance"]
    assert known["accuracy"] == work.printed["accuracy"] and set(known["accuracy"]) == {"train", "test"}


def test_train_unlearn_audit_round_trip(work, expunge, tmp_path):
    unlearned, page = tmp_path / "unlearned.safetensors", tmp_path / "audit.html"
    out = expunge(
        "unlearn", "amun", "--model", work.original, "--data", work.data, *work.forget, "-o", unlearned, "--device", "cpu",
        "--set", "epochs=1", "--set", "use_retain=false", "--set", "attack=nearest_ddn:steps=30",
    )  # fmt: skip
    assert "accuracy on" in out.stdout and f"wrote {unlearned}" in out.stdout and not out.stderr
    known = read_metadata(unlearned)
    assert "use_retain=False" in known["settings"] and "NearestDDN(steps=30" in known["settings"]
    assert known["method"] == "amun" and known["forget"]["n"] == 10 and known["recipe"] == plain(RECIPE)
    out = expunge(
        "audit", "--original", work.original, "--unlearned", f"mine={unlearned}", "--data", work.data, *work.forget, "--html", page
    )
    for words in ("AUC", "original", "mine", "10 forget, 190 retain, 100 test", "NoNullFloor"):
        assert words in out.stdout
    assert "<html" in page.read_text()
    expunge("audit", "--original", work.original, "--data", work.data, *work.forget, "--html", page, code=1)


def test_unlearn_gives_the_library_s_weights(work, expunge, tmp_path):
    out = tmp_path / "u.safetensors"
    expunge(
        "unlearn",
        "fine_tune",
        "--model",
        work.original,
        "--data",
        work.data,
        "--forget-random",
        "20:3",
        "-o",
        out,
        "--seed",
        "4",
        "--set",
        "epochs=1",
    )
    train, _ = library.load_data(work.data)
    split = library.forget_random(train, 20, seed=3)
    assert same(library.load_model(out), library.FineTune(epochs=1)(library.load_model(work.original), split, seed=4))


def test_models_without_the_forget_set_are_the_library_s_and_are_audited_as_such(work, expunge, tmp_path):
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    cpu = ["--seed", "7", "--device", "cpu"]
    expunge("unlearn", "retrain", "--model", work.original, "--data", work.data, *work.forget, "-o", a, *cpu)
    expunge("train", work.data, "small", "--without", work.ids, "-o", b, *work.quick, *cpu)
    split = library.forget_samples(library.load_data(work.data).train, range(0, 200, 20))
    build = library.architecture("small", split.train)
    retrain = library.Retrain(build=build, recipe=RECIPE)
    assert same(library.load_model(a), retrain(library.load_model(work.original), split, seed=7, device="cpu"))
    assert same(library.load_model(b), library.train_model(build, split.retain, RECIPE, seed=7, device="cpu"))
    assert read_metadata(b)["without"] == read_metadata(a)["forget"]
    out = expunge("audit", "--original", work.original, "--retrained", a, "--retrained", b, "--data", work.data, *work.forget, "--json")
    assert [m["name"] for m in json.loads(out.stdout)["models"]] == ["original", "retrained", "retrained 2"]
    out = expunge("audit", "--original", work.original, "--retrained", a, "--data", work.data, "--forget-classes", "3,4", "--json")
    assert "warning: " in out.stderr and "not the forget set of this audit" in out.stderr
    assert json.loads(out.stdout)["sizes"]["forget"] > 10


def test_shadows_and_audit_share_a_store(work, expunge, tmp_path):
    store = tmp_path / "runs"
    shadows = ["--store", store, "--workers", "1", "--device", "cpu"]
    out = expunge("shadows", work.data, "--like", work.original, "--n", "4", "--json", *shadows)
    assert json.loads(out.stdout)["models"] == 4
    finished = {path: path.stat().st_mtime_ns for path in store.glob("shadow/*/result.json")}
    assert len(finished) == 4
    out = expunge("audit", "--original", work.original, "--data", work.data, *work.forget, "--shadows", "4", "--json", *shadows)
    assert {row["attack"] for row in json.loads(out.stdout)["attacks"]} == {"LossThreshold", "LiRA", "RMIA"}
    assert finished == {path: path.stat().st_mtime_ns for path in store.glob("shadow/*/result.json")}, (
        "audit trained models that the store has"
    )
    runs = json.loads(expunge("list", "runs", "--store", store, "--json").stdout)
    assert [run["done"] for run in runs] == [True] * 4 and runs[0]["kind"] == "shadow"


def test_data_of_another_set_give_a_warning(work, expunge, tmp_path):
    out = expunge(
        "unlearn",
        "fine_tune",
        "--model",
        work.original,
        "--data",
        "digits",
        "--forget-random",
        "990",
        "-o",
        tmp_path / "u",
        "--set",
        "epochs=1",
    )
    assert out.stderr.startswith("warning: ") and "another training set" in out.stderr


def test_own_model_and_data_by_import_path(own_package, expunge):
    expunge("train", "mynets:load", "mynets:build", "-o", "own.safetensors", "--epochs", "1", "--device", "cpu")
    assert read_metadata("own.safetensors")["build"] == "mynets:build"
    common = ["--data", "mynets:load", "--forget-random", "5", "--set", "epochs=1"]
    out = expunge("unlearn", "fine_tune", "--model", "own.safetensors", *common, "-o", "u.safetensors", code=1)
    assert "Pass --build mynets:build" in out.stderr
    expunge("unlearn", "fine_tune", "--model", "own.safetensors", "--build", "mynets:build", *common, "-o", "u.safetensors")
    expunge("unlearn", "fine_tune", "--model", "mynets:trained", *common, "-o", "v.safetensors")
    expunge("unlearn", "retrain", "--model", "own.safetensors", "--build", "mynets:build", *common[:-2], "-o", "r.safetensors")
    out = expunge("unlearn", "retrain", "--model", "mynets:trained", *common[:-2], "-o", "s.safetensors", code=1)
    assert "retrain needs build and recipe" in out.stderr
    out = expunge("train", "mynets:one", "small", "-o", "w.safetensors", code=1)
    assert "must return a pair (train, test)" in out.stderr


def test_without_retain_data_no_retain_sample_is_used(work, expunge, tmp_path):
    common = [
        "unlearn",
        "amun",
        "--model",
        work.original,
        "--data",
        work.data,
        "--no-retain",
        "--set",
        "epochs=1",
        "--set",
        "attack=nearest_ddn:steps=30",
    ]
    out = expunge(*common, *work.forget, "-o", tmp_path / "u", code=1)
    assert "Add --set use_retain=false" in out.stderr
    expunge(*common, *work.forget, "--set", "use_retain=false", "-o", tmp_path / "u")
    assert read_metadata(tmp_path / "u")["forget"]["n"] == 10
    train, _ = library.load_data(work.data)
    assert json.loads(expunge(*common, "--set", "use_retain=no", "-o", tmp_path / "v", "--json").stdout)["forgotten"] == len(train)
    out = expunge(
        "unlearn", "fine_tune", "--model", work.original, "--data", work.data, "--no-retain", *work.forget, "-o", tmp_path / "w", code=1
    )
    assert "fine_tune reads retain samples" in out.stderr


def test_a_class_leaves_with_and_without_retain_data_and_single_samples_are_refused(expunge, work, tmp_path):
    common = ["unlearn", "trw", "--model", work.original, "--data", work.data, "--set", "epochs=1"]
    for i, more in enumerate([[], ["--no-retain", "--set", "use_retain=false", "--set", "lr=0.01"]]):
        expunge(*common, "--forget-classes", "3", *more, "-o", tmp_path / f"{i}")
        assert read_metadata(tmp_path / f"{i}")["forget"]["classes"] == ["3"]
    message = expunge(*common, *work.forget, "-o", tmp_path / "u", code=1).stderr
    assert "trw forgets whole classes" in message and "Pass --forget-classes" in message


@pytest.fixture(scope="session")
def threes(work) -> Path:
    """The threes of the data alone: what somebody has who kept nothing else. The classes keep their names, and so their numbers."""
    path, arrays = work.folder / "threes.npz", dict(np.load(work.data))
    of_class = arrays["labels"] == 3
    np.savez(path, **arrays | {"images": arrays["images"][of_class], "labels": arrays["labels"][of_class]})
    return path


@pytest.mark.parametrize("method", ["boundary_shrink", "boundary_expanding"])
def test_a_class_leaves_alike_whether_or_not_the_data_hold_the_others(method, work, threes, expunge, tmp_path):
    common = ["unlearn", method, "--model", work.original, "--forget-classes", "3", "--no-retain", "--device", "cpu", "--set", "lr=0.01"]
    for name, data in {"all": work.data, "threes": threes}.items():
        assert "warning" not in expunge(*common, "--data", data, "-o", tmp_path / name).stderr
    everything, alone = (read_metadata(tmp_path / name)["forget"] for name in ("all", "threes"))
    assert everything["n"] == alone["n"] > 10 and everything["classes"] == alone["classes"] == ["3"]
    train, _ = library.load_data(threes)
    expected = {"boundary_shrink": library.BoundaryShrink, "boundary_expanding": library.BoundaryExpanding}[method](lr=0.01)(
        library.load_model(work.original), library.forget_only(train, [3]), device="cpu"
    )
    assert same(library.load_model(tmp_path / "threes"), expected)
    # Where retain data are gone, whoever audits finds the same forget set, be it with them or without.
    models = ["audit", "--original", work.original, "--unlearned", tmp_path / "all", "--unlearned", f"b={tmp_path / 'threes'}", "--json"]
    out = expunge(*models, "--data", work.data, "--forget-classes", "3")
    assert not out.stderr and json.loads(out.stdout)["sizes"]["retain"] == 200 - alone["n"]
    out = expunge(*models, "--data", threes, "--forget-classes", "3", "--no-retain")
    assert not out.stderr and json.loads(out.stdout)["sizes"]["forget"] == alone["n"]


def test_samples_without_retain_data_are_known_to_the_audit(work, expunge, tmp_path):
    out = tmp_path / "u"
    expunge("unlearn", "delete", "--model", work.original, "--data", work.data, *work.forget, "--no-retain", "--set", "epochs=1", "-o", out)
    assert not expunge("audit", "--original", work.original, "--unlearned", out, "--data", work.data, *work.forget).stderr


@pytest.mark.parametrize(
    ("classes", "message", "code"),
    [
        ("33", r"no class named '33'; did you mean '3'? Pass a class by its name, or by its number from 0 to 9.", 1),
        ("three", "no class named 'three'; known: 0, 1,", 1),
        (",".join("0123456789"), "must leave at least one class for the model to know; got all 10", 1),
        ("3,", "expected names or numbers with commas between them", 2),
    ],
)
def test_classes_that_cannot_leave_say_why(classes, message, code, work, expunge, tmp_path):
    common = ["unlearn", "delete", "--model", work.original, "--data", work.data, "-o", tmp_path / "u", "--forget-classes", classes]
    for more in ([], ["--no-retain"]):
        shown = " ".join(expunge(*common, *more, code=code).stderr.replace("│", " ").split())
        assert message in shown


def test_data_of_one_class_say_what_is_missing(work, threes, expunge, tmp_path):
    common = ["unlearn", "delete", "--model", work.original, "-o", tmp_path / "u", "--set", "epochs=1", "--data"]
    out = expunge(*common, threes, "--forget-classes", "3", code=1)
    assert "other classes must have samples too" in out.stderr and "--no-retain on the command line" in out.stderr
    assert "got '4' without any" in expunge(*common, threes, "--forget-classes", "4", "--no-retain", code=1).stderr
    arrays = dict(np.load(threes))
    zeros = {name: np.zeros_like(arrays[name]) for name in ("labels", "test_labels")}
    np.savez(tmp_path / "renamed.npz", **arrays | zeros | {"classes": ["3"]})
    out = expunge(*common, tmp_path / "renamed.npz", "--forget-classes", "3", "--no-retain", code=1)
    assert "must name the 10 classes of" in out.stderr and "got 1 (3)" in out.stderr and "keep its empty folder" in out.stderr


def test_a_network_without_a_linear_layer_at_the_end_says_what_to_do(own_package, expunge):
    conv = "import torch\ndef trained():\n    net = torch.nn.Conv2d(1, 10, 3)\n    return torch.nn.Sequential(net, torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten())\n"
    (own_package / "mynets.py").write_text(conv + "def load():\n    import expunge\n    return expunge.load_data('digits')\n")
    common = [
        "--model",
        "mynets:trained",
        "--data",
        "mynets:load",
        "--forget-classes",
        "3",
        "--set",
        "epochs=1",
        "--device",
        "cpu",
        "-o",
        "u",
    ]
    for method, more, remedy in (
        ("boundary_expanding", [], "choose a method"),
        ("trw", ["--set", "beta=10"], "choose similarity='answers'"),
    ):
        message = expunge("unlearn", method, *common, *more, code=1).stderr
        assert "must be what an nn.Linear layer puts out" in message and remedy in message
    expunge("unlearn", "trw", *common, "--set", "beta=10", "--set", "similarity=answers")


@pytest.mark.parametrize(
    "verb", [["train", "digits", "small"], ["unlearn", "amun", "--model", "absent", "--data", "absent", "--forget-random", "2"]]
)
def test_output_is_checked_before_anything_else_is_read(verb, expunge, tmp_path):
    exists = tmp_path / "old.safetensors"
    exists.write_text("old")
    assert f"{exists} exists. Pass --force" in expunge(*verb, "-o", exists, code=1).stderr
    assert exists.read_text() == "old"
    assert "cannot write to the folder" in expunge(*verb, "-o", exists / "inside.safetensors", code=1).stderr
    assert "got a folder" in expunge(*verb, "-o", tmp_path, code=1).stderr


def test_force_replaces_the_output(expunge, work, tmp_path):
    exists = tmp_path / "old.safetensors"
    exists.write_text("old")
    expunge(
        "unlearn", "fine_tune", "--model", work.original, "--data", work.data, *work.forget, "-o", exists, "--force", "--set", "epochs=1"
    )
    assert read_metadata(exists)["method"] == "fine_tune"


def test_options_of_the_recipe_win_over_the_checkpoint_s():
    assert make_recipe({"epochs": 5}, RECIPE) == library.Recipe(epochs=5, batch_size=32, lr=0.05)
    assert make_recipe({"schedule": "step:every=2,gamma=0.5"}).schedule == library.Step(every=2, gamma=0.5)


def test_shadows_need_an_architecture_from_one_place(expunge, work):
    for wrong in ([], ["small", "--like", work.original]):
        assert "expected ARCH or --like" in expunge("shadows", work.data, *wrong, code=2).stderr


def test_two_models_of_one_name_are_refused():
    assert list(name_models("o", ["a", "b"], [])) == ["original", "unlearned", "unlearned 2"]
    with pytest.raises(ConfigError, match="'x' 2 times"):
        name_models("o", ["x=a", "x=b"], [])


def test_unlearn_counts_what_it_cost_and_chooses_a_step_without_the_retrained_model(work, expunge, tmp_path):
    common = ["unlearn", "fine_tune", "--model", work.original, "--data", work.data, *work.forget, "--set", "epochs=1", "--device", "cpu"]
    plain = json.loads(expunge(*common, "-o", tmp_path / "plain", "--json").stdout)
    assert plain["tuning"] is None and plain["cost"]["backward"] == {"retain": 190} and plain["cost"]["seconds"] > 0
    found = json.loads(expunge(*common, "--tune", "2", "-o", tmp_path / "tuned", "--json").stdout)
    tried = {trial["value"]: trial["gap"]["value"] for trial in found["tuning"]["trials"]}
    best = min(tried, key=tried.get)
    assert len(tried) == 2 and found["tuning"]["best"] == best and f"lr={best}" in found["method"]
    assert read_metadata(tmp_path / "tuned")["tuning"] == found["tuning"]
    out = expunge(*common, "--tune", "2", "-o", tmp_path / "tuned", "--force").stdout
    assert "→ lr = " in out and "average gap" in out and "passes over the data" in out
    out = expunge(*common, "--tune", "0", "-o", tmp_path / "x", code=1)
    assert "trials must be an integer ≥ 1" in out.stderr


def test_published_hyperparameters_are_available_by_name(work, expunge, tmp_path, monkeypatch):
    monkeypatch.setattr(library.FineTune, "published", {"somewhere": {"epochs": 2, "lr": 0.04}})
    common = ["unlearn", "fine_tune", "--model", work.original, "--data", work.data, *work.forget, "--published", "somewhere", "--json"]
    assert "epochs=2, lr=0.04" in json.loads(expunge(*common, "-o", tmp_path / "a").stdout)["method"]
    assert "epochs=1, lr=0.04" in json.loads(expunge(*common, "--set", "epochs=1", "-o", tmp_path / "b").stdout)["method"]
    assert re.search(r"somewhere +epochs=2, lr=0.04", expunge("show", "fine_tune").stdout)
    common[-2] = "elsewhere"
    assert "no experiment named 'elsewhere'" in expunge(*common, "-o", tmp_path / "c", code=1).stderr


def test_a_teacher_is_built_by_a_function_only_where_the_user_says_so(expunge, own_package):
    expunge("train", "mynets:load", "mynets:build", "-o", "o.safetensors", "--epochs", "1", "--device", "cpu")
    command = ["unlearn", "fresh_teacher", "--model", "o.safetensors", "--data", "mynets:load", "--build", "mynets:build"]
    command += ["--forget-random", "10", "--device", "cpu"]
    quick = ["--set", "epochs=1", "--set", "teacher_epochs=1", "--json"]
    plain = json.loads(expunge(*command, *quick, "-o", "plain.safetensors").stdout)
    built = json.loads(expunge(*command, *quick, "-o", "built.safetensors", "--set", "build=mynets:build").stdout)
    assert plain["method"].endswith("build=None)") and "<function build" in built["method"]
