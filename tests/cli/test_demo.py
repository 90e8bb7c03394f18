"""`expunge demo --classes`: tables or JSON on stdout, a page in a file, and the same numbers in all of them."""

import functools
import json

import pytest

from expunge import demo_classes
from expunge.data.load import load_data
from expunge.methods import DELETE
from expunge.training.recipe import Recipe


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    settings = {"n": 6, "recipe": Recipe(epochs=1, batch_size=32), "methods": {"DELETE": DELETE(epochs=1, until=None)}}
    monkeypatch.setattr(demo_classes, "load_data", lambda name: tuple(part.subset(range(300)) for part in load_data(name)))
    monkeypatch.setattr(demo_classes, "ClassDemo", functools.partial(demo_classes.ClassDemo, **settings))


def test_the_demo_of_classes_prints_tables_and_writes_the_page(expunge, store, tmp_path):
    page = tmp_path / "demo.html"
    arguments = ["demo", "--classes", "--store", store, "--html", page, "--workers", "1", "--device", "cpu"]
    out = expunge(*arguments)
    for words in ("unseen images of 8", "U-LiRA on 8, 6 unlearned against 6 retrained", "retrained 2 … 6: the mean", "floor: |AUC − 0.5|"):
        assert words in out.stdout
    assert f"the report is {page}" in out.stderr and "Where do images of 8 go?" in page.read_text(encoding="utf-8")
    result = json.loads(expunge(*arguments, "--json").stdout)
    assert result["title"] == "Forgetting the digit 8" and result["classes"][0]["name"] == "8"
    inside = page.read_text(encoding="utf-8").split('id="result">')[1].split("</script>")[0]
    assert json.loads(inside) == result
