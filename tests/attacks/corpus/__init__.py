"""Attacks on the grader: each is a submission that somebody could hand in, with the grade that honest judging gives.

Most follow one pattern. An ``attempt`` that brings anything home fills ``LOOT``; ``causal_mask`` is wrong and hopes for
the attack; ``padding_mask`` is right as long as every attempt was made and nothing was looted. So full marks for the
one and none for the other prove that the attack ran and failed. That it would have succeeded without the jail is proven
by the control (``yard.py``): there the same cells run without walls, and every single attempt has to bring something.

Words that begin with ``BAIT_`` stand for what the test lays out for an attack to reach; it fills them in (``baited``).

Residual risk, in plain words. What follows is not stopped, and why we live with it:

- A hidden test tells its outcome, so each regrade tells a submission a few bits about inputs it has seen; shapes and
  sizes of errors in messages tell a little more. Hidden numbers are the student's own, so nobody else learns from it.
- Whether source code reaches a forbidden function cannot be decided for all programs. The check follows names, not
  values. What other cells could do to an exercise unseen does not count, because it is judged without what it may not
  use wherever that lies elsewhere; what its own code puts together while it runs is found only where the road to it is
  itself ruled out. A person who reads the notebook sees it at once. The attacks on the walls are judged without that
  second look, and those that go into the sandbox's own modules hide behind `builtins` where they can, so that the walls
  are tried; the test therefore takes "forbidden" for an answer everywhere.
- A gate on cost that counts inside the process can be lied to. Each has a reading from outside beside it (memory, CPU
  time), which is coarse: it catches waste that is many times the limit, and it does not see memory that was held before
  the call and let go of in it. A lie together with a loop that is tuned to the last nanosecond, or with such a cushion,
  can win the share of points of a cost gate, never those of a value test.
- The kernel is trusted. A hole in it that one of the allowed system calls reaches is a hole in the jail.
- Time on the processor is measurable by others on the same machine, and a submission can waste what it is given (its
  CPU time, its memory, 64 MiB of /tmp) before it is stopped. That many processes together keep to the memory of one is
  looked at twenty times a second: in between they can fill what the machine's cores can touch in that time.
- A submission learns the inputs of its own hidden tests while it is graded. It has nowhere to take them.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from autograder import course

MARK = "attn-red"  # in the name of everything that an attack tries to leave behind
SCALED, ADDITIVE = "scaled_dot_product", "additive"


@dataclass(frozen=True)
class Attack:
    """One hostile submission and the grade it must get."""

    name: str
    theme: str
    tries: str
    stopped: str
    slug: str
    data: bytes
    outcomes: dict[str, tuple[str, ...]]  # of exercises that must not pass
    full: tuple[str, ...]  # exercises that keep full marks
    partial: bool  # whether the exercises of `outcomes` may keep the points of tests that hold
    overall: str
    cpu: float
    seconds: float  # wall time within which the grade must stand, on a loaded machine
    memory: int  # bytes that the grader itself may gain
    hides: str  # words that no message may show
    raids: bool  # whether the control runs it without walls
    after: str  # name of the attack that has to come before it there


ATTACKS: list[Attack] = []


@dataclass
class Submission:
    """What an attack hands in: cells, or the bytes of a file."""

    cells: tuple[str, ...] = ()
    raw: bytes | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    raids: bool = False
    after: str = ""

    def bytes(self) -> bytes:
        """The file."""
        return self.raw if self.raw is not None else notebook(self.cells, self.metadata)


def notebook(cells: Iterable[str], metadata: dict[str, Any] | None = None) -> bytes:
    """A notebook of these code cells."""
    made = [
        {"cell_type": "code", "metadata": {}, "source": cell, "outputs": [], "execution_count": None} for cell in cells
    ]
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata or {}, "cells": made}).encode()


def attack(
    *,
    tries: str,
    stopped: str,
    wrong: str | dict[str, str | tuple[str, ...]] | None = "causal_mask",
    outcome: str | tuple[str, ...] = "failed",
    full: str = "padding_mask",
    partial: bool = False,
    slug: str = SCALED,
    overall: str = "ok",
    cpu: float = 6,
    seconds: float = 60,
    memory: int = 768 << 20,
    hides: str = "",
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Enter a submission into the corpus, under its function's name.

    Args:
        tries: what the attack wants, for the table in the book.
        stopped: what stops it.
        wrong: the exercises that must not pass (names, or outcomes by name), by default the one that hopes for it.
        outcome: of those, where only names are given.
        full: names of exercises that must have full marks.
        partial: tests that hold may keep their points, as long as the exercise has not passed.
        slug: the chapter.
        overall: outcome of the whole notebook.
        cpu: seconds of CPU time for the submission.
        seconds: within which the grade must stand.
        memory: what the grader may gain while it judges.
        hides: words that must not come out in any message.
    """
    chosen = dict.fromkeys(wrong.split(), outcome) if isinstance(wrong, str) else dict(wrong or {})
    outcomes = {name: (one,) if isinstance(one, str) else tuple(one) for name, one in chosen.items()}

    def enter(function: Callable[[], Any]) -> Callable[[], Any]:
        made = function()
        submission = made if isinstance(made, Submission) else Submission((made,) if isinstance(made, str) else made)
        ATTACKS.append(
            Attack(
                function.__name__.replace("_", " "),
                function.__module__.rpartition(".")[2],
                tries,
                stopped,
                slug,
                submission.bytes(),
                outcomes,
                tuple(full.split()),
                partial,
                overall,
                cpu,
                seconds,
                memory,
                hides,
                submission.raids,
                submission.after,
            )
        )
        return function

    return enter


@dataclass(frozen=True)
class Archive:
    """One hostile zip; the honest submission in it must be found, and nothing else of it may come out."""

    name: str
    theme: str
    tries: str
    stopped: str
    data: bytes
    said: bool  # whether a message must name what was left out
    alone: bool  # whether nothing but the honest submission may come out


ARCHIVES: list[Archive] = []


def archive(
    *, tries: str, stopped: str, said: bool = True, alone: bool = False
) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    """Enter a zip into the corpus, under its function's name."""

    def enter(function: Callable[[], bytes]) -> Callable[[], bytes]:
        theme = function.__module__.rpartition(".")[2]
        ARCHIVES.append(Archive(function.__name__.replace("_", " "), theme, tries, stopped, function(), said, alone))
        return function

    return enter


def reference(name: str, slug: str = SCALED) -> str:
    """The right answer to an exercise."""
    return course.solution(slug).definitions[name].source


WRONG_MASK = "def causal_mask(q_seq, kv_seq):\n    return np.ones((q_seq, kv_seq), dtype=bool)\n"
RIGHT_MASK = reference("causal_mask")
WITNESS = reference("padding_mask")

_PRELUDE = """
LOOT, TRIED, REFUSED = [], [], []
def attempt(what, call):
    number = len(TRIED)
    TRIED.append(what)
    try:
        found = call()
    except (NameError, SyntaxError):
        raise
    except BaseException as error:
        REFUSED.append((number, repr(error)))
        return None
    if found:
        LOOT.append(number)
    return found
"""

_ONLY_EMPTY_HANDED = """
_honest_padding_mask = padding_mask
def padding_mask(lengths, kv_seq):
    if LOOT or len(TRIED) < {count}:
        raise RuntimeError
    return _honest_padding_mask(lengths, kv_seq)
"""


def raid(*cells: str, count: int, after: str = "") -> Submission:
    """Cells of attempts, a wrong mask that hopes for them, and the witness that passes if all of them failed.

    Args:
        cells: call ``attempt(what, call)``, where the call returns what it brings, or raises.
        count: of attempts; a submission that made fewer is no witness.
        after: the function of the attack whose leavings it looks for.
    """
    made = (_PRELUDE, *cells, WRONG_MASK, WITNESS + _ONLY_EMPTY_HANDED.format(count=count))
    return Submission(made, raids=True, after=after.replace("_", " "))


def load() -> tuple[list[Attack], list[Archive]]:
    """Every attack of the corpus, theme by theme."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return sorted(ATTACKS, key=lambda one: one.theme), ARCHIVES
