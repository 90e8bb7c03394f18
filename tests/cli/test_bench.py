"""`expunge bench` and `expunge report`: what they print is what the plan finds."""

import json
import os
import pty
import signal
import subprocess
import sys

import pytest

from expunge.bench import read_plan

TOML = """
title = "A small plan"
data = "digits"
arch = "small"
forget = { random = 20 }
recipe = { epochs = 2, lr = 0.05, batch_size = 64 }
seeds = 1
shadows = 0
n_train = 200
[methods]
fine_tune = { epochs = 1 }
[scales.longer]
recipe = { epochs = 400, lr = 0.05, batch_size = 64 }
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """(file, store), run once."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "plan.toml").write_text(TOML)
    return folder / "plan.toml", folder / "runs"


@pytest.fixture(scope="module")
def printed(plan, expunge):
    file, store = plan
    return expunge("bench", file, "--store", store, "--workers", "1", "--device", "cpu", "--html", store.parent / "page.html")


def test_a_dry_run_counts_and_trains_nothing(plan, expunge, tmp_path):
    out = expunge("bench", plan[0], "--store", tmp_path / "none", "--dry-run").stdout
    assert out.startswith("5 cells: 0 done, 5 to do, about ")
    assert not (tmp_path / "none").exists()


def test_bench_prints_the_table_and_writes_the_page(plan, printed):
    file, store = plan
    results = read_plan(file).results(store)
    assert f"{100 * results.points[0]['fine_tune'].columns['test'].value:.1f}" in printed.stdout
    assert "digits (200 training images), small, 20 random samples" in printed.stdout
    page = (store.parent / "page.html").read_text()
    assert "A small plan" in page and "fine_tune" in page
    assert f"wrote {store.parent / 'page.html'}" in printed.stdout


def test_report_says_the_same_as_json(plan, printed, expunge):
    file, store = plan
    found = json.loads(expunge("report", file, "--store", store, "--json").stdout)
    expected = read_plan(file).results(store).to_dict()
    assert found["points"] == json.loads(json.dumps(expected["points"]))
    assert (found["done"], found["total"]) == (2, 2)


def test_the_status_as_json(plan, printed, expunge):
    found = json.loads(expunge("bench", plan[0], "--store", plan[1], "--dry-run", "--json").stdout)
    assert (found["done"], found["total"]) == (5, 5)


def test_a_report_of_nothing_says_so(plan, expunge, tmp_path):
    out = expunge("report", plan[0], "--store", tmp_path).stdout
    assert "not there yet" in out and "2 of 2 audited models are not there yet" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.toml"], "no plan 'none.toml'"),
        (["PLAN", "--scale", "long"], "did you mean 'longer'"),
        (["PLAN", "--executor", "rya"], "did you mean 'ray'"),
        (["PLAN", "--executor", "pool:workers=3"], "no setting"),
        (["PLAN", "--sort", "gap"], "no column named 'gap'"),
        (["PLAN", "--workers", "0"], "workers must be"),
    ],
)
def test_mistakes_are_one_line_with_a_remedy(plan, printed, expunge, arguments, words, tmp_path):
    file, store = plan
    new = ["--store", tmp_path] if "--workers" in arguments else ["--store", store]
    result = expunge("bench", *(file if a == "PLAN" else a for a in arguments), *new, code=1)
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_report_is_also_markdown(plan, printed, expunge, tmp_path):
    file, store = plan
    expunge("report", file, "--store", store, "--markdown", tmp_path / "report.md")
    title, *rest = (tmp_path / "report.md").read_text().splitlines()
    assert title == "# A small plan"
    rows = [line.strip("| ").split(" | ") for line in rest if line.startswith("|")]
    assert rows[0][0] == "" or "average gap" in rows[0]
    table = {row[0]: row for row in rows}
    test = read_plan(file).results(store).points[0]["fine_tune"].columns["test"].value
    assert any(cell.startswith(f"{100 * test:.1f}") for cell in table["fine_tune"])
    assert len({line.count("|") for line in rest if line.startswith("|")}) == 1


def test_a_page_that_exists_is_not_replaced(plan, printed, expunge):
    file, store = plan
    assert "--force" in expunge("report", file, "--store", store, "--html", store.parent / "page.html", code=1).stderr


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_on_a_terminal_a_table_is_drawn_and_ctrl_c_keeps_what_is_finished(plan, tmp_path):
    """The long plan is interrupted while its models train."""
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "expunge",
        "bench",
        str(plan[0]),
        "--scale",
        "longer",
        "--store",
        str(tmp_path / "runs"),
        "--workers",
        "1",
    ]
    with open(tmp_path / "out.txt", "wb") as out:
        process = subprocess.Popen(command, stderr=theirs, stdout=out, start_new_session=True)
    os.close(theirs)
    shown = b""
    while b"train models" not in shown:
        shown += os.read(ours, 65_536)
    os.killpg(process.pid, signal.SIGINT)
    try:
        while part := os.read(ours, 65_536):
            shown += part
    except OSError:  # the other end is closed
        pass
    assert process.wait(300) == 130
    assert b"the same command continues" in shown
    os.close(ours)
    assert not (tmp_path / "out.txt").read_bytes()
