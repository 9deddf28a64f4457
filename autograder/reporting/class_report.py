"""What an instructor reads after grading: how the class did, which mistakes were made, and what needs a look.

One page without scripts or requests, in ``course/report/index.html``. It is made from the run log
(``course/results``), one result at a time; what is kept of each is a row of numbers.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autograder.grading.collect import Problem, Roster
from autograder.grading.record import RecordError, read_results, write_report
from autograder.grading.result import ExerciseResult, SubmissionResult
from autograder.reporting.exports import Final
from autograder.reporting.words import render

SLOWEST = 5
BINS = 10
MISTAKES = 12
"""Mistakes listed for an assignment; the rest is counted in one line."""
ENOUGH = 10
"""Below this many submissions a correlation says nothing."""


@dataclass
class Cell:
    """One student's outcome in one exercise."""

    outcome: str
    score: float


@dataclass
class Row:
    """One student's line of the table."""

    student: str
    score: float
    """What the gradebook holds, or the grader's own score where it was not asked."""
    earned: float
    """The points of the exercises, before a penalty."""
    penalty: float
    outcome: str
    cells: dict[str, Cell]


@dataclass
class Mistake:
    """A named mistake, how often it was made, and the sentence that explains it."""

    name: str
    exercise: str
    says: str
    count: int = 0


@dataclass
class ExerciseSummary:
    """One exercise over the class."""

    id: str
    title: str
    max_score: float
    shares: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    discrimination: float | None = None

    @property
    def name(self) -> str:
        """The function or class to write."""
        return self.id.split("-", 1)[-1]

    @property
    def count(self) -> int:
        """Submissions that were graded."""
        return len(self.shares)

    @property
    def passed(self) -> float:
        """Share of submissions that pass."""
        return self.outcomes["passed"] / self.count if self.count else 0.0

    @property
    def idle(self) -> float:
        """Share of submissions that did not attempt it."""
        return self.outcomes["not_attempted"] / self.count if self.count else 0.0

    @property
    def mean(self) -> float | None:
        """Mean share of the points."""
        return statistics.fmean(self.shares) if self.shares else None

    @property
    def reading(self) -> str:
        """The discrimination in words."""
        value = self.discrimination
        if value is None:
            return "–"
        if value < 0:
            return "against the rest: look at it"
        return "separates well" if value >= 0.4 else "separates somewhat" if value >= 0.2 else "separates little"


@dataclass
class Bar:
    """One bar of a histogram, in the units of its drawing."""

    low: int
    high: int
    count: int
    x: float
    y: float
    width: float
    height: float


@dataclass
class Assignment:
    """One assignment over the class."""

    slug: str
    max_score: float = 0.0
    exercises: dict[str, ExerciseSummary] = field(default_factory=dict)
    mistakes: dict[tuple[str, str], Mistake] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    ungraded: list[tuple[str, str]] = field(default_factory=list)
    invalid: list[tuple[str, str]] = field(default_factory=list)
    slowest: list[tuple[float, str]] = field(default_factory=list)

    def add(self, result: SubmissionResult, final: Final | None = None) -> None:
        """Counts one submission.

        Args:
            result: what the grader found.
            final: what the gradebook holds: with scores set by hand, and less the penalty for lateness.
        """
        if result.status != "graded":
            self.ungraded.append((result.student, result.message))
            return
        if result.outcome == "invalid_notebook":
            self.invalid.append((result.student, result.message))
        self.max_score = max(self.max_score, result.max_score)
        self.slowest = sorted([*self.slowest, (result.seconds, result.student)], reverse=True)[:SLOWEST]
        by_hand = final.cells if final else {}
        cells = {
            exercise.id: Cell(exercise.outcome, by_hand.get(f"{exercise.id}-tests", exercise.score))
            for exercise in result.exercises
        }
        score, penalty = (final.score, final.penalty) if final else (result.score, 0.0)
        self.rows.append(
            Row(result.student, score, sum(c.score for c in cells.values()), penalty, result.outcome, cells)
        )
        for exercise in result.exercises:
            self._count(exercise, readable=result.outcome == "ok")

    def _count(self, exercise: ExerciseResult, readable: bool) -> None:
        summary = self.exercises.setdefault(
            exercise.id, ExerciseSummary(exercise.id, exercise.title, exercise.max_score)
        )
        if not readable:  # a file that cannot be read says nothing about an exercise
            return
        summary.shares.append(exercise.score / exercise.max_score if exercise.max_score else 0.0)
        summary.outcomes[exercise.outcome] += 1
        if exercise.mistake:
            key = (exercise.id, exercise.mistake)
            self.mistakes.setdefault(key, Mistake(exercise.mistake, exercise.title, exercise.says or "")).count += 1

    def finish(self) -> None:
        """What needs all submissions: how far each exercise agrees with the others."""
        for summary in self.exercises.values():
            own, rest = [], []
            for row in self.rows:
                if summary.id in row.cells and row.outcome == "ok":
                    own.append(row.cells[summary.id].score)
                    rest.append(row.earned - row.cells[summary.id].score)
            summary.discrimination = correlation(own, rest)

    @property
    def late(self) -> int:
        """Submissions that lost points for lateness."""
        return sum(row.penalty > 0 for row in self.rows)

    @property
    def scores(self) -> list[float]:
        """The scores in the order of the rows."""
        return [row.score for row in self.rows]

    @property
    def mean(self) -> float | None:
        """Mean score."""
        return statistics.fmean(self.scores) if self.rows else None

    @property
    def median(self) -> float | None:
        """Median score."""
        return statistics.median(self.scores) if self.rows else None

    @property
    def common_mistakes(self) -> list[Mistake]:
        """The named mistakes, the most frequent first."""
        return sorted(self.mistakes.values(), key=lambda each: (-each.count, each.exercise, each.name))

    @property
    def histogram(self) -> list[Bar]:
        """How many submissions earned which share of the points."""
        return histogram([score / self.max_score if self.max_score else 0.0 for score in self.scores])


def correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Pearson's correlation; None for few values or for a constant, where there is none.

    >>> correlation([0, 1] * 5, [0, 2] * 5)
    1.0
    >>> correlation([1, 1], [0, 1]) is None
    True
    """
    if len(one) < ENOUGH or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    value = statistics.correlation(one, other)
    return None if math.isnan(value) else max(-1.0, min(1.0, value))


def histogram(shares: Sequence[float], width: float = 640, height: float = 180) -> list[Bar]:
    """Bars of ten percent each; full marks belong to the last.

    >>> [bar.count for bar in histogram([0.0, 0.05, 0.95, 1.0])]
    [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    """
    counts = Counter(min(BINS - 1, max(0, int(share * BINS + 1e-9))) for share in shares)
    top = max(counts.values(), default=0) or 1
    step = width / BINS
    return [
        Bar(
            low=100 * position // BINS,
            high=100 * (position + 1) // BINS,
            count=counts[position],
            x=round(position * step + 3, 2),
            y=round(height - height * counts[position] / top, 2),
            width=round(step - 6, 2),
            height=round(height * counts[position] / top, 2),
        )
        for position in range(BINS)
    ]


def summarize(
    course: Path, finals: Mapping[str, Mapping[str, Final]] | None = None
) -> tuple[list[Assignment], list[RecordError]]:
    """All assignments that were graded, by slug, and the results that could not be read.

    Args:
        course: the course's folder.
        finals: the gradebook's scores by slug and student; without them the grader's own count.
    """
    problems: list[RecordError] = []
    assignments: dict[str, Assignment] = {}
    for result in read_results(course, problems=problems):
        final = (finals or {}).get(result.assignment, {}).get(result.student)
        assignments.setdefault(result.assignment, Assignment(result.assignment)).add(result, final)
    for assignment in assignments.values():
        assignment.finish()
    return list(assignments.values()), problems


def class_page(
    assignments: Sequence[Assignment],
    *,
    problems: Sequence[object] = (),
    names: bool = True,
    roster: Roster | None = None,
) -> str:
    """The report as one HTML file.

    Args:
        assignments: what ``summarize`` found.
        problems: files and results that could not be used, each with its reason as text.
        names: whether students are named. Without names, rows are ordered by score, so that their order tells nothing.
        roster: gives full names.
    """
    known = {entry.student: entry.name for entry in (roster or Roster()).entries if entry.name}

    def rows(assignment: Assignment) -> list[Row]:
        return sorted(assignment.rows, key=lambda row: (row.student,) if names else (-row.score, _outcomes(row)))

    def who(student: str) -> str:
        return f"{known[student]} ({student})" if student in known else student

    students = {row.student for assignment in assignments for row in assignment.rows}
    values: dict[str, Any] = {
        "assignments": assignments,
        "problems": [str(problem) for problem in problems] if names else [],
        "problem_count": len(problems),
        "students": len(students),
        "submissions": sum(len(assignment.rows) for assignment in assignments),
        "noticed": sum(len(assignment.ungraded) + len(assignment.invalid) for assignment in assignments),
    }
    return render("class_report.html.j2", names=names, rows=rows, who=who, most=MISTAKES, **values)


def _outcomes(row: Row) -> tuple[str, ...]:
    return tuple(cell.outcome for cell in row.cells.values())


def write_class_report(
    course: Path,
    *,
    names: bool = True,
    roster: Roster | None = None,
    problems: Sequence[Problem] = (),
    finals: Mapping[str, Mapping[str, Final]] | None = None,
) -> Path:
    """Makes ``course/report/index.html`` from the results on disk.

    Args:
        course: the course's folder.
        names: whether students are named.
        roster: gives full names.
        problems: what collecting could not use, to be listed with the rest.
        finals: the gradebook's scores by slug and student; without them the grader's own count.
    """
    assignments, unread = summarize(course, finals)
    page = class_page(assignments, problems=[*problems, *unread], names=names, roster=roster)
    return write_report(course, "index.html", page.encode("utf-8", "replace"))
