"""Feedback, class report and exports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autograder.grading.collect import Problem


def write_report(
    course: Path,
    *,
    anonymous: bool = False,
    roster: Path | None = None,
    db: str | None = None,
    problems: Sequence[Problem] = (),
) -> tuple[Path, list[Path]]:
    """Everything that ``attn report`` makes: the class report and the exports, from what is recorded.

    Args:
        course: the course's folder.
        anonymous: leave names out of the class report (the exports exist to be imported, and keep them).
        roster: CSV with the students' names and LMS numbers.
        db: URL of the gradebook.
        problems: what collecting could not use, to be listed in the report.

    Returns:
        The report's page, and the exports.
    """
    from autograder.grading.collect import Roster
    from autograder.reporting.class_report import write_class_report
    from autograder.reporting.exports import write_exports

    register = Roster.read(roster) if roster else None
    page = write_class_report(course, names=not anonymous, roster=register, problems=problems)
    return page, write_exports(course, roster=register, db=db)
