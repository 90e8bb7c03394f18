"""The Python code on pages of the documentation runs, from top to bottom."""

import pathlib

import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize("page", ["benchmarks", "distributed", "fleets", "recipes"])
def test_the_code_on_the_page_runs(page, tmp_path, monkeypatch, capsys):
    blocks = [part.split("```", 1)[0] for part in (DOCS / f"{page}.md").read_text().split("```python\n")[1:]]
    assert blocks
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(block.replace('plan.run("runs/")', 'plan.run("runs/", workers=1)'), names)  # starting processes takes longer than this work
