import copy
import json
import re

import pytest
import torch

from expunge.audits.verdict import area_contrast, judge
from expunge.errors import DataError
from expunge.report import render
from expunge.report.verdict_section import WORDS, cards
from report.pages import HOSTILE, VERDICTS, Page, contrast, judged


@pytest.fixture
def plain(sample):
    """An audit without figures: those take the time."""
    return sample | {"histograms": [], "attacks": [row | {"roc": None} for row in sample["attacks"]]}


def drawn(**gap):
    """One contrast as it is drawn, and the places on its strip."""
    (card,) = cards([VERDICTS[0] | {"contrasts": [contrast("RMIA AUC", "area", **gap)]}])
    (one,) = card.contrasts
    return one, {name: float(place) for name, place in re.findall(r"--([a-z]+): ([\d.]+)%", one.style)}


def test_a_verdict_stands_before_the_tables_with_its_word_its_sentence_and_its_contrasts(plain):
    page = Page(render(judged(plain)))
    words = page.words
    assert words.index("Verdicts") < words.index("≠ distinguishable") < words.index("? cannot tell") < words.index("≈ indistinguishable")
    assert words.index("≈ indistinguishable") < words.index("How close to retrained?")
    assert sum(tag == "blockquote" for tag, _ in page.tags) == 3
    for verdict in VERDICTS:
        assert verdict["text"] in words and all(need in words for need in verdict["needs"])
    assert "RMIA AUC reaches beyond ±0.02 +0.013 −0.031 to +0.057" in words
    assert "Forget accuracy reaches beyond ±2 points, leaves out 0 +6.0 points +1.8 to +10.2" in words
    assert words.count("To be able to tell:") == 1


def test_the_protocol_is_named_under_the_title(plain):
    words = Page(render(judged(plain))).words
    assert "Audit of random-sample forgetting Audited by protocol standard-1 ; see docs/protocol.md" in words
    assert "protocol" not in Page(render(plain)).words


@pytest.mark.parametrize(("shift", "word"), [(0.0, "cannot tell"), (2.0, "distinguishable")])
def test_the_verdicts_of_an_audit_fit_as_they_are(plain, shift, word):
    draw = torch.Generator().manual_seed(0)
    scores = lambda extra: (torch.randn(60, generator=draw) + extra, torch.randn(80, generator=draw))  # noqa: E731
    verdict = judge("AMUN", [area_contrast("RMIA", scores(shift), *(scores(0.0) for _ in range(3)))], n_references=3)
    assert verdict.word == word
    words = Page(render(plain | {"verdicts": [verdict.to_dict()]})).words
    assert f"{WORDS[word][1]} {word} {verdict.text}" in words and f"{verdict.contrasts[0].gap.value:+.3f}".replace("-", "−") in words
    assert all(need in words for need in verdict.needs)


def test_an_audit_from_before_protocols_looks_as_it_did(plain):
    page = Page(render(plain))
    assert not {"blockquote", "article", "img"} & {tag for tag, _ in page.tags}
    body = lambda result: render(result).split('<script type="application/json"')[0]  # noqa: E731
    assert body(plain) == body(plain | {"protocol": None, "verdicts": None, "risks": None}) == body(plain | {"verdicts": []})


def test_the_interval_is_placed_against_the_band_which_is_the_middle_third():
    one, places = drawn(value=-0.01, low=-0.04, high=0.02)
    assert (places["from"], places["zero"], places["to"]) == (33.33, 50.0, 66.67)
    assert places["low"] == pytest.approx(16.67) and places["value"] == pytest.approx(41.67) and places["high"] == pytest.approx(66.67)
    assert one.dot and one.cut == ()


@pytest.mark.parametrize(
    ("low", "value", "high", "standing"),
    [
        (-0.02, 0.0, 0.02, "inside ±0.02"),
        (0.005, 0.01, 0.015, "inside ±0.02"),
        (-0.01, 0.01, 0.03, "reaches beyond ±0.02"),
        (0.005, 0.02, 0.03, "reaches beyond ±0.02, leaves out 0"),
        (-0.03, -0.02, -0.005, "reaches beyond ±0.02, leaves out 0"),
        (0.021, 0.03, 0.04, "outside ±0.02"),
        (-0.04, -0.03, -0.021, "outside ±0.02"),
    ],
)
def test_words_say_where_the_interval_lies(low, value, high, standing):
    assert drawn(value=value, low=low, high=high)[0].standing == standing


def test_what_lies_beyond_the_strip_is_an_arrow_and_no_dot_at_its_edge():
    one, places = drawn(value=0.3, low=0.05, high=0.5)
    assert one.cut == ("high",) and not one.dot and places["high"] == 100
    assert drawn(value=0.0, low=-0.3, high=0.3)[0].cut == ("low", "high") and drawn(value=0.0, low=-0.3, high=0.3)[0].dot
    assert drawn(value=0.0, low=-0.06, high=0.06)[0].cut == ()


def test_a_difference_without_support_says_why_and_is_not_drawn(plain):
    one, places = drawn(value=None, low=None, high=None, note="needs 500 non-members, got 397")
    assert (one.cell.value, one.cell.note, one.standing, places) == ("n/a", "needs 500 non-members, got 397", "", {})
    assert "True positives at 1% FPR n/a TPR at 1% FPR needs 500 non-members, got 397" in Page(render(judged(plain))).words


def test_without_a_margin_there_is_the_number_alone():
    (card,) = cards([VERDICTS[0] | {"contrasts": [contrast("RMIA AUC", "area", 0.1, 0.0, 0.2, margin=None)]}])
    assert card.contrasts[0].cell.value == "+0.100" and card.contrasts[0].style == "" == card.contrasts[0].standing


def test_one_verdict_and_verdicts_without_contrasts_are_shown(plain):
    result = plain | {"verdicts": [{name: VERDICTS[2][name] for name in ("model", "word", "text")}]}
    words = Page(render(result)).words
    assert "Verdict GradientAscent ≈ indistinguishable" in words and "Verdicts" not in words and "To be able to tell" not in words


def test_every_word_has_a_symbol_of_its_own_and_no_other_word_passes(plain):
    assert len({symbol for _, symbol in WORDS.values()}) == len({look for look, _ in WORDS.values()}) == len(WORDS) == 3
    with pytest.raises(DataError, match="must be one of 'indistinguishable', 'distinguishable', 'cannot tell'; got 'fine'"):
        render(plain | {"verdicts": [VERDICTS[0] | {"word": "fine"}]})


@pytest.mark.parametrize("part", ["model", "word", "text"])
def test_an_incomplete_verdict_gets_a_clear_error(plain, part):
    broken = copy.deepcopy(VERDICTS[0])
    del broken[part]
    with pytest.raises(DataError, match=f"must be complete.*{part}"):
        render(plain | {"verdicts": [broken]})


def test_names_and_sentences_of_verdicts_are_text(plain):
    text = json.dumps(judged(plain))
    for name in ("AMUN", "RMIA AUC", "standard-1", "about 640", "underpowered"):
        text = text.replace(name, json.dumps(HOSTILE)[1:-1])
    html = render(json.loads(text))
    page = Page(html)
    assert html.count("<script") == html.count("</script") == 1 and "<!--" not in html
    assert not any(tag == "img" or any(name.startswith("on") for name in attributes) for tag, attributes in page.tags)
    assert f"By protocol {HOSTILE}, this audit cannot tell {HOSTILE} from retraining" in " ".join(page.text)
    assert f"{HOSTILE}: cannot tell" in [attributes.get("aria-label") for _, attributes in page.tags]
