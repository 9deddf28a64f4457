"""The writer: what lands on disk and in a real nbgrader gradebook, and what a kill, a lock or a bad file leaves."""

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from nbgrader.api import Gradebook, SubmittedAssignment
from nbgrader.nbgraderformat import MetadataValidator
from nbgrader.utils import determine_grade
from servers import postgres_programs, postgres_server

from autograder.grading import record
from autograder.grading.collect import Roster, RosterEntry
from autograder.grading.record import (
    AssignmentError,
    GradebookError,
    Recorder,
    RecordError,
    read_result,
    read_results,
    result_path,
    write_result,
)
from autograder.grading.result import ExerciseResult, SubmissionResult, TestResult
from autograder.reporting.graded import CellMismatch, annotate, readable, restore

ROOT = Path(__file__).resolve().parent.parent
SLUG = "additive"
POINTS = {"softmax": 3.0, "score": 2.0}

# ------------------------------------------------------------------------------- a small course and its results


def cell(source, grade_id, *, grade=False, solution=False, locked=False, points=None):
    made = new_code_cell(source, id=hashlib.sha256(grade_id.encode()).hexdigest()[:8])
    made.metadata["nbgrader"] = {
        "schema_version": 3,
        "grade_id": grade_id,
        "grade": grade,
        "solution": solution,
        "locked": locked,
        "task": False,
    } | ({"points": points} if points is not None else {})
    return made


def instructor_notebook(points=POINTS):
    cells = [new_markdown_cell("# Exercises", id="title"), cell("import math", f"{SLUG}-given", locked=True)]
    for name, worth in points.items():
        answer = f"def {name}(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"
        cells.append(cell(answer, f"{SLUG}-{name}", solution=True))
        checks = f"assert {name}(2) == 4, 'twice two is four'"
        cells.append(cell(checks, f"{SLUG}-{name}-tests", grade=True, locked=True, points=worth))
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return notebook


def make_course(root, points=POINTS):
    """A course of one assignment below root, with this repository's nbgrader_config.py."""
    place = root / "course" / "source" / SLUG / "exercises.ipynb"
    place.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(instructor_notebook(points), place)
    shutil.copy(ROOT / "nbgrader_config.py", root / "nbgrader_config.py")
    return root / "course"


def submission(body="return 2 * x", points=POINTS):
    """A student's notebook as bytes: every function has this body."""
    notebook = instructor_notebook(points)
    for each in notebook.cells:
        if each.metadata.get("nbgrader", {}).get("solution"):
            name = each.metadata["nbgrader"]["grade_id"].split("-")[1]
            each.source = f"def {name}(x):\n    {body}"
    return nbformat.writes(notebook).encode()


def judged(data, student="s001", scores=(3.0, 1.0), slug=SLUG, **more):
    """A result as the judge would give it."""
    exercises = []
    for (name, worth), score in zip(POINTS.items(), scores, strict=True):
        right = score == worth
        test = TestResult(
            name=f"test_{name}_secret_name",
            claim="Twice the input <comes> out.",
            outcome="passed" if right else "failed",
            points=score,
            max_points=worth,
            message="" if right else "off by a factor of 2",
            hint="" if right else "What is twice two?",
        )
        exercises.append(
            ExerciseResult(
                id=f"{slug}-{name}",
                title=f"The exercise {name}",
                outcome=test.outcome,
                score=score,
                max_score=worth,
                mistake=None if right else "forgot_the_factor",
                says=None if right else "You return x itself, not 2 * x.",
                mistake_hint=None if right else "Multiply by two.",
                tests=(test,),
            )
        )
    values = {
        "assignment": slug,
        "student": student,
        "notebook_sha256": hashlib.sha256(data).hexdigest(),
        "seed": "5eed",
        "status": "graded",
        "outcome": "ok",
        "score": float(sum(scores)),
        "max_score": sum(POINTS.values()),
        "seconds": 0.1,
        "exercises": tuple(exercises),
    }
    return SubmissionResult(**(values | more))


def invalid(data, student="s001"):
    return judged(data, student, (0.0, 0.0), outcome="invalid_notebook", message="the file is not JSON")


def ungraded(data, student="s001"):
    return judged(data, student, (0.0, 0.0), status="ungraded", outcome="infrastructure", message="no sandbox")


@pytest.fixture
def course(tmp_path):
    return make_course(tmp_path)


@pytest.fixture
def book(course):
    """Opens the gradebook the way any nbgrader program does."""
    opened = []

    def open_book():
        opened.append(Gradebook(f"sqlite:///{course / 'gradebook.db'}", "attention-in-depth"))
        return opened[-1]

    yield open_book
    for each in opened:
        each.close()


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------- what it writes


def test_everything_that_nbgrader_needs_is_written(course, book):
    data = submission()
    moment = datetime(2026, 10, 1, 12, 30, 15, 250000)
    with Recorder(course) as recorder:
        done = recorder.record(judged(data), data, timestamp=moment)
    assert (done.score, done.penalty) == (4.0, 0.0)
    assert (course / "submitted/s001/additive/exercises.ipynb").read_bytes() == data
    assert read_result(result_path(course, SLUG, "s001")) == judged(data)
    gradebook = book()
    entry = gradebook.find_submission(SLUG, "s001")
    assert entry.score == 4.0
    assert entry.max_score == 5.0
    assert not entry.needs_manual_grade
    assert entry.timestamp == moment
    from nbgrader.utils import parse_utc

    for step in ("submitted", "autograded"):
        assert parse_utc((course / step / "s001/additive/timestamp.txt").read_text().strip()) == moment
    comment = gradebook.find_comment("additive-score", "exercises", SLUG, "s001")
    assert "You return x itself" in comment.comment
    assert gradebook.find_comment("additive-softmax", "exercises", SLUG, "s001").comment is None


def rows(gradebook):
    """All that a gradebook says of its submissions, without the numbers that it makes up."""
    found = []
    for each in gradebook.db.query(SubmittedAssignment):
        (notebook,) = each.notebooks
        student = each.student
        found.append((student.id, student.first_name, student.last_name, student.email, student.lms_user_id))
        found.append((each.assignment.name, each.timestamp, each.extension, each.score))
        found.append((notebook.name, notebook.flagged, notebook.late_submission_penalty, notebook.needs_manual_grade))
        found += sorted(
            (grade.name, grade.auto_score, grade.manual_score, grade.extra_credit, grade.needs_manual_grade)
            for grade in notebook.grades
        )
        found += sorted(((each.name, each.auto_comment, each.manual_comment) for each in notebook.comments), key=str)
    return found


def test_a_first_submission_leaves_the_rows_that_nbgrader_makes(tmp_path, monkeypatch):
    essay = cell("Why?", f"{SLUG}-why", grade=True, solution=True, points=2.0)
    task = new_markdown_cell("Do.", id="task")
    task.metadata["nbgrader"] = essay.metadata["nbgrader"] | {"grade_id": f"{SLUG}-do", "solution": False, "task": True}
    task.metadata["nbgrader"]["grade"] = False
    notebook = instructor_notebook()
    notebook.cells += [essay, task]
    data, moment = nbformat.writes(notebook).encode(), datetime(2026, 10, 1)
    roster = Roster([RosterEntry("s001", name="First Last", email="s001@example.org")])
    books = []
    for way in ("at once", "object by object"):
        course = make_course(tmp_path / way)
        nbformat.write(notebook, course / "source" / SLUG / "exercises.ipynb")
        if way == "object by object":
            monkeypatch.setattr(Recorder, "_enter_first", lambda *_: None)
        with Recorder(course, roster=roster) as recorder:
            recorder.prepare(SLUG)
            recorder.gradebook.update_or_create_assignment(SLUG, duedate=moment)
            recorder.gradebook.update_or_create_student("s001", first_name="Another", lms_user_id="7")
            done = [recorder.record(judged(data), data, timestamp=moment)]
            done.append(recorder.record(invalid(b"", "s002"), b""))
            done.append(recorder.record(judged(data, "s003"), data, timestamp=datetime(2026, 10, 2)))
            books.append((rows(recorder.gradebook), [(each.score, each.penalty) for each in done]))
    assert books[0] == books[1]
    assert len(books[0][0]) == 3 * (3 + 4 + 4)


def test_the_graded_copy_gives_exactly_our_scores_to_nbgrader(course):
    data = submission()
    with Recorder(course) as recorder:
        recorder.record(judged(data, scores=(1 / 3, 0.1)), data)
    graded = nbformat.read(course / "autograded/s001/additive/exercises.ipynb", as_version=4)
    nbformat.validate(graded)
    MetadataValidator().validate_nb(graded)
    marks = {
        each.metadata.nbgrader.grade_id: determine_grade(each)
        for each in graded.cells
        if each.metadata.get("nbgrader", {}).get("grade")
    }
    assert marks == {"additive-softmax-tests": (1 / 3, 3.0), "additive-score-tests": (0.1, 2.0)}


def test_recording_again_changes_no_byte(course):
    data = submission()
    with Recorder(course) as recorder:
        recorder.record(judged(data), data, timestamp=datetime(2026, 10, 1))
    before = files_below(course)
    with Recorder(course) as recorder:
        assert recorder.is_recorded(judged(data))
        assert recorder.is_recorded(judged(data), datetime(2026, 10, 1))
        assert not recorder.is_recorded(judged(data), datetime(2026, 10, 2))
        recorder.record(judged(data), data, timestamp=datetime(2026, 10, 1))
    after = files_below(course)
    assert {name for name in before if before[name] != after[name]} <= {"gradebook.db"}
    assert before.keys() == after.keys()


def test_a_fault_of_the_grader_is_never_a_zero(course, book):
    data = submission()
    with Recorder(course) as recorder:
        recorder.record(judged(data), data)
        done = recorder.record(ungraded(data), data)
        assert not recorder.is_recorded(ungraded(data))
    assert done.score is None
    assert book().find_submission(SLUG, "s001").score == 4.0


@pytest.mark.parametrize("data", [b"", b"not json", b"[1, 2]", b'{"cells": 3}', b"\xff\xfe\x00", b"[" * 100_000])
def test_an_unreadable_notebook_is_recorded_as_zero(course, book, data):
    with Recorder(course) as recorder:
        recorder.record(invalid(data), data)
        assert recorder.is_recorded(invalid(data))
    entry = book().find_submission(SLUG, "s001")
    assert entry.score == 0.0
    assert not entry.needs_manual_grade
    graded = nbformat.read(course / "autograded/s001/additive/exercises.ipynb", as_version=4)
    assert "return 2 * x" not in "".join(each.source for each in graded.cells), "the solution must not leak"
    assert [determine_grade(each)[0] for each in graded.cells if each.metadata.get("nbgrader", {}).get("grade")] == [
        0,
        0,
    ]


def test_a_manual_score_stays_and_asks_for_a_look_only_when_ours_changed(course, book):
    data = submission()
    with Recorder(course) as recorder:
        recorder.record(judged(data), data)
    gradebook = book()
    grade = gradebook.find_grade("additive-score-tests", "exercises", SLUG, "s001")
    grade.manual_score, grade.extra_credit, grade.needs_manual_grade = 1.5, 0.5, False
    gradebook.db.commit()
    with Recorder(course) as recorder:
        recorder.record(judged(data), data)
    gradebook.db.expire_all()
    assert (grade.manual_score, grade.extra_credit, grade.needs_manual_grade) == (1.5, 0.5, False)
    with Recorder(course) as recorder:
        recorder.record(judged(data, scores=(3.0, 2.0)), data)
    gradebook.db.expire_all()
    assert (grade.manual_score, grade.auto_score, grade.needs_manual_grade) == (1.5, 2.0, True)


def test_extra_credit_belongs_to_the_notebook_it_was_given_for(course, book):
    first, second = submission(), submission("return x + x")
    with Recorder(course) as recorder:
        recorder.record(judged(first), first)
    gradebook = book()
    grade = gradebook.find_grade("additive-score-tests", "exercises", SLUG, "s001")
    grade.extra_credit = 0.5
    gradebook.db.commit()
    with Recorder(course) as recorder:
        assert recorder.record(judged(first), first).score == 4.5
        assert recorder.record(judged(second), second).score == 4.0


def test_late_work_pays_what_the_plugin_says(course, book):
    data = submission()
    config = course.parent / "nbgrader_config.py"
    config.write_text(config.read_text() + '\nc.LateSubmissionPlugin.penalty_method = "zero"\n')
    with Recorder(course) as recorder:
        recorder.record(judged(data), data, timestamp=datetime(2026, 10, 1))
    gradebook = book()
    gradebook.update_or_create_assignment(SLUG, duedate=datetime(2026, 9, 30))
    with Recorder(course) as recorder:
        late = recorder.record(judged(data), data, timestamp=datetime(2026, 10, 1))
        page = late.feedback.read_text()
        in_time = recorder.record(judged(data), data, timestamp=datetime(2026, 9, 1))
    assert (late.score, late.penalty) == (0.0, 4.0)
    assert "late" in page
    assert (in_time.score, in_time.penalty) == (4.0, 0.0)


# ------------------------------------------------------------------------- what a student may do to the notebook


def tampered(change):
    notebook = json.loads(submission())
    change(notebook)
    return json.dumps(notebook).encode()


def drop_checks(notebook):
    notebook["cells"] = [each for each in notebook["cells"] if "tests" not in json.dumps(each["metadata"])]


def more_points(notebook):
    for each in notebook["cells"]:
        if "points" in each["metadata"].get("nbgrader", {}):
            each["metadata"]["nbgrader"].update(points=1000, extra="?")


def fake_outputs(notebook):
    for each in notebook["cells"]:
        if each["cell_type"] == "code":
            each["outputs"] = [
                {"output_type": "execute_result", "data": {"text/plain": "3"}, "metadata": {}, "execution_count": 1},
                {"output_type": "display_data", "data": {"text/html": "<script>alert(1)</script>"}, "metadata": {}},
            ]


def twice(notebook):
    notebook["cells"] += [json.loads(json.dumps(each)) for each in notebook["cells"]]


def foreign_cells(notebook):
    notebook["cells"].append({"cell_type": "heading", "metadata": {"nbgrader": {"grade_id": "x", "grade": True}}})
    notebook["cells"].append({"cell_type": "code", "metadata": None, "source": ["a", 3], "outputs": "?"})
    notebook["cells"].append({"cell_type": "markdown", "metadata": {"tags": 3}, "source": "\ud800"})


def check_into_markdown(notebook):
    for each in notebook["cells"]:
        if "tests" in json.dumps(each["metadata"]):
            each.update(cell_type="markdown", source="hello")
            del each["outputs"], each["execution_count"]


def no_metadata(notebook):
    for each in notebook["cells"]:
        each["metadata"] = {}
    notebook["metadata"] = {"kernelspec": {"name": "evil"}}


@pytest.mark.parametrize(
    "change",
    [drop_checks, more_points, fake_outputs, twice, foreign_cells, check_into_markdown, no_metadata],
    ids=lambda change: change.__name__,
)
def test_whatever_happened_to_the_cells_the_copy_is_the_courses(course, book, change):
    data = tampered(change)
    with Recorder(course) as recorder:
        recorder.record(judged(data), data)
    graded = nbformat.read(course / "autograded/s001/additive/exercises.ipynb", as_version=4)
    nbformat.validate(graded)
    MetadataValidator().validate_nb(graded)
    grades = [each for each in graded.cells if each.metadata.get("nbgrader", {}).get("grade")]
    assert [determine_grade(each) for each in grades] == [(3.0, 3.0), (1.0, 2.0)]
    assert graded.metadata.kernelspec.name == "python3"
    assert "alert(1)" not in json.dumps(graded)
    assert [each.source for each in grades] == [
        "assert softmax(2) == 4, 'twice two is four'",
        "assert score(2) == 4, 'twice two is four'",
    ]
    assert book().find_submission(SLUG, "s001").score == 4.0


def test_hostile_words_stay_words(course, book):
    data = submission()
    result = judged(data)
    evil = "<script>alert(1)</script> [x](javascript:y) \x00 \ud800 $$"
    exercise = replace(result.exercises[1], says=evil, message=evil, title=evil)
    with Recorder(course) as recorder:
        done = recorder.record(replace(result, exercises=(result.exercises[0], exercise)), data)
    copy = (course / "autograded/s001/additive/exercises.ipynb").read_text()
    html = "".join(
        output.data["text/html"]
        for each in nbformat.reads(copy, as_version=4).cells
        for output in each.get("outputs", ())
        if "text/html" in output.get("data", {})
    )
    comment = book().find_comment("additive-score", "exercises", SLUG, "s001").comment
    for text in (html, comment, done.feedback.read_text()):
        assert "<script" not in text
    assert "](" not in comment


def test_no_hidden_test_is_named(course):
    data = submission()
    with Recorder(course) as recorder:
        done = recorder.record(judged(data), data)
    assert "secret_name" not in (course / "autograded/s001/additive/exercises.ipynb").read_text()
    assert "secret_name" not in done.feedback.read_text()


def test_an_exercise_without_its_cell_is_refused(course):
    data = submission()
    result = judged(data)
    with Recorder(course) as recorder, pytest.raises(AssignmentError, match="grade it again"):
        recorder.record(replace(result, exercises=result.exercises[:1]), data)
    other = replace(result.exercises[0], id="additive-other")
    with pytest.raises(CellMismatch, match="other"):
        annotate(readable(data), replace(result, exercises=(*result.exercises, other)))


def test_restoring_a_restored_notebook_changes_nothing(course):
    with Recorder(course) as recorder:
        released = recorder.prepare(SLUG)
    for change in (drop_checks, twice, foreign_cells, no_metadata):
        once = restore(readable(tampered(change)), released)
        assert restore(once, released) == once


# ----------------------------------------------------------------------------------------- when something breaks

_KILLED_RUN = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_record import judged, submission
from autograder.grading import record
count = 0
def die(event, arguments):
    global count
    if event in {events!r}:
        count += 1
        if count == {stop}:
            os._exit(9)
data = submission()
with record.Recorder(Path({course!r})) as recorder:
    recorder.prepare("additive")
    sys.addaudithook(die)
    for student in ("s001", "s002"):
        recorder.record(judged(data, student), data)
print(count)
"""
_EVENTS = ("os.rename", "os.remove", "os.mkdir", "open")


def _run(course, stop):
    script = _KILLED_RUN.format(tests=str(Path(__file__).parent), course=str(course), stop=stop, events=_EVENTS)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_kill_at_any_moment_loses_nothing_and_the_next_run_finishes(tmp_path, book):
    course = make_course(tmp_path)
    whole = _run(course, -1)
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout)
    data = submission()
    for stop in range(1, steps + 1, max(1, steps // 6)):
        root = tmp_path / f"killed-{stop}"
        killed = make_course(root)
        assert _run(killed, stop).returncode == 9
        for result in read_results(killed):  # whatever is in the run log is whole
            assert result == judged(data, result.student)
        with Recorder(killed) as recorder:
            for student in ("s001", "s002"):
                result = judged(data, student)
                if not recorder.is_recorded(result):
                    recorder.record(result, data)
                assert recorder.is_recorded(result)
        assert files_below(killed).keys() == files_below(course).keys()


def test_a_failing_step_leaves_the_gradebook_as_it_was(course, book, monkeypatch):
    data = submission()
    with Recorder(course) as recorder:
        recorder.record(judged(data), data)
        monkeypatch.setattr(record, "_words", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            recorder.record(judged(data, "s002"), data)
        with pytest.raises(ZeroDivisionError):
            recorder.record(judged(data, scores=(0.0, 0.0)), data)
        monkeypatch.undo()
        assert [student.id for student in book().students] == ["s001"]
        assert book().find_submission(SLUG, "s001").score == 4.0
        recorder.record(judged(data, "s002"), data)
    assert [student.id for student in book().students] == ["s001", "s002"]


def test_a_locked_gradebook_is_said(course, monkeypatch):
    monkeypatch.setattr(record, "BUSY_SECONDS", 0.1)
    data = submission()
    with Recorder(course) as recorder:
        recorder.record(judged(data), data)
        other = sqlite3.connect(course / "gradebook.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(GradebookError, match="close formgrader"):
            recorder.record(judged(data, "s002"), data)
        other.execute("ROLLBACK")
        other.close()
        assert recorder.record(judged(data, "s002"), data).score == 4.0


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"this is a text, not a database, and rather long" * 40, "move it away")],
)
def test_a_foreign_gradebook_is_said(course, content, words):
    (course / "gradebook.db").write_bytes(content)
    data = submission()
    with Recorder(course) as recorder, pytest.raises(GradebookError, match=words):
        recorder.record(judged(data), data)


def test_a_url_without_its_driver_is_said(course):
    data = submission()
    with Recorder(course, db="mysql://nobody@127.0.0.1:1/none") as recorder, pytest.raises(GradebookError):
        recorder.record(judged(data), data)


def test_a_full_disk_is_said(course, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    data = submission()
    monkeypatch.setattr(record.os, "fsync", full)
    with Recorder(course) as recorder, pytest.raises(RecordError, match="free some space"):
        recorder.record(judged(data), data)
    assert not list((course / ".tmp").iterdir())


def test_only_one_writer(course):
    with Recorder(course), pytest.raises(RecordError, match="wait until"), Recorder(course):
        pass


_WRITER = """
import sys
from pathlib import Path
from autograder.grading.record import Recorder
with Recorder(Path(sys.argv[1]), db=sys.argv[2]):
    print("writing", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_writer(course, url):
    """A process of its own that writes to a course and a gradebook until it is killed."""
    command = [sys.executable, "-c", _WRITER, str(course), url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout.readline() == "writing\n"
            yield
        finally:
            writer.kill()


def test_only_one_writer_of_a_gradebook_that_two_courses_share(course, tmp_path):
    database = tmp_path / "shared.db"
    (tmp_path / "called").symlink_to(database)
    with another_writer(tmp_path / "other" / "course", f"sqlite:///{database}"):
        for name in ("shared.db", "called", "course/../shared.db"):
            with (
                pytest.raises(GradebookError, match=f"is writing grades to .*{Path(name).name}; wait until"),
                Recorder(course, db=f"sqlite:///{tmp_path / name}?timeout=1"),
            ):
                pass
        with Recorder(course, db=f"sqlite:///{tmp_path / 'my-own.db'}"):
            pass
    data = submission()
    with Recorder(course, db=f"sqlite:///{database}") as recorder:  # a lock dies with its process
        assert recorder.record(judged(data), data).score == 4.0


def test_a_gradebook_in_a_folder_that_is_not_there_is_said(course, tmp_path):
    with (
        pytest.raises(GradebookError, match="check that its folder exists"),
        Recorder(course, db=f"sqlite:///{tmp_path}/none/x.db"),
    ):
        pass


def test_a_missing_source_notebook_is_said(course):
    shutil.rmtree(course / "source")
    data = submission()
    with Recorder(course) as recorder, pytest.raises(AssignmentError, match="attn build additive"):
        recorder.record(judged(data), data)


def test_changed_points_are_taken_over_and_changed_exercises_are_not(course, book):
    data = submission()
    with Recorder(course) as recorder:
        recorder.record(judged(data), data)
    make_course(course.parent, {"softmax": 6.0, "score": 2.0})
    with Recorder(course) as recorder:
        recorder.prepare(SLUG)
    assert book().find_assignment(SLUG).max_score == 8.0
    make_course(course.parent, {"softmax": 3.0})
    with Recorder(course) as recorder, pytest.raises(AssignmentError, match="changed since"):
        recorder.prepare(SLUG)


def test_a_damaged_result_is_named_or_collected(course):
    data = submission()
    write_result(course, judged(data))
    result_path(course, SLUG, "s000").write_text('{"schema": 1}')
    with pytest.raises(RecordError, match="grade again"):
        list(read_results(course))
    problems = []
    assert [result.student for result in read_results(course, problems=problems)] == ["s001"]
    assert len(problems) == 1


def test_the_bytes_must_be_those_that_were_graded(course):
    with Recorder(course) as recorder, pytest.raises(ValueError, match="not the bytes"):
        recorder.record(judged(b"one"), b"another")


def test_recording_does_not_grow_with_the_class(course):
    """Two hundred students leave no more objects in the session than one."""
    data = submission()
    with Recorder(course) as recorder:
        for number in range(40):
            recorder.record(judged(data, f"s{number:03}"), data)
            assert len(recorder.gradebook.db.identity_map) == 0


# ---------------------------------------------------------------------------------------------------- PostgreSQL


@pytest.fixture
def postgres():
    """A PostgreSQL server of our own on a socket in a new folder, or a skip that says what is missing."""
    programs = postgres_programs()
    if None in programs:
        pytest.skip("PostgreSQL not tested: its programs initdb and pg_ctl are not installed")
    with postgres_server(*programs) as url:
        yield url


@pytest.mark.slow
def test_postgresql_by_url(course, postgres, monkeypatch):
    data = submission()
    with Recorder(course, db=postgres) as recorder:
        assert recorder.record(judged(data), data, timestamp=datetime(2026, 10, 1)).score == 4.0
        assert recorder.record(judged(data, scores=(3.0, 2.0)), data).score == 5.0
        recorder.record(judged(b"", "s002"), b"")
        assert recorder.is_recorded(judged(b"", "s002"))
        nothing = replace(judged(data).exercises[1], says="a null \x00 and half a character \ud800")
        odd = replace(judged(data, "s003"), exercises=(judged(data).exercises[0], nothing))
        recorder.record(odd, data)
    assert not (course / "gradebook.db").exists()
    with Gradebook(postgres, "attention-in-depth") as gradebook:
        assert gradebook.find_submission(SLUG, "s001").score == 5.0
        assert {student.id for student in gradebook.students} == {"s001", "s002", "s003"}
    monkeypatch.setenv("ATTN_DB", postgres)  # the same by the environment
    with Recorder(course) as recorder:
        assert recorder.is_recorded(odd)
        assert not recorder.is_recorded(judged(data))


@pytest.mark.slow
def test_only_one_writer_of_a_postgresql_database(course, postgres, tmp_path):
    with (
        another_writer(tmp_path / "other" / "course", postgres),
        pytest.raises(GradebookError, match=r"is writing grades to postgresql.*; wait until"),
        Recorder(course, db=postgres),
    ):
        pass
    deadline = time.monotonic() + 30
    while True:  # the server sees soon that the other is dead
        try:
            with Recorder(course, db=postgres) as recorder:
                assert recorder.due(SLUG) is None
            break
        except GradebookError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_server_that_does_not_answer_is_said(course):
    with (
        pytest.raises(GradebookError, match="database server runs") as refused,
        Recorder(course, db="postgresql+psycopg://nobody:password@127.0.0.1:1/none"),
    ):
        pass
    assert "password" not in str(refused.value)
