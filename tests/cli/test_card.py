"""`expunge card` and `expunge show CHECKPOINT`: from training to the card by the command line alone, one request and several."""

import json
import re
import shlex
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

import expunge as library
from expunge.cli.inputs import load_network, metadata_of, training_of
from expunge.errors import ModelError
from expunge.models import read_metadata, save_model
from expunge.models.lineage import changes, describe_ids
from expunge.report.model_card import BEGIN, END

CPU = ["--device", "cpu"]
LATER = [1, 21, 41]  # the second request


@pytest.fixture(scope="module")
def made(work, expunge, tmp_path_factory):
    """A request, a second one on the model of the first, a retrained model for both, and audits of either model."""
    folder = tmp_path_factory.mktemp("card")
    files = SimpleNamespace(
        folder=folder, **{name: folder / f"{name}.safetensors" for name in ("one", "two", "again", "retrained")}, audit=folder / "audit.html", both=folder / "both.json"
    )  # fmt: skip
    (folder / "later.csv").write_text("\n".join(map(str, LATER)))
    (folder / "all.csv").write_text("\n".join(map(str, [*range(0, 200, 20), *LATER])))
    step = ["--data", work.data, "--set", "epochs=1", *CPU]
    expunge("unlearn", "fine_tune", "--model", work.original, *work.forget, "-o", files.one, *step, "--seed", "5")
    later = ["unlearn", "fine_tune", "--model", files.one, "--forget-indices", folder / "later.csv", *step]
    files.warning = expunge(*later, "-o", files.again).stderr
    files.quiet = expunge(*later, "--without", work.ids, "-o", files.two).stderr
    expunge("train", work.data, "small", "--without", folder / "all.csv", "-o", files.retrained, *work.quick)
    common = ["--data", work.data, *CPU]
    expunge("audit", "--original", work.original, "--unlearned", f"mine={files.one}", *work.forget, "--html", files.audit, *common)
    out = expunge("audit", "--original", work.original, "--unlearned", files.two, "--retrained", files.retrained, "--forget-indices", folder / "all.csv", "--json", *common)  # fmt: skip
    files.both.write_text(out.stdout)
    files.silence = out.stderr
    return files


def test_a_card_states_what_was_forgotten_how_and_what_the_audit_found(work, made, expunge, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("---\nlicense: mit\n---\n# Digits\n")
    assert expunge("card", made.one, "--audit", made.audit, "-o", readme).stdout == f"wrote {readme}\n"
    card, printed = readme.read_text(), expunge("card", made.one, "--audit", made.audit).stdout
    assert card == "---\nlicense: mit\n---\n# Digits\n\n" + printed and printed.startswith(BEGIN) and printed.endswith(END + "\n")
    known = read_metadata(made.one)
    for words in (
        "10 of 200 training images", describe_ids(range(0, 200, 20))["digest"], "`digits.npz`: 200 training images, 100 test images, 10 classes (`0`, `1`",
        known["original"], known["model_hash"], known["settings"], "seed 5", "**mine** (this model)", "No verdict", "NoNullFloor", known["provenance"]["date"],
    ):  # fmt: skip
        assert words in card, words
    assert str(work.folder) not in card
    expunge("card", made.one, "--audit", made.audit, "-o", readme)
    assert readme.read_text() == card


def test_an_audit_of_another_model_is_refused(made, expunge, tmp_path):
    out = expunge("card", made.two, "--audit", made.audit, "-o", tmp_path / "card.md", code=1)
    assert out.stderr.startswith("error: an audit must be of this model") and "'mine'" in out.stderr and not list(tmp_path.iterdir())


def test_nobody_measured_without_an_audit(made, expunge):
    assert "**Nobody measured.**" in expunge("card", made.one).stdout


def test_the_second_request_keeps_the_first_and_the_audit_is_of_both(work, made, expunge):
    kinds = [(step.kind, step.forgotten and step.forgotten.n) for step in changes(read_metadata(made.two))]
    assert kinds == [("trained", None), ("unlearned", 10), ("unlearned", 3)]
    card = expunge("card", made.two, "--audit", made.both, "--list-ids", made.folder / "all.csv").stdout
    assert "13 training images by 2 requests" in card and "#### Audit of all requests together" in card and "broken" not in card
    assert f"Ids of all requests: {', '.join(map(str, sorted([*range(0, 200, 20), *LATER])))}." in card
    assert "1 retrained model and no shadow models" in card
    assert read_metadata(work.original)["model_hash"] in card and read_metadata(made.one)["model_hash"] in card
    assert not made.silence  # the audit knows the forget set of both requests
    out = expunge("card", made.two, "--list-ids", work.data.parent / "ids.csv").stdout
    assert "Ids of request 1: 0, 20, 40" in out


def test_samples_that_left_before_are_not_learned_again(work, made, expunge, tmp_path):
    assert "was made to forget 10 samples before" in made.warning and "--without FILE" in made.warning
    assert not made.quiet
    backward = [step_cost["backward"] for step_cost in (read_metadata(path)["cost"] for path in (made.again, made.two))]
    assert backward == [{"retain": 197}, {"retain": 187}]
    assert read_metadata(made.two)["forget"]["of"] == 190 and read_metadata(made.two)["forget"]["digest"] == describe_ids(LATER)["digest"]
    train, _ = library.load_data(work.data)
    rest = train.subset([k for k in range(200) if k % 20])
    split = library.forget_samples(rest, [k for k, i in enumerate(rest.ids.tolist()) if i in LATER])
    expected = library.FineTune(epochs=1)(library.load_model(made.one), split, device="cpu")
    assert same(expected, library.load_model(made.two))
    common = ["unlearn", "fine_tune", "--model", made.one, "--data", work.data, "--set", "epochs=1", "-o", tmp_path / "x"]
    out = expunge(*common, *work.forget, "--without", work.ids, code=1)
    assert "samples that left by earlier requests cannot leave again; got 10" in out.stderr
    out = expunge(*common, *work.forget, "--without", made.folder / "later.csv")
    assert "are not those that" in out.stderr


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_commands_of_a_card_make_the_same_models(work, made, expunge, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (work.data, work.ids, made.folder / "later.csv"):
        shutil.copy(path, tmp_path)
    block = expunge("card", made.two).stdout.split("```bash\n")[1].split("\n```")[0]
    for line in block.splitlines():
        expunge(*shlex.split(line)[1:], *CPU)
    assert read_metadata("two.safetensors")["model_hash"] == read_metadata(made.two)["model_hash"]
    assert [step.result for step in changes(read_metadata("two.safetensors"))] == [step.result for step in changes(read_metadata(made.two))]


def test_show_tells_the_steps_of_a_checkpoint(made, expunge):
    out = expunge("show", made.two).stdout
    assert re.findall(r"^\d+\. (\w+)$", out, re.MULTILINE) == ["trained", "unlearned", "unlearned"]
    assert "digits.npz" in out and "3 images of 190" in out and describe_ids(LATER)["digest"] in out
    assert json.loads(expunge("show", made.two, "--json").stdout)["method"] == "fine_tune"
    assert "no checkpoint file" in expunge("show", "absent.safetensors", code=1).stderr


def test_show_and_messages_hold_no_control_codes_of_strangers(expunge, work, tmp_path):
    evil = "\x1b[2J\x1b]0;x\x07\u202e\r\n"
    metadata = {
        evil: evil,
        "author": "me",
        "seed": 1,
        "data": {"name": evil, "fingerprint": "0"},
        "provenance": {evil: evil},
        "method": evil,
        "history": [{"method": evil}],
    }
    save_model(torch.nn.Linear(2, 2), tmp_path / "m.safetensors", metadata=metadata)
    out = expunge("show", tmp_path / "m.safetensors").stdout
    assert "author" in out and not set(out) & set("\x1b\x07\u202e\r")
    known = read_metadata(work.original) | {"data": {"name": evil, "fingerprint": "0"}}
    known = {name: value for name, value in known.items() if name not in ("architecture", "model_hash")}
    build = library.Architecture.from_json(read_metadata(work.original)["architecture"])
    save_model(library.load_model(work.original), tmp_path / "o.safetensors", metadata=known, architecture=build)
    out = expunge("audit", "--original", tmp_path / "o.safetensors", "--data", work.data, *work.forget)
    assert "another training set" in out.stderr and not set(out.stderr) & set("\x1b\x07\u202e\r")


def test_metadata_of_another_tool_under_our_names_are_no_obstacle(work, expunge, own_package):
    path, model = own_package / "m.safetensors", __import__("mynets").trained()
    told = dict.fromkeys(
        ("architecture", "recipe", "data", "clipped", "history", "forget", "without", "settings", "seconds", "model_hash", "seed"),
        "as they call it",
    )
    safetensors.torch.save_file(model.state_dict(), path, told)
    assert metadata_of(str(path)).keys() == {"forget", "without", "settings", "model_hash", "seed"}
    common = ["--data", "mynets:load", "--forget-random", "5", "--build", "mynets:build", *CPU]
    expunge("unlearn", "fine_tune", "--model", path, *common, "--set", "epochs=1", "-o", "u.safetensors")
    expunge("audit", "--original", path, "--unlearned", "u.safetensors", *common)
    card = expunge("card", "u.safetensors").stdout
    assert "5 of 60 training images" in card and "as they call it" not in card and "--build=mynets:build" in card
    assert same(load_network("u.safetensors", "mynets:build"), library.load_model("u.safetensors", __import__("mynets").build))


def test_an_architecture_with_other_fields_asks_for_build():
    with pytest.raises(ModelError, match="Pass --build"):
        training_of({"architecture": {"layers": 3}})


def test_classes_in_another_order_are_refused_and_other_names_are_doubted(work, expunge, tmp_path):
    arrays = dict(np.load(work.data))
    names = list(arrays["classes"])
    np.savez(tmp_path / "swapped.npz", **arrays | {"classes": [names[1], names[0], *names[2:]]})
    np.savez(tmp_path / "renamed.npz", **arrays | {"classes": ["zero", *names[1:]]})
    common = ["audit", "--original", work.original, *work.forget, "--data"]
    assert "must name the classes of" in (out := expunge(*common, tmp_path / "swapped.npz", code=1).stderr) and "got '1' for '0'" in out
    assert "name other classes than" in expunge(*common, tmp_path / "renamed.npz").stderr
