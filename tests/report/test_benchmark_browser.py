"""The page of a benchmark in a real headless Chromium: one browser for all tests."""

import itertools
import json

import pytest

from expunge.report import write_benchmark
from report.benchmarks import TIES, benchmark, find, point, running
from report.browser import CHROMIUM

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")

SCRIPT = "<script>alert(1)</script>"
WIDEST = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
BOXES = "(part => [...document.querySelectorAll(part)].map(e => e.getBoundingClientRect()).filter(b => b.width).map(b => [b.left, b.top, b.right, b.bottom]))"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A finished benchmark, one that is running, and one with names that are no names."""
    folder = tmp_path_factory.mktemp("pages")
    hostile = running()
    find(hostile, "amun")["paper"] = {"forget": SCRIPT}
    hostile = json.loads(json.dumps(hostile).replace("amun", SCRIPT).replace("Every method", SCRIPT)) | {"source": SCRIPT}
    long = benchmark(point("data" + 30 * "verylongname"))
    find(long, "salun")["name"] = 12 * "longname"
    long["points"][0]["ties"] = ["amun"]
    for name, result in {"done": benchmark(), "hostile": hostile, "long": long}.items():
        write_benchmark(result, folder / f"{name}.html")
    return folder


def boxes(page, part):
    return page.run(f"{BOXES}({json.dumps(part)})")


def test_the_page_is_never_wider_than_the_window_and_nothing_runs_or_leaves(browser, pages):
    for name in ("hostile", "long"):
        browser.open(pages / f"{name}.html")
        browser.run("document.querySelectorAll('details').forEach(e => { e.open = true })")
        for width in (360, 1280):
            browser.show(width)
            assert browser.run(WIDEST) == width
            assert all(box[2] <= width for part in (".gaps *", ".chart", ".settings *", "header *") for box in boxes(browser, part))
        assert browser.complaints == [] and browser.dialogs == [] and browser.run("document.scripts.length") == 1
        assert {url for url in browser.requests if not url.startswith("data:")} == {(pages / f"{name}.html").as_uri()}
    browser.open(pages / "hostile.html")
    for selector in ("h1", ".gaps th", ".methods th", ".methods td", ".settings h4", ".chart text", ".chart title", ".caption"):
        assert SCRIPT in browser.run(f"[...document.querySelectorAll('{selector}')].map(e => e.textContent).join(' ')"), selector


@pytest.mark.parametrize("width", [360, 1280])
def test_one_figure_of_costs_is_shown_and_its_names_do_not_cover_one_another(browser, pages, width):
    browser.open(pages / "done.html")
    browser.show(width)
    assert browser.run("[...document.querySelectorAll('.chart svg')].map(e => getComputedStyle(e).display != 'none')") == [
        width > 600,
        width < 600,
    ]
    (frame,) = boxes(browser, ".chart svg")
    names, points = boxes(browser, ".chart .name"), boxes(browser, ".chart circle")
    assert len(names) == len(points) == 19
    inner = [(left + 1, top + 2, right - 1, bottom - 2) for left, top, right, bottom in names]  # a line of text is higher than its letters
    assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a, b in itertools.combinations(inner, 2))
    assert all(box[0] >= frame[0] and box[2] <= frame[2] + 1 and box[1] >= frame[1] and box[3] <= frame[3] for box in names)


@pytest.mark.parametrize("width", [360, 1280])
def test_the_strips_of_all_methods_share_one_axis(browser, pages, width):
    browser.open(pages / "done.html")
    browser.show(width)
    tracks, floors, lines, zeros = (boxes(browser, f".gaps tbody {part}") for part in (".track", ".floor", ".before", ".tick:first-child"))
    assert len(tracks) == len(floors) == len(lines) == len(zeros) == 19 and tracks[0][2] - tracks[0][0] > 100
    for marks in (tracks, floors, lines, zeros):
        assert max(abs(box[k] - marks[0][k]) for box in marks for k in (0, 2)) < 0.5
        assert all(below[1] - above[3] < 1 for above, below in itertools.pairwise(marks))  # no gaps between rows
    dots = [(box[0] + box[2]) / 2 for box in boxes(browser, ".gaps .dot")]
    assert dots == sorted(dots) and floors[0][2] < dots[0] < lines[0][0] < dots[-1]
    numbers = boxes(browser, ".gaps .number")
    assert not any(left[2] > right[0] for left, right in itertools.pairwise(numbers))


@pytest.mark.parametrize("dark", [False, True])
def test_the_best_are_told_by_more_than_their_colour(browser, pages, dark):
    browser.open(pages / "done.html")
    browser.show(1280, dark)
    script = "[...document.querySelectorAll('.gaps tbody tr')].map(e => [getComputedStyle(e.querySelector('.name')).fontWeight, getComputedStyle(e.querySelector('.dot')).borderTopWidth])"
    looks = [tuple(look) for look in browser.run(script)]
    assert looks.count(("600", "0px")) == len(TIES) and looks.count(("400", "2px")) == 19 - len(TIES)
    assert (
        len(
            set(
                browser.run(
                    "[...document.querySelectorAll('.gaps .ties .dot, .gaps .worse .range')].map(e => getComputedStyle(e).backgroundColor)"
                )
            )
        )
        == 2
    )


def test_on_paper_the_figures_keep_their_colours_and_dark_is_light(browser, pages):
    browser.open(pages / "done.html")
    browser.show(700, dark=True, media="print")
    assert set(browser.run("[...document.querySelectorAll('.gaps i')].map(e => getComputedStyle(e).printColorAdjust)")) == {"exact"}
    assert browser.run("getComputedStyle(document.documentElement).getPropertyValue('--card').trim()") == "#ffffff"
    assert browser.pdf().startswith(b"%PDF")
