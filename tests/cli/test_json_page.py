"""docs/json.md says what `--json` prints: the keys of each of its tables are those that are printed."""

import json
import pathlib
import re

import pytest

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")


def keys_of(heading: str) -> set[str]:
    """The names in the first column of the tables under a heading."""
    (body,) = [part for part in re.split(r"^#+ ", PAGE, flags=re.M) if part.startswith(heading)]
    return {name for row in re.findall(r"^\| (`.*?) \|", body, re.M) for name in re.findall(r"`(\w+)`", row)}


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

    found = {"`expunge train`": work.printed}
    found["`expunge unlearn`"] = run(
        "unlearn", "fine_tune", "--model", work.original, *about, "-o", unlearned, "--set", "epochs=1", "--device", "cpu"
    )
    found["`expunge shadows`"] = run("shadows", work.data, "small", "--n", "2", "--store", folder / "runs", *work.quick)
    found["`expunge audit`"] = run("audit", "--original", work.original, "--unlearned", unlearned, *about, "--device", "cpu")
    found["`expunge spectrum`"] = run("spectrum", work.original, "--k", "1", "--device", "cpu")
    found["`expunge bench`"] = run("bench", plan, "--store", folder / "bench", "--device", "cpu", "--workers", "1")
    found["`expunge list` and"] = run("show", "amun")
    return found | {"dry run": run("bench", plan, "--store", folder / "none", "--dry-run"), "list": run("list")}


@pytest.mark.parametrize("verb", ["train", "unlearn", "shadows", "audit", "spectrum", "bench", "list"])
def test_the_page_names_every_key_that_is_printed_and_no_other(printed, verb):
    heading = next(name for name in printed if name.startswith(f"`expunge {verb}`"))
    assert set(printed[heading]) == keys_of(heading)


def test_estimates_rows_and_lists_have_the_keys_that_the_page_says(printed):
    assert set(printed["`expunge audit`"]["models"][0]["test"]) == keys_of("What")
    row = printed["`expunge bench`"]["points"][0]["rows"][0]
    sentence = re.search(r"^A row has (.*?)\n\n", PAGE, re.M | re.S)[1]
    assert set(row) == {"name", *re.findall(r"`(\w+)`", sentence)} - {"tuning"}
    assert all(f"`{name}`" in PAGE for name in (*printed["dry run"], *printed["dry run"]["kinds"][0], *printed["list"]))
