"""Finds the named mistake behind a failure, by replaying every mistake on the very inputs that failed.

A mistake is named if it alone returns what the submission returned in the failing tests (and fails and passes the same
tests). Ambiguous means no name: a wrong explanation is worse than none. What reached a limit gets no name either: the
replay runs in this process, where nothing could end it, so no test is replayed that did not end by itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from autograder.answers import Answer, shelf
from autograder.course import Exercise
from autograder.grading.suite import Run, Verdict, own_seed, suite
from autograder.sandbox.errors import StudentError
from autograder.sandbox.student import Direct, Journal, Module, Student

_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, np.dtype("float32"): 1e-4, np.dtype("float16"): 1e-2}


def namespace_with(slug: str, answer: Answer) -> dict[str, Any]:
    """The reference module's namespace with one definition replaced."""
    namespace = dict(vars(importlib.import_module(f"solutions.{slug}")))
    source = "from __future__ import annotations\n" + answer.source
    exec(compile(source, f"<{answer.exercise}: {answer.name}>", "exec"), namespace)
    return namespace


def name_mistake(exercise: Exercise, verdicts: Sequence[Verdict], seeds: Callable[[str], int]) -> Answer | None:
    """The one named mistake that behaves as the submission did, or None."""
    ran = [verdict for verdict in verdicts if verdict.run is not None]
    failing = [verdict for verdict in ran if verdict.outcome != "passed"]
    if any(verdict.outcome in ("timeout", "memory") for verdict in failing):
        return None
    candidates = list(shelf(exercise.slug).mistakes.get(exercise.name, []))
    for verdict in failing:
        candidates = [answer for answer in candidates if _behaves_so(exercise, answer, verdict, seeds)]
        if not candidates:
            return None
    for verdict in ran:
        if verdict.outcome == "passed" and len(candidates) >= 1:
            candidates = [answer for answer in candidates if _behaves_so(exercise, answer, verdict, seeds)]
    return candidates[0] if len(candidates) == 1 else None


def _behaves_so(exercise: Exercise, answer: Answer, verdict: Verdict, seeds: Callable[[str], int]) -> bool:
    run, journal = replay(exercise.slug, answer, verdict.test.name, seeds(verdict.test.name))
    return _outcome(run) == verdict.outcome and same_journal(journal, verdict.journal)


@lru_cache(maxsize=512)
def replay(slug: str, answer: Answer, test_name: str, seed: int) -> tuple[Run, Journal]:
    """Run one test against one of our own answers, in this process."""
    hidden = suite(slug)
    test = next(test for test in hidden.tests[answer.exercise] if test.name == test_name)
    student = Student(Direct(namespace_with(slug, answer)), own_seed(seed))
    run = hidden.run(test, student, np.random.default_rng(seed))
    return run, student.journal


def _outcome(run: Run) -> str:
    if run.error is None:
        return "passed"
    return run.error.outcome if isinstance(run.error, StudentError) else "failed"


def same_journal(one: Journal, other: Journal) -> bool:
    """Whether two submissions returned the same in the course of one test."""
    return len(one.entries) == len(other.entries) and all(
        kind == other_kind and _same(value, other_value)
        for (kind, value), (other_kind, other_value) in zip(one.entries, other.entries, strict=True)
    )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Module) or isinstance(other, Module):
        return isinstance(one, Module) and isinstance(other, Module)
    if isinstance(one, dict) and isinstance(other, dict):
        if {"steps", "peak_bytes", "flops"} <= one.keys():  # a trace: its costs vary, its gate has spoken already
            return _same(one.get("result"), other.get("result"))
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (tuple, list)):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return _near(one.double().numpy(), other.double().numpy(), _TOLERANCE.get(one.dtype, 1e-8))
    if isinstance(one, (np.ndarray, np.generic)) and isinstance(other, (np.ndarray, np.generic)):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return _near(np.asarray(one, dtype=float), np.asarray(other, dtype=float), _TOLERANCE.get(one.dtype, 1e-8))
    if isinstance(one, float) and isinstance(other, float):
        return _near(np.asarray(one), np.asarray(other), 1e-8)
    return type(one) is type(other) and bool(one == other)


def _near(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    finite = np.isfinite(one) & np.isfinite(other)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return False
    if not finite.any():
        return True
    scale = max(float(np.abs(other[finite]).max()), 1e-30)
    return float(np.abs(one[finite] - other[finite]).max()) <= tolerance * scale
