"""Finds the named mistake behind a failure, by replaying mistakes on the very inputs that failed.

A mistake is named if it alone returns what the submission returned in the failing tests, and passes the others.
Ambiguous means no name: a wrong explanation is worse than none. What reached a limit gets no name either: a test that
did not end by itself is not replayed, and a mistake that does not end where the submission did is another.
"""

from __future__ import annotations

import importlib
import linecache
import signal
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch

from autograder.answers import Answer, shelf
from autograder.course import Exercise, definitions
from autograder.grading.endings import NOTHING, Endings, endings
from autograder.grading.secret import own_seed
from autograder.grading.suite import HiddenTest, Run, Verdict, suite
from autograder.sandbox import kernels
from autograder.sandbox.errors import StudentError
from autograder.sandbox.student import Direct, Journal, Module, Student

Entry = tuple[str, Any]
_DULL = 10  # times as much must a test take that fails, before one that passes is worth more
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, np.dtype("float32"): 1e-4, np.dtype("float16"): 1e-2}


def namespace_with(slug: str, answer: Answer) -> dict[str, Any]:
    """The reference module's namespace with one definition replaced."""
    module = importlib.import_module(f"solutions.{slug}")
    if _has_kernels(slug):
        return _module_with(slug, answer)
    namespace = dict(vars(module))
    exec(_compiled(answer), namespace)
    return namespace


@cache
def _has_kernels(slug: str) -> bool:
    return kernels.among(vars(importlib.import_module(f"solutions.{slug}")))


@cache
def _compiled(answer: Answer) -> CodeType:
    source = "from __future__ import annotations\n" + answer.source
    return compile(source, f"<{answer.exercise}: {answer.name}>", "exec")


@cache
def _module_with(slug: str, answer: Answer) -> dict[str, Any]:
    """The whole module with one definition replaced: whoever launches a kernel finds it where he himself was defined.

    Made once, because Triton never forgets a kernel that it has seen.
    """
    text = Path(str(importlib.import_module(f"solutions.{slug}").__file__)).read_text(encoding="utf-8")
    text = text.replace(definitions(text)[answer.exercise].source, answer.source)
    place = f"<{answer.exercise}: {answer.name}>"
    linecache.cache[place] = (len(text), None, text.splitlines(keepends=True), place)  # where Triton reads kernels
    namespace: dict[str, Any] = {"__name__": f"solutions.{slug}"}
    exec(compile(text, place, "exec"), namespace)
    return namespace


def name_mistake(exercise: Exercise, verdicts: Sequence[Verdict], seeds: Callable[[str], int]) -> Answer | None:
    """The one named mistake that behaves as the submission did, or None."""
    ran = [verdict for verdict in verdicts if verdict.run is not None]
    if any(verdict.outcome in ("timeout", "memory") for verdict in ran):
        return None
    known = endings(exercise)
    left = _left(exercise, ran, seeds, known)
    if len(left) != 1 and known.may_mislead:
        left = _left(exercise, ran, seeds, NOTHING)
    return left[0] if len(left) == 1 else None


def _left(exercise: Exercise, ran: Sequence[Verdict], seeds: Callable[[str], int], known: Endings) -> Sequence[Answer]:
    """The mistakes that behave as the submission did, apart from what is known of how they end."""
    left = [
        answer
        for answer in shelf(exercise.slug).mistakes.get(exercise.name, [])
        if all(known.may_be(answer.name, verdict) for verdict in ran)
    ]
    # In any order the same mistakes are left; where cheap tests can tell them apart, few are left for the dear ones.
    for verdict in sorted(ran, key=_effort):
        if not left:
            break
        left = [
            answer
            for answer in left
            if known.passes(answer.name, verdict) or _behaves_so(exercise, answer, verdict, seeds)
        ]
    return left


class _Differs(BaseException):
    """A replay has returned something else than the submission did, so the rest of the test can tell nothing more."""


class _Following(list[Entry]):
    """A journal's entries, held against those of the submission as they come in."""

    def __init__(self, expected: Sequence[Entry]) -> None:
        super().__init__()
        self._expected = expected

    def append(self, entry: Entry) -> None:
        """Take one entry in.

        Raises:
            _Differs: the submission's was another one, or it made no further call.
        """
        if len(self) == len(self._expected) or not _same_entry(entry, self._expected[len(self)]):
            raise _Differs
        super().append(entry)


def own_verdict(exercise: Exercise, answer: Answer, test: HiddenTest, seed: int) -> Verdict:
    """How one of our own answers ends a test with these numbers, in this process: "timeout" if it does not."""
    with _Limit(test.mark.seconds) as limit:
        student = Student(_Ending(namespace_with(exercise.slug, answer), limit), own_seed(seed))
        try:
            run = suite(exercise.slug).run(test, student, np.random.default_rng(seed))
        except _Endless:
            run = Run(None, ())
    return Verdict(test, "timeout" if limit.reached else _outcome(run), "", run, student.journal)


def _effort(verdict: Verdict) -> tuple[bool, float]:
    """How much it takes to tell mistakes apart by a test: whole tests last, then by the time that its calls took.

    Most mistakes answer a test rightly that the submission has passed.
    """
    return verdict.journal.exchanges is None, verdict.seconds * (_DULL if verdict.outcome == "passed" else 1)


def _behaves_so(exercise: Exercise, answer: Answer, verdict: Verdict, seeds: Callable[[str], int]) -> bool:
    """Whether one of our own answers, run through the same test in this process, does what the submission did."""
    with _Limit(verdict.test.mark.seconds) as limit:

        def bench() -> Direct:
            return _Ending(namespace_with(exercise.slug, answer), limit)

        try:
            alike = _answers_so(bench(), verdict)
            if alike is None:
                alike = _ends_so(bench(), exercise, verdict, seeds)
        except _Endless:
            return False
    return alike and not limit.reached


class _Endless(BaseException):
    """A replay has used up the CPU time that a submission has for the test."""


class _Limit:
    """Ends what runs in the block after so much CPU time of this process: replays are code of ours, but code can loop.

    A signal reaches the main thread alone, and a worker of Dask has others: there nothing ends a replay. That every
    mistake ends is what ``attn check`` proves.
    """

    def __init__(self, seconds: float) -> None:
        self.reached = False
        self._seconds = seconds
        self._mine = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> _Limit:
        if self._mine:
            self._before = signal.signal(signal.SIGPROF, self._end)
            signal.setitimer(signal.ITIMER_PROF, self._seconds)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._mine:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, self._before)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.reached = True  # whoever catches the exception below
        raise _Endless


class _Ending(Direct):
    """A bench that answers no more once the limit is reached; what it serves may catch the exception that ended it."""

    def __init__(self, namespace: dict[str, Any], limit: _Limit) -> None:
        super().__init__(namespace)
        self._limit = limit

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """See :class:`Direct`."""
        reply = super().request(message)
        if self._limit.reached:
            raise _Endless
        return reply


def _ends_so(bench: Direct, exercise: Exercise, verdict: Verdict, seeds: Callable[[str], int]) -> bool:
    """Whether what is on the bench, run through the whole test, does what the submission did."""
    seed = seeds(verdict.test.name)
    student = Student(bench, own_seed(seed))
    if verdict.outcome != "passed":
        student.journal = Journal(_Following(verdict.journal.entries))
    run = suite(exercise.slug).run(verdict.test, student, np.random.default_rng(seed))
    if _outcome(run) != verdict.outcome or isinstance(run.error, _Differs):
        return False
    return verdict.outcome == "passed" or len(student.journal.entries) == len(verdict.journal.entries)


def _answers_so(bench: Direct, verdict: Verdict) -> bool | None:
    """Whether what is on the bench replies as the submission did to the same requests; None where the end stays open.

    A test knows of a submission only what came back. Where all replies are the same to the last bit, it asks the same
    and ends the same, so it need not be run again; where a reply differs, a failing test would have ended there.
    """
    exchanges = verdict.journal.exchanges
    if exchanges is None or len(exchanges) != len(verdict.journal.entries):
        return None
    student = Student(bench)
    same = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for (request, reply), entry in zip(exchanges, verdict.journal.entries, strict=True):
            own = bench.request(request)
            if not _same_reply(own, reply):
                same = False
                if verdict.outcome == "passed":
                    return None
                if not _same_entry(student.entry(own), entry):
                    return False
    return True if same else None


def _same_reply(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a test sees the same in two replies; of an error it does not see the place."""
    if "error" in one and isinstance(other.get("error"), dict):
        return all(one["error"][key] == other["error"].get(key) for key in ("type", "bases", "memory"))
    return one == other


def _outcome(run: Run) -> str:
    if run.error is None:
        return "passed"
    return run.error.outcome if isinstance(run.error, StudentError) else "failed"


def _same_entry(one: Entry, other: Entry) -> bool:
    return one[0] == other[0] and _same(one[1], other[1])


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Module) or isinstance(other, Module):
        return isinstance(one, Module) and isinstance(other, Module)
    if isinstance(one, dict) and isinstance(other, dict):
        if {"steps", "result"} <= one.keys():  # a trace: its costs vary, its gate has spoken already
            return one.get("launches") == other.get("launches") and _same(one.get("result"), other.get("result"))
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
