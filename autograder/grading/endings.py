"""How each named mistake ends each hidden test, as the author's judge has seen it.

Whoever looks for the mistake behind a failure need not replay one that is known to end otherwise. `attn check --record`
writes the endings down, and `attn check` compares them with what it sees. What depends on the numbers that a test draws
is not on record: a mistake is tried with many. Kernels are too slow for that; of theirs a few numbers tell, and where
these mislead, all mistakes are replayed. An exercise's endings count only as long as its suite, its reference, its
mistakes and the numeric libraries are the ones that were judged; without them the search finds the same, more slowly.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from autograder.course import Exercise
from autograder.grading.cache import ENDINGS, basis, recorded_endings
from autograder.grading.suite import Verdict, suite

MANY = 30  # numbers with which a test is tried before its ending counts as known
MARGIN = 2.0  # what comes closer than this to a limit may end otherwise the next time
LETTERS = {"passed": ".", "failed": "F", "crashed": "E"}
UNSURE = "?"

Letters = Mapping[str, str]
"""How one mistake ends, by test: one of ``LETTERS``, or ``UNSURE``."""


@dataclass(frozen=True)
class Endings:
    """What is on record of an exercise: the letters of each mistake, and with how many numbers each test was tried."""

    letters: Mapping[str, Letters]
    numbers: int

    @property
    def may_mislead(self) -> bool:
        """Whether so few numbers were tried that others may well lead elsewhere."""
        return 0 < self.numbers < MANY

    def may_be(self, mistake: str, verdict: Verdict) -> bool:
        """Whether a mistake may end a test as a submission did."""
        return self._letter(mistake, verdict) in (UNSURE, LETTERS.get(verdict.outcome))

    def passes(self, mistake: str, verdict: Verdict) -> bool:
        """Whether a mistake is known to pass a test; where it may end as the submission did, that has passed too."""
        return self._letter(mistake, verdict) == LETTERS["passed"]

    def _letter(self, mistake: str, verdict: Verdict) -> str:
        return self.letters.get(mistake, {}).get(verdict.test.name, UNSURE)


NOTHING = Endings({}, 0)


def letter_of(verdict: Verdict) -> str:
    """How one test ended, as a letter; ``UNSURE`` where it was not run, or was near a limit."""
    if verdict.run is None or any(1 / MARGIN < gauge.ratio < MARGIN for gauge in verdict.run.gauges):
        return UNSURE
    return LETTERS.get(verdict.outcome, UNSURE)


def together(verdicts: Iterable[Verdict]) -> dict[str, str]:
    """The letters of one mistake from several runs of its tests; ``UNSURE`` where two runs of a test differ."""
    found: dict[str, str] = {}
    for verdict in verdicts:
        name, letter = verdict.test.name, letter_of(verdict)
        found[name] = letter if found.get(name, letter) == letter else UNSURE
    return found


@cache
def endings(exercise: Exercise) -> Endings:
    """What is on record; ``NOTHING`` if that was never written, or tells of what is no longer as it was then."""
    try:
        kept = recorded_endings(exercise.slug)[exercise.name]
        if kept["basis"] != _basis(exercise):
            return NOTHING
        letters = {name: dict(zip(kept["tests"], line, strict=True)) for name, line in kept["mistakes"].items()}
        return Endings(letters, int(kept["numbers"]))
    except (ValueError, LookupError, TypeError, AttributeError):  # `attn check` says so
        return NOTHING


def record(slug: str, found: Mapping[Exercise, Endings]) -> None:
    """Write the endings of a chapter's mistakes, of these exercises and no others."""
    entries = {}
    for exercise, known in found.items():
        tests = [test.name for test in suite(slug).tests[exercise.name]]
        lines = {name: "".join(line.get(test, UNSURE) for test in tests) for name, line in known.letters.items()}
        entries[exercise.name] = {
            "basis": _basis(exercise),
            "numbers": known.numbers,
            "tests": tests,
            "mistakes": lines,
        }
    ENDINGS.mkdir(exist_ok=True)
    text = json.dumps({"schema": 1, "exercises": entries}, indent=1) + "\n"
    (ENDINGS / f"{slug}.json").write_text(text, encoding="utf-8")
    for remembered in (recorded_endings, endings):
        remembered.cache_clear()


def _basis(exercise: Exercise) -> str:
    """A digest of what decides how a mistake ends, apart from the grader's own code."""
    parts = basis(exercise.slug)["exercises"][exercise.id]
    libraries = [importlib.metadata.version(name) for name in ("numpy", "torch")]
    decisive = [*libraries, *(parts[part] for part in ("suite", "reference", "mistakes"))]
    return hashlib.sha256(repr(decisive).encode()).hexdigest()[:16]
