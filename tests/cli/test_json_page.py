"""docs/json.md says what `--json` prints: the names in its tables are those that are printed."""

import json
import pathlib
import re

import pytest

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
NAME = re.compile(r"`([a-z_]+)`")
VERBS = ["train", "unlearn", "shadows", "audit", "spectrum", "bench", "list"]


def body_of(heading: str) -> str:
    """What stands under a heading, up to the next one."""
    (body,) = [part for part in re.split(r"^#+ ", PAGE, flags=re.M) if part.startswith(heading)]
    return body


def rows_of(heading: str) -> dict[str, set[str]]:
    """The tables under a heading: for each name in a first column, the names in the second."""
    rows = re.findall(r"^\| (`.*?) \|(.*)\|$", body_of(heading), re.M)
    return {name: set(NAME.findall(said)) for names, said in rows for name in NAME.findall(names)}


@pytest.fixture(scope="module")
def printed(work, expunge, tmp_path_factory):
    folder = tmp_path_factory.mktemp("json")
    unlearned, plan = folder / "u.safetensors", folder / "plan.toml"
    plan.write_text(
        f'data = "{work.data}"\narch = "small"\nrecipe = {{ epochs = 1 }}\nforget = {{ random = 10 }}\nseeds = 1\nshadows = 0\n[methods]\nfine_tune = {{ epochs = 1 }}\n'
    )
    about = ["--data", work.data, *work.forget]

    def run(*arguments):
        return json.loads(expunge(*arguments, "--json").stdout)

    return {
        "train": work.printed,
        "train without": run("train", work.data, "small", "--without", work.ids, "-o", folder / "r.safetensors", *work.quick),
        "unlearn": run("unlearn", "fine_tune", "--model", work.original, *about, "-o", unlearned, "--tune", "1", "--device", "cpu"),
        "shadows": run("shadows", work.data, "small", "--n", "2", "--store", folder / "runs", *work.quick),
        "audit": run("audit", "--original", work.original, "--unlearned", unlearned, *about, "--retrained", folder / "r.safetensors", "--device", "cpu"),
        "spectrum": run("spectrum", work.original, "--k", "1", "--clip", "1.5", "-o", folder / "c.safetensors", "--device", "cpu"),
        "bench": run("bench", plan, "--store", folder / "bench", "--device", "cpu", "--workers", "1"),
        "dry run": run("bench", plan, "--store", folder / "none", "--dry-run"),
        "list": run("show", "amun"),
        "kinds": run("list"),
    }  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_names_every_key_that_is_printed_and_no_other(printed, verb):
    assert set(printed[verb]) == set(rows_of(f"`expunge {verb}`"))


def test_what_is_inside_has_the_names_that_its_row_says(printed):
    rows = {verb: rows_of(f"`expunge {verb}`") for verb in VERBS}
    found = printed["train"]["accuracy"].keys() | printed["train without"]["accuracy"].keys()
    assert found == rows["train"]["accuracy"]
    unlearn, audit, spectrum = printed["unlearn"], printed["audit"], printed["spectrum"]
    assert unlearn["accuracy"].keys() | unlearn["accuracy"]["original"].keys() == rows["unlearn"]["accuracy"]
    assert unlearn["cost"].keys() == rows["unlearn"]["cost"]
    assert unlearn["tuning"].keys() | unlearn["tuning"]["trials"][0].keys() == rows["unlearn"]["tuning"]
    assert audit["models"][0].keys() | audit["models"][0]["gaps"].keys() == rows["audit"]["models"]
    assert audit["forget"].keys() == rows["audit"]["forget"]
    for part in ("attacks", "verdicts"):
        assert audit[part][0].keys() == rows["audit"][part], part
    assert spectrum["spectrum"].keys() | spectrum["spectrum"]["layers"][0].keys() == rows["spectrum"]["spectrum"]
    assert rows["spectrum"]["clip"] < spectrum["clip"].keys(), "its settings are not named"
    assert printed["bench"]["points"][0].keys() == rows["bench"]["points"]
    method, recipe = printed["list"]["settings"][0], printed["list"]["also"][0]["settings"][0]
    assert method.keys() | recipe.keys() == rows["list"]["settings"]


def test_what_is_said_in_sentences_is_so_too(printed):
    assert printed["audit"]["models"][0]["test"].keys() == rows_of("What").keys()
    bench, row = body_of("`expunge bench`"), printed["bench"]["points"][0]["rows"][0]
    assert {*NAME.findall(re.search(r"^A row has .*?\n\n", bench, re.M | re.S)[0])} - {"tuning"} == row.keys()
    dry = printed["dry run"]
    assert {*NAME.findall(bench.split("--dry-run` prints")[1])} == dry.keys() | dry["kinds"][0].keys()
    kinds = re.search(r"list for each kind of thing \((.*?)\)", body_of("`expunge list`"), re.S)[1]
    assert {*NAME.findall(kinds)} == printed["kinds"].keys()
