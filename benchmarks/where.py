"""Where the CPU time of `attn grade` goes, by part: judge and recorder in one process, clocks around their steps.

Each part's own time counts, without the parts that it calls. The submission's process is read from outside, in the
kernel's account of it, so the figures hold for the real jail.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session as SQLSession

from autograder import course
from autograder.authoring.build import build
from autograder.grading import diagnose, judge, record
from autograder.grading.record import Recorder
from autograder.grading.secret import course_secret
from autograder.grading.worker import settle
from autograder.sandbox.session import Session

PARTS = {
    "reading the notebook, source check": [(judge, "read_notebook"), (judge, "read"), (judge, "forbidden_calls")],
    "hidden tests: references, comparisons, messages": [(judge, "run_tests")],
    "naming mistakes: replay of each mistake": [(diagnose, "name_mistake")],
    "fork: the grader's side": [(Session, "__enter__"), (Session, "__exit__")],
    "run log (JSON, synced to disk)": [(record, "write_result")],
    "gradebook": [(Recorder, "_enter_grades"), (Recorder, "is_recorded")],
    "gradebook: commit": [(SQLSession, "commit")],
    "feedback page (HTML)": [(record, "write_feedback")],
    "autograded notebook: made": [(Recorder, "_graded_copy")],
    "notebooks: written": [(Recorder, "_write_notebook")],
}
JAIL, CELLS, ANSWERS, END, KEEPER, REST = (
    "jail: the child builds its walls", "cells, in the jail", "answers to tests, in the jail",
    "jail: the child's end", "keeper: fork and wait", "everything else of judge and recorder",
)  # fmt: skip


class Clock:
    """CPU time of this process by part; a part that is called stops the clock of the one that calls."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self._stack, self._since = [REST], time.process_time()

    def switch(self) -> None:
        """Book what has passed to the part that ran."""
        now = time.process_time()
        self.spent[self._stack[-1]] += now - self._since
        self._since = now

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time booked to this part."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.switch()
            self._stack.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.switch()
                self._stack.pop()

        return timed


def _process_cpu(pid: int) -> float:
    """CPU seconds of a process's first thread, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def _with_children(pid: int) -> float:
    """CPU seconds of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _keeper() -> int:
    """The fork server's process: the child of the watchman, which is the one process that a first session starts."""
    with Session([]):
        pass
    watchman = _children(os.getpid())[0]
    return _children(watchman)[0]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def profile(students: list[Path], slug: str, warm: int) -> dict[str, Any]:
    """CPU seconds a submission by part; the first `warm` students are graded before the clock starts."""
    clock, inside = Clock(), Counter[str]()

    def child_clocks(run_cells: Callable[[Session], None], end: Callable[..., int]) -> None:
        def timed_cells(self: Session) -> None:
            assert self._child is not None
            walls = _process_cpu(self._child.pid)
            run_cells(self)
            if self._child is not None:
                ready = _process_cpu(self._child.pid)
                inside.update({JAIL: walls, CELLS: ready - walls, ANSWERS: -ready})

        def timed_end(self: Session, kill: bool) -> int:
            if self._child is not None:
                inside[ANSWERS] += _process_cpu(self._child.pid)
            return end(self, kill)

        Session._run_cells, Session._end = timed_cells, timed_end  # type: ignore[method-assign]

    for part, functions in PARTS.items():
        for owner, name in functions:
            setattr(owner, name, clock.around(part, getattr(owner, name)))
    child_clocks(Session._run_cells, Session._end)
    build(slug)
    secret, counted = course_secret(), students[warm:]
    settle(slug)
    keeper = _keeper()
    with Recorder(course.COURSE) as recorder:
        for number, student in enumerate(students):
            if number == warm:
                clock.switch()
                clock.spent.clear()
                inside.clear()
                at_start, keeper_start, wall = _with_children(keeper), _process_cpu(keeper), time.monotonic()
            data = (student / slug / "exercises.ipynb").read_bytes()
            result = judge.judge_notebook(data, slug, student.name, secret=secret)
            recorder.record(result, data, datetime(2026, 1, 1))
            clock.switch()
        wall = time.monotonic() - wall
    own = _process_cpu(keeper) - keeper_start
    children = _with_children(keeper) - at_start - own
    inside[KEEPER], inside[END] = own, children - inside[JAIL] - inside[CELLS] - inside[ANSWERS]
    parts = {part: seconds / len(counted) for part, seconds in (clock.spent | inside).items()}
    total = sum(parts.values())
    return {
        "submissions": len(counted),
        "cpu_s_per_submission": round(total, 4),
        "wall_s_per_submission": round(wall / len(counted), 4),
        "parts": [
            {"part": part, "cpu_s": round(seconds, 5), "share": round(seconds / total, 3)}
            for part, seconds in sorted(parts.items(), key=lambda item: -item[1])
        ],
    }
