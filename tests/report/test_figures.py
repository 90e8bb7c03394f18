import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from expunge.report.figures import MAX_POINTS, N_COLOURS, _thin, histogram_figure, looks, roc_figure

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def curve(sample):
    return sample["attacks"][0]["roc"]


def test_models_never_share_a_look():
    names = [f"method {k}" for k in range(20)] + ["retrained", "retrained 2", "retrained 3"]
    chosen = looks(names, "retrained")
    assert len({(look.colour, look.line) for look in chosen.values()}) == len(names)
    assert {name for name in names if chosen[name].colour == "model-0"} == {"retrained", "retrained 2", "retrained 3"}
    assert all(look.colour != "model-0" for look in looks(names, None).values())
    assert {look.colour for look in chosen.values()} == {f"model-{k}" for k in range(N_COLOURS)}


def test_figures_are_well_formed_and_coloured_by_the_page_alone(sample, curve):
    look = looks(["a", "retrained"], "retrained")
    for text in (
        roc_figure([(look["a"], curve), (look["retrained"], curve)], 1e-3, 0.01, "roc0"),
        histogram_figure(look["a"], sample["histograms"][0], (-6, 16), 0.3, "hist0"),
    ):
        root = ET.fromstring(text)
        assert root.tag == SVG + "svg" and root.get("viewBox") and root.get("width") is None
        assert "var(--model-1)" in text and "var(--ink)" in text and "#0000" not in text
        assert "font-family" not in text and "<style" not in text and "<metadata" not in text


def test_references_inside_a_figure_point_to_its_own_ids(curve):
    root = ET.fromstring(roc_figure([(looks(["a"], None)["a"], curve)], 1e-3, None, "roc7"))
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    links = {value.removeprefix("#") for element in root.iter() for key, value in element.items() if key.endswith("href")}
    clips = {element.get("clip-path")[5:-1] for element in root.iter() if element.get("clip-path")}
    assert links and clips and links | clips <= ids
    assert all(name.startswith("roc7-") for name in ids)


def test_a_curve_without_a_band_and_with_zero_rates_is_drawn(curve):
    bare = {"fpr": [0.0, 0.0, 0.5, 1.0], "tpr": [0.0, 0.2, 0.5, 1.0], "low": None, "high": None}
    text = roc_figure([(looks(["a"], None)["a"], bare)], 0.01, 0.01, "x")
    assert "inf" not in text and "nan" not in text
    banded = roc_figure([(looks(["a"], None)["a"], bare | {"low": [0.0] * 4, "high": [1.0] * 4})], 0.01, 0.01, "x")
    assert all(
        abs(float(x)) < 500 for x in re.findall(r"(?<= )-?\d+(?:\.\d+)?(?= )", banded)
    )  # log 0 lies just below the axis, not at −1000 decades
    assert "fill-opacity" not in text and "fill-opacity" in roc_figure([(looks(["a"], None)["a"], curve)], 0.01, 0.01, "x")


def test_thinning_keeps_both_ends_and_the_steps_that_are_seen():
    fpr = np.linspace(0, 1, 50_001)
    kept = _thin(fpr, 1e-4)
    assert kept[0] == 0 and kept[-1] == 50_000 and 100 < len(kept) <= MAX_POINTS + 2
    steps = np.diff(np.log10(fpr[kept][fpr[kept] > 1e-3]))
    assert steps.max() < 0.04  # two steps of the log axis: nothing wider than 3 px is lost
