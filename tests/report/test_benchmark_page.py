"""The page of a benchmark: every number with its interval, figures that lie where the numbers say, and words for what is not there."""

import itertools
import json
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from expunge.bench.results import PointResults, Results, Row
from expunge.errors import DataError, StoreError
from expunge.metrics.estimate import mean_estimate
from expunge.report import render_benchmark, write_benchmark
from expunge.report.axes import BEYOND, LinearAxis, LogAxis
from expunge.report.benchmark_figures import FRAMES, exactly, scatters
from expunge.report.point_labels import TIES as TIES_WITH_BEST
from expunge.report.point_labels import WIDEST, Point, letters, place_labels
from report.benchmarks import METHODS, TIES, benchmark, estimate, find, method, point, running, without_numbers
from report.pages import HOSTILE, Page

PUBLISHED = [
    path for path in sorted((Path(__file__).parents[2] / "docs" / "results").glob("*.json")) if "points" in json.loads(path.read_text())
]


def small(*names):
    """A benchmark of a few methods, which is quicker."""
    one = point()
    kept = ("retrained", "original", *(names or ("salun", "amun", "l2ul")))
    return benchmark(one | {"rows": [row for row in one["rows"] if row["name"] in kept], "ties": [name for name in TIES if name in kept]})


def words(result):
    return Page(render_benchmark(result)).words.replace("_ ", "_")


def table_row(html, name):
    """The cells of a method's row in the table, as text, and the classes of the row."""
    table = html[html.index('<table class="methods">') :]
    for attributes, row in re.findall(r'<tr class="([^"]*)">(.*?)</tr>', table, flags=re.DOTALL):
        cells = [
            re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", cell)).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row, flags=re.DOTALL)
        ]
        if cells[0].replace("_ ", "_").split(" ")[0] == name:
            return attributes.split(), cells
    raise AssertionError(name)


def test_the_parts_stand_in_the_order_in_which_they_are_read():
    html = render_benchmark(small())
    page = Page(html)
    parts = [
        "Every method", "CIFAR-10, resnet_tiny", "How close to retraining?", "Average gap against cost", "All numbers", "Settings of each method", "Flags", "Provenance",
    ]  # fmt: skip
    places = [page.words.rindex(part) for part in parts]
    assert places == sorted(places) and [tag for tag, _ in page.tags].count("h1") == 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes} <= set(ids)
    assert "<details>" in html and "<details open" not in html


def test_every_number_has_its_interval_and_its_unit():
    _, cells = table_row(render_benchmark(small()), "salun")
    assert cells == [
        "salun", "2.6 1.3 to 3.9", "72.1 70.1 to 74.1", "99.0 97.0 to 101.0", "63.4 61.4 to 65.4", "0.473 0.443 to 0.503", "10.1", "2 min 16 s", "yes",
    ]  # fmt: skip
    assert table_row(render_benchmark(small()), "l2ul")[1][-1] == "no"
    assert table_row(render_benchmark(small()), "retrained")[1][:2] == ["retrained yardstick", "1.3 0.7 to 1.9 null floor"]
    assert "its interval runs from the lowest end to the highest" in words(small())


def test_the_json_in_the_page_is_the_result_and_the_page_the_same_again():
    result = small()
    before = json.dumps(result)
    html = render_benchmark(result)
    assert Page(html).numbers == result and json.dumps(result) == before and render_benchmark(result) == html


def test_what_results_give_becomes_a_page(tmp_path):
    gaps = [0.02, 0.03, 0.025]
    columns = {"average gap": mean_estimate(gaps), "TV distance": mean_estimate(gaps), "MIA-NN gap": mean_estimate(gaps)}
    rows = [Row("retrained", 1, {"average gap": mean_estimate([0.01])}), Row("original", 0, {}, problem="not there yet")]
    rows += [Row("a", 3, columns, gaps, 2.0, 3.0, "A(lr=0.1)"), Row("b", 3, columns, gaps, None, 3.0, "B()")]
    results = Results("Mine", [PointResults("digits", rows, ["a", "b"], {"forget": 50}, [])], 6, 6, None, {"expunge": "0.1.0"})
    html = render_benchmark(results.to_dict())
    assert table_row(html, "a")[1][:4] == ["a", "2.5 1.3 to 3.7", "0.025 0.013 to 0.037", "2.5 1.3 to 3.7"]
    assert "MIA-NN gap, points" in html and "Average gap against cost" not in html  # one of the costs is not known
    results.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == html


def test_methods_are_drawn_in_the_order_of_their_gaps_where_the_numbers_say():
    result = benchmark()
    result["points"][0]["rows"].reverse()
    html = render_benchmark(result)
    rows = re.findall(
        r'<tr class="(\w*)"><th scope="row"><span class="name">(.*?)</span>.*?class="strip" style="(.*?)"', html, flags=re.DOTALL
    )
    gaps = [METHODS[name.replace("<wbr/>", "")][0] for _, name, _ in rows]
    assert gaps == sorted(gaps) and len(gaps) == len(METHODS)
    places = {name.replace("<wbr/>", ""): dict(re.findall(r"--(\w+): ([\d.]+)%", style)) for _, name, style in rows}
    per_point = float(places["l2ul"]["value"]) / 46.7
    for name, (gap, half, *_) in METHODS.items():
        expected = {"low": max(0.0, gap - half), "value": gap, "high": gap + half, "zero": 0.0, "floor": 1.9, "original": 14.8}
        assert {key: float(x) / per_point for key, x in places[name].items()} == pytest.approx(expected, abs=0.02)
    assert {name.replace("<wbr/>", "") for standing, name, _ in rows if standing == "ties"} == set(TIES)


def test_an_axis_is_not_stretched_by_one_long_interval_and_says_where_it_is_cut():
    axis = LinearAxis.of([estimate(0.1, 0.01), estimate(0.2, 3.0)])
    assert axis.high == pytest.approx(1.04 * BEYOND * 0.2) and [axis.beyond(estimate(0.2, half)) for half in (0.01, 3.0)] == [False, True]
    assert LinearAxis.of([estimate(0.1, 0.01)]).high == pytest.approx(1.04 * 0.11)
    result = small()
    assert "an arrow says" not in words(result) and 'class="more high"' not in render_benchmark(result)
    find(result, "amun")["columns"]["average gap"] |= {"low": -3.0, "high": 3.0}
    assert "an arrow says" in words(result) and render_benchmark(result).count('class="more high"') == 1


@pytest.mark.parametrize("gaps", [[0.0], [1e-5], [0.0118, 0.011], [0.3, 0.002], [1.0]])
def test_the_axis_of_gaps_has_a_few_round_numbers(gaps):
    axis = LinearAxis.of([{"value": gap, "low": None, "high": None} for gap in gaps])
    labels, places = zip(*((tick.label, tick.place) for tick in axis.ticks), strict=True)
    assert 3 <= len(labels) <= 7 and labels[0] == "0" and all(len(label) <= 6 for label in labels)
    assert list(places) == sorted(set(places)) and places[0] >= 0 and 66 < places[-1] <= 100
    assert float(labels[-1]) / 100 / axis.high == pytest.approx(places[-1] / 100, abs=1e-3)


def costed(names=METHODS):
    return [
        (name, "ties" if name in TIES else "worse", exactly(METHODS[name][2]), estimate(METHODS[name][0] / 100, METHODS[name][1] / 100))
        for name in names
    ]


@pytest.fixture(scope="module")
def figures():
    methods = costed()
    floor, original = estimate(0.013, 0.006), estimate(0.148, 0.026)
    costs = LogAxis.of([cost["value"] for _, _, cost, _ in methods])
    return scatters(methods, costs, LinearAxis.of([gap for *_, gap in methods]), (None, floor), (None, original))


def overlap(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_names_cover_neither_one_another_nor_points_and_stay_inside(figures):
    for figure in figures:
        boxes = [label.box for _, label in figure.marks]
        assert not any(overlap(a, b) for a, b in itertools.combinations(boxes, 2))
        assert not any(overlap(box, (mark.x - 4, mark.y - 4, mark.x + 4, mark.y + 4)) for box in boxes for mark, _ in figure.marks)
        assert all(box[0] >= 0 and box[2] <= figure.frame.width and box[1] >= 0 and box[3] <= figure.frame.height for box in boxes)


def test_a_name_away_from_its_point_has_a_line_to_it(figures):
    for mark, label in itertools.chain.from_iterable(figure.marks for figure in figures):
        x, y = min(max(mark.x, label.box[0]), label.box[2]), min(max(mark.y, label.box[1]), label.box[3])
        distance = ((x - mark.x) ** 2 + (y - mark.y) ** 2) ** 0.5
        assert label.leader or distance < 16
        assert distance < 180


def test_points_lie_on_a_log_axis_of_costs_and_a_linear_one_of_gaps(figures):
    for figure in figures:
        at = {mark.name: mark for mark, _ in figure.marks}
        ticks, gaps = dict(figure.across), dict(figure.upwards)
        doubling, per_point = ticks["2"] - ticks["1"], (gaps["0"] - gaps["10"]) / 10
        assert doubling == pytest.approx(ticks["20"] - ticks["10"], abs=0.3) and doubling > 20 and per_point > 5
        assert at["ssd"].x == pytest.approx(ticks["1"], abs=0.2) and at["random_label"].x == pytest.approx(ticks["10"], abs=0.2)
        assert at["delete"].y == pytest.approx(gaps["0"] - 13.8 * per_point, abs=0.3)
        assert figure.original == (None, pytest.approx(gaps["0"] - 14.8 * per_point, abs=0.3))
        assert figure.floor == (None, pytest.approx(gaps["0"] - 1.9 * per_point, abs=0.3))
        assert at["delete"].left == at["delete"].right == at["delete"].x  # a cost is counted: it has no interval
        assert at["influence_unlearning"].low == gaps["0"]  # its interval begins below 0, where no gap is


def test_answers_lie_on_a_linear_axis_with_their_intervals_beside_the_floor_and_the_original():
    gap = estimate(0.05, 0.01)
    methods = [("near", "ties", estimate(0.25, 0.01), gap), ("far", "ties", estimate(0.5, 0.1), gap)]
    floor, original = (estimate(0.2, 0.02), estimate(0.01, 0.01)), (estimate(0.3, 0.02), estimate(0.15, 0.01))
    upwards = LinearAxis.of([gap, original[1]])
    for figure in scatters(methods, LinearAxis.of([m[2] for m in methods], unit=1.0), upwards, floor, original):
        near, far = (mark for mark, _ in figure.marks)
        ticks = dict(figure.across)
        tenth = (ticks["0.6"] - ticks["0"]) / 6
        assert (far.x - near.x, far.right - far.x, far.x - far.left) == pytest.approx((2.5 * tenth, tenth, tenth), abs=0.3)
        assert figure.floor[0] == pytest.approx(ticks["0"] + 2.2 * tenth, abs=0.3)  # the upper end of the floor's interval
        assert figure.original[0] == pytest.approx(ticks["0"] + 3 * tenth, abs=0.3)


def with_answers(result, names):
    for k, name in enumerate(names):
        find(result, name)["columns"]["TV distance"] = estimate(0.2 + 0.1 * k, 0.01)
    return result


def test_the_figure_of_answers_draws_each_method_between_bands_and_lines_in_both_directions():
    html = render_benchmark(with_answers(small(), ("retrained", "original", "amun", "salun")))
    chart = html[html.index("Accuracies and answers") :]
    svg = ET.fromstring(re.search(r'<svg class="plot wide".*?</svg>', chart, flags=re.DOTALL)[0])
    kinds = [(each.tag, (each.get("class") or "").split(" ")[0]) for each in svg.iter()]
    assert {kind: kinds.count(kind) for kind in set(kinds) if kind[1] in ("point", "bar", "band", "before")} == {
        ("circle", "point"): 2, ("path", "bar"): 2, ("path", "band"): 2, ("path", "before"): 2,
    }  # fmt: skip
    lines = ["".join(letter for letter in each.get("d") if letter in "HV") for each in svg.iter("path") if each.get("class") == "before"]
    assert sorted(lines) == ["H", "V"]
    assert "TV distance of answers" in chart


@pytest.mark.parametrize("missing", ["retrained", "original", "salun"])
@pytest.mark.parametrize("how", ["unsupported", "absent"])
def test_a_distance_that_is_not_known_costs_its_mark_and_not_the_page(missing, how):
    result = with_answers(small(), ("retrained", "original", "amun", "salun", "l2ul"))
    columns = find(result, missing)["columns"]
    columns["TV distance"] |= {"value": None, "low": None, "high": None, "note": "no number"}
    if how == "absent":
        columns.pop("TV distance")
    html = render_benchmark(result)
    chart = html[html.index("Accuracies and answers") : html.index("All numbers")]
    assert chart.count("<g><title>") == len(FRAMES) * (2 if missing == "salun" else 3)


def test_one_method_with_answers_is_no_figure():
    assert "Accuracies and answers" not in words(with_answers(small(), ("retrained", "original", "amun")))


def test_names_keep_clear_of_the_original_s_upright_line():
    at = Point("a_name", TIES_WITH_BEST, 300.0, 200.0, 200.0, 200.0, 300.0, 300.0)
    frame = FRAMES[0]
    (free,), (struck,) = (place_labels([at], frame, (x, None)) for x in (None, 330.0))
    assert free.box[0] < 330 < free.box[2] and not struck.box[0] < 330 < struck.box[2]


def test_a_record_of_another_form_is_said_to_be_so():
    result = benchmark(point() | {"rows": [method("salun")], "ties": []})
    result["points"][0]["rows"][0]["tuned"]["trials"][0]["gap"] = [0.1, 0.05, 0.15]
    with pytest.raises(DataError, match="must be complete"):
        render_benchmark(result)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_page_can_be_made_from_each_published_record(path):
    record = json.loads(path.read_text())
    assert record["title"] in words(record)


@pytest.mark.parametrize("name", [50 * "m", 50 * "名"])
def test_a_long_name_is_cut_and_has_a_place_at_every_point_of_every_frame(name):
    for frame in FRAMES:
        for x, y in itertools.product((0, 33, 50, 66, 100), (0, 50, 100)):
            at = frame.y(y)
            (label,) = place_labels([Point(name, TIES_WITH_BEST, frame.x(x), at, at, at, frame.x(x), frame.x(x))], frame)
            assert label.text.endswith("…") and letters(label.text) <= WIDEST and frame.holds(label.box)


def test_a_benchmark_that_is_still_running_says_how_far_it_is_and_what_is_missing():
    result = running()
    html = render_benchmark(result)
    text = Page(html).words.replace("_ ", "_")
    assert (
        "82 of 114" in text
        and "32 unlearned models are not there yet. Run the plan again" in text
        and '<progress value="82" max="114"' in html
    )
    assert [attributes["href"] for tag, attributes in Page(html).tags if tag == "a"] == ["#point-1", "#point-2"]
    second = html[html.index('id="point-2-table"') :]
    assert "1 of 3 seeds" in second and "diverged with every setting that was tried" in second and "diverged in 1 of 3 runs" in second
    assert "not compared: seeds are missing" in html and "fine_tune (diverged in 1 of 3 runs)" in re.sub(r" ([,)])", r"\1", text)
    done = words(small())
    assert (
        "not there yet" not in done
        and "of 3 seeds" not in done
        and "not compared" not in done
        and "progress" not in render_benchmark(small()).split("</style>")[1]
    )


def test_the_mean_of_the_runs_that_did_not_diverge_is_not_shown_as_the_method_s():
    result = small()
    find(result, "salun").update(problem="diverged in 1 of 3 runs", seeds=2, gaps=[0.02, 0.03])
    html = render_benchmark(result)
    assert table_row(html, "salun")[1][:3] == ["salun", "diverged in 1 of 3 runs", "72.1 70.1 to 74.1"]
    drawn = html[html.index('class="gaps"') : html.index("Not in the figures")]
    assert "amun" in drawn and "salun" not in drawn and "2.6" not in drawn


def test_a_benchmark_without_any_numbers_is_a_page_of_words():
    result = small()
    for row in result["points"][0]["rows"]:
        without_numbers(row, "not there yet")
    result |= {"done": 0}
    result["points"][0] |= {"ties": [], "sizes": {}, "flags": []}
    find(result, "amun")["paper"] = {"forget": "95.45 ± 0.2"}
    text = words(result)
    assert (
        "No numbers" in text and "How close to retraining?" not in text and "Settings of each method" not in text and "None raised." in text
    )
    assert table_row(render_benchmark(result), "amun")[1][1] == "not there yet" and "95.45 ± 0.2" in text
    assert "None" not in text.replace("None raised", "") and "nan" not in text.split()


def test_only_methods_that_were_compared_are_called_worse():
    result = small()
    find(result, "l2ul").update(seeds=1, gaps=[0.4])
    html = render_benchmark(result)
    assert table_row(html, "salun")[0] == ["ties"] and table_row(html, "l2ul")[0] == []
    result["points"][0]["ties"] = []
    html = render_benchmark(result)
    assert "Ties with the best" not in html and "could" not in html and table_row(html, "salun")[0] == []


def test_published_values_stand_under_ours_as_they_were_printed():
    result = small() | {"source": "AMUN, arXiv:2503.00917"}
    find(result, "amun")["paper"] = {"forget": "95.45 ± 0.2", "MIA": "0.02 ± .01"}
    html = render_benchmark(result)
    attributes, cells = table_row(html, "paper")
    assert attributes == ["paper"] and cells[0] == "paper on amun" and cells[2] == "95.45 ± 0.2" and "0.02 ± .01" in cells
    names = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', html[html.index('<table class="methods">') :])
    assert names[cells.index("95.45 ± 0.2")] == "Forget accuracy, %" and names[cells.index("0.02 ± .01")] == "MIA"
    assert "what is published: AMUN, arXiv:2503.00917." in words(result) and "published" not in words(small())


def test_what_tuning_tried_is_listed_in_order_with_the_chosen_one_marked():
    result = small("amun")
    find(result, "amun")["tuned"] |= {"at_the_end": True}
    text = words(result)
    assert "lr Average gap, points Chosen 0.01 12.0 10.8 to 13.2 0.1 7.0 5.8 to 8.2 chosen, at the end 1 diverged" in text
    assert "(1 chosen at the end of what was tried)" in text and "at the end" not in words(small("salun"))
    find(result, "amun")["tuned"] = None
    assert "and what tuning tried" not in words(result) and "Amun(epochs=10" in words(result)


def test_an_original_within_the_floor_is_said():
    result = small()
    assert "cannot tell forgetting from doing nothing" not in words(result)
    find(result, "original")["columns"]["average gap"] |= {"low": 0.015}
    assert "cannot tell forgetting from doing nothing" in words(result)


def test_names_are_text_wherever_they_come_from():
    text = json.dumps(small() | {"source": "amun"})
    for name in ("amun", "Every method", "CIFAR-10, resnet_tiny", "AMD EPYC 9R14", "RetrainDiffersAcrossSeeds", "RMIA AUC"):
        text = text.replace(name, json.dumps(HOSTILE)[1:-1])
    hostile = json.loads(text)
    find(hostile, HOSTILE)["paper"] = {"forget": HOSTILE}
    html = render_benchmark(hostile)
    page = Page(html)
    assert page.numbers == hostile and html.count("<script") == html.count("</script") == 1 and "<!--" not in html
    assert not any(
        tag in ("img", "iframe", "object", "form", "use") or any(name.startswith("on") for name in attributes)
        for tag, attributes in page.tags
    )
    assert HOSTILE in " ".join(page.text) and "49" not in re.findall(r"alert\(2\)\S* .{20}", page.words)[0]


def test_the_page_asks_nothing_of_the_network_and_runs_nothing():
    html = render_benchmark(small())
    assert "http:" not in html and "https:" not in html and "@import" not in html and "url(" not in html
    assert all(
        attributes[name].startswith(("#", "data:")) for _, attributes in Page(html).tags for name in ("src", "href") if name in attributes
    )
    assert "default-src 'none'" in html and [attributes for tag, attributes in Page(html).tags if tag == "script"] == [
        {"type": "application/json", "id": "result"}
    ]


def test_figures_are_well_formed_and_every_colour_is_defined_for_light_and_dark():
    html = render_benchmark(small())
    figures = re.findall(r'<svg class="plot.*?</svg>', html, flags=re.DOTALL)
    assert len(figures) == 2 and all(ET.fromstring(figure).get("viewBox") for figure in figures)
    light, dark = html[html.index("<style>") : html.index("</style>")].split("@media screen and (prefers-color-scheme: dark)")
    for name in set(re.findall(r"var\(--((?:model-\d|ink|muted|grid|paper|card|shade)[a-z-]*)\)", html)):
        assert f"--{name}:" in light and f"--{name}:" in dark


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("points"), "needs a list of points"),
        (lambda r: r.pop("total"), "must be complete.*total"),
        (lambda r: r.pop("provenance"), "must be complete.*provenance"),
        (lambda r: r["points"][0].pop("ties"), "must be complete.*ties"),
        (lambda r: r["points"][0]["rows"][2].pop("problem"), "must be complete.*problem"),
        (lambda r: r["points"][0]["rows"][2].update(epochs=float("nan")), "plain JSON"),
    ],
)
def test_a_result_that_is_none_gets_a_clear_error(change, message):
    result = small("amun")
    change(result)
    with pytest.raises(DataError, match=message):
        render_benchmark(result)


def test_the_page_is_written_whole_into_a_folder_that_exists(tmp_path):
    path, result = tmp_path / "benchmark.html", small("amun")
    path.write_text("old")
    write_benchmark(result, path)
    assert path.read_text(encoding="utf-8") == render_benchmark(result) and os.listdir(tmp_path) == ["benchmark.html"]
    with pytest.raises(StoreError, match="needs an existing folder"):
        write_benchmark(result, tmp_path / "absent" / "benchmark.html")


def test_a_method_without_a_name_in_python_is_a_method():
    result = benchmark(point() | {"rows": [method("amun") | {"name": "amun (lr × 2), 名前"}], "ties": []})
    assert "amun (lr × 2), 名前" in words(result)
