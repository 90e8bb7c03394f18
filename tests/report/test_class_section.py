import json
import re

import pytest

from expunge.errors import DataError
from expunge.report import render
from expunge.report.class_section import MAX_COLUMNS, SHOWN, sections
from report.pages import HOSTILE, Page, light, rendered


@pytest.fixture
def page(class_sample):
    return Page(rendered(class_sample))


def rows_of(html, caption):
    """The rows of the heat table with this caption, as lists of texts."""
    table = next(t for t in re.findall(r"<table.*?</table>", html, flags=re.DOTALL) if f"<caption><span>{caption}" in t)
    strip = lambda cell: re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", cell)).strip()  # noqa: E731
    return [
        [strip(c) for c in re.findall(r"<t[hd].*?</t[hd]>", row, flags=re.DOTALL)]
        for row in re.findall(r"<tr.*?</tr>", table, flags=re.DOTALL)
    ]


def test_the_answers_stand_beside_those_of_retraining_yardsticks_first_and_in_its_order(class_sample):
    head, *rows = rows_of(rendered(class_sample), "Mean probability of each class on 100 unseen images of deer")
    assert head[:5] == ["Model", "deer itself", "horse neighbour", "bird", "frog"] and len(head) == 11
    assert [row[0] for row in rows] == ["retrained yardstick", "retrained 2", "original", "AMUN", "GradientAscent"]
    assert rows[0][1:5] == ["0", "38", "22", "16"] and rows[2][1:3] == ["84", "4"]
    _, *preferred = rows_of(rendered(class_sample), "Share of the same images")
    assert preferred[2][1] == "98"


def test_the_confusion_row_of_every_model_stands_side_by_side(class_sample):
    answers = class_sample["classes"][0]
    head, *rows = rows_of(rendered(class_sample), "Share of the same images by the class that the model prefers (its confusion row), %")
    order = [answers["classes"].index(column.split(" ")[0]) for column in head[1:]]
    assert sorted(order) == list(range(10)) and {row[0].removesuffix(" yardstick") for row in rows} == {r["model"] for r in answers["rows"]}
    by_name = {row["model"]: row["predicted"] for row in answers["rows"]}
    for name, *shares in rows:
        assert shares == [f"{100 * by_name[name.removesuffix(' yardstick')][c]:.0f}" for c in order]


def test_the_strength_of_a_colour_grows_with_the_share(class_sample):
    (section,) = sections(class_sample["classes"], "retrained")
    shares = sorted((share for line in section.lines for share in line.answer), key=lambda s: int(s.text))
    strengths = [float(share.strength) for share in shares]
    assert strengths[0] == 0 < strengths[-1] <= 1 and strengths[-1] > 0.8
    for share in shares:
        assert re.fullmatch(r"[01]\.\d{3}", share.strength)
    styles = re.findall(r'style="(--share[^"]*)"', rendered(class_sample))
    assert len(styles) == 2 * 5 * 10 and all(re.fullmatch(r"--share: [01]\.\d{3}", style) for style in styles)


def test_distances_to_retraining_are_shown_beside_what_chance_does(page):
    assert "Taken for horse (MIA-NN), %" in page.words
    assert "29.0 20.0 to 38.0 −8.5 −19.5 to +2.5 1.8 0.090 0.050 to 0.130" in page.words  # AMUN
    assert (
        "Between retrained models: MIA-NN gap 1.2 points (smallest to largest 1.0 to 1.4), distance 0.031 (0.029 to 0.034; shaded"
        in page.words
    )


def test_unseen_images_of_the_class_are_the_nonmembers_everywhere(page, class_sample):
    assert "Forgotten classes, unseen, %" in page.words and "83.0 75.6 to 90.4" in page.words
    assert "Forgotten classes, unseen, points" in page.words and "+83.0 +79.0 to +87.0" in page.words
    assert "against test images of their own classes (non-members)" in page.words
    assert "surer of forget images than of unseen images of the forgotten classes" in page.words
    assert "unseen images of forgotten classes 100" in page.words and "test images of other classes 797" in page.words
    swapped = json.loads(json.dumps(class_sample))
    for histogram in swapped["histograms"]:
        histogram["test"] = histogram["forget_test"]
    assert re.findall(r'<svg class="plot".*?</svg>', render(swapped), re.DOTALL) == re.findall(
        r'<svg class="plot".*?</svg>', rendered(class_sample), re.DOTALL
    )


def text_of(estimate, form=".3f"):
    return " ".join([format(estimate.value, form), format(estimate.low, form), "to", format(estimate.high, form)])


def test_the_attack_on_many_models_has_its_ceiling_and_its_floor(page, leakage):
    words, rows = page.words, leakage.rows
    assert "Can unlearned models be told from retrained ones? (U-LiRA, 6 + 6 models)" in words
    assert f"original ceiling {text_of(rows['original']['own train'].auc)} {text_of(rows['original']['own unseen'].auc)}" in words
    assert f"AMUN {' '.join(text_of(result.auc) for result in rows['AMUN'].values())}" in words and "Balanced accuracy, %" in words
    floors = " ".join(f"0.5 ± {f.value:.3f} ± {f.low:.3f} to {f.high:.3f}" for f in leakage.floors.values())
    assert f"between retrained models floor {floors}" in words and words.count("between retrained models floor") == 1
    assert "sure of deer, seen images sure of deer, unseen images sure of horse, seen images" in words
    assert "No rate of true positives: TPR at 1% FPR needs 500 non-members, got 400." in words
    assert "True positives at 1% FPR, % sure of" not in words


def test_without_a_floor_none_is_shown_and_a_supported_rate_is(class_sample):
    leakage = class_sample["classes"][0]["leakage"]
    leakage["floors"] = {}
    leakage["rows"][1]["own train"]["tpr"] = {"value": 0.31, "low": 0.2, "high": 0.4, "n": 500, "note": None}
    words = Page(render(light(class_sample))).words
    assert "between retrained models floor" not in words and "halves of the retrained models" not in words
    assert "True positives at 1% FPR, % sure of" in words and "31.0 20.0 to 40.0" in words and "No rate of true positives" not in words


def test_the_summary_does_not_stop_at_accuracies(page, leakage, class_sample):
    """A model whose accuracies are right may still answer like no retrained model."""
    for row in class_sample["classes"][0]["rows"]:
        if "retrained" not in row["model"]:
            told = max(result.auc.value for result in leakage.rows[row["model"]].values())
            assert f"On deer: answers above the floor (TV {row['distance']['value']:.3f}), U-LiRA AUC up to {told:.3f}." in page.words


def test_of_many_classes_the_frequent_ones_have_a_column_and_the_rest_is_summed(many_classes):
    (section,) = sections(many_classes["classes"], "retrained")
    answers = many_classes["classes"][0]
    assert len(answers["classes"]) > MAX_COLUMNS and len(section.columns) == SHOWN + 1
    assert section.columns[0].own and section.columns[-1].rest == 40 - SHOWN
    assert [column.name for column in section.columns if column.neighbour] == [answers["neighbour"]]
    shown = [answers["classes"].index(column.name) for column in section.columns[:-1]]
    by_name = {row["model"]: row for row in answers["rows"]}
    for line in section.lines:
        for key in ("answer", "predicted"):
            values, shares = by_name[line.model][key], getattr(line, key)
            rest = 1 - sum(values[c] for c in shown)
            assert shares[-1].text == f"{100 * rest:.0f}" and abs(sum(int(s.text) for s in shares) - 100) <= len(shares) / 2
    largest = [max(row[key][c] for row in answers["rows"] for key in ("answer", "predicted")) for c in range(40)]
    own = {answers["classes"].index(answers["name"]), answers["classes"].index(answers["neighbour"])}
    assert set(shown) == own | set(sorted(set(range(40)) - own, key=lambda c: -largest[c])[: SHOWN - 2])
    assert rows_of(render(light(many_classes)), "Mean probability")[0][-1] == "30 others"


def _only_answers(sample):
    answers = sample["classes"][0]
    answers |= {"neighbour": None, "distance_floor": None, "neighbour_floor": None, "leakage": None}
    answers["rows"] = [row | {"distance": None, "neighbour": None} for row in answers["rows"] if "retrained" not in row["model"]]
    sample |= {"reference": None, "floor": None}
    for entry in sample["models"] + sample["attacks"]:
        entry["gaps" if "gaps" in entry else "gap"] = None


def _one_retrained_model(sample):
    answers = sample["classes"][0]
    nothing = {"value": None, "low": None, "high": None, "n": 1, "note": "needs two retrained models, got 1"}
    answers |= {"distance_floor": nothing, "neighbour_floor": nothing}
    answers["rows"] = [row for row in answers["rows"] if row["model"] != "retrained 2"]
    next(row for row in answers["rows"] if row["model"] == "retrained").update(distance=None, neighbour=None)


@pytest.mark.parametrize(
    ("change", "present", "absent"),
    [
        (_only_answers, "These are the answers alone", "How far from retraining on deer?"),
        (_only_answers, "deer itself", "MIA-NN"),
        (_one_retrained_model, "It takes two retrained models to say how far", "Between retrained models"),
        (lambda s: s["classes"][0].pop("leakage"), "Where do images of deer go?", "U-LiRA"),
        (lambda s: s.pop("classes"), "Forgotten classes, unseen, %", "Where do images"),
        (lambda s: s.update(classes=None), "Forgotten classes, unseen, %", "Where do images"),
    ],
)
def test_what_is_not_known_of_a_class_is_left_out_or_said(class_sample, change, present, absent):
    change(class_sample)
    page = Page(render(light(class_sample)))
    assert present in page.words and absent not in page.words
    assert "None" not in page.words.replace("None raised", "") and "nan" not in page.words.split()


def test_ids_are_unique_and_tables_can_be_read_aloud_with_several_classes(class_sample):
    first = class_sample["classes"][0]
    class_sample["classes"].append(first | {"name": "dog", "neighbour": "cat"})
    page = Page(render(light(class_sample)))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and {"class0", "class1", "class1-near", "class1-leakage"} <= set(ids)
    assert {attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes} <= set(ids)
    assert all(attributes.get("scope") in ("col", "row", "rowgroup") for tag, attributes in page.tags if tag == "th")
    assert "forgotten too" in page.words


def test_names_of_classes_models_and_methods_are_text(class_sample):
    text = json.dumps(class_sample)
    for name in ("deer", "horse", "AMUN", "TPR at 1% FPR needs"):
        text = text.replace(name, json.dumps(HOSTILE + name)[1:-1])
    hostile = json.loads(text)
    html = render(hostile)
    page = Page(html)
    assert page.numbers == hostile and f"Where do images of {HOSTILE}deer go?" in " ".join(page.text)
    assert html.count("<script") == html.count("</script") == 1 and "<!--" not in html
    assert not any(tag == "img" or any(name.startswith("on") for name in attributes) for tag, attributes in page.tags)
    assert f"Mean probability of each class on 100 unseen images of {HOSTILE}deer, %" in [a.get("aria-label") for _, a in page.tags]


def test_an_incomplete_class_gets_a_clear_error(class_sample):
    del class_sample["classes"][0]["rows"][0]["answer"]
    with pytest.raises(DataError, match="must be complete.*answer"):
        render(class_sample)
