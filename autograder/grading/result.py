"""What a grading comes to: plain, frozen records that travel as JSON (schema 1).

Every outcome has one meaning:

- ``passed`` the claim holds;
- ``failed`` an answer came back and it is wrong;
- ``not_attempted`` the name is missing or still raises ``NotImplementedError``;
- ``crashed`` the code raised, or its process died;
- ``timeout`` / ``memory`` a limit was reached;
- ``forbidden`` the code calls what the exercise's contract rules out;
- ``invalid_notebook`` the file cannot be read as a notebook;
- ``infrastructure`` the grader is at fault: ungraded, retried, never a zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1
OUTCOMES = (
    "passed",
    "failed",
    "not_attempted",
    "crashed",
    "timeout",
    "memory",
    "forbidden",
    "invalid_notebook",
    "infrastructure",
)


@dataclass(frozen=True)
class TestResult:
    """The outcome of one hidden test."""

    __test__ = False  # not for pytest to collect

    name: str
    claim: str
    outcome: str
    points: float
    max_points: float
    message: str = ""
    hint: str = ""


@dataclass(frozen=True)
class ExerciseResult:
    """The outcome of one exercise: its first test that did not pass decides."""

    id: str
    title: str
    outcome: str
    score: float
    max_score: float
    mistake: str | None = None
    says: str | None = None
    mistake_hint: str | None = None
    message: str = ""
    tests: tuple[TestResult, ...] = ()


@dataclass(frozen=True)
class SubmissionResult:
    """One submission, graded or not, with all that feedback and the gradebook need.

    ``basis`` holds digests of what the result rests on, from which a regrade sees what has to be judged again.
    """

    assignment: str
    student: str
    notebook_sha256: str
    seed: str
    status: str
    outcome: str
    score: float
    max_score: float
    seconds: float
    exercises: tuple[ExerciseResult, ...] = ()
    message: str = ""
    release: str | None = None
    notes: tuple[str, ...] = ()
    fingerprint: str = ""
    basis: dict[str, Any] = field(default_factory=dict)
    upload: str = ""
    """What the LMS put before the file's name, if it came from one: feedback goes back under that name."""
    schema: int = field(default=SCHEMA)

    def as_json(self) -> dict[str, Any]:
        """The dictionary that ``attn grade --json`` writes."""
        exercises = [{**vars(each), "tests": [dict(vars(test)) for test in each.tests]} for each in self.exercises]
        return {**vars(self), "exercises": exercises, "notes": list(self.notes), "basis": dict(self.basis)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SubmissionResult:
        """Read back what ``as_json`` wrote.

        Raises:
            ValueError: the schema is another one.
        """
        if data.get("schema") != SCHEMA:
            raise ValueError(f"a result of schema {data.get('schema')!r}; this version reads schema {SCHEMA}")
        exercises = tuple(
            ExerciseResult(**{**exercise, "tests": tuple(TestResult(**test) for test in exercise["tests"])})
            for exercise in data["exercises"]
        )
        return cls(**{**data, "exercises": exercises, "notes": tuple(data.get("notes", ()))})
