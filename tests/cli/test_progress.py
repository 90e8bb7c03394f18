"""Progress lines where there is no terminal."""

import io

from expunge.cli.progress import Bars, Lines, time_left
from expunge.progress import Progress


def lines(times: list[tuple[float, Progress]], interval: float = 10.0) -> list[str]:
    out, now = io.StringIO(), [0.0]
    listener = Lines(out, interval, clock=lambda: now[0])
    for now[0], progress in times:
        listener(progress)
    return out.getvalue().splitlines()


def test_quick_work_prints_nothing():
    assert lines([(k / 100, Progress("training", k, 100)) for k in range(101)]) == []


def test_long_work_prints_a_line_every_interval_and_one_at_its_end():
    printed = lines([(k, Progress("training", k, 25)) for k in range(26)])
    assert printed == ["training: 10 of 25 (40 %), 15 s left", "training: 20 of 25 (80 %), 5 s left", "training: 25 of 25 (100 %)"]


def test_stages_that_alternate_quickly_are_still_reported():
    work = [(k, Progress("ab"[k % 2], k, 100, "note")) for k in range(0, 25)]
    assert lines(work) == ["a: 10 of 100 (10 %), note", "a: 20 of 100 (20 %), note"]


def test_the_end_of_a_quick_stage_is_not_printed_after_a_long_one():
    assert lines([(0, Progress("a", 0, 2)), (11, Progress("a", 2, 2)), (11.1, Progress("b", 1, 1))]) == ["a: 2 of 2 (100 %)"]


def test_time_left_is_in_units_that_people_read():
    times = [time_left(elapsed, Progress("x", 1, 2)) for elapsed in (0, 5, 100, 4 * 3600)]
    assert times == ["", ", 5 s left", ", 2 min left", ", 4 h left"]


def test_there_is_one_bar_and_it_goes_when_its_stage_ends(capsys):
    with Bars() as bars:
        for progress, shown in (
            (Progress("a", 1, 2, "[x]"), [("a", 1)]), (Progress("b", 0, 5), [("b", 0)]),
            (Progress("b", 5, 5), []), (Progress("c", 0, 0), []),
            (Progress("a", 1, 2), [("a", 1)]), (Progress("a", 0, 3), [("a", 0)]),
        ):  # fmt: skip
            bars(progress)
            assert [(task.description, task.completed) for task in bars.bars.tasks] == shown
            assert bars.bars.live.is_started == bool(shown)
    assert not bars.bars.live.is_started
    assert capsys.readouterr().out == ""
