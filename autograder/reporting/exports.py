"""Grades in the forms that other systems read: CSV, Canvas, Moodle, Gradescope, and feedback to hand back.

Scores come from the gradebook, with what a person changed there and with late penalties; outcomes and mistakes come
from the run log. A submission that is not graded is left empty everywhere: an empty cell changes no grade in an LMS.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autograder.grading.collect import Roster
from autograder.grading.record import database_url, open_gradebook, read_results, write_report
from autograder.grading.result import SubmissionResult
from autograder.reporting.feedback import exercise_text
from autograder.reporting.words import chapter, number, outcome

CANVAS_COLUMNS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")
MOODLE_COLUMNS = (
    "Identifier",
    "Full name",
    "Email address",
    "Status",
    "Grade",
    "Maximum Grade",
    "Grade can be changed",
    "Last modified (submission)",
    "Last modified (grade)",
    "Feedback comments",
)
QUESTION_COLUMNS = (
    "assignment",
    "student",
    "exercise",
    "title",
    "outcome",
    "mistake",
    "auto_score",
    "score",
    "max_score",
)
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Zips carry this time, so that the same feedback makes the same file."""


@dataclass(frozen=True)
class Final:
    """What the gradebook holds for one submission."""

    score: float
    penalty: float
    cells: Mapping[str, float]
    """The score of each check cell, set by hand where a person did."""


def write_exports(
    course: Path,
    *,
    roster: Roster | None = None,
    db: str | None = None,
    canvas_ids: Mapping[str, str] | None = None,
    finals: Mapping[str, Mapping[str, Final]] | None = None,
) -> list[Path]:
    """Writes every export below ``course/report`` and returns their paths; Gradescope's, one a student, as a folder.

    Args:
        course: the course's folder.
        roster: names and LMS numbers; without it the columns that need them are left empty.
        db: the gradebook's URL.
        canvas_ids: Canvas's number of each assignment, by slug; with it an import goes to that very assignment.
        finals: what `all_final_scores` found, if it was asked already.
    """
    roster = roster or Roster()
    finals = finals if finals is not None else all_final_scores(course, db)
    slugs = list(finals)
    written = [
        write_report(course, "questions.csv", _csv(QUESTION_COLUMNS, question_rows(course, finals))),
        write_report(course, "canvas.csv", canvas_csv(course, slugs, finals, roster, canvas_ids or {})),
    ]
    for slug in slugs:
        rows = moodle_rows(course, slug, finals[slug], roster)
        written.append(write_report(course, f"moodle-{slug}.csv", _csv(MOODLE_COLUMNS, rows)))
        written.append(write_report(course, f"feedback-{slug}.zip", feedback_zip(course, slug)))
        for lms, names in upload_names(course, slug, roster).items():
            written.append(write_report(course, f"feedback-{slug}-{lms}.zip", feedback_zip(course, slug, names)))
        written.append(course / "report" / "gradescope" / slug)
        for result in _results(course, slug):
            data = json.dumps(gradescope(result, finals[slug].get(result.student)), indent=1) + "\n"
            place = f"gradescope/{slug}/{result.student}/results.json"
            write_report(course, place, data.encode())
    return written


def all_final_scores(course: Path, db: str | None = None) -> dict[str, dict[str, Final]]:
    """The gradebook's scores of every assignment that was graded, by slug and student."""
    slugs = sorted({path.parent.name for path in (course / "results").glob("*/*.json")})
    return {slug: final_scores(course, slug, db) for slug in slugs}


def final_scores(course: Path, slug: str, db: str | None = None) -> dict[str, Final]:
    """The gradebook's scores of one assignment, by student; empty where it has none."""
    from nbgrader.api import Assignment, BaseCell, Grade, SubmittedAssignment, SubmittedNotebook
    from sqlalchemy import select

    cells = BaseCell.__table__
    grades = (
        select(SubmittedAssignment.student_id, cells.c.name, Grade.score, Grade.auto_score, Grade.manual_score)
        .join(SubmittedNotebook, SubmittedNotebook.assignment_id == SubmittedAssignment.id)
        .join(Grade, Grade.notebook_id == SubmittedNotebook.id)
        .join(cells, cells.c.id == Grade.cell_id)
        .join(Assignment, Assignment.id == SubmittedAssignment.assignment_id)
        .where(Assignment.name == slug)
    )
    late = (
        select(SubmittedAssignment.student_id, SubmittedNotebook.late_submission_penalty)
        .join(SubmittedNotebook, SubmittedNotebook.assignment_id == SubmittedAssignment.id)
        .join(Assignment, Assignment.id == SubmittedAssignment.assignment_id)
        .where(Assignment.name == slug)
    )
    scores: dict[str, dict[str, float]] = {}
    with open_gradebook(database_url(course, db)) as book:
        for row in book.db.execute(grades):
            if row.auto_score is not None or row.manual_score is not None:
                scores.setdefault(row.student_id, {})[row.name] = float(row.score)
        penalties = {row.student_id: float(row.late_submission_penalty or 0.0) for row in book.db.execute(late)}
    return {
        student: Final(
            max(0.0, sum(of_cells.values()) - penalties.get(student, 0.0)), penalties.get(student, 0.0), of_cells
        )
        for student, of_cells in scores.items()
    }


# ------------------------------------------------------------------------------------------------ per question


def question_rows(course: Path, finals: Mapping[str, Mapping[str, Final]]) -> Iterator[Sequence[object]]:
    """One row for each student and exercise."""
    for result in _results(course):
        final = finals.get(result.assignment, {}).get(result.student)
        for exercise in result.exercises:
            graded = result.status == "graded"
            score = final.cells.get(f"{exercise.id}-tests") if final else None
            yield (
                result.assignment,
                result.student,
                exercise.id,
                exercise.title,
                exercise.outcome,
                exercise.mistake or "",
                _points(exercise.score if graded else None),
                _points(score if graded else None),
                _points(exercise.max_score),
            )


# -------------------------------------------------------------------------------------------------- Canvas, Moodle


def canvas_csv(
    course: Path,
    slugs: Sequence[str],
    finals: Mapping[str, Mapping[str, Final]],
    roster: Roster,
    canvas_ids: Mapping[str, str],
) -> bytes:
    """Canvas's gradebook import: a header, the points possible, then one row a student."""
    titles = [f"{chapter(slug)} ({canvas_ids[slug]})" if slug in canvas_ids else chapter(slug) for slug in slugs]
    possible = {slug: _possible(course, slug) for slug in slugs}
    students = sorted({student for of_slug in finals.values() for student in of_slug})
    numbers = {result.student: upload_number(result.upload, "canvas") for result in _results(course) if result.upload}

    def rows() -> Iterator[Sequence[object]]:
        yield ("    Points Possible", "", "", "", "", *(_points(possible[slug]) for slug in slugs))
        for student in students:
            entry = roster.by_student.get(student)
            row = [finals[slug].get(student) for slug in slugs]
            scores = [_points(final.score) if final else "" for final in row]
            name = entry.name if entry and entry.name else student
            yield (
                name,
                (entry.canvas_id if entry else "") or numbers.get(student, "") or _number_of(student),
                entry.sis_id if entry else "",
                student,
                entry.section if entry else "",
                *scores,
            )

    return _csv((*CANVAS_COLUMNS, *titles), rows())


def moodle_rows(course: Path, slug: str, finals: Mapping[str, Final], roster: Roster) -> Iterator[Sequence[object]]:
    """Moodle's offline grading worksheet of one assignment."""
    for result in _results(course, slug):
        entry = roster.by_student.get(result.student)
        final = finals.get(result.student) if result.status == "graded" else None
        # Moodle numbers its participants anew for each assignment, so the number on the upload is the better one.
        number_there = upload_number(result.upload, "moodle") or (entry.moodle_id if entry else "")
        participant = number_there or _number_of(result.student)
        yield (
            f"Participant {participant}" if participant else "",
            entry.name if entry and entry.name else result.student,
            entry.email if entry else "",
            "Submitted for grading" + (" - Graded" if final else ""),
            f"{final.score:.2f}" if final else "",
            f"{result.max_score:.2f}",
            "Yes",
            "-",
            "-",
            _in_brief(result) if final else "",
        )


def _in_brief(result: SubmissionResult) -> str:
    """Feedback for one cell of a table."""
    if result.outcome != "ok":
        return result.message or outcome(result.outcome).meaning
    lines = []
    for exercise in result.exercises:
        points = f"{number(exercise.score)}/{number(exercise.max_score)}"
        words = f" {exercise.says}" if exercise.says else ""
        lines.append(f"{exercise.title}: {outcome(exercise.outcome).word}, {points}.{words}")
    return " ".join(lines)


def _possible(course: Path, slug: str) -> float:
    return max((result.max_score for result in _results(course, slug)), default=0.0)


def _number_of(student: str) -> str:
    """The LMS's number inside an id that was made of an LMS's file name (``lovelaceada_12345``)."""
    _, _, tail = student.rpartition("_")
    return tail if tail.isdigit() and tail != student else ""


# --------------------------------------------------------------------------------------- Gradescope, feedback


def gradescope(result: SubmissionResult, final: Final | None) -> dict[str, object]:
    """Gradescope's ``results.json``: one entry for each exercise.

    A submission that is not graded has no score: Gradescope shows the message and leaves the grade alone.
    """
    if result.status != "graded":
        return {"output": result.message or outcome(result.outcome).meaning, "visibility": "visible", "tests": []}
    cells = final.cells if final else {}
    tests = [
        {
            "name": exercise.title,
            "number": str(position),
            "score": cells.get(f"{exercise.id}-tests", exercise.score),
            "max_score": exercise.max_score,
            "status": "passed" if exercise.outcome == "passed" else "failed",
            "output": exercise_text(exercise),
            "output_format": "text",
            "visibility": "visible",
        }
        for position, exercise in enumerate(result.exercises, start=1)
    ]
    return {
        "score": final.score if final else result.score,
        "execution_time": result.seconds,
        "output": result.message,
        "output_format": "text",
        "visibility": "visible",
        "tests": tests,
    }


def upload_names(course: Path, slug: str, roster: Roster) -> dict[str, dict[str, str]]:
    """For each LMS that students came from: the name under which it takes each one's feedback back.

    Canvas finds a student by the numbers in the name of the file that it handed out, Moodle by the name of the folder.
    """
    names: dict[str, dict[str, str]] = {}
    for result in _results(course, slug):
        entry = roster.by_student.get(result.student)
        if upload_number(result.upload, "moodle"):
            names.setdefault("moodle", {})[result.student] = f"{result.upload}/feedback.html"
        elif upload_number(result.upload, "canvas"):
            names.setdefault("canvas", {})[result.student] = f"{result.upload}feedback.html"
        elif entry and entry.moodle_id:
            name = re.sub(r"[_/\\]", " ", entry.name or entry.student)
            folder = f"{name}_{entry.moodle_id}_assignsubmission_file_"
            names.setdefault("moodle", {})[result.student] = f"{folder}/feedback.html"
    return names


def upload_number(upload: str, lms: str) -> str:
    """The number by which this LMS knows the student, from what it put before the file's name; or nothing.

    >>> upload_number("onestudent_12345_67890_", "canvas"), upload_number("onestudent_12345_67890_", "moodle")
    ('12345', '')
    """
    found = re.search(r"_(\d+)_assignsubmission_" if lms == "moodle" else r"_(\d+)_\d+_$", upload)
    return found[1] if found else ""


def feedback_zip(course: Path, slug: str, names: Mapping[str, str] | None = None) -> bytes:
    """The feedback pages of one assignment, ``<student>/feedback.html`` each, or only those with a name here."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for page in sorted((course / "feedback").glob(f"*/{slug}/feedback.html")):
            student = page.parent.parent.name
            if names is not None and student not in names:
                continue
            entry = zipfile.ZipInfo(names[student] if names is not None else f"{student}/feedback.html", _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, page.read_bytes())
    return packed.getvalue()


# ------------------------------------------------------------------------------------------------------- tables


def _results(course: Path, slug: str | None = None) -> Iterator[SubmissionResult]:
    """The results that can be read; the class report names those that cannot."""
    return read_results(course, slug, problems=[])


def _points(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}".rstrip("0").rstrip(".")


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A CSV as spreadsheets expect it; a text that one would take for a formula is kept a text."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    for row in rows:
        writer.writerow([_plain(value) for value in row])
    return text.getvalue().encode("utf-8", "replace")


def _plain(value: object) -> str:
    text = "".join(char if char.isprintable() else " " for char in str(value))
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and text != "-" else text
