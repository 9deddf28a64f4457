"""Feedback, class report and exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    canvas_ids: Mapping[str, str] | None = None,
    problems: Sequence[Problem] | None = None,
) -> tuple[Path, list[Path]]:
    """Everything that ``attn report`` makes: the class report and the exports, from what is recorded.

    Args:
        course: the course's folder.
        anonymous: leave names out of the class report (the exports exist to be imported, and keep them).
        roster: CSV with the students' names and LMS numbers.
        db: URL of the gradebook.
        canvas_ids: Canvas's number of each assignment, by slug.
        problems: what collecting could not use, to be listed in the report; by default that of the latest run.

    Returns:
        The report's page, and the exports.
    """
    from autograder.grading.collect import Roster
    from autograder.grading.record import read_problems
    from autograder.reporting.class_report import write_class_report
    from autograder.reporting.exports import all_final_scores, write_exports

    register = Roster.read(roster) if roster else None
    listed = read_problems(course) if problems is None else problems
    finals = all_final_scores(course, db)
    page = write_class_report(course, names=not anonymous, roster=register, problems=listed, finals=finals)
    return page, write_exports(course, roster=register, canvas_ids=canvas_ids, finals=finals)
