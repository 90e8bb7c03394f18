"""The pages of the documentation: links, navigation, names. Sphinx itself builds the site in .ci/run, with warnings as errors."""

import doctest
import pathlib
import re
import runpy
from collections.abc import Iterator

import pytest

import expunge

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCE = pathlib.Path(expunge.__file__).parent
PAGES = sorted([*ROOT.glob("*.md"), *(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)])
FENCE = re.compile(r"^(`{3,})([^\n]*)\n(.*?)^\1 *$", flags=re.MULTILINE | re.DOTALL)


def text_of(page: pathlib.Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors_of(page: pathlib.Path) -> set[str]:
    """The anchors that GitHub and the site give to the page's headings."""
    titles = re.findall(r"^#+ +(.+?) *$", text_of(page), flags=re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles]
    found: list[str] = []
    for slug in (re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain):
        found.append(slug if slug not in found else f"{slug}-{sum(each == slug for each in found)}")
    return set(found)


def broken_links(page: pathlib.Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.is_file():
            yield f"{page.relative_to(ROOT)}: {target} (no such file)"
        elif anchor and file.suffix == ".md" and anchor not in anchors_of(file):
            yield f"{page.relative_to(ROOT)}: {target} (no such heading)"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_inside_the_repository_leads_somewhere(page):
    assert not list(broken_links(page))


def test_a_broken_link_is_found(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "b.md").write_text("# One `b`, two\n## Two\n## Two\n```\n# no heading [x](nowhere)\n```\n")
    page = tmp_path / "a.md"
    page.write_text(
        "# A\n[1](b.md#one-b-two) [2](b.md#two-1) [3](#a) [4](https://example.org) [5](b.md#no-heading) [6](c.md) [7](#b) ![8](no.png)\n"
    )
    assert [line.split()[1] for line in broken_links(page)] == ["b.md#no-heading", "c.md", "#b", "no.png"]


def navigated(page: pathlib.Path) -> Iterator[pathlib.Path]:
    """The pages that the navigation leads to, from this page."""
    for _, kind, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if kind.strip() == "{toctree}":
            entries = [line.split("<")[-1].strip("> ") for line in body.splitlines() if line.strip() and not line.startswith(":")]
            for below in (below for entry in entries for below in sorted(page.parent.glob(f"{entry}.md"))):
                yield from (below, *navigated(below))


def test_the_navigation_leads_to_every_page():
    pages = {page for page in PAGES if page.is_relative_to(DOCS)}
    assert pages == {DOCS / "index.md", *navigated(DOCS / "index.md")}, "name the page in a toctree of docs/index.md"


def test_every_public_name_is_on_one_page_of_the_api():
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "api").glob("*.md")))
    named = re.findall(r"^\.\. (?:auto\w+|py:data):: (?:expunge\.)?(\w+)$", text, flags=re.MULTILINE)
    assert sorted(named) == sorted(expunge.__all__)


def test_docstrings_and_the_table_of_layers_are_read_as_their_examples_say():
    for file in ("plain_docstrings.py", "images/draw_layers.py"):
        names = runpy.run_path(str(DOCS / file))
        examples = [test for name in names.values() if getattr(name, "__doc__", None) and hasattr(name, "__code__") for test in doctest.DocTestFinder().find(name, globs=names)]  # fmt: skip
        assert any(test.examples for test in examples)
        assert sum(doctest.DocTestRunner().run(test).failed for test in examples) == 0


def test_each_word_of_the_glossary_stands_there_once_and_is_used_elsewhere():
    rows = re.findall(r"^\| (?!term )([^|]+) \|([^|]*)\|[^|]+\|$", text_of(DOCS / "glossary.md"), flags=re.MULTILINE)
    terms = [re.sub(r" \([^)]*\)", "", words).split(", ") for words, _ in rows]
    assert len(rows) > 80 and len({term for row in terms for term in row}) == sum(map(len, terms))
    texts = [*(page for page in PAGES if page.name != "glossary.md"), *SOURCE.rglob("*.py")]
    words = re.sub(r"[\s#`*-]+", " ", " ".join(text.read_text(encoding="utf-8") for text in texts))
    used = [
        any(term.lower().replace("-", " ") in words.lower() for term in row)
        or any(s.strip() and s.strip() in words for s in symbols.split(","))
        for row, (_, symbols) in zip(terms, rows, strict=True)
    ]
    assert all(used), [row for row, found in zip(terms, used, strict=True) if not found]


def test_the_page_of_limits_names_every_folder_that_a_store_gets():
    source = "".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    kinds = {"original", *re.findall(r'\.cell\("(\w+)"', source), *re.findall(r'\bkind="(\w+)",', source)}
    assert len(kinds) >= 10 and not [kind for kind in kinds if f"`runs/{kind}/`" not in text_of(DOCS / "limits.md")], kinds


def test_files_that_pages_name_exist():
    named = [
        (page.relative_to(ROOT), name)
        for page in PAGES
        for name in re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.(?:py|md|toml))`", text_of(page))
    ]
    assert len(named) > 30
    assert not [(page, name) for page, name in named if not any((place / name).exists() for place in (ROOT, SOURCE, DOCS))]
