import copy
import json
import os
import re
import xml.etree.ElementTree as ET

import pytest

from expunge.errors import DataError, StoreError
from expunge.report import render, write
from report.pages import HOSTILE, Page, light, rendered


@pytest.fixture
def page(sample):
    return Page(rendered(sample))


def test_the_page_is_one_document_with_the_parts_in_order(page):
    headings = [
        "Audit of random-sample forgetting",
        "How close to retrained?",
        "Can an attacker tell?",
        "Flags",
        "ROC curves",
        "How sure is each model?",
    ]
    places = [page.words.rindex(heading) for heading in [*headings, "Costs and recipes", "Provenance"]]
    assert places == sorted(places)
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_the_numbers_are_on_the_page_with_their_intervals(page, sample):
    assert "95.0 90.7 to 99.3" in page.words  # forget accuracy of AMUN
    assert "AMUN is 2.2 points from retrained on average (1.1 to 3.4), within the null floor" in page.words
    assert "original is 10.2 points from retrained on average (9.1 to 11.3), above the null floor" in page.words
    row = next(row for row in sample["attacks"] if (row["attack"], row["model"]) == ("RMIA", "AMUN"))
    assert f"{row['auc']['value']:.3f}" in page.words and "True positives at 1% FPR" in page.words
    assert "n/a TPR at 1% FPR needs 500 non-members, got 397" in page.words
    assert "Null floor: 1.4 points (0.3 to 2.5)" in page.words
    assert "9.9×" in page.words and "Flags Reasons" in page.words and "TooFewNonMembers" in page.words


def test_an_audit_that_cannot_see_the_original_says_so(sample, page):
    assert "the average gap cannot tell forgetting from doing nothing" not in page.words
    original = sample["models"][0]["gaps"]["average"]
    original |= {"value": 0.03, "low": 0.02, "high": 0.04}
    assert "the average gap cannot tell forgetting from doing nothing" in Page(render(light(sample))).words


def test_a_note_that_holds_for_every_row_is_printed_once(page):
    assert page.words.count("underpowered: the threshold rests on 7 non-members") == 1


def test_the_json_in_the_page_is_the_result(sample, page):
    assert page.numbers == sample


def test_names_are_text_wherever_they_come_from(sample):
    text = json.dumps(sample)
    for name in ("Audit of random-sample forgetting", "AMUN", "RMIA", "AMD EPYC 9R14", "TooFewNonMembers"):
        text = text.replace(name, json.dumps(HOSTILE)[1:-1])
    hostile = json.loads(text)
    html = render(hostile)
    page = Page(html)
    assert page.numbers == hostile
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [{"type": "application/json", "id": "result"}]
    assert not any(
        tag in ("img", "iframe", "object", "form") or any(name.startswith("on") for name in attributes) for tag, attributes in page.tags
    )
    assert HOSTILE in " ".join(page.text) and "49" not in re.findall(r"alert\(2\)\S* .{20}", page.words)[0]
    assert html.count("<script") == html.count("</script") == 1 and "<!--" not in html


def test_the_page_asks_nothing_of_the_network(sample):
    html = rendered(sample)
    outside = html.replace('xmlns="http://www.w3.org/2000/svg"', "").replace('xmlns:xlink="http://www.w3.org/1999/xlink"', "")
    assert "http:" not in outside and "https:" not in outside and "@import" not in html
    for _, attributes in Page(html).tags:
        assert all(attributes[name].startswith(("#", "data:")) for name in ("src", "href", "xlink:href") if name in attributes)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "default-src 'none'" in html


def test_every_figure_is_well_formed_and_no_id_appears_twice(sample, page):
    figures = re.findall(r'<svg class="plot".*?</svg>', rendered(sample), flags=re.DOTALL)
    assert len(figures) == 3 + len(sample["histograms"])
    for figure in figures:
        ET.fromstring(figure)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes} <= set(ids)


def test_every_colour_of_a_figure_is_defined_for_light_and_dark(sample):
    html = rendered(sample)
    style = html[html.index("<style>") : html.index("</style>")]
    light, dark = style.split("@media screen and (prefers-color-scheme: dark)")
    for name in set(re.findall(r"var\(--((?:model-\d|ink|muted|grid|paper|card|tint|shade|rule|warn)[a-z-]*)\)", html)):
        assert f"--{name}:" in light and f"--{name}:" in dark


def test_the_same_result_gives_the_same_page(sample):
    assert render(sample) == rendered(sample)


def test_the_page_neither_depends_on_the_settings_of_matplotlib_nor_changes_them(sample):
    import matplotlib

    before, html = copy.deepcopy(sample), rendered(sample)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "lines.linewidth": 9}):
        matplotlib.rcParams["backend"] = "svg"
        settings = dict(matplotlib.rcParams)
        assert render(sample) == html and sample == before and dict(matplotlib.rcParams) == settings


def test_a_result_from_before_classes_looks_like_one_without_classes(sample):
    old = rendered(sample)
    _without_new_keys_but_named(sample)
    cut = old.index('<script type="application/json"')
    assert render(sample)[:cut] == old[:cut]
    assert "unseen" not in Page(old).words and "against test images (non-members)" in Page(old).words


def _without_retain(sample):
    for model in sample["models"]:
        model["retain"] = None
        if model["gaps"]:
            model["gaps"]["retain"] = None
    for histogram in sample["histograms"]:
        histogram["retain"] = None


def _without_reference(sample):
    sample |= {"reference": None, "floor": None}
    for entry in sample["models"] + sample["attacks"]:
        entry["gaps" if "gaps" in entry else "gap"] = None


def _without_new_keys_but_named(sample):
    """An audit of samples by today's code: the keys of classes are there, and empty."""
    for model in sample["models"]:
        model["forget_test"] = None
        if model["gaps"]:
            model["gaps"]["forget_test"] = None
    for histogram in sample["histograms"]:
        histogram["forget_test"] = None
    sample["classes"] = []


def _bare(sample):
    for name in ("title", "created", "provenance", "reference", "sizes", "floor", "histograms", "flags"):
        del sample[name]
    sample["attacks"] = []
    sample["models"] = [{name: model[name] for name in ("name", "forget", "test")} for model in sample["models"]]


@pytest.mark.parametrize(
    ("change", "present", "absent"),
    [
        (_without_retain, "Test accuracy", "Retain accuracy"),
        (_without_reference, "no retrained model here to compare with", "Average gap"),
        (lambda s: s.update(floor=None), "it takes two retrained models", "Null floor:"),
        (lambda s: s.update(flags=[]), "None raised.", "TooFewNonMembers"),
        (lambda s: s.update(attacks=[]), "No attack was run.", "ROC curves"),
        (lambda s: s.update(histograms=[]), "ROC curves", "How sure is each model?"),
        (lambda s: s["sizes"].update(shadow_models=None), "test images", "shadow models"),
        (lambda s: [row.update(roc=None) for row in s["attacks"]], "Can an attacker tell?", "ROC curves"),
        (_bare, "not recorded", "yardstick"),
    ],
)
def test_what_an_audit_does_not_have_is_left_out_or_said(sample, change, present, absent):
    change(sample)
    page = Page(render(sample))
    assert present in page.words and absent not in page.words
    assert "None" not in page.words.replace("None raised", "") and "nan" not in page.words.split()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("models"), "got none for models"),
        (lambda s: s["models"][0].pop("forget"), "must be complete"),
        (lambda s: s["attacks"][0].pop("auc"), "must be complete.*auc"),
        (lambda s: s["floor"].update(value=float("nan")), "plain JSON"),
        (lambda s: s.update(title={1, 2}), "plain JSON"),
    ],
)
def test_a_result_that_is_none_gets_a_clear_error(sample, change, message):
    change(sample)
    with pytest.raises(DataError, match=message):
        render(sample)


def test_the_written_file_is_the_page_and_replaces_an_older_one(sample, tmp_path):
    sample |= {"attacks": [], "histograms": []}
    path = tmp_path / "audit.html"
    path.write_text("old")
    write(sample, path)
    assert path.read_text(encoding="utf-8") == render(sample)
    assert os.listdir(tmp_path) == ["audit.html"]


def test_a_name_that_utf8_cannot_hold_does_not_cost_the_report(sample, tmp_path):
    write(sample | {"attacks": [], "histograms": [], "title": "half \ud800"}, tmp_path / "a.html")
    assert "half ?" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_a_path_that_cannot_be_written_is_named_and_nothing_is_left_behind(sample, tmp_path):
    sample |= {"attacks": [], "histograms": []}
    with pytest.raises(StoreError, match=r"existing folder; got .*nowhere"):
        write(sample, tmp_path / "nowhere" / "audit.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(StoreError, match=r"must be able to write .*folder\.html"):
        write(sample, tmp_path / "folder.html")
    assert os.listdir(tmp_path) == ["folder.html"]
