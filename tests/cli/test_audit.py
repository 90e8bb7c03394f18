"""`expunge audit` by the frozen protocol, and on files of answers."""

import dataclasses
import json

import numpy as np
import pytest

import expunge as library


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setitem(library.PROTOCOLS, "standard-1", dataclasses.replace(library.PROTOCOLS["standard-1"], n_shadows=4))


def test_the_protocol_trains_what_is_missing_and_prints_a_verdict(short, work, expunge, tmp_path):
    out = tmp_path / "unlearned.safetensors"
    expunge(
        "unlearn",
        "fine_tune",
        "--model",
        work.original,
        "--data",
        work.data,
        *work.forget,
        "-o",
        out,
        "--set",
        "epochs=1",
        "--device",
        "cpu",
    )
    command = [
        "audit", "--protocol", "standard-1", "--original", work.original, "--unlearned", f"mine={out}", "--data", work.data, *work.forget,
        "--store", tmp_path / "runs", "--workers", "1", "--device", "cpu",
    ]  # fmt: skip
    page = tmp_path / "audit.html"
    text = expunge(*command, "--html", page).stdout
    assert "Verdict: " in text and "mine" in text and page.exists()
    result = json.loads(expunge(*command, "--json").stdout)
    assert result["protocol"] == "standard-1" and result["sizes"]["shadow_models"] == 4
    assert [v["model"] for v in result["verdicts"]] == ["original", "mine", "control"]
    assert [m["name"] for m in result["models"]][-3:] == ["retrained", "retrained 2", "retrained 3"]


def test_a_protocol_has_no_knobs(work, expunge):
    for knob in (["--shadows", "8"], ["--fpr", "0.1"], ["--seed", "3"]):
        out = expunge(
            "audit",
            "--protocol",
            "standard-1",
            "--original",
            work.original,
            "--data",
            work.data,
            *work.forget,
            *knob,
            "--device",
            "cpu",
            code=1,
        )
        assert "a protocol has no knobs" in out.stderr
    out = expunge("audit", "--protocol", "standard-9", "--original", work.original, "--data", work.data, *work.forget, code=1)
    assert "no protocol named 'standard-9'" in out.stderr


def test_a_checkpoint_that_does_not_tell_its_recipe_is_audited_with_options(short, own_package, expunge, tmp_path):
    command = [
        "audit", "--protocol", "standard-1", "--original", "mynets:trained", "--unlearned", "mynets:trained", "--data", "mynets:load",
        "--forget-random", "8", "--workers", "1", "--device", "cpu", "--build", "mynets:build",
    ]  # fmt: skip
    missing = expunge(*command, code=1).stderr
    assert "does not tell recipe" in missing and "--epochs" in missing
    result = json.loads(expunge(*command, "--epochs", "1", "--json").stdout)
    assert result["verdicts"][1]["model"] == "unlearned"


def test_answers_are_saved_and_audited_without_models(work, expunge, tmp_path):
    answers = tmp_path / "answers.npz"
    command = ["audit", "--original", work.original, "--data", work.data, *work.forget, "--device", "cpu", "--json"]
    direct = json.loads(expunge(*command, "--save-answers", answers).stdout)
    again = json.loads(expunge("audit", "--answers", answers, "--json").stdout)
    assert again["models"][0]["forget"] == direct["models"][0]["forget"] and again["attacks"][0]["auc"] == direct["attacks"][0]["auc"]
    assert f"{answers} exists" in expunge(*command, "--save-answers", answers, code=1).stderr


def test_a_csv_of_labels_alone_is_audited(expunge, tmp_path):
    rng = np.random.default_rng(0)
    lines = ["id,group,label,model,prediction"]
    for k in range(400):
        group, label = ("forget", "test")[k % 2], rng.integers(3)
        for model, share in (("original", 1.0 if group == "forget" else 0.6), ("unlearned", 0.6), ("retrained", 0.6)):
            lines.append(f"{k},{group},{label},{model},{label if rng.random() < share else (label + 1) % 3}")
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    result = json.loads(expunge("audit", "--answers", tmp_path / "a.csv", "--json").stdout)
    by_model = {row["model"]: row["auc"] for row in result["attacks"]}
    assert by_model["original"]["low"] > 0.6 and by_model["unlearned"]["low"] < 0.5 < by_model["unlearned"]["high"]


def test_answers_go_without_models(work, expunge, tmp_path):
    for option in (["--original", work.original], ["--forget-random", "3"], ["--epochs", "2"], ["--seed", "4"], ["--no-retain"]):
        assert "the file has its models" in expunge("audit", "--answers", tmp_path / "a.npz", *option, code=2).stderr
    assert "--original and --data, or --answers" in expunge("audit", "--original", work.original, code=2).stderr
    assert "ends in .npz or .csv" in expunge("audit", "--answers", tmp_path / "a.txt", code=1).stderr
