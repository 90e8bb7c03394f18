import json
import re

import pytest

from expunge.errors import DataError
from expunge.report import render
from expunge.report.risk_section import MOST, section
from report.pages import HOSTILE, Page, exposed

SMALL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


@pytest.fixture
def plain(sample):
    """An audit without figures: those take the time."""
    return sample | {"histograms": [], "attacks": [row | {"roc": None} for row in sample["attacks"]]}


def images(html):
    return [attributes for tag, attributes in Page(html).tags if tag == "img"]


def test_each_image_is_shown_with_what_an_attacker_makes_of_it_under_every_model(plain):
    result = exposed(plain, 3)
    first = result["risks"]["examples"][0]
    html = render(result)
    words = Page(html).words
    assert f"{first['label']} id {first['id']} 0 ½ 1 original" in words
    for model, risk in first["risks"].items():
        assert f"{model} {risk['value']:.2f} {risk['low']:.2f} to {risk['high']:.2f}" in words
    assert [image["alt"] for image in images(html)] == [f"forget image {e['id']}, {e['label']}" for e in result["risks"]["examples"]]
    assert [image["src"] for image in images(html)] == [e["image"] for e in result["risks"]["examples"]]


def test_the_page_says_what_the_number_is_and_what_it_is_not(plain):
    words = Page(render(exposed(plain, 3))).words
    assert "Shown are 3 of 100 forget images, those of which one is surest under original , the surest first." in words
    for part in (
        "prior ½",
        "shadow models trained with and without the image",
        "shrunk",
        "95% interval",
        "It is not a verdict",
        "retrained never saw any",
    ):
        assert part in words
    one = exposed(plain, 1)
    one["risks"] |= {"by": None, "n": None, "level": 0.9}
    words = Page(render(one | {"reference": None, "floor": None, "models": [m | {"gaps": None} for m in one["models"]]})).words
    assert "Shown is 1 forget image, that of which one is surest." in words
    assert "90% interval" in words and "never saw" in words and "None" not in words.replace("None raised", "")


def test_the_strip_runs_from_0_to_1_with_the_prior_in_its_middle(plain):
    result = exposed(plain, 1)
    risk = result["risks"]["examples"][0]["risks"]["AMUN"]
    shown = section(result["risks"], result).examples[0].risks[1]
    places = {name: float(place) for name, place in re.findall(r"--([a-z]+): ([\d.]+)%", shown.style)}
    assert places["chance"] == 50
    for name in ("low", "value", "high"):
        assert places[name] == pytest.approx(100 * risk[name], abs=0.01)


@pytest.mark.parametrize(
    "image",
    [
        "javascript:alert(1)",
        "https://example.org/cat.png",
        "//example.org/cat.png",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:text/html;base64,PHNjcmlwdD4=",
        "data:image/png,abc",
        SMALL.replace("image/png", "image/PNG"),
        " " + SMALL,
        SMALL + "\n",
        SMALL + '" onerror="alert(1)',
        SMALL.replace("iVBOR", "AAAAA"),
        "data:image/png;base64,AAA",
        "data:image/png;base64,",
        {"src": SMALL},
        17,
    ],
)
def test_only_a_png_inside_the_text_is_shown_as_an_image(plain, image):
    result = exposed(plain, 2)
    result["risks"]["examples"][0]["image"] = image
    html = render(result)
    assert [shown["src"] for shown in images(html)] == [result["risks"]["examples"][1]["image"]]
    assert Page(html).numbers == result and 'class="frame"></div>' in html  # the place stays, so that the list keeps its columns


def test_without_any_picture_there_is_no_room_for_one(plain):
    result = exposed(plain, 2)
    for example in result["risks"]["examples"]:
        example["image"] = None
    html = render(result)
    assert not images(html) and 'class="frame"' not in html and 'class="risks bare"' in html
    del result["risks"]["examples"][0]["image"], result["risks"]["examples"][0]["label"]
    assert f"id {result['risks']['examples'][0]['id']} 0 ½ 1" in Page(render(result)).words


def test_a_long_list_ends(plain):
    assert len(images(render(exposed(plain, MOST + 3)))) == MOST


def test_no_list_no_section(plain):
    assert section(None, plain) is None and section({"examples": []}, plain) is None
    assert "most exposed" not in Page(render(plain)).words


def test_a_risk_that_is_not_supported_says_why(plain):
    result = exposed(plain, 1)
    result["risks"]["examples"][0]["risks"]["AMUN"] = {
        "value": None,
        "low": None,
        "high": None,
        "n": 1,
        "note": "needs 4 shadow models without it, got 1",
    }
    assert "AMUN n/a needs 4 shadow models without it, got 1 GradientAscent" in Page(render(result)).words


def test_of_many_retrained_models_the_list_shows_the_yardstick_and_one_more(many_retrained):
    result = exposed(many_retrained | {"histograms": [], "attacks": [], "classes": []}, 1)
    assert "retrained 5" in result["risks"]["examples"][0]["risks"]
    shown = section(result["risks"], result).examples[0].risks
    assert [risk.model for risk in shown] == ["original", "AMUN", "GradientAscent", "retrained", "retrained 2"]


def test_an_incomplete_example_gets_a_clear_error(plain):
    result = exposed(plain, 1)
    del result["risks"]["examples"][0]["risks"]
    with pytest.raises(DataError, match=r"must be complete.*risks"):
        render(result)


def test_names_of_exposed_images_are_text(plain):
    result = exposed(plain, 1)
    example = result["risks"]["examples"][0]
    example |= {"label": HOSTILE, "id": HOSTILE}
    example["risks"] = {HOSTILE: example["risks"]["AMUN"]}
    html = render(result)
    page = Page(html)
    assert html.count("<script") == html.count("</script") == 1 and "<!--" not in html
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert images(html)[0]["alt"] == f"forget image {HOSTILE}, {HOSTILE}" and page.numbers == json.loads(json.dumps(result))
