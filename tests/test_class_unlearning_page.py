"""The code on docs/class_unlearning.md runs, from top to bottom, with small settings."""

import pathlib
import re

import expunge

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "class_unlearning.md"
QUICK = [("epochs=40", "epochs=1"), ("n=8", "n=6"), ("TRW(batch", "TRW(epochs=1, batch"), ('store="runs"', 'store="runs", workers=1'), ("range(100)", "range(40)"),
         ('load_data("digits")', 'load_data("digits"); train, test = (part.subset(range(300)) for part in (train, test))'),
         ("DELETE()", "DELETE(epochs=1, until=None)"), ("FineTune(", "FineTune(epochs=1, ")]  # fmt: skip


def test_the_code_on_the_page_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 4
    code = "\n".join(blocks)
    for slow, quick in QUICK:
        assert slow in code
        code = code.replace(slow, quick)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    printed = capsys.readouterr().out
    for words in ("similarity=", "unseen images of 8", "U-LiRA on 8, 6 unlearned against 6 retrained", "U-LiRA ("):
        assert words in printed
    assert "Where do images of 8 go?" in (tmp_path / "classes.html").read_text(encoding="utf-8")
    assert list(names["leaks"]) == ["original", "FineTune"]


def test_the_table_of_methods_says_the_truth():
    rows = re.findall(r"^\| `(\w+)` \| (yes|no)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(rows) == 5
    for name, reads in rows:
        assert getattr(expunge, name)().reads_retain == (reads == "yes"), name
    assert (
        not expunge.TRW(use_retain=False).reads_retain and expunge.TRW().beta == 0 and expunge.DELETE().until == expunge.TRW().until == 0.05
    )
