"""Every example in a docstring runs and prints what it says; every script in examples/ runs, and stays short."""

import doctest
import importlib
import importlib.util
import pathlib
import pkgutil

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

import expunge

MODULES = [m.name for m in pkgutil.walk_packages(expunge.__path__, "expunge.") if not m.name.endswith("__main__")]
FOLDER = pathlib.Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.failed == 0


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_examples_are_short_and_all_of_them_run_here():
    assert {path.stem for path in SCRIPTS} == {
        *("audit_a_model", "benchmark_methods", "clip_and_forget", "forget_a_person", "forget_samples", "several_requests")
    }
    assert all(len(path.read_text().splitlines()) <= 60 for path in SCRIPTS)


def test_forget_samples(tmp_path):
    audit = load("forget_samples").main(str(tmp_path), n_shadows=4, epochs=2)
    assert {row.model for row in audit.attacks} == {"original", "unlearned", "retrained", "retrained 2"}


@pytest.fixture
def people(tmp_path, digits):
    """Four "people" with six photos each, as PERSON/photo.png."""
    for name, k in {"ann": 1, "ben": 4, "cai": 6, "dee": 0}.items():
        (tmp_path / name).mkdir()
        for i, position in enumerate((digits[0].labels == k).nonzero().flatten()[:6].tolist()):
            to_pil_image(digits[0].images[position].repeat(3, 1, 1)).resize((20 + i, 24)).save(tmp_path / name / f"{i}.jpg")
    return tmp_path


def test_forget_a_person(people, capsys):
    audit = load("forget_a_person").main(str(people), "cai", n_test=2, side=8, epochs=15, n_retrained=2)
    by_name = {row.name: row for row in audit.models}
    assert set(by_name) == {"original", "boundary shrink", "boundary expanding", "TRW", "retrained", "retrained 2"}
    assert {name: audit.sizes[name] for name in ("forget", "retain", "forget_test", "test")} == {
        "forget": 4,
        "retain": 12,
        "forget_test": 2,
        "test": 6,
    }
    assert by_name["retrained"].forget.value == 0 < by_name["original"].forget.value
    assert "cai must leave a classifier of 4 people" in capsys.readouterr().out


def test_audit_a_model(tmp_path, capsys):
    from_logits, from_checkpoints = load("audit_a_model").main(str(tmp_path), epochs=2)
    assert from_logits.reference is None and from_checkpoints.reference == "retrained"
    rows = {row.name: row for row in from_checkpoints.models}
    assert list(rows) == ["original", "claim A", "claim B", "retrained", "retrained 2", "retrained 3"]
    for row in from_logits.models:  # the file says what the checkpoints do
        for group in ("forget", "retain", "test"):
            torch.testing.assert_close(row.margins[group], rows[row.name].margins[group], rtol=0, atol=1e-4)
    assert {"From a file of logits", "From checkpoints"} <= set(capsys.readouterr().out.splitlines())


def test_benchmark_methods(tmp_path, capsys):
    results = load("benchmark_methods").main(str(tmp_path), seeds=1, shadows=0, tuning=0, epochs=2, n_train=100, workers=1)
    names = [row.name for row in results.points[0].rows]
    assert {"AMUN", "AMUN without retain data", "SalUn", "fine-tuning", "random labels"} <= set(names)
    assert "cells: 0 done" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::expunge.errors.AdversarialSearchFailed")  # after one epoch
def test_clip_and_forget(capsys):
    torch.manual_seed(0)
    audits = load("clip_and_forget").main(max_norm=2.0, epochs=1, n_forget=2, n_retrained=1)
    plain, clipped = (audits[name].spectra["original"].norms for name in ("plain", "clipped"))
    layers = [name for name in plain if name.endswith(".0") or name == "1.6"]  # convolutions and the linear layer
    assert len(layers) == 4 and max(clipped[name] for name in layers) <= 2.06 < max(plain[name] for name in layers)


def test_several_requests():
    assert len(load("several_requests").main(n_requests=2, epochs=3)) == 4


def test_the_code_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    readme = (FOLDER.parent / "README.md").read_text()
    code = readme.split("```python\n", 1)[1].split("```", 1)[0]
    for slow, quick in [
        ("epochs=25", "epochs=1"),
        ("AMUN(", "AMUN(epochs=1, "),
        ("n=16", "n=4"),
        ('store="runs"', 'store="runs", workers=1'),
    ]:
        assert slow in code
        code = code.replace(slow, quick)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    printed, shown = capsys.readouterr().out, readme.split("```text\n", 1)[1].split("```", 1)[0]
    for line in ("Accuracy in %, and average gap to retrained", "model ", "retrained 2", "attack ", "RMIA ", "Intervals: 95 %."):
        assert line in printed and line in shown


def test_the_code_on_the_page_about_audits_runs(tmp_path, monkeypatch):
    """One after another: those about white-box audits share their models."""
    page, names = (FOLDER.parent / "docs" / "audits.md").read_text(), {}
    blocks = [part.split("```", 1)[0] for part in page.split("```python\n")[1:]]
    assert len(blocks) > 15
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(block.replace("Recipe(epochs=10)", "Recipe(epochs=2)"), names)
