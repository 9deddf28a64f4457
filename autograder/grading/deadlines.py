"""When an assignment is due, who may hand in later, and what lateness costs.

All of it lives in nbgrader's gradebook: `attn grade` and `nbgrader autograde` read it alike, and nbgrader's own
late-submission plugin takes the points off. Nothing is regraded for a new deadline; the next `attn grade` sees that a
penalty is not what it should be, and enters it anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import ceil
from pathlib import Path

from nbgrader.plugins import LateSubmissionPlugin
from traitlets import Float

from autograder.grading.collect import CollectError, parse_timestamp, student_id
from autograder.grading.record import Recorder

_LENGTH = re.compile(r"(?P<count>\d+(?:\.\d+)?)\s*(?P<unit>h|d|w)")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


class DeadlineError(CollectError):
    """A deadline or an extension that cannot be understood."""


@dataclass(frozen=True)
class Deadline:
    """When an assignment is due (UTC without zone), and how much longer single students have."""

    due: datetime | None
    extensions: Mapping[str, timedelta] = field(default_factory=dict)


def parse_due(text: str) -> datetime:
    """A moment such as "2026-10-01 23:59 Europe/Berlin", in UTC without zone; without a zone it is UTC.

    Raises:
        DeadlineError: it names no moment.

    >>> parse_due("2026-10-01 23:59 Europe/Berlin")
    datetime.datetime(2026, 10, 1, 21, 59)
    """
    try:
        return parse_timestamp(text)
    except (ValueError, OverflowError):
        raise DeadlineError(f"{text!r} is no moment; write it as '2026-10-01 23:59 Europe/Berlin'") from None


def parse_extension(text: str) -> tuple[str, timedelta]:
    """A student and how much longer they have: ``s001=48h``, ``s001=2d``, ``s001=1w``; 0 takes it back.

    Raises:
        DeadlineError: it is not of this form.

    >>> parse_extension("s001=2d")
    ('s001', datetime.timedelta(days=2))
    """
    student, _, length = text.partition("=")
    found = _LENGTH.fullmatch(length.strip()) if length.strip() != "0" else None
    if not student or student_id(student) != student or (found is None and length.strip() != "0"):
        raise DeadlineError(f"{text!r} is no extension; write it as STUDENT=48h, =2d or =1w, and =0 to take it back")
    return student, timedelta(**{_UNITS[found["unit"]]: float(found["count"])}) if found else timedelta()


def read_deadline(recorder: Recorder, slug: str) -> Deadline:
    """What the gradebook holds for one assignment."""
    from nbgrader.api import Assignment, SubmittedAssignment
    from sqlalchemy import select

    query = (
        select(SubmittedAssignment.student_id, SubmittedAssignment.extension)
        .join(Assignment, Assignment.id == SubmittedAssignment.assignment_id)
        .where(Assignment.name == slug, SubmittedAssignment.extension.is_not(None))
        .order_by(SubmittedAssignment.student_id)
    )
    due = recorder.due(slug)
    rows = recorder.gradebook.db.execute(query).all()
    recorder.gradebook.db.rollback()
    return Deadline(due, {row.student_id: row.extension for row in rows})


def write_deadline(
    course: Path,
    slug: str,
    *,
    due: datetime | None = None,
    remove: bool = False,
    extensions: Mapping[str, timedelta] | None = None,
    db: str | None = None,
    config: Path | None = None,
) -> Deadline:
    """Changes what is given and returns what then holds.

    Args:
        course: the course's folder.
        slug: the assignment.
        due: the new deadline (UTC without zone).
        remove: the assignment has no deadline any more.
        extensions: how much longer a student has; zero takes an extension back. It replaces an earlier one.
        db: URL of the gradebook.
        config: nbgrader's configuration.

    Raises:
        RecordError: the gradebook refused, or the assignment has no source notebook.
    """
    with Recorder(course, db=db, config=config) as recorder:
        recorder.prepare(slug)
        book = recorder.gradebook
        if due is not None or remove:
            book.update_or_create_assignment(slug, duedate=None if remove else due)
        for student, length in (extensions or {}).items():
            book.update_or_create_student(student)
            with book.db.no_autoflush:  # nbgrader builds the submission while it queries
                book.update_or_create_submission(slug, student)
            book.grant_extension(slug, student, minutes=length.total_seconds() / 60)
        return read_deadline(recorder, slug)


class PenaltyPerDay(LateSubmissionPlugin):
    """Takes a share of the earned points off for each day that has begun; name it in `nbgrader_config.py`."""

    percent = Float(10.0, min=0.0, max=100.0, help="Percent of the earned points for each day that has begun.").tag(
        config=True
    )
    grace_minutes = Float(0.0, min=0.0, help="So late costs nothing.").tag(config=True)

    def late_submission_penalty(self, student_id: str, score: float, total_seconds_late: float) -> float | None:
        """The points to take off; None where there is nothing to take.

        Args:
            student_id: whose submission.
            score: the points earned.
            total_seconds_late: counted from the student's own deadline, extension included.
        """
        if total_seconds_late <= 60 * self.grace_minutes:
            return None
        days = ceil(total_seconds_late / 86_400)
        return min(score, score * self.percent / 100 * days)
