"""Deadlines, extensions and what lateness costs: in nbgrader's gradebook, in the exports, in what students read."""

import csv
from datetime import datetime, timedelta

import pytest
from nbgrader.api import Gradebook
from test_record import SLUG, judged, make_course, submission

from autograder.grading.deadlines import (
    Deadline,
    DeadlineError,
    PenaltyPerDay,
    parse_due,
    parse_extension,
    read_deadline,
    write_deadline,
)
from autograder.grading.record import Recorder
from autograder.reporting import write_report

DUE = datetime(2026, 10, 1, 21, 59)
PER_DAY = """
c.AssignLatePenalties.plugin_class = "autograder.grading.deadlines.PenaltyPerDay"
c.PenaltyPerDay.percent = 10
c.PenaltyPerDay.grace_minutes = 15
"""


@pytest.fixture
def course(tmp_path):
    made = make_course(tmp_path)
    with (tmp_path / "nbgrader_config.py").open("a") as config:
        config.write(PER_DAY)
    return made


def record_all(course, moments):
    """Grades each student's notebook where that is still to do, as `attn grade` does; says for whom it was."""
    data, done = submission(), []
    with Recorder(course) as recorder:
        for student, moment in moments.items():
            result = judged(data, student)
            if not recorder.is_recorded(result, moment):
                recorder.record(result, data, timestamp=moment)
                done.append(student)
    return done


def final(course, student):
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "attention-in-depth") as book:
        return book.find_submission(SLUG, student).score, book.find_submission_notebook(
            "exercises", SLUG, student
        ).late_submission_penalty


def test_lateness_is_counted_from_the_students_own_deadline_everywhere(course):
    moments = {
        "s001": DUE - timedelta(minutes=1),
        "s002": DUE + timedelta(minutes=14),
        "s003": DUE + timedelta(hours=25),
        "s004": DUE + timedelta(hours=25),
        "s005": DUE + timedelta(days=30),
        "s006": None,
    }
    assert write_deadline(course, SLUG, due=DUE, extensions={"s004": timedelta(days=2)}) == Deadline(
        DUE, {"s004": timedelta(days=2)}
    )
    assert record_all(course, moments) == list(moments)
    penalties = {student: final(course, student)[1] or 0.0 for student in moments}
    expected = {"s001": 0.0, "s002": 0.0, "s003": 0.8, "s004": 0.0, "s005": 4.0, "s006": 0.0}
    assert penalties == pytest.approx(expected)
    assert "0.8 were taken off" in (course / "feedback/s003" / SLUG / "feedback.html").read_text()

    page, _ = write_report(course)
    text = " ".join(page.read_text().split())
    assert "(0.8 off: late)" in text
    assert "<b>2</b> lost points for lateness" in text
    canvas = list(csv.reader((course / "report/canvas.csv").read_text().splitlines()))
    assert {row[3]: row[5] for row in canvas[2:]} == {
        **dict.fromkeys(["s001", "s002", "s004", "s006"], "4"),
        "s003": "3.2",
        "s005": "0",
    }
    moodle = list(csv.reader((course / f"report/moodle-{SLUG}.csv").read_text().splitlines()))
    assert {row[1]: row[4] for row in moodle[1:]}["s003"] == "3.20"


def test_a_new_deadline_changes_penalties_at_the_next_run_and_nothing_else(course):
    moments = {"s001": DUE - timedelta(hours=1), "s002": DUE + timedelta(hours=1)}
    assert record_all(course, moments) == ["s001", "s002"]
    assert record_all(course, moments) == []
    write_deadline(course, SLUG, due=DUE)
    assert record_all(course, moments) == ["s002"]
    assert final(course, "s002")[1] == pytest.approx(0.4)
    assert record_all(course, moments) == []
    write_deadline(course, SLUG, extensions={"s002": timedelta(hours=2)})
    assert record_all(course, moments) == ["s002"]
    assert final(course, "s002") == (4.0, None)
    write_deadline(course, SLUG, extensions={"s002": timedelta()})
    assert record_all(course, moments) == ["s002"]
    assert write_deadline(course, SLUG, remove=True) == Deadline(None, {})
    assert record_all(course, moments) == ["s002"]
    assert final(course, "s002") == (4.0, None)


def test_an_extension_may_come_before_the_work_and_is_no_grade(course):
    write_deadline(course, SLUG, due=DUE, extensions={"s009": timedelta(weeks=1)})
    record_all(course, {"s001": DUE})
    write_report(course)
    table = (course / "report/canvas.csv").read_text()
    assert "s001" in table
    assert "s009" not in table
    record_all(course, {"s009": DUE + timedelta(days=6)})
    assert final(course, "s009") == (4.0, None)
    with Recorder(course) as recorder:
        assert read_deadline(recorder, SLUG).extensions == {"s009": timedelta(weeks=1)}


@pytest.mark.parametrize(
    ("seconds", "taken"), [(0, None), (900, None), (901, 1.0), (86_400, 1.0), (86_401, 2.0), (10**9, 10.0)]
)
def test_each_day_that_has_begun_costs_its_share(seconds, taken):
    plugin = PenaltyPerDay(percent=10, grace_minutes=15)
    assert plugin.late_submission_penalty("s001", 10.0, seconds) == taken


def test_moments_and_extensions_are_read_as_people_write_them():
    assert parse_due("2026-10-01 23:59 Europe/Berlin") == DUE
    assert parse_due("2026-10-01 21:59") == DUE
    assert parse_extension("s001=1.5d") == ("s001", timedelta(hours=36))
    assert parse_extension("s001=0") == ("s001", timedelta())
    for text in ("soon", "", "2026-13-01"):
        with pytest.raises(DeadlineError, match="is no moment"):
            parse_due(text)
    for text in ("s001", "=2d", "s001=2", "s001=-2d", "../x=2d", "s001="):
        with pytest.raises(DeadlineError, match="is no extension"):
            parse_extension(text)
