"""The page in a real headless Chromium: one browser for all tests."""

import json

import pytest

from expunge.report import write
from report.browser import CHROMIUM
from report.pages import exposed, judged, light

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")

SCRIPT = "<script>alert(1)</script>"
LONG = "FineTune(epochs=10,lr=0.01,batch_size=128,momentum=0.9,weight_decay=0.0005,schedule=Cosine())"
WIDEST = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"


@pytest.fixture
def shown(browser, tmp_path):
    """Opens the page of an audit in the browser."""

    def open_page(result):
        write(result, tmp_path / "audit.html")
        browser.open(tmp_path / "audit.html")
        return browser

    return open_page


def boxes(browser, within, *parts):
    """The left and right edges of these parts in each element."""
    script = f"""[...document.querySelectorAll({json.dumps(within)})].map(e => {json.dumps(parts)}.map(p => {{
        const part = e.querySelector(p), box = part && part.getBoundingClientRect(); return box && [box.left, box.right] }}))"""
    return browser.run(script)


def test_the_browser_notices_what_a_page_must_not_do(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<script>alert(1); console.error('noise')</script><img src='http://127.0.0.1:9/x.png'><p style='width: 2000px'>wide")
    browser.open(bad)
    assert browser.dialogs == ["1"] and "['noise']" in browser.complaints and "http://127.0.0.1:9/x.png" in browser.requests
    browser.show(360)
    assert browser.run(WIDEST) > 360


def test_the_whole_page_is_shown_and_nothing_runs_or_leaves(shown, class_sample, tmp_path):
    result = exposed(judged(class_sample), 4)
    text = json.dumps(result).replace("AMUN", SCRIPT).replace('"deer"', json.dumps(SCRIPT))
    hostile = json.loads(text) | {"title": f"Audit {SCRIPT}"}
    examples = hostile["risks"]["examples"]
    examples[0]["label"] = SCRIPT
    examples[1]["image"], examples[2]["image"] = "javascript:alert(1)", "https://example.org/cat.png"
    page = shown(hostile)
    assert page.run("document.title") == page.run("document.querySelector('h1').textContent") == f"Audit {SCRIPT}"
    assert page.run("document.scripts.length") == 1 and page.run("document.scripts[0].type") == "application/json"
    assert page.run("JSON.parse(document.getElementById('result').textContent)") == hostile
    for selector in (".card h3", ".risk thead th", ".risk tbody th", ".card blockquote", "h2"):
        assert SCRIPT in page.run(f"[...document.querySelectorAll('{selector}')].map(e => e.textContent).join(' ')")
    assert page.run("document.querySelectorAll('svg.plot').length") == 3 + len(hostile["histograms"])
    assert page.run("[...document.images].map(i => i.complete && i.naturalWidth)") == [32, 32]
    assert page.run("getComputedStyle(document.images[0]).imageRendering") == "pixelated"
    for width in (360, 1280):
        page.show(width)
        assert page.run(WIDEST) == width
    assert page.complaints == [] and page.dialogs == []
    assert {url for url in page.requests if not url.startswith("data:")} == {(tmp_path / "audit.html").as_uri()}


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_never_wider_than_the_window(shown, class_sample, width):
    many = judged(class_sample, (LONG, "SalUn", "SCRUB"))
    one = judged(class_sample)
    crowd = exposed(many, 2, (3, 50, 20))
    for example in crowd["risks"]["examples"]:
        example["risks"] |= {LONG: example["risks"]["AMUN"]}
        example["label"] = "a class of " + 5 * "verylongname"
    for result in (crowd, exposed(one | {"verdicts": one["verdicts"][1:2]}, 1, (1, 8, 8))):
        page = shown(light(result))
        page.show(width)
        assert page.run(WIDEST) == width
        outside = "[...document.querySelectorAll('.card *, .risks *')].filter(e => e.getBoundingClientRect().right > innerWidth).length"
        assert page.run(outside) == 0
        whole = """[...document.images].every(i => { const a = i.getBoundingClientRect(), b = i.parentElement.getBoundingClientRect();
            return a.left >= b.left - .5 && a.right <= b.right + .5 && a.top >= b.top - .5 && a.bottom <= b.bottom + .5 })"""
        assert page.run("document.images.length") and page.run(whole)
        clipped = "[...document.querySelectorAll('.card, .risks > li')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
        assert page.run(clipped) == 0


@pytest.mark.parametrize("width", [360, 1280])
def test_strips_put_the_interval_where_the_words_say(shown, sample, width):
    page = shown(light(judged(sample)))
    page.show(width)
    rows = boxes(page, ".contrasts li", ".track", ".margin", ".zero", ".range", ".dot", ".more.low", ".more.high")
    words = page.run(
        "[...document.querySelectorAll('.contrasts li')].map(e => (e.querySelector('.standing') || {textContent: ''}).textContent)"
    )
    assert len(rows) == len(words) == 15 and {word.split(" ")[0] for word in words} == {"inside", "reaches", "outside", ""}
    for word, (track, band, zero, interval, dot, low, high) in zip(words, rows, strict=True):
        if not word:
            assert not track
            continue
        assert track[1] - track[0] > 75 and band[0] < zero[0] < band[1]
        assert (band[1] - band[0]) / (track[1] - track[0]) == pytest.approx(1 / 3, abs=0.02)
        inside = band[0] - 1 <= interval[0] and interval[1] <= band[1] + 1
        outside = interval[0] > band[1] - 1 or interval[1] < band[0] + 1
        assert word.split(" ")[0] == ("inside" if inside else "outside" if outside else "reaches")
        if dot:
            assert interval[0] - 1 <= sum(dot) / 2 <= interval[1] + 1
        for end, arrow in ((0, low), (1, high)):
            assert arrow is None or abs(arrow[end] - track[end]) < 8


@pytest.mark.parametrize("dark", [False, True])
def test_words_are_legible_and_do_not_rest_on_colour_alone(shown, sample, dark):
    page = shown(light(exposed(judged(sample), 1)))
    page.show(1280, dark)
    script = """[...document.querySelectorAll('.word, blockquote p, .standing, .interval, .why, .risk .value, .protocol')].map(e => {
        let back = e; while (back && getComputedStyle(back).backgroundColor === 'rgba(0, 0, 0, 0)') back = back.parentElement;
        return [getComputedStyle(e).color, getComputedStyle(back).backgroundColor] })"""
    for ink, paper in page.run(script):
        assert contrast(ink, paper) >= 4.5, (ink, paper)
    assert (luminance(paper) < 0.1) == dark
    words = page.run("[...document.querySelectorAll('.word')].map(e => [e.textContent.trim(), getComputedStyle(e).color])")
    assert [word for word, _ in words] == ["≠ distinguishable", "? cannot tell", "≈ indistinguishable"] and len({c for _, c in words}) == 3
    assert page.run("[...document.querySelectorAll('blockquote, blockquote p')].every(e => getComputedStyle(e).userSelect !== 'none')")


def luminance(colour):
    channels = [float(x) / 255 for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    r, g, b = (x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(ink, paper):
    """The ratio of WCAG 2, section 1.4.3."""
    darker, lighter = sorted((luminance(ink), luminance(paper)))
    return (lighter + 0.05) / (darker + 0.05)


def test_on_paper_cards_are_whole_and_colours_stay(shown, sample):
    page = shown(light(exposed(judged(sample), 4)))
    page.show(700, dark=True, media="print")
    style = lambda part, name: set(page.run(f"[...document.querySelectorAll('{part}')].map(e => getComputedStyle(e).{name})"))  # noqa: E731
    assert style(".card, .risks > li", "breakInside") == {"avoid"}
    assert style(".card, .contrasts .strip i, .risk .strip i, .frame", "printColorAdjust") == {"exact"}
    assert luminance(next(iter(style(".card", "backgroundColor")))) > 0.9  # a dark screen does not blacken the paper
    assert page.run("[...document.querySelectorAll('.card *, .risks *')].every(e => e.getBoundingClientRect().right <= innerWidth)")
    assert page.pdf().startswith(b"%PDF")
