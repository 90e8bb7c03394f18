"""Many retrained models are one line, wherever models are listed; a few are listed one by one."""

import pytest

from expunge.audits.tables import notes, tables
from expunge.report import render
from expunge.report.twins import folded, folded_name, is_other, is_reference
from report.pages import Page, rendered

NAME = "retrained 2 … 5"


def test_names_of_retrained_models_are_understood():
    assert is_reference("retrained", "retrained") and is_reference("retrained 12", "retrained") and is_reference(NAME, "retrained")
    assert not is_reference("retrained longer", "retrained") and not is_reference("retrained", None) and not is_reference("a+ 2", "a")
    assert is_other("a+ 2", "a+") and not is_other("a+", "a+")


def test_a_few_retrained_models_stay_as_they_are(class_sample):
    assert folded_name(class_sample) is None and folded(class_sample) == class_sample
    assert "one by one" not in Page(rendered(class_sample)).words


def test_the_line_holds_the_mean_the_smallest_and_the_largest(many_retrained):
    before = {model["name"]: model for model in many_retrained["models"]}
    result = folded(many_retrained)
    assert [model["name"] for model in result["models"]] == ["original", "AMUN", "GradientAscent", "retrained", NAME]
    values = [before[f"retrained {k}"]["test"]["value"] for k in range(2, 6)]
    one = result["models"][-1]
    assert (one["test"]["low"], one["test"]["high"]) == (min(values), max(values)) and one["test"]["value"] == pytest.approx(
        sum(values) / 4
    )
    assert one["gaps"]["average"]["value"] == pytest.approx(before["retrained 2"]["gaps"]["average"]["value"])
    for attack in ("LossThreshold", "LiRA", "RMIA"):
        assert [row["model"] for row in result["attacks"] if row["attack"] == attack][-2:] == ["retrained", NAME]
    shares = result["classes"][0]["rows"][-1]
    assert shares["model"] == NAME and sum(shares["answer"]) == pytest.approx(1, abs=1e-3) and shares["neighbour"]["gap"]["note"] is None


def test_text_tables_fold_and_say_so(many_retrained):
    for _, header, rows in tables(many_retrained)[:3]:
        names = [row[header.index("model")] for row in rows]
        assert NAME in names and "retrained" in names and "retrained 3" not in names
    assert f"{NAME}: the mean of these models, and from the smallest to the largest." in notes(many_retrained)


def test_the_page_folds_shows_each_on_demand_and_keeps_all_numbers(many_retrained):
    html = render(many_retrained)
    page = Page(html)
    assert page.numbers == many_retrained
    details = html[html.index("<details>") : html.index("</details>")]
    assert "All 5 retrained models, one by one" in page.words and "retrained 4" in details
    assert "retrained 4" not in html.replace(details, "").split('<script type="application/json"')[0]
    assert f"{NAME} mean and range" in page.words and "under those of retrained 2 … 5, which are means" in page.words
    titles = [a["aria-label"] for tag, a in page.tags if tag == "figure"]
    assert sum("Histogram" in title for title in titles) == 5 and "retrained, retrained 2;" in titles[0]


def test_an_audit_with_nothing_but_models_can_be_folded(many_retrained):
    for name in ("classes", "histograms", "floor"):
        many_retrained[name] = None
    many_retrained["attacks"] = []
    for model in many_retrained["models"]:
        del model["gaps"], model["seconds"], model["details"]
    assert NAME in Page(render(many_retrained)).words
