"""What each named mistake does in each hidden test, as the author's judge has seen it: a mistake's signature.

Whoever looks for the mistake behind a failure need not replay one that is known to end otherwise. `attn check` compares
the signatures with what it sees, and `attn check --record` writes them. Those of an exercise count only as long as its
suite, its reference and its mistakes are the ones that were judged; without them the search finds the same, more
slowly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from autograder import answers
from autograder.course import Exercise
from autograder.grading.cache import basis
from autograder.grading.suite import Verdict, suite

MARGIN = 2.0  # what comes closer than this to a limit may end otherwise the next time
LETTERS = {"passed": ".", "failed": "F", "crashed": "E"}
UNSURE = "?"
FOLDER = Path(answers.__file__).parent / "signatures"

Signatures = Mapping[str, Mapping[str, str]]
"""By mistake and test: one of ``LETTERS``, or ``UNSURE``."""


def letter_of(verdict: Verdict) -> str:
    """How one test ended, as a letter; ``UNSURE`` where it was not run, or was near a limit."""
    if verdict.run is None or any(1 / MARGIN < gauge.ratio < MARGIN for gauge in verdict.run.gauges):
        return UNSURE
    return LETTERS.get(verdict.outcome, UNSURE)


def over_seeds(runs: Iterable[Sequence[Verdict]]) -> dict[str, str]:
    """One mistake's signature from its runs with several seeds: where these differ, it is unsure."""
    found: dict[str, str] = {}
    for verdicts in runs:
        for verdict in verdicts:
            name, letter = verdict.test.name, letter_of(verdict)
            found[name] = letter if found.get(name, letter) == letter else UNSURE
    return found


def agrees(letter: str, outcome: str) -> bool:
    """Whether a test that ended so is one of which this letter may stand."""
    return letter in (UNSURE, LETTERS.get(outcome))


@cache
def signatures(exercise: Exercise) -> Signatures:
    """Those of an exercise's mistakes; none if they were never recorded, or of what is no longer as it was then."""
    try:
        kept = json.loads(_path(exercise.slug).read_text(encoding="utf-8"))["exercises"][exercise.name]
        if kept["basis"] != _basis(exercise):
            return {}
        return {name: dict(zip(kept["tests"], letters, strict=True)) for name, letters in kept["mistakes"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # `attn check` says so
        return {}


def record(slug: str, found: Mapping[Exercise, Signatures]) -> Path:
    """Write the signatures of a chapter's mistakes, and return where."""
    entries = {}
    for exercise, mistakes in found.items():
        tests = [test.name for test in suite(slug).tests[exercise.name]]
        lines = {name: "".join(letters.get(test, UNSURE) for test in tests) for name, letters in mistakes.items()}
        entries[exercise.name] = {"basis": _basis(exercise), "tests": tests, "mistakes": lines}
    path = _path(slug)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"schema": 1, "exercises": entries}, indent=1) + "\n", encoding="utf-8")
    signatures.cache_clear()
    return path


def _path(slug: str) -> Path:
    return FOLDER / f"{slug}.json"


def _basis(exercise: Exercise) -> str:
    """A digest of what decides how a mistake ends."""
    parts = basis(exercise.slug)["exercises"][exercise.id]
    decisive = [(part, parts[part]) for part in ("suite", "reference", "mistakes")]
    return hashlib.sha256(repr(decisive).encode()).hexdigest()[:16]
