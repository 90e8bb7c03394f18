"""The section about singular values: a row for each layer, marks that lie where the numbers say, names that cannot break the page."""

import math
import re

import pytest

from expunge.errors import DataError, StoreError
from expunge.report.axes import MOST_TICKS, LogAxis
from expunge.report.cells import number
from expunge.report.figures import looks
from expunge.report.spectrum_page import render_spectra
from expunge.report.spectrum_section import ARROW, LONG, SHAPES, cell, section
from report.pages import HOSTILE, Page


def layer(name, *values, shape=(3, 8, 8), error=1e-6, converged=True):
    return {
        "name": name, "input_shape": list(shape), "values": list(values), "error_estimate": [error] * len(values), "iterations": 20,
        "converged": converged,
    }  # fmt: skip


def found(*layers, bound=12.0, reason="", unseen=()):
    return {"layers": list(layers), "bound": bound, "reason": reason, "unseen": list(unseen)}


@pytest.fixture
def spectra():
    return {
        "original": found(layer("conv1 + bn1", 4.0, 2.0), layer("fc", 0.5, shape=(64,))),
        "AMUN": found(layer("conv1 + bn1", 1.0, 0.9), layer("fc", 0.25, shape=(64,)), bound=None, reason="an operation that jumps"),
        "retrained": found(layer("conv1 + bn1", 3.0, 2.0), layer("fc", 0.4, shape=(64,))),
        "retrained 2": found(layer("conv1 + bn1", 3.1, 2.0), layer("fc", 0.4, shape=(64,))),
    }


def look(spectra):
    return looks(list(spectra), "retrained")


def test_marks_lie_on_a_log_axis_and_have_their_model_s_colour(spectra):
    made = section(spectra, look(spectra), 1.0)
    places = {(mark.model.name, row.layer): mark.place for row in made.rows for mark in row.marks}
    ticks = {tick.label: tick.place for tick in made.ticks}
    a_doubling = ticks["1"] - ticks["0.5"]
    assert a_doubling == pytest.approx(ticks["2"] - ticks["1"], abs=0.02) and a_doubling > 1
    for name, spectrum in spectra.items():
        for each in spectrum["layers"]:
            expected = ticks["1"] + a_doubling * math.log2(each["values"][0])
            assert places[name, each["name"]] == pytest.approx(expected, abs=0.05)
    assert all(0 < place < 100 for place in places.values()) and made.limit.place == ticks["1"]
    drawn = {model.name: (model.colour, model.shape) for model in made.models}
    assert drawn["original"][0] == "model-1" and drawn["retrained"] == ("model-0", SHAPES["solid"]) != drawn["retrained 2"]
    assert drawn["retrained 2"][0] == "model-0"


def test_marks_of_equal_values_do_not_cover_one_another(spectra):
    made = section(dict.fromkeys(spectra, spectra["original"]), look(spectra))
    heights = [mark.y for mark in made.rows[0].marks]
    assert len(set(heights)) == len(heights) and sum(heights) == 0 and made.height / 2 > max(heights) + 4


def test_every_number_of_the_table_is_the_layer_s(spectra):
    words = Page(render_spectra({"title": "T", "spectra": spectra, "reference": "retrained"})).words
    assert "conv1 + bn1 3×8×8 4.000 σ₂ 2.000 1.000 σ₂ 0.9000 3.000 σ₂ 2.000 3.100 σ₂ 2.000" in words
    assert "fc 64 0.5000 0.2500 0.4000 0.4000" in words
    assert "original stretches a difference between two images at most 12 times." in words
    assert "AMUN : no bound, for an operation that jumps." in words


def test_errors_are_shown_only_where_the_iteration_stopped_early():
    done, early = layer("a", 2.0, 1.0, error=0.25), layer("b", 2.0, 1.0, error=0.25, converged=False)
    assert (
        cell(done | {"converged": True}).value == "2.000"
        and cell(early).value == "2.000 ± 0.2"
        and cell(early).interval == "σ₂ 1.000 ± 0.2"
    )
    made = section({"m": found(done, early)}, looks(["m"], None))
    (one,), (other,) = (row.marks for row in made.rows)
    assert one.low is None and other.low < other.place < other.high
    page = render_spectra({"title": "T", "spectra": {"m": found(done, early)}})
    assert len(re.findall(r'<line x1="[\d.]+%" x2="[\d.]+%" y1="50%"', page)) == 1


def test_a_value_of_zero_and_one_far_below_the_others_have_an_arrow_at_the_left_end():
    made = section({"m": found(layer("a", 10.0), layer("b", 0.0), layer("c", 1e-12))}, looks(["m"], None))
    marks = [row.marks[0] for row in made.rows]
    assert [mark.shape == ARROW for mark in marks] == [False, True, True] and [mark.place for mark in marks[1:]] == [0, 0] and made.beyond
    text = render_spectra({"title": "T", "spectra": {"m": found(layer("a", 0.0))}})
    assert "arrow at its left end" in text and "nan%" not in text
    assert "arrow" not in render_spectra({"title": "T", "spectra": {"m": found(layer("a", 1.0))}})


@pytest.mark.parametrize("values", [[1.0], [0.99, 1.01], [3.0, 40.0], [1e-3, 7e4], [1e-9, 1e9], [0.0], [5e-8]])
def test_an_axis_has_a_few_ticks_in_order(values):
    ticks = LogAxis.of(values).ticks
    assert 2 <= len(ticks) <= MOST_TICKS + 1
    places = [tick.place for tick in ticks]
    assert places == sorted(places) and len(set(places)) == len(places) and len({t.label for t in ticks}) == len(ticks)


def test_models_may_have_other_layers():
    mine, other = (
        found(layer("a", 1.0), layer("c", 2.0)),
        found(layer("a", 1.0), layer("b", 3.0, shape=(3, 4, 4)), layer("c", 2.0), layer("d", 1.0)),
    )
    made = section({"x": mine, "y": other}, looks(["x", "y"], None))
    assert [row.layer for row in made.rows] == ["a", "b", "c", "d"]
    assert [len(row.marks) for row in made.rows] == [2, 1, 2, 1] and made.rows[1].cells[0].value == "–" and made.rows[1].shape == "3×4×4"


def test_a_long_table_repeats_the_axis_below():
    short, long = ({"m": found(*(layer(f"layer{k}", 1.0 + k) for k in range(n)))} for n in (LONG, LONG + 1))
    assert "<tfoot>" in render_spectra({"title": "T", "spectra": long}) and "<tfoot>" not in render_spectra(
        {"title": "T", "spectra": short}
    )


def test_names_from_the_user_s_model_cannot_break_the_page(spectra):
    hostile = found(layer(HOSTILE, 2.0), bound=None, reason=HOSTILE, unseen=[HOSTILE])
    result = {"title": HOSTILE, "spectra": {HOSTILE: hostile}, "facts": {HOSTILE: HOSTILE}, "accuracy": {HOSTILE: {HOSTILE: 0.5}}}
    text = render_spectra(result)
    page = Page(text)
    assert "<script>alert" not in text and not [tag for tag, _ in page.tags if tag == "img"]
    assert page.numbers == result and page.words.count(re.sub(r"\s+", " ", HOSTILE)) >= 8
    assert [tag for tag, _ in page.tags].count("script") == 1


def test_the_page_is_self_contained_and_says_what_clipping_cost():
    accuracy = {"before": {"train": 0.9, "test": 0.8}, "after": {"train": 0.85, "test": 0.81}}
    result = {
        "title": "T",
        "spectra": {"before": found(layer("a", 3.0)), "after": found(layer("a", 1.0))},
        "accuracy": accuracy,
        "max_norm": 1.0,
    }
    text = render_spectra(result)
    assert (
        "http" not in text.replace("http-equiv", "")
        and "train 90.0 85.0 −5.0" in Page(text).words
        and "test 80.0 81.0 +1.0" in Page(text).words
    )
    assert "c = 1" in Page(text).words and text.count('class="limit" x1=') == 1
    without = render_spectra({"title": "T", "spectra": result["spectra"]})
    assert "What did clipping cost" not in without and 'class="limit"' not in without and "The dashed line" not in without


def test_there_is_no_section_without_spectra():
    assert section(None, {}) is None and section({}, {}) is None
    with pytest.raises(DataError, match="needs at least one; got none"):
        render_spectra({"title": "T", "spectra": {}})
    with pytest.raises(DataError, match="got one without 'unseen'"):
        render_spectra({"title": "T", "spectra": {"m": {"layers": [], "bound": None, "reason": ""}}})
    with pytest.raises(DataError, match="plain JSON"):
        render_spectra({"title": "T", "spectra": {"m": found(layer("a", math.nan))}})


def test_the_page_is_written_whole_into_a_folder_that_exists(tmp_path):
    result = {"title": "T", "spectra": {"m": found(layer("a", 1.0))}}
    text = render_spectra(result, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == text and Page(text).numbers == result
    with pytest.raises(StoreError, match="needs an existing folder"):
        render_spectra(result, tmp_path / "absent" / "page.html")


def test_numbers_are_written_without_an_e():
    assert [number(x) for x in (0.0, 1.0, 1e-7, 123456.0, 1e5)] == ["0", "1", "10⁻⁷", "1.235 × 10⁵", "10⁵"]
    assert number(1234.0, zeros=True) == "1234" and number(2.0, zeros=True) == "2.000"
