"""The yardstick of `grading.py`: a warm fork that runs a submission's cells and the hidden tests in its own process.

No jail, no message between processes, no search for mistakes, nothing written: what remains is the work that any grader
of these notebooks has to do once torch is imported. It protects nobody, so it is for notebooks of our own making.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autograder import course
from autograder.grading.forbidden import forbidden_calls
from autograder.grading.intake import read_notebook
from autograder.grading.judge import _judged_alike
from autograder.grading.reading import read
from autograder.grading.secret import course_secret, own_seed, seed_of
from autograder.grading.suite import Suite, suite
from autograder.sandbox import child, workbench
from autograder.sandbox.errors import Raised
from autograder.sandbox.protocol import Handle
from autograder.sandbox.student import Calls, Module, Reading, Student, _error, whole

PLAIN = (bool, int, float, complex, str, bytes, np.ndarray, np.generic, type(None))


class BareStudent(Student):
    """Calls a namespace of this very process, with copies of the arguments: a call may change what it is given."""

    def __init__(self, namespace: dict[str, Any], seed: int) -> None:
        super().__init__(None, seed)  # type: ignore[arg-type]
        self._namespace, self._kept = namespace, {}

    def _ask(self, op: str, target: dict[str, Any], args: Any, kwargs: Any) -> Any:
        if self._seed is not None:
            workbench._seed(self._seed)
            self._seed = None
        operation = getattr(workbench, f"_{op}")
        args, kwargs = copy.deepcopy(self._unwrapped(args)), copy.deepcopy(self._unwrapped(kwargs))
        try:
            return self._wrapped(operation(self._function(target), args, kwargs, {}))
        except BaseException as error:
            raise _error(workbench.describe(error)) from None

    # Nothing travels here, so nothing waits to travel with something else.

    def _ask_later(self, op: str, target: dict[str, Any], args: Any, kwargs: Any) -> None:
        value = self._ask(op, target, args, kwargs)
        if "as" in target:
            self._kept[target["as"]] = self._unwrapped(value)

    def _each(self, op: str, target: dict[str, Any], calls: Calls) -> Iterator[Any]:
        return (self._ask(op, target, call.args, call.kwargs) for call in whole(calls))

    def outcomes(self, name: str, calls: Calls, /) -> list[Any]:
        """See :class:`Student`."""
        found: list[Any] = []
        for call in whole(calls):
            try:
                found.append(self._ask("call", {"name": name}, call.args, call.kwargs))
            except Raised as error:
                found.append(error)
        return found

    def _measured(self, op: str, target: dict[str, Any], args: Any, kwargs: Any) -> tuple[Any, Reading]:
        before = time.process_time()
        cost = self._ask(op, target, args, kwargs)
        return cost, Reading(None, time.process_time() - before)

    def _function(self, target: dict[str, Any]) -> Any:
        if "handle" not in target:
            if target["name"] not in self._namespace:
                raise NotImplementedError(target["name"])
            return self._namespace[target["name"]]
        owner = self._kept[target["handle"]]
        return getattr(owner, target["method"]) if "method" in target else owner

    def _unwrapped(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(map(self._unwrapped, value))
        if isinstance(value, dict):
            return {key: self._unwrapped(item) for key, item in value.items()}
        return self._kept[value.handle.number] if isinstance(value, Module) else value

    def _wrapped(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach()
        if isinstance(value, (tuple, list)):
            return (tuple if isinstance(value, tuple) else list)(map(self._wrapped, value))
        if isinstance(value, dict):
            return {key: self._wrapped(item) for key, item in value.items()}
        if isinstance(value, PLAIN):
            return value
        self._kept[len(self._kept)] = value
        return Module(self, Handle(len(self._kept) - 1, type(value).__name__))


def bare_fork(students: list[Path], slug: str) -> dict[str, Any]:
    """Fork once a submission; the child sends back which tests passed, and that is all that comes of it."""
    torch.set_num_threads(1)
    child.warm_up()
    hidden, secret, given = suite(slug), course_secret(), course.given_cells(slug)
    gc.collect()
    gc.freeze()  # as the grader's own server does, so that a child's collector copies no inherited page
    begun, start = _cpu(), time.monotonic()
    passed = {}
    for student in students:
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                cells = read_notebook((student / slug / "exercises.ipynb").read_bytes(), slug, given).cells
                os.write(writer, json.dumps(_passed(cells, hidden, secret, student.name)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as answer:
            passed[student.name] = json.loads(answer.read())
        os.waitpid(pid, 0)
    return {
        "submissions": len(passed),
        "cpu_s": _cpu() - begun,
        "wall_s": time.monotonic() - start,
        "start_up_cpu_s": round(begun, 2),
        "passed": passed,
    }


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + usage.ru_utime + usage.ru_stime


def _passed(cells: tuple[str, ...], hidden: Suite, secret: bytes, student: str) -> list[str]:
    """The names of the tests that pass; by the grader's rules for exercises that are ruled out or not attempted."""
    child._silence()
    shell = child._shell
    faults = [n for n, source in enumerate(cells) if child._run_cell(shell, n, source) is not None]
    code = read(cells, faults)
    names = []
    for exercise in course.sheet(hidden.slug).exercises:
        if forbidden_calls(code, exercise.name, exercise.forbids, _judged_alike(exercise)):
            continue
        for test in hidden.tests[exercise.name]:
            seed = seed_of(secret, hidden.slug, student, test.name)
            run = hidden.run(test, BareStudent(shell.user_ns, own_seed(seed)), np.random.default_rng(seed))
            if run.error is None:
                names.append(test.name)
    return names
