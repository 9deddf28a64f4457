"""A hidden suite, collected once by pytest and run test by test against one submission after another."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _pytest.config import _prepareconfig
from _pytest.main import Session

from autograder import CourseError
from autograder.sandbox.student import Journal, Student
from autograder.suites.kit import Gauge, Mark, gauging

SUITES = Path(__file__).resolve().parent.parent / "suites"


class SuiteError(CourseError):
    """A hidden suite cannot be collected, or a test in it is not marked as one."""


@dataclass(frozen=True)
class HiddenTest:
    """One collected test."""

    name: str
    claim: str
    mark: Mark
    arguments: tuple[str, ...]
    function: Callable[..., None]


@dataclass(frozen=True)
class Run:
    """What one test did with one submission: the exception that ended it, if any, and its gauges."""

    error: BaseException | None
    gauges: tuple[Gauge, ...]


@dataclass(frozen=True)
class Verdict:
    """One test's run, with all that the search for a named mistake needs."""

    test: HiddenTest
    outcome: str
    message: str
    run: Run | None
    journal: Journal
    seconds: float = 0.0
    """CPU time of the submission in it."""


class _Faults:
    """A pytest plugin that notes what could not be collected."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called by pytest for each file that it has read."""
        if report.failed:
            self.errors.append(str(report.longrepr))


class Suite:
    """The hidden tests of one chapter, by exercise, value tests first as they are written."""

    def __init__(self, slug: str) -> None:
        # Suites compute on small arrays, where a second thread costs more than it brings; workers use the cores.
        torch.set_num_threads(1)
        path = SUITES / f"test_{slug}.py"
        if not path.is_file():
            raise SuiteError(f"{path.name} does not exist")
        self.slug = slug
        faults = _Faults()
        # No ini-file, no cache, no capture: what runs here is the suite alone, wherever the caller stands.
        arguments = [str(path), "-c", os.devnull, "--rootdir", str(SUITES), "-p", "no:cacheprovider", "-s"]
        arguments += ["-W", "ignore"]
        for plugin in ("terminal", "xdist", "timeout", "faulthandler", "unraisableexception", "threadexception"):
            arguments += ["-p", f"no:{plugin}"]
        config = _prepareconfig(arguments)
        config.pluginmanager.register(faults)
        config._do_configure()
        self._session = Session.from_config(config)
        config.hook.pytest_sessionstart(session=self._session)
        config.hook.pytest_collection(session=self._session)
        if faults.errors:
            raise SuiteError(f"{path.name} cannot be collected:\n" + "\n".join(faults.errors))
        self.tests: dict[str, list[HiddenTest]] = {}
        for item in self._session.items:
            test = _hidden_test(item, path)
            self.tests.setdefault(test.mark.exercise, []).append(test)

    def run(self, test: HiddenTest, student: Student, rng: np.random.Generator) -> Run:
        """Run one test against one submission with these random numbers.

        pytest has collected the test; the call is ours, because pytest's own protocol around it costs more than most
        tests do.
        """
        given = {"student": student, "rng": rng}
        with gauging() as gauges, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                test.function(**{name: given[name] for name in test.arguments})
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a test that skips or exits has not shown that its claim holds
                return Run(error, tuple(gauges))
            return Run(None, tuple(gauges))


def _hidden_test(item: pytest.Item, path: Path) -> HiddenTest:
    function: Any = getattr(item, "function", None)
    mark = getattr(function, "mark", None)
    if not isinstance(mark, Mark):
        raise SuiteError(f"{path.name}: {item.name} carries no @hidden(…)")
    if not function.__doc__:
        raise SuiteError(f"{path.name}: {item.name} states no claim in its docstring")
    arguments = tuple(inspect.signature(function).parameters)
    if strangers := set(arguments) - {"student", "rng"}:
        raise SuiteError(f"{path.name}: {item.name} asks for {sorted(strangers)}; there are `student` and `rng`")
    return HiddenTest(item.name, " ".join(function.__doc__.split()), mark, arguments, function)


@cache
def suite(slug: str) -> Suite:
    """The chapter's suite, collected once in this process."""
    return Suite(slug)
