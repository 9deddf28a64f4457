"""What hidden suites are written with: the mark of a test, comparisons that explain, inputs that separate.

A message goes to a student. It says what is wrong and by how much, never what was put in or expected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_UP, Context
from typing import Any

import numpy as np
import torch

from autograder.sandbox.errors import Raised
from autograder.sandbox.protocol import name_of
from autograder.sandbox.student import Calls, Student

KINDS = ("value", "property", "gradient", "edge", "cost")
_RTOL = {"float64": 1e-9, "float32": 2e-5, "float16": 4e-3, "bfloat16": 2e-2}
_PASSES, _SECONDS = 1000, 0.53e-3  # what :func:`_slowness` times, where the limits on CPU time were chosen


class Wrong(Exception):
    """The submission's answer does not hold; the message is for the student."""


@dataclass(frozen=True)
class Mark:
    """What the decorator :func:`hidden` says of a test."""

    exercise: str
    kind: str
    weight: float
    seconds: float
    hint: str


def hidden(
    exercise: str, *, kind: str = "value", weight: float = 1.0, seconds: float = 10.0, hint: str = ""
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a function as a hidden test of an exercise; its docstring is the claim that students read.

    Args:
        exercise: name of the function or class.
        kind: value, property, gradient, edge or cost; all but ``value`` earn points only once the value tests pass.
        weight: share of the exercise's points.
        seconds: limit on CPU time.
        hint: shown when the test fails and no named mistake explains it.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {KINDS}")

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        test.mark = Mark(exercise, kind, weight, seconds, hint)  # type: ignore[attr-defined]
        return test

    return decorate


@dataclass(frozen=True)
class Gauge:
    """One comparison of a number with its limit: below 1 it passed, and by how much."""

    what: str
    ratio: float


_gauges: ContextVar[list[Gauge] | None] = ContextVar("gauges", default=None)


class gauging:
    """Collect the gauges of one test: ``with gauging() as gauges``."""

    def __enter__(self) -> list[Gauge]:
        gauges: list[Gauge] = []
        self._token = _gauges.set(gauges)
        return gauges

    def __exit__(self, *exception: object) -> None:
        _gauges.reset(self._token)


def _gauge(what: str, measured: float, limit: float) -> bool:
    ratio = measured / limit if limit > 0 else (0.0 if measured <= 0 else float("inf"))
    if (gauges := _gauges.get()) is not None:
        gauges.append(Gauge(what, ratio))
    return ratio <= 1.0


def require(condition: bool, message: str) -> None:
    """Fail with this message unless the condition is true."""
    if not condition:
        raise Wrong(message)


def at_most(measured: float, limit: float, *, what: str) -> None:
    """Fail unless ``measured`` ≤ ``limit``."""
    if not _gauge(what, float(measured), float(limit)):
        raise Wrong(f"{what}: {_roughly(measured, ROUND_UP)}, and at most {limit:,.10g} are allowed")


def at_least(measured: float, limit: float, *, what: str) -> None:
    """Fail unless ``measured`` ≥ ``limit`` > 0."""
    if not _gauge(what, float(limit), max(float(measured), 1e-300)):
        raise Wrong(f"{what}: {_roughly(measured, ROUND_DOWN)}, and at least {limit:,.10g} are asked for")


def _roughly(measured: float, rounding: str) -> str:
    """Two digits: a submission can choose what is counted, and more digits would carry its hidden inputs outside."""
    return f"{Context(prec=2, rounding=rounding).create_decimal(float(measured)):,f}"


def at_most_seconds(call: Callable[[], float], limit: float, *, what: str) -> None:
    """Fail unless a call takes at most so much CPU time: the reading from outside that every count of steps needs.

    Choose a case on which a loop in Python, stripped of all ballast, takes several times the limit, and one operation a
    tenth of it. A busy machine adds to CPU time and never takes from it, so the least of up to three calls counts; and
    where the first is not clear, the limits of the others grow with the time that this machine takes for a known loop.

    Args:
        call: draws new inputs, makes the call, judges its result, and returns its ``outside_seconds``.
        limit: in seconds.
        what: how to call it in a message; the measured time stays out of it, which differs from run to run.
    """
    least = call() / limit
    for _ in range(2):
        if least > 0.5:
            least = min(least, call() / (limit * max(1.0, _slowness())))
    if not _gauge(what, least, 1.0):
        raise Wrong(f"{what}: it takes as long as a loop in Python does")


def _slowness() -> float:
    """How many times as long as where the limits were chosen a loop over a small operation takes here and now."""
    row, readings = np.ones(8), []
    for _ in range(3):
        begin = time.thread_time()
        for _ in range(_PASSES):
            np.dot(row, row)
        readings.append(time.thread_time() - begin)
    return min(readings) / _SECONDS


def close(
    actual: Any, expected: Any, *, what: str, atol: float | None = None, rtol: float | None = None, dtype: bool = True
) -> None:
    """Fail unless ``actual`` is ``expected``: kind, shape, dtype, the same infinities, no NaN, and values.

    Args:
        actual: what the submission returned.
        expected: array, tensor, number, or tuple of them.
        what: how to call it in a message.
        atol: absolute tolerance (0 by default where ``rtol`` is given).
        rtol: tolerance relative to the largest expected magnitude; by default after the dtype.
        dtype: whether the dtype must agree.
    """
    if isinstance(expected, tuple):
        require(isinstance(actual, tuple), f"{what}: a tuple of {len(expected)} was expected, not {_kind(actual)}")
        require(len(actual) == len(expected), f"{what}: {len(actual)} values came back instead of {len(expected)}")
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            close(one, other, what=f"{what}, value {index + 1}", atol=atol, rtol=rtol, dtype=dtype)
        return
    if isinstance(expected, (bool, str)) or expected is None:
        same_kind = type(actual) is type(expected) or isinstance(actual, np.bool_)
        require(same_kind, f"{what}: it is {_kind(actual)}, not {_kind(expected)}")
        require(actual == expected, f"{what}: it is not the right one")
        return
    if isinstance(expected, (int, float)) and not isinstance(actual, torch.Tensor):
        require(
            isinstance(actual, (int, float, np.generic)) or (isinstance(actual, np.ndarray) and actual.ndim == 0),
            f"{what}: it is {_kind(actual)}, where one number was expected",
        )
        if isinstance(expected, int):
            whole = isinstance(actual, (int, np.integer)) or float(actual).is_integer()
            require(whole and int(actual) == expected, f"{what}: it is not the right number")
            return
        actual, expected, dtype = np.asarray(actual), np.asarray(expected), False
    _arrays(actual, expected, what, atol, rtol, dtype)


def parts(answer: Any, *names: str) -> tuple[Any, ...]:
    """The parts of a tuple, or a message that says what should have come.

    Raises:
        Wrong: it is no tuple of as many parts as there are names.
    """
    require(
        isinstance(answer, (tuple, list)) and len(answer) == len(names),
        f"The result should be a tuple of {len(names)}: {', '.join(names)}.",
    )
    return tuple(answer)


def same(answer: Any, expected: Sequence[Any], names: Sequence[str], what: str, **tolerance: Any) -> tuple[Any, ...]:
    """Fail unless each part of a tuple is :func:`close` to the one expected, under its name; the parts."""
    found = parts(answer, *names)
    for name, one, other in zip(names, found, expected, strict=True):
        close(one, other, what=f"{name} {what}", **tolerance)
    return found


def _arrays(actual: Any, expected: Any, what: str, atol: float | None, rtol: float | None, dtype: bool) -> None:
    if isinstance(expected, torch.Tensor):
        if not isinstance(actual, torch.Tensor):
            raise Wrong(f"{what}: it is {_kind(actual)}, where a torch tensor was expected")
    elif not isinstance(actual, (np.ndarray, np.generic)):
        raise Wrong(f"{what}: it is {_kind(actual)}, where a NumPy array was expected")
    if actual.shape != expected.shape:
        raise Wrong(f"{what}: its shape is {shape_of(actual)}, where {tuple(expected.shape)} was expected")
    kind, wanted_kind = name_of(actual.dtype), name_of(expected.dtype)
    if dtype and kind != wanted_kind:
        raise Wrong(f"{what}: its dtype is {kind}, where {wanted_kind} was expected")
    a, e = _double(actual), _double(expected)
    if not e.size:
        return
    with np.errstate(invalid="ignore", over="ignore"):  # infinity less infinity, the largest less the smallest
        off = np.abs(a - e)
    error, scale = float(off.max()), float(np.abs(e).max())
    if not np.isfinite(error + scale):
        finite = np.isfinite(e)
        if not np.array_equal(np.isnan(a), np.isnan(e)):
            raise Wrong(f"{what}: {int(np.isnan(a).sum())} of {a.size} values are NaN")
        if not (np.array_equal(np.isposinf(a), np.isposinf(e)) and np.array_equal(np.isneginf(a), np.isneginf(e))):
            raise Wrong(f"{what}: its infinite values stand in the wrong places")
        if not finite.any():
            return
        off = off[finite]
        error, scale = float(off.max()), float(np.abs(e[finite]).max())
    if wanted_kind.startswith(("bool", "int", "uint")):
        wrong = int(np.sum(off != 0))
        require(wrong == 0, f"{what}: {wrong} of {e.size} values are wrong")
        return
    if rtol is None:
        rtol = _RTOL.get(wanted_kind, 1e-9) if atol is None else 0.0
    allowed = (atol or 0.0) + rtol * scale
    if not _gauge(what, error, max(allowed, 1e-300)):
        share = float(np.mean(off > allowed))
        raise Wrong(f"{what}: {share:.0%} of the values are off, by up to {error:.2g} where {allowed:.1g} is allowed")


def _double(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().double() if value.dtype.is_floating_point else value.detach()
        return np.asarray(value.numpy(), dtype=np.float64)
    return np.asarray(value, dtype=np.float64)


# The name of any other type is the submission's to choose, and could carry hidden inputs into the message.
_KNOWN_TYPES = frozenset(
    (
        "int",
        "float",
        "complex",
        "bool",
        "str",
        "bytes",
        "list",
        "tuple",
        "dict",
        "set",
        "function",
        "method",
        "module",
        "generator",
        "map",
        "zip",
        "range",
        "type",
        "ndarray",
        "Tensor",
        "Parameter",
        "Linear",
        "GRUCell",
        "Module",
    )
)


def shape_of(value: Any) -> str:
    """The shape of an array for a message; one that no honest answer has is not spelled out."""
    shape = tuple(value.shape)
    return str(shape) if len(shape) <= 6 and all(n <= 9999 for n in shape) else "an entirely different one"


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, torch.Tensor):
        return "a torch tensor"
    if isinstance(value, np.ndarray):
        return "a NumPy array"
    name = getattr(value, "type_name", type(value).__name__)
    return f"a value of type {name}" if name in _KNOWN_TYPES else "a value of a type of your own"


def raises(exception: type[BaseException], student: Student, name: str, *args: Any, **kwargs: Any) -> None:
    """Fail unless the call raises this exception or a subclass of it."""
    try:
        outcome = student.call(name, *args, **kwargs)
    except Raised as error:
        outcome = error
    _require_raised(exception, outcome)


def each_raises(exception: type[BaseException], student: Student, name: str, calls: Calls) -> None:
    """Fail unless each of these calls, all of which are made, raises this exception or a subclass of it."""
    for outcome in student.outcomes(name, calls):
        _require_raised(exception, outcome)


def _require_raised(exception: type[BaseException], outcome: Any) -> None:
    expected = f"it should raise {exception.__name__} here"
    require(isinstance(outcome, Raised), f"{expected}, and returned a value")
    raised = outcome.bases[0] if outcome.bases else "something else"
    require(exception.__name__ in outcome.bases, f"{expected}, and raised {raised}")


def tensor(rng: np.random.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor of standard normal numbers drawn from ``rng``."""
    return torch.from_numpy(rng.normal(size=shape)).to(dtype)


def strided(array: Any) -> Any:
    """The same values in memory with gaps and axes reversed: a submission that assumes contiguity stumbles."""
    if isinstance(array, torch.Tensor):
        reverse = tuple(reversed(range(array.ndim)))
        return array.permute(reverse).contiguous().repeat_interleave(2, dim=-1)[..., ::2].permute(reverse)
    reverse = tuple(reversed(range(array.ndim)))
    return np.ascontiguousarray(array.transpose(reverse)).repeat(2, axis=-1)[..., ::2].transpose(reverse)
