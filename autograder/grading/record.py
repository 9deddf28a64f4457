"""The one writer: what the grader found goes to disk, and into nbgrader's gradebook through nbgrader's own API.

For each submission, in this order, so that a run may be killed anywhere and the next one finishes the rest:

1. ``course/submitted/<student>/<slug>/``: the notebook as handed in, with its ``timestamp.txt``;
2. ``course/results/<slug>/<student>.json``: the whole result, written beside, synced and renamed;
3. the gradebook: student, submission, grades, comments and late penalty in one transaction;
4. ``course/feedback/<student>/<slug>/feedback.html``;
5. ``course/autograded/<student>/<slug>/``: the notebook with our outputs, stamped with the result it shows.

``Recorder.is_recorded`` compares the stamp and the gradebook with the result, so a run that died between two of
these steps is noticed. Files are replaced, never edited, and nothing grows with the size of the class.

Errors::

    RecordError             the record could not be written; ``remedy`` says what to do
     ├─ GradebookError      the database refused: locked, full, foreign or out of date
     └─ AssignmentError     the assignment is not in the course, or has changed since it was handed in
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from autograder import CourseError
from autograder.grading.collect import Problem, Roster
from autograder.grading.lock import TakenError, file_lock, gradebook_lock
from autograder.grading.result import SubmissionResult
from autograder.reporting.feedback import exercise_comment, feedback_page, inert
from autograder.reporting.graded import (
    STAMP,
    CellMismatch,
    Released,
    Unreadable,
    annotate,
    dump,
    json_lines,
    readable,
    released,
    restore,
    stamp,
)

if TYPE_CHECKING:
    from nbgrader.api import Gradebook, SubmittedAssignment, SubmittedNotebook
    from traitlets.config import Config

__all__ = [
    "AssignmentError",
    "GradebookError",
    "RecordError",
    "Recorded",
    "Recorder",
    "annotate",
    "database_url",
    "one_writer",
    "open_gradebook",
    "read_problems",
    "read_result",
    "read_results",
    "released_assignment",
    "result_path",
    "write_feedback",
    "write_problems",
    "write_report",
    "write_result",
    "write_source",
    "writing",
]

COURSE_ID = "attention-in-depth"
NOTEBOOK = "exercises"
"""The one notebook of every assignment."""
BUSY_SECONDS = 30
"""How long SQLite waits for another program, formgrader say, to finish its write."""
DATABASE_VARIABLE = "ATTN_DB"


class RecordError(CourseError):
    """The record could not be written; nothing of this submission is half in the gradebook."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.message = message
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.remedy)


class GradebookError(RecordError):
    """The gradebook's database refused."""


class AssignmentError(RecordError):
    """The assignment is not in the course, or is another one than was graded."""


@dataclass(frozen=True)
class Recorded:
    """What is in the gradebook now: manual scores and the late penalty are counted in ``score``."""

    student: str
    slug: str
    score: float | None
    penalty: float
    feedback: Path | None
    """None where the submission is not graded."""


# ------------------------------------------------------------------------------------------- the run log on disk


def result_path(course: Path, slug: str, student: str) -> Path:
    """Where the result of one submission lies."""
    return course / "results" / slug / f"{student}.json"


def write_result(course: Path, result: SubmissionResult) -> Path:
    """Writes one result to the run log: whole or not at all, and on the disk when this returns."""
    path = result_path(course, result.assignment, result.student)
    with writing(path):
        _replace(path, json_lines(result.as_json()).encode("utf-8", "replace"), course, sync=True)
    return path


def write_source(course: Path, slug: str, data: bytes) -> None:
    """Writes the instructor's notebook of an assignment to ``course/source``, whole or not at all."""
    path = course / "source" / slug / f"{NOTEBOOK}.ipynb"
    with writing(path):
        _replace_if_new(path, data, course)


def write_feedback(course: Path, result: SubmissionResult, *, name: str | None = None, penalty: float = 0.0) -> Path:
    """Writes the page that the student reads, and removes nbgrader's page of an earlier grading."""
    path = course / "feedback" / result.student / result.assignment / "feedback.html"
    with writing(path):
        _replace(path, feedback_page(result, name=name or None, penalty=penalty).encode("utf-8", "replace"), course)
        path.with_name(f"{NOTEBOOK}.html").unlink(missing_ok=True)
    return path


def write_report(course: Path, name: str, data: bytes) -> Path:
    """Writes one file below ``course/report``, whole or not at all."""
    path = course / "report" / name
    with writing(path):
        _replace_if_new(path, data, course)
    return path


def write_problems(course: Path, problems: Sequence[Problem]) -> None:
    """Keeps what the latest run could not use, for the class report."""
    path = course / "results" / "problems.json"
    with writing(path):
        _replace_if_new(path, (json.dumps([asdict(each) for each in problems], indent=1) + "\n").encode(), course)


def read_problems(course: Path) -> list[Problem]:
    """What the latest run could not use; nothing where that is not known."""
    try:
        return [Problem(**each) for each in json.loads((course / "results" / "problems.json").read_bytes())]
    except (OSError, ValueError, TypeError):
        return []


def read_result(path: Path) -> SubmissionResult:
    """Reads one result back.

    Raises:
        RecordError: it is not there, damaged, or of another schema.
    """
    try:
        return SubmissionResult.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(f"{path}: the result cannot be read ({error})", "delete it and grade again") from error


def read_results(
    course: Path, slug: str | None = None, problems: list[RecordError] | None = None
) -> Iterator[SubmissionResult]:
    """The results on disk one by one, in the order of (slug, student).

    A damaged one is added to ``problems`` if that is given, and raises otherwise.
    """
    folders = [course / "results" / slug] if slug else sorted((course / "results").glob("*/"))
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            try:
                yield read_result(path)
            except RecordError as error:
                if problems is None:
                    raise
                problems.append(error)


# --------------------------------------------------------------------------------------------------- the writer


def database_url(course: Path, db: str | None = None) -> str:
    """The gradebook's URL: the one given, else ``ATTN_DB``, else ``gradebook.db`` in the course's folder."""
    return db or os.environ.get(DATABASE_VARIABLE) or f"sqlite:///{(course / 'gradebook.db').resolve()}"


@contextmanager
def one_writer(course: Path, url: str) -> Iterator[None]:
    """Keep other processes from writing to a course and to its gradebook meanwhile.

    Args:
        course: the course's folder.
        url: URL of the gradebook.

    Raises:
        RecordError: somebody writes there, or the lock cannot be had; the message says where, and what to do.
    """
    from sqlalchemy.exc import SQLAlchemyError

    wait = "wait until it has finished, then run this again"
    with ExitStack() as locks:
        with writing(course):
            course.mkdir(parents=True, exist_ok=True)
            try:
                locks.enter_context(file_lock(course / ".lock"))
            except TakenError as error:
                raise RecordError(f"another run is writing to {course.name}/", wait) from error
        try:
            locks.enter_context(gradebook_lock(url))
        except TakenError as error:
            raise GradebookError(f"another program is writing grades to {_database(url)}", wait) from error
        except (SQLAlchemyError, OSError, ImportError) as error:
            raise _gradebook_error(error, url) from error
        yield


class Recorder:
    """Writes results, one after the other; only one per course, and only one per gradebook, may be open.

    Use it as a context manager::

        with Recorder(root / "course") as recorder:
            recorder.record(result, data, timestamp=submission.timestamp)

    Args:
        course: the folder with ``source/``, ``submitted/`` and so on.
        db: URL of the gradebook (see ``database_url``).
        config: nbgrader's configuration, which names the late-submission plugin; by default
            ``nbgrader_config.py`` beside ``course``.
        roster: gives students their names in the gradebook.
    """

    def __init__(
        self, course: Path, *, db: str | None = None, config: Path | None = None, roster: Roster | None = None
    ) -> None:
        self.course = course.resolve()
        self.url = database_url(self.course, db)
        self.config = config or self.course.parent / "nbgrader_config.py"
        self.roster = roster or Roster()
        self._gradebook: Gradebook | None = None
        self._assignments: dict[str, Released] = {}
        self._late: Any = None
        self._locks = ExitStack()

    def __enter__(self) -> Self:
        self._locks.enter_context(one_writer(self.course, self.url))
        _sweep(self.course / ".tmp")
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the gradebook and lets other runs write."""
        if self._gradebook is not None:
            self._gradebook.close()
            self._gradebook = None
        self._locks.close()

    def prepare(self, slug: str) -> Released:
        """Makes sure that the gradebook knows the assignment with all of its cells, as its source notebook has them.

        Raises:
            AssignmentError: there is no source notebook, or it lost or won cells after the first submission.
        """
        if slug not in self._assignments:
            course = released_assignment(self.course, slug, load_config(self.config))
            with self._explained():
                if not self._knows(slug, course):
                    self._save_cells(slug, course)
            self._assignments[slug] = course
        return self._assignments[slug]

    def record(self, result: SubmissionResult, data: bytes, timestamp: datetime | None = None) -> Recorded:
        """Records one result; doing it again changes nothing.

        A result that is not graded (``infrastructure``) goes to the run log only: it is never a zero.

        Args:
            result: what the grader found.
            data: the notebook as handed in.
            timestamp: when it was handed in (UTC without zone); decides the late penalty.

        Raises:
            RecordError: see the top of this module; the run log may be ahead of the gradebook then, never behind.
        """
        if hashlib.sha256(data).hexdigest() != result.notebook_sha256:
            raise ValueError(f"{result.student}/{result.assignment}: these are not the bytes that were graded")
        place = Path(result.student) / result.assignment
        self._write_notebook(self.course / "submitted" / place, data, timestamp)
        write_result(self.course, result)
        if result.status != "graded":
            return Recorded(result.student, result.assignment, None, 0.0, None)
        course = self.prepare(result.assignment)
        graded = self._graded_copy(course, result, data)
        with self._explained(), self._transaction():
            score, penalty = self._enter_grades(course, result, timestamp)
        entry = self.roster.by_student.get(result.student)
        feedback = write_feedback(self.course, result, name=entry.name if entry else None, penalty=penalty)
        self._write_notebook(self.course / "autograded" / place, dump(graded), timestamp)
        return Recorded(result.student, result.assignment, score, penalty, feedback)

    def is_recorded(self, result: SubmissionResult, timestamp: datetime | None = None) -> bool:
        """Whether the gradebook and the graded copy show exactly this result.

        Args:
            result: what the grader found.
            timestamp: if given, the recorded time of submission must be this one too.
        """
        if result.status != "graded":
            return False
        if self._stamp_of(result) != stamp(result):
            return False
        with self._explained():
            if timestamp is not None and self._time_of(result) != timestamp:
                return False
            if not self._penalty_stands(result):
                return False
            scores = self._scores(result.assignment, result.student)
        expected = {f"{exercise.id}-tests": exercise.score for exercise in result.exercises}
        if result.outcome == "invalid_notebook":
            return bool(scores) and all(score is not None for score in scores.values())
        return all(scores.get(cell) == score for cell, score in expected.items())

    def due(self, slug: str) -> datetime | None:
        """The assignment's deadline (UTC without zone); None where it has none, or is not in the gradebook yet."""
        from nbgrader.api import Assignment
        from sqlalchemy import select

        with self._explained():
            found: datetime | None = self.gradebook.db.execute(
                select(Assignment.duedate).where(Assignment.name == slug)
            ).scalar()
            self.gradebook.db.rollback()
        return found

    # ------------------------------------------------------------------------------------------------- files

    def _write_notebook(self, folder: Path, data: bytes, timestamp: datetime | None) -> None:
        """A notebook with its time; a file that is the same already is left alone."""
        notebook, stamped = folder / f"{NOTEBOOK}.ipynb", folder / "timestamp.txt"
        with writing(folder):
            _replace_if_new(notebook, data, self.course)
            if timestamp is None:
                stamped.unlink(missing_ok=True)
            else:
                _replace_if_new(stamped, f"{timestamp:%Y-%m-%d %H:%M:%S.%f} UTC\n".encode(), self.course)

    def _graded_copy(self, course: Released, result: SubmissionResult, data: bytes) -> Any:
        try:
            notebook = readable(data) if result.outcome != "invalid_notebook" else None
        except Unreadable:
            notebook = None
        try:
            return annotate(restore(notebook, course), result)
        except CellMismatch as error:
            message = f"{result.assignment}: {error}"
            raise AssignmentError(message, "the assignment was rebuilt since: grade it again") from error

    def _stamp_of(self, result: SubmissionResult) -> dict[str, str] | None:
        path = self.course / "autograded" / result.student / result.assignment / f"{NOTEBOOK}.ipynb"
        try:
            found = json.loads(path.read_bytes())["metadata"][STAMP]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, dict) else None

    # --------------------------------------------------------------------------------------------- gradebook

    @property
    def gradebook(self) -> Gradebook:
        """nbgrader's gradebook, opened when first needed (its import takes seconds)."""
        if self._gradebook is None:
            self._gradebook = open_gradebook(self.url)
        return self._gradebook

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what the database says into what a person can do about it."""
        from nbgrader.api import InvalidEntry, MissingEntry
        from sqlalchemy.exc import SQLAlchemyError

        log = logging.getLogger("tornado.application")
        loud, log.disabled = log.disabled, True  # nbgrader prints there, at length, what we say in a sentence
        try:
            yield
        except (SQLAlchemyError, InvalidEntry, MissingEntry, OSError, ImportError) as error:
            if self._gradebook is not None:
                with suppress(SQLAlchemyError):
                    self._gradebook.db.rollback()
            raise _gradebook_error(error, self.url) from error
        finally:
            log.disabled = loud

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Everything inside lands in the gradebook at once, or not at all.

        nbgrader's methods commit after each small step; while this is open their commits are flushes.
        """
        session = self.gradebook.db
        session.commit = session.flush
        try:
            yield
            del session.commit
            session.commit()
        except BaseException:
            session.__dict__.pop("commit", None)
            session.rollback()
            raise
        finally:
            session.expunge_all()

    def _knows(self, slug: str, course: Released) -> bool:
        """Whether the gradebook's cells are those of the source notebook, with the same points."""
        from nbgrader.api import Assignment, GradeCell, Notebook, SourceCell
        from sqlalchemy import select

        def of_this(query: Any) -> Any:
            return query.where(Assignment.name == slug, Notebook.name == NOTEBOOK)

        session = self.gradebook.db
        sources = select(SourceCell.name, SourceCell.checksum).join(Notebook, Notebook.id == SourceCell.notebook_id)
        points = select(GradeCell.name, GradeCell.max_score).join(Notebook, Notebook.id == GradeCell.notebook_id)
        checksums = dict(
            session.execute(of_this(sources.join(Assignment, Assignment.id == Notebook.assignment_id))).all()
        )
        scores = dict(session.execute(of_this(points.join(Assignment, Assignment.id == Notebook.assignment_id))).all())
        session.rollback()
        expected = {name: cell.metadata["nbgrader"].get("checksum") for name, cell in course.cells.items()}
        return checksums == expected and course.checks.items() <= scores.items()

    def _save_cells(self, slug: str, course: Released) -> None:
        """What ``nbgrader generate_assignment`` writes into the gradebook, by the same step of nbgrader."""
        from nbgrader.preprocessors import SaveCells

        with self._transaction():
            self.gradebook.update_or_create_assignment(slug)
        resources = {"nbgrader": {"notebook": NOTEBOOK, "assignment": slug, "db_url": self.url}}
        try:
            SaveCells().preprocess(course.notebook, resources)
        except RuntimeError as error:
            message = f"{slug}: its exercises have changed since the first submission was recorded"
            remedy = f"keep this gradebook as it is and use another (--db), or drop the old grades of {slug} from it"
            raise AssignmentError(message, remedy) from error

    def _enter_grades(
        self, course: Released, result: SubmissionResult, timestamp: datetime | None
    ) -> tuple[float, float]:
        """All rows of one submission; returns the gradebook's score after the penalty, and the penalty."""
        score = self._enter_first(course, result, timestamp)
        if score is not None:
            return score, 0.0
        book = self.gradebook
        book.update_or_create_student(result.student, **self._names(result.student))
        with book.db.no_autoflush:  # nbgrader builds the submission while it queries
            submission = book.update_or_create_submission(result.assignment, result.student, timestamp=timestamp)
        notebook = book.find_submission_notebook(NOTEBOOK, result.assignment, result.student)
        before = self._stamp_of(result)
        again = before is not None and before.get("notebook") == result.notebook_sha256
        self._enter_scores(notebook, course, result, keep_extra_credit=again)
        self._enter_comments(notebook, result)
        book.db.flush()
        book.db.refresh(notebook, ["score"])
        penalty = self._penalty(submission, notebook)
        notebook.late_submission_penalty = penalty
        return max(0.0, float(notebook.score) - (penalty or 0.0)), penalty or 0.0

    def _enter_first(self, course: Released, result: SubmissionResult, timestamp: datetime | None) -> float | None:
        """The rows of a student's first submission, and its score; None, and no row, for a later one or late work.

        They are what nbgrader's ``add_submission`` makes of objects, with grades and comments filled in. Most
        submissions are of this kind, and to write their rows as such takes a quarter of the time.
        """
        from nbgrader import api
        from sqlalchemy import insert, select

        # Tables and their connection, past what a session does around each statement, which costs as much as that.
        connection = self.gradebook.db.connection()
        assignments, notebooks, cells = (each.__table__ for each in (api.Assignment, api.Notebook, api.BaseCell))
        found = connection.execute(
            select(assignments.c.id, assignments.c.duedate, notebooks.c.id.label("notebook"), notebooks.c.name)
            .join(notebooks, notebooks.c.assignment_id == assignments.c.id)
            .where(assignments.c.name == result.assignment)
        ).all()
        if [each.name for each in found] != [NOTEBOOK]:  # somebody added one with nbgrader, which knows what to do
            return None
        (assignment,) = found
        submissions = api.SubmittedAssignment.__table__
        of_student = select(submissions.c.id).where(
            submissions.c.assignment_id == assignment.id, submissions.c.student_id == result.student
        )
        late = assignment.duedate is not None and timestamp is not None and timestamp > assignment.duedate
        if late or connection.execute(of_student).first() is not None:
            return None
        self._enter_student(result.student)

        def row(of: Any, **values: Any) -> str:
            made: str = connection.execute(insert(of.__table__), values).inserted_primary_key[0]
            return made

        submission = row(
            api.SubmittedAssignment, assignment_id=assignment.id, student_id=result.student, timestamp=timestamp
        )
        notebook = row(api.SubmittedNotebook, assignment_id=submission, notebook_id=assignment.notebook)
        scores = {f"{exercise.id}-tests": float(exercise.score) for exercise in result.exercises}
        words, fallback = _words(result)
        grades, comments = [], []
        of_notebook = select(cells.c.id, cells.c.name, cells.c.type).where(cells.c.notebook_id == assignment.notebook)
        for cell in connection.execute(of_notebook):
            place = {"notebook_id": notebook, "cell_id": cell.id}
            if cell.type in ("GradeCell", "TaskCell"):
                points = course.checks.get(cell.name) if cell.type == "GradeCell" else None
                score = None if points is None else min(scores.get(cell.name, 0.0), points)
                grades.append({**place, "auto_score": score, "needs_manual_grade": points is None})
            if cell.type in ("SolutionCell", "TaskCell"):
                comments.append({**place, "auto_comment": words.get(cell.name, fallback)})
        for table, rows in ((api.Grade.__table__, grades), (api.Comment.__table__, comments)):
            if rows:
                connection.execute(insert(table), rows)
        return float(sum(grade["auto_score"] or 0.0 for grade in grades))

    def _enter_student(self, student: str) -> None:
        """The student's row, made or with the names that the roster gives."""
        from nbgrader.api import Student
        from sqlalchemy import insert, select, update

        connection, table, names = self.gradebook.db.connection(), Student.__table__, self._names(student)
        if connection.execute(select(table.c.id).where(table.c.id == student)).first() is None:
            connection.execute(insert(table), {"id": student, **names})
        elif names:
            connection.execute(update(table).where(table.c.id == student).values(**names))

    def _enter_scores(
        self, notebook: SubmittedNotebook, course: Released, result: SubmissionResult, keep_extra_credit: bool
    ) -> None:
        """Automatic scores. A manual score stays, and asks for another look when the automatic one changed."""
        from nbgrader.api import Grade

        session = self.gradebook.db
        cells = self._cells(notebook.notebook_id, "GradeCell")
        grades = {grade.cell_id: grade for grade in session.query(Grade).filter(Grade.notebook_id == notebook.id)}
        scores = {f"{exercise.id}-tests": float(exercise.score) for exercise in result.exercises}
        for name, points in course.checks.items():
            grade = grades.get(cells[name])
            if grade is None:  # the exercise is younger than the submission
                grade = Grade(cell_id=cells[name], notebook_id=notebook.id)
                session.add(grade)
            score = min(scores.get(name, 0.0), points)
            changed = grade.auto_score != score
            grade.auto_score = score
            if grade.manual_score is None:
                grade.needs_manual_grade = False
                if not keep_extra_credit:
                    grade.extra_credit = None
            elif changed:
                grade.needs_manual_grade = True

    def _enter_comments(self, notebook: SubmittedNotebook, result: SubmissionResult) -> None:
        """The course's words on each answer; a comment that a person wrote takes precedence in nbgrader anyway."""
        from nbgrader.api import Comment

        names = {cell: name for name, cell in self._cells(notebook.notebook_id, "SolutionCell").items()}
        words, fallback = _words(result)
        for comment in self.gradebook.db.query(Comment).filter(Comment.notebook_id == notebook.id):
            comment.auto_comment = words.get(names.get(comment.cell_id, ""), fallback)

    def _cells(self, notebook_id: str, kind: str) -> dict[str, str]:
        """The ids of an assignment's cells of one kind in the gradebook, by name."""
        from nbgrader.api import BaseCell
        from sqlalchemy import select

        table = BaseCell.__table__
        of_notebook = select(table.c.name, table.c.id).where(table.c.notebook_id == notebook_id, table.c.type == kind)
        return {row.name: row.id for row in self.gradebook.db.execute(of_notebook)}

    def _scores(self, slug: str, student: str) -> dict[str, float | None]:
        """The automatic scores in the gradebook, by check cell."""
        from nbgrader.api import Assignment, BaseCell, Grade, SubmittedAssignment, SubmittedNotebook
        from sqlalchemy import select

        cells = BaseCell.__table__
        rows = self.gradebook.db.execute(
            select(cells.c.name, Grade.auto_score)
            .join(Grade, Grade.cell_id == cells.c.id)
            .join(SubmittedNotebook, SubmittedNotebook.id == Grade.notebook_id)
            .join(SubmittedAssignment, SubmittedAssignment.id == SubmittedNotebook.assignment_id)
            .join(Assignment, Assignment.id == SubmittedAssignment.assignment_id)
            .where(Assignment.name == slug, SubmittedAssignment.student_id == student)
        ).all()
        self.gradebook.db.rollback()
        return {row.name: row.auto_score for row in rows}

    def _time_of(self, result: SubmissionResult) -> datetime | None:
        from nbgrader.api import Assignment, SubmittedAssignment
        from sqlalchemy import select

        query = (
            select(SubmittedAssignment.timestamp)
            .join(Assignment, Assignment.id == SubmittedAssignment.assignment_id)
            .where(Assignment.name == result.assignment, SubmittedAssignment.student_id == result.student)
        )
        found: datetime | None = self.gradebook.db.execute(query).scalar()
        self.gradebook.db.rollback()
        return found

    def _penalty_stands(self, result: SubmissionResult) -> bool:
        """Whether the penalty in the gradebook is what deadline, extension and plugin say today."""
        from nbgrader.api import Assignment, SubmittedAssignment, SubmittedNotebook
        from sqlalchemy import select

        session = self.gradebook.db
        query = (
            select(Assignment.duedate, SubmittedNotebook.late_submission_penalty)
            .join(SubmittedAssignment, SubmittedAssignment.assignment_id == Assignment.id)
            .join(SubmittedNotebook, SubmittedNotebook.assignment_id == SubmittedAssignment.id)
            .where(Assignment.name == result.assignment, SubmittedAssignment.student_id == result.student)
        )
        row = session.execute(query).first()
        try:
            if row is None or (row.duedate is None and row.late_submission_penalty is None):
                return row is not None
            submission = self.gradebook.find_submission(result.assignment, result.student)
            return self._penalty(submission, submission.notebooks[0]) == row.late_submission_penalty
        finally:
            session.rollback()

    def _penalty(self, submission: SubmittedAssignment, notebook: SubmittedNotebook) -> float | None:
        """What the course's late plugin takes off, within what there is to take."""
        if submission.assignment.duedate is None or not submission.total_seconds_late:
            return None
        if self._late is None:
            self._late = _late_penalties(load_config(self.config))
        try:
            penalty = self._late.plugin_inst.late_submission_penalty(
                submission.student.id, notebook.score, submission.total_seconds_late
            )
        except Exception as error:  # a plugin is the instructor's own code
            message = f"the late-submission plugin raised {type(error).__name__}: {error}"
            raise RecordError(message, f"correct it, or take it out of {self.config.name}") from error
        return None if penalty is None else float(self._late._check_late_penalty(notebook, penalty))

    def _names(self, student: str) -> dict[str, str]:
        entry = self.roster.by_student.get(student)
        if entry is None:
            return {}
        first, _, last = entry.name.rpartition(" ")
        names = {"first_name": first, "last_name": last, "email": entry.email}
        return {key: value for key, value in names.items() if value}


def _words(result: SubmissionResult) -> tuple[dict[str, str | None], str | None]:
    """The comment on each exercise, and the one for every other answer."""
    words = {exercise.id: exercise_comment(exercise) for exercise in result.exercises}
    return words, inert(result.message) if result.outcome == "invalid_notebook" else None


def load_config(path: Path) -> Config:
    """nbgrader's configuration of this course; empty where there is none."""
    from traitlets.config import Config
    from traitlets.config.loader import PyFileConfigLoader

    if not path.is_file():
        return Config()
    config: Config = PyFileConfigLoader(path.name, str(path.parent)).load_config()
    return config


def released_assignment(course: Path, slug: str, config: Config) -> Released:
    """The assignment as students get it, made from ``course/source`` the way the configuration says.

    Raises:
        AssignmentError: the source notebook is missing or cannot be used.
    """
    path = course / "source" / slug / f"{NOTEBOOK}.ipynb"
    try:
        return released(readable(path.read_bytes()), config)
    except OSError as error:
        message = f"{slug}: there is no course/source/{slug}/{NOTEBOOK}.ipynb"
        raise AssignmentError(message, f"make it with: attn build {slug}") from error
    except Exception as error:  # nbgrader raises of many kinds about markers and metadata
        message = f"{slug}: its source notebook cannot be used ({error})"
        raise AssignmentError(message, f"make it again with: attn build {slug}") from error


def _late_penalties(config: Config) -> Any:
    """nbgrader's step for late submissions with the plugin that the course configured."""
    from nbgrader.preprocessors import AssignLatePenalties

    penalties = AssignLatePenalties(config=config)
    penalties.init_plugin()
    return penalties


# ----------------------------------------------------------------------------------------------------- database

_INDEXES = (
    ("grade", "notebook_id"),
    ("comment", "notebook_id"),
    ("submitted_notebook", "assignment_id"),
    ("submitted_assignment", "student_id"),
)
"""nbgrader sums grades by these columns and indexes none of them; in a large class every page would scan all rows."""


def open_gradebook(url: str) -> Gradebook:
    """nbgrader's gradebook at this URL, made if it is not there, patient with other writers.

    Raises:
        GradebookError: the database refused.
    """
    from nbgrader.api import Gradebook
    from sqlalchemy.exc import SQLAlchemyError

    if url.startswith("sqlite:///") and "timeout=" not in url:
        url += ("&" if "?" in url else "?") + f"timeout={BUSY_SECONDS}"
    try:
        _make_tables(url)
        return Gradebook(url, COURSE_ID)
    except (SQLAlchemyError, ImportError) as error:
        raise _gradebook_error(error, url) from error


def _make_tables(url: str) -> None:
    """Makes nbgrader's tables in an empty database, all or none, and our indexes in any.

    ``Gradebook`` would make the tables too, but one by one, and then start a program to learn its own version.
    """
    from alembic.script import ScriptDirectory
    from nbgrader.api import Base
    from nbgrader.dbutil import ALEMBIC_DIR
    from sqlalchemy import create_engine, inspect, text

    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # Python's driver leaves tables out of transactions
            if not inspect(connection).get_table_names():
                Base.metadata.create_all(connection)
                version = ScriptDirectory(ALEMBIC_DIR).get_current_head()
                connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
                connection.execute(text("INSERT INTO alembic_version VALUES (:version)"), {"version": version})
            for table, column in _INDEXES:
                connection.execute(text(f"CREATE INDEX IF NOT EXISTS attn_{table}_{column} ON {table} ({column})"))
            connection.commit()
    finally:
        engine.dispose()


def _gradebook_error(error: Exception, url: str) -> RecordError:
    """Which database said what, and what to do."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    causes = {
        "locked": "close formgrader and other nbgrader programs, then run this again: nothing is lost",
        "full": "free some space on the disk, then run this again: nothing is lost",
        "readonly": "make the gradebook and its folder writable",
        "no such column": "it was made by an older nbgrader: back it up, then run: nbgrader db upgrade",
        "not a database": "the file is something else: move it away, or name another with --db",
        "unable to open": "check that its folder exists and is writable",
        "[errno 2]": "check that its folder exists and is writable",
        "[errno 13]": "check that its folder exists and is writable",
        "no space left": "free some space on the disk, then run this again: nothing is lost",
        "connection": "check that the database server runs and that --db or ATTN_DB names it",
    }
    remedy = next((words for sign, words in causes.items() if sign in text.lower()), "see the message above")
    if isinstance(error, ModuleNotFoundError):
        remedy = "install the driver that the URL asks for"
    return GradebookError(f"the gradebook {_database(url)} refused ({text[:300]})", remedy)


def _database(url: str) -> str:
    """What to call a gradebook, without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        address = make_url(url)
    except ArgumentError:
        return "of this URL"
    return (address.database or url) if address.drivername == "sqlite" else address.render_as_string()


# -------------------------------------------------------------------------------------------------------- files


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a disk that refuses into a sentence that names the file.

    Raises:
        RecordError: in place of any OSError.
    """
    try:
        yield
    except OSError as error:
        again = "then run this again: nothing is lost"
        remedies = {
            errno.ENOSPC: f"free some space on the disk, {again}",
            errno.EDQUOT: f"free some of your quota, {again}",
            errno.EFBIG: f"allow larger files (ulimit -f), {again}",
            errno.EROFS: "the file system is read-only: give the course a place that is not",
            errno.EISDIR: f"a folder lies where a file is meant: move it away, {again}",
            errno.ENOTDIR: f"a file lies where a folder is meant: move it away, {again}",
            errno.EEXIST: f"something else lies there: move it away, {again}",
        }
        remedy = remedies.get(error.errno or 0, f"check who may write there, {again}")
        place = path if error.filename is None or ".tmp" in str(error.filename) else error.filename
        raise RecordError(f"{place} could not be written ({error.strerror or error})", remedy) from error


def _sweep(scratch: Path) -> None:
    """Removes what a run that was killed left half written."""
    with suppress(OSError):
        for leftover in scratch.iterdir():
            writer = leftover.name.partition("-")[0]
            if not Path("/proc", writer).exists():
                leftover.unlink()


def _replace_if_new(path: Path, data: bytes, course: Path) -> None:
    with suppress(OSError):
        if not path.is_symlink() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    _replace(path, data, course)


def _replace(path: Path, data: bytes, course: Path, sync: bool = False) -> None:
    """Writes beside and renames, so that a reader sees the old file or the new one, never a half.

    What is half written lies in ``course/.tmp``: nbgrader copies every stray file beside a notebook.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = course / ".tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    half = scratch / f"{os.getpid()}-{path.name}"
    try:
        with half.open("wb") as stream:
            stream.write(data)
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    if sync:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
