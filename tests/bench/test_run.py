"""What the run of a plan makes, keeps and says."""

import json
import shutil
import statistics

import pytest
import torch

import expunge
from bench_plans import METHODS, small_plan
from expunge import RMIA, FineTune, ForgetClasses, ForgetRandom, LossThreshold
from expunge.bench import status as status_module
from expunge.bench import work
from expunge.bench.point import points
from expunge.bench.work import Run, chosen
from expunge.errors import ConfigError, DataError
from expunge.metrics.answers import total_variation
from expunge.training.inference import logits_of


def files(store):
    return {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}


def test_a_number_of_the_table_is_what_an_audit_of_these_models_says(finished):
    plan, store, results = finished
    (point,) = points(plan, store, "data")
    method = chosen(point, "fine_tune")
    shadows = expunge.train_shadow_models(
        point.build, point.split.train, point.test, n=4, recipe=point.recipe, store=store, workers=1, device="cpu"
    )
    gaps, areas, distances = [], [], []
    for seed in range(2):
        original = point.model("originals", seed)
        retrained = [point.model("retrained", k) for k in (seed, 1 - seed)]
        models = {"unlearned": method(original, point.split, seed=seed, device="cpu"), "retrained": retrained}
        audit = expunge.audit(models, point.split, point.test.subset(point.held_out), shadows=shadows, attacks=[RMIA()], device="cpu")
        gaps.append(audit.model("unlearned").gaps.average.value)
        areas.append(audit["RMIA", "unlearned"].auc)
        ours, _, *theirs = (logits_of(model, point.split.forget) for model in (models["unlearned"], *retrained))
        distances.append(total_variation(ours, torch.stack(theirs)).value)
    row = results.points[0]["fine_tune"]
    assert row.gaps == pytest.approx(gaps, abs=1e-9)
    assert row.columns["average gap"].value == pytest.approx(statistics.mean(gaps))
    assert row.columns["RMIA AUC"].value == pytest.approx(statistics.mean(areas))
    assert row.columns["TV distance"].value == pytest.approx(statistics.mean(distances))
    assert row.settings == repr(method)


def test_tuning_and_audit_share_no_test_image(finished):
    plan, store, _ = finished
    (point,) = points(plan, store, "data")
    assert not set(point.validation.ids.tolist()) & set(point.test.ids[point.held_out].tolist())
    (untuned,) = points(small_plan(tuning=0), store, "data")
    assert len(untuned.held_out) == len(untuned.test)


def test_a_method_that_diverges_is_said_to_and_the_others_are_kept(finished):
    _, _, results = finished
    row = results.points[0]["worse"]
    assert row.problem == "diverged with every setting that was tried"
    assert row.columns == {}
    assert results.done == results.total == 6
    assert results.points[0]["fine_tune"].seeds == 2
    assert "diverged with every setting" in str(results)


def test_without_tuning_a_run_that_diverges_is_kept_as_such(finished):
    _, store, _ = finished
    results = small_plan(tuning=0).run(store, workers=1, device="cpu")
    assert results.points[0]["worse"].problem == "diverged in 2 of 2 runs"
    assert results.done == results.total


def test_what_is_finished_is_not_made_again(finished):
    plan, store, results = finished
    before = files(store)
    again = plan.run(store, workers=1, device="cpu")
    assert files(store) == before
    assert again.to_dict()["points"] == results.to_dict()["points"]


def test_a_larger_plan_reuses_what_a_smaller_one_made(finished, monkeypatch):
    _, store, _ = finished
    trained = []
    monkeypatch.setattr("expunge.training.fleet.train_model", lambda *a, **k: trained.append(a) or pytest.fail("trained again"))
    small_plan(methods=METHODS | {"gentle": FineTune(epochs=1, lr=0.001)}).run(store, workers=1, device="cpu")
    assert not trained


def test_the_status_counts_what_there_is_and_trains_nothing(tmp_path, finished, monkeypatch):
    plan, store, _ = finished
    monkeypatch.setattr(status_module, "_measured", lambda point, device: 0.001)
    empty = plan.status(tmp_path)
    assert not list(tmp_path.rglob("*"))
    assert {kind.name: (kind.done, kind.total) for kind in empty.kinds} == {
        "originals": (0, 2), "retrained models": (0, 3), "shadow models": (0, 4), "tuned methods": (0, 2), "audited models": (0, 6),
    }  # fmt: skip
    shadow = next(kind for kind in empty.kinds if kind.name == "shadow models")
    assert shadow.seconds == pytest.approx(4 * 0.001 * (1097 / 2 * 2 + 1097 / 3), rel=0.01)
    full = plan.status(store)
    assert (full.done, full.total, full.seconds) == (17, 17, 0)
    assert str(full).startswith("17 cells: 17 done, 0 to do")


def test_before_anything_ran_the_results_say_what_is_missing(tmp_path):
    results = small_plan().results(tmp_path)
    assert (results.done, results.total) == (0, 6)
    assert {row.name: row.problem for row in results.points[0].rows} == dict.fromkeys(
        ("retrained", "original", "fine_tune", "worse"), "not there yet"
    )
    assert "6 of 6 audited models are not there yet" in str(results)


def test_two_workers_give_the_same_numbers_as_one(finished, tmp_path):
    """Of what comes after training; fleets have tests of their own."""
    _, store, _ = finished
    for kind in ("original", "retrained", "shadow"):
        shutil.copytree(store / kind, tmp_path / kind)
    plan = small_plan(tuning=0)
    ours, theirs = (plan.run(folder, workers=n, device="cpu").to_dict()["points"][0]["rows"] for folder, n in ((store, 1), (tmp_path, 2)))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine | {"seconds": None} == other | {"seconds": None}


def test_whole_classes_have_their_own_columns(tmp_path):
    plan = small_plan(
        forget=ForgetClasses(classes=["3"]), shadows=0, attacks=[LossThreshold()], tuning=0, methods=[expunge.DELETE(epochs=1)]
    )
    columns = plan.run(tmp_path, workers=1, device="cpu").points[0]["delete"].columns
    assert {"forget test", "TV distance", "MIA-NN gap", "LossThreshold AUC"} <= set(columns)


@pytest.mark.parametrize("group", ["forget", "forget_test"])
def test_the_yardstick_and_what_it_judges_are_held_against_the_other_retrained_models(group):
    """p of class 1: the yardstick 0.2, the others 0.4 and 0.6 (mean 0.5), the method 0.9; where there are unseen images of the class, only those count."""
    probabilities = {"amun": 0.9, "retrained": 0.2, "retrained 2": 0.4, "retrained 3": 0.6}
    answers = {
        name: {"forget": torch.zeros(5, 2), "test": torch.zeros(5, 2), group: torch.tensor([[1 - p, p]] * 5).log()}
        for name, p in probabilities.items()
    }
    assert work._distance(answers["amun"], answers)["value"] == pytest.approx(0.4)
    assert work._distance(answers["retrained"], answers)["value"] == pytest.approx(0.3)


def test_gaps_of_opposite_signs_do_not_cancel():
    """What is left of two classes with MIA-NN gaps of +20 and −20 points is 20 points."""
    near = [{"gap": {"value": gap, "low": gap - 0.05, "high": gap + 0.05, "n": 9, "note": None}} for gap in (0.2, -0.2)]
    assert work._mia_nn_gap(near)["mia_nn_gap"]["value"] == pytest.approx(0.2)
    (one,) = [work._mia_nn_gap([one])["mia_nn_gap"] for one in near[1:]]
    assert (one["low"], one["high"]) == (pytest.approx(0.15), pytest.approx(0.25))


def test_methods_that_find_their_step_themselves_are_not_tuned(tmp_path):
    """Whatever lr DELETE starts from, the search for the smallest step that is enough ends near the same one."""
    methods = {"delete": expunge.DELETE(), "free": expunge.DELETE(until=None), "trw": expunge.TRW(), "ssd": expunge.SSD()}
    (classes,) = points(small_plan(methods=methods, forget=ForgetClasses(classes=["3"])), tmp_path, "data")
    assert {name: classes.tunes(name) for name in methods} == {"delete": False, "free": True, "trw": True, "ssd": True}
    (samples,) = points(small_plan(methods={"delete": expunge.DELETE()}), tmp_path, "data")
    assert samples.tunes("delete")


def test_a_grid_makes_one_table_for_each_point(tmp_path):
    plan = small_plan(
        forget=[expunge.ForgetRandom(n=30), expunge.ForgetRandom(n=60)],
        shadows=0,
        attacks=None,
        tuning=0,
        seeds=1,
        methods=[FineTune(epochs=1)],
    )
    results = plan.run(tmp_path, workers=1, device="cpu")
    assert [point.sizes["forget"] for point in results.points] == [30, 60]
    assert len(list((tmp_path / "original").iterdir())) == 1  # both forget from the same original


def test_what_would_fail_after_the_training_is_refused_before(tmp_path):
    with pytest.raises(DataError, match="whole classes"):
        small_plan(methods=[expunge.DELETE(), expunge.SCAR()]).run(tmp_path)
    with pytest.raises(ConfigError, match="field must name a setting of l1_sparse"):
        small_plan(methods=[expunge.L1Sparse(alpha=0.0)]).run(tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_the_paper_stands_beside_the_numbers(finished):
    _, store, _ = finished
    quoted = small_plan(paper={"source": "A paper", "fine_tune": {"forget": "95.5 ± .2"}}).results(store)
    table = quoted.table()
    assert "fine_tune, paper" in table
    assert "95.5 ± .2" in table
    assert "Paper: A paper." in table


def test_results_are_plain_json_without_nan(finished, tmp_path):
    _, _, results = finished
    text = results.to_json(tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(text)
    assert json.loads(text)["points"][0]["rows"][2]["name"] == "fine_tune"


def test_methods_are_ordered_by_the_column_that_is_asked_for(finished):
    _, store, _ = finished
    plan = small_plan(tuning=0, methods={"a": FineTune(epochs=1, lr=0.3), "b": FineTune(epochs=1, lr=1e-5)})
    (point,) = plan.run(store, workers=1, device="cpu").points
    for column in ("average gap", "test"):
        values = [row.columns[column].value for row in point.ordered(column)[2:]]
        assert values == sorted(values)


def test_the_floor_spans_all_yardsticks(finished):
    _, _, results = finished
    floor = results.points[0]["retrained"].columns["average gap"]
    assert floor.low <= floor.value <= floor.high
    assert floor.low < floor.high


def test_the_floor_does_not_grow_with_the_number_of_retrained_models(finished):
    """It is the mean over pairs, each model as the yardstick of others, and not the largest gap."""
    _, store, _ = finished
    plan = small_plan(tuning=0, seeds=2, retrained=3, methods={"fine_tune": FineTune(epochs=1)}, attacks=[LossThreshold()])
    floor = plan.run(store, workers=1, device="cpu").points[0]["retrained"]
    (point,) = points(plan, store, "data")
    gaps = []
    for first in range(2):
        models = [point.model("retrained", k) for k in (first, *(k for k in range(3) if k != first))]
        audit = expunge.audit({"retrained": models}, point.split, point.test, attacks=[LossThreshold()], device="cpu")
        gaps += [row.gaps.average.value for row in audit.models if row.gaps]
    assert floor.columns["average gap"].value == pytest.approx(statistics.mean(gaps))


def test_retrained_models_count_once_however_many_originals_there_are(finished):
    _, store, _ = finished
    row = (
        small_plan(tuning=0, seeds=3, retrained=2, methods={"fine_tune": FineTune(epochs=1)})
        .run(store, workers=1, device="cpu")
        .points[0]["retrained"]
    )
    assert row.seeds == 2
    assert row.columns["test"].n == 2


class Refuses(expunge.Method):
    """A method that finds the data unsuitable."""

    name, paper, retain, tunes = "refuses", "none", "none", None

    def cost(self, forget):
        return 1.0

    def run(self, model, split):
        raise DataError("these images do not suit it")


def test_a_method_that_cannot_do_what_it_is_asked_for_says_why_and_the_others_go_on(finished):
    _, store, _ = finished
    results = small_plan(tuning=0, methods={"refuses": Refuses(), "fine_tune": FineTune(epochs=1)}).run(store, workers=1, device="cpu")
    assert results.points[0]["refuses"].problem == "failed (these images do not suit it) in 2 of 2 runs"
    assert results.points[0]["fine_tune"].seeds == 2


def test_a_run_that_was_stopped_between_two_files_ends_with_the_same_numbers(finished, tmp_path):
    """Killed after a model answered and before it was audited, and after a setting was chosen: what is left is used."""
    plan, store, results = finished
    shutil.copytree(store, tmp_path / "store")
    for cell in (tmp_path / "store" / "audited").iterdir():
        (cell / "result.json").unlink()
    scores = files(tmp_path / "store" / "scores")
    partial = plan.results(tmp_path / "store")
    assert partial.done == 2  # the method that cannot be tuned
    again = plan.run(tmp_path / "store", workers=1, device="cpu")
    assert again.to_dict()["points"] == results.to_dict()["points"]
    assert files(tmp_path / "store" / "scores") == scores


def test_a_row_with_seeds_missing_says_so(finished, tmp_path):
    plan, store, _ = finished
    shutil.copytree(store, tmp_path / "store")
    (point,) = points(plan, tmp_path / "store", "data")
    for path in Run(0, "fine_tune", 1).cell(point).folder.iterdir():
        path.unlink()
    assert "fine_tune (1 of 2 seeds)" in str(plan.results(tmp_path / "store"))


def test_points_share_models_and_the_status_counts_them_once(tmp_path, monkeypatch):
    monkeypatch.setattr(status_module, "_measured", lambda point, device: 0.001)
    status = small_plan(forget=[ForgetRandom(n=30), ForgetRandom(n=60)]).status(tmp_path)
    assert {kind.name: kind.total for kind in status.kinds}["originals"] == 2
    assert {kind.name: kind.total for kind in status.kinds}["shadow models"] == 4


def test_a_store_is_found_from_other_folders():
    (point,) = points(small_plan(), "runs", "data")
    assert point.store.root.is_absolute()
    assert point.cells["originals"][0].folder.is_absolute()


def test_progress_is_passed_on_and_watched(finished):
    plan, store, _ = finished
    seen = []
    plan.run(store, workers=1, device="cpu", watch=seen.append)
    assert all(result.total == 6 for result in seen)


def test_random_training_images_are_the_same_for_every_plan():
    (a,), (b,) = points(small_plan(), "nowhere", "data"), points(small_plan(seeds=1), "nowhere", "data")
    assert a.split.train.fingerprint == b.split.train.fingerprint
    assert torch.equal(a.split.forget_indices, b.split.forget_indices)
    assert sorted(set(a.split.train.labels.tolist())) == list(range(10))
