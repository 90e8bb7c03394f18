"""Numbers as they are printed: in a cell of the page, and in a table of text."""

from expunge.audits.tables import number
from expunge.audits.tables import percent as percent_text
from expunge.report.cells import area, area_gap, percent, points, rate, scale


def test_a_number_without_support_says_why():
    cell = percent({"value": None, "low": None, "high": None, "n": 3, "note": "needs 500 non-members, got 3"})
    assert (cell.value, cell.interval, cell.note) == ("n/a", "", "needs 500 non-members, got 3")
    assert percent(None).value == "n/a"


def test_signs_are_printed_for_gaps_only_and_zero_has_none():
    gap = {"value": -0.00001, "low": -0.0312, "high": 0.031, "n": 10, "note": None}
    assert (points(gap).value, points(gap).interval) == ("0.0", "−3.1 to +3.1")
    assert area_gap(gap).interval == "−0.031 to +0.031"
    assert area({"value": 0.5, "low": 0.4, "high": 0.6, "n": 10, "note": "weak"}).note == "weak"


def test_rates_carry_no_needless_zeros():
    assert [rate(x) for x in (0.01, 0.001, 0.29, 1e-5)] == ["1%", "0.1%", "29%", "0.001%"]


def test_every_interval_of_a_column_lies_on_its_scale():
    estimates = [
        {"value": 0.7, "low": 0.6, "high": 0.9},
        {"value": 0.5, "low": 0.45, "high": 0.55},
        {"value": None, "low": None, "high": None},
        None,
    ]
    axis = scale(estimates, 0.5)
    assert 0.43 < axis.low < 0.45 and 0.9 < axis.high < 0.92
    places = [float(part.split(":")[1].strip(" %")) for part in axis.style(estimates[0], chance=0.5).split(";")]
    assert len(places) == 4 and all(0 < place < 100 for place in places)
    assert axis.style(None) == "" and axis.style(estimates[2], chance=0.5).startswith("--chance")


def test_a_scale_of_equal_numbers_has_a_width():
    axis = scale([], 0.5)
    assert axis.low < 0.5 < axis.high


def test_an_open_end_of_an_interval_is_printed_as_one():
    """AIN is censored: {"low": 1.2, "high": None} crashed the table of text, and the page left the whole interval out."""
    above = {"value": 2.0, "low": 1.2, "high": None, "n": 6, "note": "1 of 6 beyond 100 steps"}
    below = {"value": 0.5, "low": None, "high": 0.75, "n": 6, "note": None}
    assert number(above, ".2f") == "2.00 [1.20, ∞)" and number(below, ".2f") == "0.50 (−∞, 0.75]"
    assert (area(above).value, area(above).interval, area(above).note) == ("2.000", "[1.200, ∞)", "1 of 6 beyond 100 steps")
    assert area(below).interval == "(−∞, 0.750]" and percent(below).interval == "(−∞, 75.0]" and percent_text(above) == "200.0 [120.0, ∞)"
    assert number(above | {"high": float("inf")}, ".2f") == "2.00 [1.20, ∞)"
    alone = {"value": 2.0, "low": None, "high": None, "n": 6, "note": None}
    assert number(alone) == "2.000" and area(alone).interval == ""
    axis = scale([above, below])
    assert "--high" not in axis.style(above) and "--low" in axis.style(above)
