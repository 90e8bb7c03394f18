"""The Python code on pages of the documentation runs, from top to bottom."""

import pathlib

import pytest
import torch

import expunge

DOCS = pathlib.Path(__file__).parents[1] / "docs"
FEWER = ("for seed in (1, 2, 3)]", "for seed in (1, 2)]")
SMALLER = [("range(1200)", "range(120)"), ("k < 600", "k < 80"), ("AMUN(epochs=5", "AMUN(epochs=1"), FEWER]
QUICK = {
    "benchmarks": [('plan.run("runs/")', 'plan.run("runs/", workers=1)')],  # starting processes takes longer than this work
    "own_models_huggingface": [*SMALLER, ("epochs=10", "epochs=3")],
    "own_models_timm": [*SMALLER, ("epochs=12", "epochs=3")],
    "own_models_torchvision": [
        *[("range(800)", "range(200)"), ("k < 300", "k < 160"), FEWER, ("epochs=8", "epochs=1")],
        *[("models.resnet18(", "models.squeezenet1_1("), ("AMUN(epochs=2", "FineTune(epochs=1")],
    ],
}


def run(page, folder, monkeypatch):
    """The names that the code on a page defines, run in this folder with smaller numbers."""
    code = [part.split("```", 1)[0] for part in (DOCS / f"{page}.md").read_text(encoding="utf-8").split("```python\n")[1:]]
    assert code
    for slow, quick in QUICK.get(page, []):
        assert any(slow in block for block in code), slow
        code = [block.replace(slow, quick) for block in code]
    monkeypatch.chdir(folder)
    names = {}
    for block in code:
        exec(block, names)
    return names


@pytest.mark.parametrize("page", ["benchmarks", "distributed", "fleets", "model_card", "own_models", "recipes"])
def test_the_code_on_the_page_runs(page, tmp_path, monkeypatch, capsys):
    run(page, tmp_path, monkeypatch)


@pytest.mark.parametrize("library", ["huggingface", "timm", "torchvision"])
def test_a_model_of_each_library_comes_back_in_its_own_format_with_the_unlearned_weights(library, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)  # build() draws weights outside of any seed where the page only wants the architecture
    names = run(f"own_models_{library}", tmp_path, monkeypatch)
    original, unlearned, deployed = (names[name] for name in ("model", "unlearned", "deployed"))
    own = unlearned[1].model if library == "huggingface" else unlearned[1]
    assert type(own) is type(deployed)
    assert all(torch.equal(a, b) for a, b in zip(deployed.state_dict().values(), own.state_dict().values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(unlearned.state_dict().values(), original.state_dict().values(), strict=True))
    # What it is used with: images that its own library has prepared.
    with torch.no_grad():
        answers = deployed(names["pixels"]["pixel_values"]).logits if library == "huggingface" else deployed(names["image"][None])
    torch.testing.assert_close(answers, expunge.logits_of(unlearned, names["test"])[:1], rtol=1e-3, atol=1e-3)
    assert "unlearned" in capsys.readouterr().out
