"""nbgrader's own commands on a course of ours: they work, and they come to the same scores as our recorder."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook
from test_record import ROOT, SLUG, files_below, instructor_notebook, invalid, judged, make_course, submission, ungraded

from autograder.authoring.build import instructor_notebook as real_notebook
from autograder.grading.judge import judge_notebook
from autograder.grading.record import Recorder, read_result, result_path

FAKE_JUDGE = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_record import invalid, judged, ungraded
from autograder.grading.record import Recorder, RecordError
from autograder.reporting.graded import Unreadable, readable
def judge(data, slug, student):
    try:
        readable(data)
    except Unreadable:
        return invalid(data, student)
    if b"be the only writer" in data:
        try:
            with Recorder(Path.cwd() / "elsewhere", db=f"sqlite:///{{Path.cwd()}}/gradebook.db"):
                raise AssertionError("nobody keeps others from writing")
        except RecordError:
            pass
    if b"break the grader" in data:
        return ungraded(data, student)
    return judged(data, student, slug=slug)
"""


@pytest.fixture
def course(tmp_path):
    """A course whose judge answers from a table, so that only nbgrader's side is under test."""
    made = make_course(tmp_path)
    (tmp_path / "fake_judge.py").write_text(FAKE_JUDGE.format(tests=str(Path(__file__).parent)))
    config = tmp_path / "nbgrader_config.py"
    config.write_text(config.read_text() + '\nc.GradeInJail.judge = "fake_judge.judge"\n')
    return made


def nbgrader(course, *arguments, fails=False):
    """Runs one nbgrader command in the course's root, as an instructor would."""
    environment = {key: value for key, value in os.environ.items() if key != "ATTN_ROOT" and key != "ATTN_DB"}
    environment["PYTHONPATH"] = os.pathsep.join([str(course.parent), str(ROOT)])
    environment["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), environment["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments],
        cwd=course.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stdout + done.stderr


def hand_in(course, student, data, moment=None):
    place = course / "submitted" / student / SLUG / "exercises.ipynb"
    place.parent.mkdir(parents=True)
    place.write_bytes(data)
    if moment:
        place.with_name("timestamp.txt").write_text(f"{moment} UTC")


def scores(course, student="s001"):
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "attention-in-depth") as book:
        entry = book.find_submission(SLUG, student)
        grades = {grade.name: (grade.auto_score, grade.needs_manual_grade) for grade in entry.notebooks[0].grades}
        comments = {comment.name: comment.comment for comment in entry.notebooks[0].comments}
        return entry.score, entry.timestamp, grades, comments


@pytest.mark.slow
def test_plain_autograde_comes_to_the_same_scores_as_our_recorder(course, tmp_path):
    data, moment = submission(), datetime(2026, 10, 1, 12)
    hand_in(course, "s001", data, moment)
    hand_in(course, "s002", b"this is no notebook", moment)
    nbgrader(course, "generate_assignment", SLUG)
    assert "return 2 * x" not in (course / "release" / SLUG / "exercises.ipynb").read_text()
    nbgrader(course, "autograde", SLUG)

    other = make_course(tmp_path / "ours")
    with Recorder(other) as recorder:
        recorder.record(judged(data), data, timestamp=moment)
        recorder.record(invalid(b"this is no notebook", "s002"), b"this is no notebook", timestamp=moment)
    for student in ("s001", "s002"):
        assert scores(course, student) == scores(other, student)
        theirs, ours = (
            nbformat.read(root / "autograded" / student / SLUG / "exercises.ipynb", as_version=4)
            for root in (course, other)
        )
        assert [each.get("outputs") for each in theirs.cells] == [each.get("outputs") for each in ours.cells]
        pages = [(root / "feedback" / student / SLUG / "feedback.html").read_text() for root in (course, other)]
        assert pages[0] == pages[1]
    assert read_result(result_path(course, SLUG, "s001")) == judged(data)
    with Recorder(course) as recorder:  # and ours agrees that there is nothing left to do
        assert recorder.is_recorded(judged(data))


@pytest.mark.slow
def test_autograde_and_our_recorder_do_not_write_at_the_same_time(course):
    hand_in(course, "s001", submission("'be the only writer'"))
    nbgrader(course, "generate_assignment", SLUG)
    before = (course / "gradebook.db").read_bytes()
    with Recorder(course):
        said = nbgrader(course, "autograde", SLUG, fails=True)
    assert "another run is writing to course/; wait until it has finished, then run this again" in said
    assert "Traceback" not in said
    assert (course / "gradebook.db").read_bytes() == before
    nbgrader(course, "autograde", SLUG)
    assert scores(course)[0] == 4.0


@pytest.mark.slow
def test_a_fault_of_the_grader_writes_no_grade(course):
    hand_in(course, "s001", submission("'break the grader'"))
    nbgrader(course, "generate_assignment", SLUG)
    said = nbgrader(course, "autograde", SLUG, fails=True)
    assert "is not graded: no sandbox" in said
    score, _, grades, _ = scores(course)
    assert score == 0.0
    assert all(auto is None and needs for auto, needs in grades.values())
    assert not (course / "autograded/s001/additive/exercises.ipynb").exists()


@pytest.mark.slow
def test_nbgraders_pages_and_tables_come_from_what_we_recorded(course):
    data = submission()
    with Recorder(course) as recorder:
        recorder.record(judged(data), data, timestamp=datetime(2026, 10, 1))
    ours = files_below(course / "feedback")
    nbgrader(course, "generate_feedback", SLUG)
    page = (course / "feedback/s001/additive/exercises.html").read_text()
    assert "You return x itself, not 2 * x." in page
    assert "Score: 4.0 / 5.0" in page
    assert ours.items() <= files_below(course / "feedback").items()
    nbgrader(course, "export", "--to", str(course / "grades.csv"))
    with (course / "grades.csv").open() as lines:
        row = next(csv.DictReader(lines))
    assert (row["assignment"], row["student_id"], row["score"], row["max_score"]) == (SLUG, "s001", "4.0", "5.0")
    with Recorder(course) as recorder:  # a new grading makes nbgrader's page stale, and it goes
        recorder.record(judged(data, scores=(3.0, 2.0)), data, timestamp=datetime(2026, 10, 1))
    nbgrader(course, "generate_feedback", SLUG)
    assert "Score: 5.0 / 5.0" in (course / "feedback/s001/additive/exercises.html").read_text()


@pytest.mark.slow
def test_an_assignment_that_nbgrader_generated_needs_no_preparation(course):
    nbgrader(course, "generate_assignment", SLUG)
    before = (course / "gradebook.db").read_bytes()
    with Recorder(course) as recorder:
        recorder.prepare(SLUG)
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "attention-in-depth") as book:
        assert len(book.find_notebook("exercises", SLUG).grade_cells) == 2
    nbgrader(course, "generate_assignment", SLUG, "--force")
    assert len(before) > 0


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("body", "words"), [("return 2 * x", "Success!"), ("return x", "twice two is four")])
def test_validate_runs_the_visible_checks(course, body, words):
    nbgrader(course, "generate_assignment", SLUG)
    released = course / "release" / SLUG / "exercises.ipynb"
    notebook = nbformat.read(released, as_version=4)
    for each in notebook.cells:
        if each.metadata.get("nbgrader", {}).get("solution"):
            each.source = each.source.replace("raise NotImplementedError", body)
    nbformat.write(notebook, released)
    assert words in nbgrader(course, "validate", str(released))


def test_formgrader_lists_what_we_recorded(course):
    from nbgrader.apps.api import NbGraderAPI
    from nbgrader.coursedir import CourseDirectory
    from traitlets.config import Config

    data = submission()
    with Recorder(course) as recorder:
        recorder.record(judged(data), data, timestamp=datetime(2026, 10, 1))
        recorder.record(judged(data, "s002", (3.0, 2.0)), data)
    config = Config()
    config.CourseDirectory.root = str(course)
    config.CourseDirectory.course_id = "attention-in-depth"
    api = NbGraderAPI(CourseDirectory(config=config))
    listed = {each["student"]: each for each in api.get_submissions(SLUG)}
    assert {student: each["score"] for student, each in listed.items()} == {"s001": 4.0, "s002": 5.0}
    assert all(each["autograded"] and not each["needs_manual_grade"] for each in listed.values())
    assert api.get_assignment(SLUG)["num_submissions"] == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_real_judge_gives_the_same_score_either_way(tmp_path, monkeypatch):
    """The whole way: a real chapter, the real jail, plain ``nbgrader autograde`` against our judge."""
    course = tmp_path / "course"
    source = course / "source" / SLUG / "exercises.ipynb"
    source.parent.mkdir(parents=True)
    notebook = real_notebook(SLUG)
    nbformat.write(notebook, source)
    (tmp_path / "nbgrader_config.py").write_text((ROOT / "nbgrader_config.py").read_text())
    monkeypatch.setenv("ATTN_SECRET_FILE", str(tmp_path / "secret"))
    data = nbformat.writes(notebook).encode()
    result = judge_notebook(data, SLUG, "s001")
    assert result.status == "graded", result.message
    hand_in(course, "s001", data)
    nbgrader(course, "generate_assignment", SLUG)
    nbgrader(course, "autograde", SLUG)
    assert scores(course)[0] == result.score
    assert replace(read_result(result_path(course, SLUG, "s001")), seconds=result.seconds) == result


def test_the_small_course_is_a_valid_assignment():
    nbformat.validate(instructor_notebook())
    assert json.loads(submission())["cells"]
    assert ungraded(b"").status == "ungraded"
