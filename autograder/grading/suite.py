"""A hidden suite, collected once by pytest and run test by test against one submission after another."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from _pytest.config import _prepareconfig
from _pytest.main import Session
from _pytest.runner import runtestprotocol

from autograder.sandbox.student import Journal, Student
from autograder.suites.kit import Gauge, Mark, gauging

SUITES = Path(__file__).resolve().parent.parent / "suites"


class SuiteError(Exception):
    """A hidden suite cannot be collected, or a test in it is not marked as one."""


@dataclass(frozen=True)
class HiddenTest:
    """One collected test."""

    name: str
    claim: str
    mark: Mark
    item: pytest.Item


@dataclass(frozen=True)
class Run:
    """What one test did with one submission: the exception that ended it, if any, and its gauges."""

    error: BaseException | None
    gauges: tuple[Gauge, ...]
    in_setup: bool = False


@dataclass(frozen=True)
class Verdict:
    """One test's run, with all that the search for a named mistake needs."""

    test: HiddenTest
    outcome: str
    message: str
    run: Run | None
    journal: Journal


class Seat:
    """The pytest plugin that hands the current submission to the fixtures of ``suites/conftest.py``."""

    def __init__(self) -> None:
        self.student: Student | None = None
        self.rng: np.random.Generator | None = None
        self.collection_errors: list[str] = []
        self.error: BaseException | None = None
        self.in_setup = False

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note what could not be collected."""
        if report.failed:
            self.collection_errors.append(str(report.longrepr))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> pytest.TestReport:
        """Keep the exception itself. The printed traceback that a report usually holds would cost most of the time."""
        failed = call.excinfo is not None
        if call.excinfo is not None and self.error is None:
            self.error, self.in_setup = call.excinfo.value, call.when != "call"
        outcome: Literal["passed", "failed"] = "failed" if failed else "passed"
        when = call.when if call.when != "collect" else "call"
        return pytest.TestReport(item.nodeid, item.location, {}, outcome, None, when)


class Suite:
    """The hidden tests of one chapter, by exercise, value tests first as they are written."""

    def __init__(self, slug: str) -> None:
        # Suites compute on small arrays, where a second thread costs more than it brings; workers use the cores.
        torch.set_num_threads(1)
        path = SUITES / f"test_{slug}.py"
        if not path.is_file():
            raise SuiteError(f"{path.name} does not exist")
        self.slug = slug
        self._seat = Seat()
        # No ini-file, no cache, no capture: what runs here is the suite alone, wherever the caller stands.
        arguments = [str(path), "-c", os.devnull, "--rootdir", str(SUITES), "-p", "no:cacheprovider", "-s"]
        arguments += [
            "-p",
            "no:terminal",
            "-W",
            "ignore",
            "-p",
            "no:xdist",
            "-p",
            "no:timeout",
            "-p",
            "no:faulthandler",
        ]
        # What the garbage collector finds while a test runs is nobody's answer.
        arguments += ["-p", "no:unraisableexception", "-p", "no:threadexception"]
        config = _prepareconfig(arguments)
        config.pluginmanager.register(self._seat, "attn-seat")
        config._do_configure()
        self._session = Session.from_config(config)
        config.hook.pytest_sessionstart(session=self._session)
        config.hook.pytest_collection(session=self._session)
        if self._seat.collection_errors:
            raise SuiteError(f"{path.name} cannot be collected:\n" + "\n".join(self._seat.collection_errors))
        self.tests: dict[str, list[HiddenTest]] = {}
        for item in self._session.items:
            test = _hidden_test(item, path)
            self.tests.setdefault(test.mark.exercise, []).append(test)

    def run(self, test: HiddenTest, student: Student, rng: np.random.Generator) -> Run:
        """Run one test against one submission with these random numbers."""
        with self._seated(student, rng), gauging() as gauges:
            runtestprotocol(test.item, log=False, nextitem=None)
            return Run(self._seat.error, tuple(gauges), self._seat.in_setup)

    @contextmanager
    def _seated(self, student: Student, rng: np.random.Generator) -> Iterator[None]:
        self._seat.student, self._seat.rng = student, rng
        self._seat.error, self._seat.in_setup = None, False
        try:
            yield
        finally:
            self._seat.student = self._seat.rng = None


def _hidden_test(item: pytest.Item, path: Path) -> HiddenTest:
    function: Any = getattr(item, "function", None)
    mark = getattr(function, "mark", None)
    if not isinstance(mark, Mark):
        raise SuiteError(f"{path.name}: {item.name} carries no @hidden(…)")
    if not function.__doc__:
        raise SuiteError(f"{path.name}: {item.name} states no claim in its docstring")
    return HiddenTest(item.name, " ".join(function.__doc__.split()), mark, item)


@cache
def suite(slug: str) -> Suite:
    """The chapter's suite, collected once in this process."""
    return Suite(slug)


def seed_of(secret: bytes, assignment: str, student: str, test: str) -> int:
    """The seed from which a test draws its numbers: an HMAC, so that nobody without the secret can know it.

    It depends on neither the notebook's text nor the time: white space cannot reroll it, and a regrade repeats it.
    """
    digest = hmac.new(secret, f"{assignment}/{student}/{test}".encode(), hashlib.sha256).digest()
    return int.from_bytes(digest[:16], "big")


def student_seed(secret: bytes, assignment: str, student: str) -> str:
    """What a result shows of the numbers that a student met: the same mark means the same numbers."""
    return f"{seed_of(secret, assignment, student, ''):032x}"[:16]


def own_seed(seed: int) -> int:
    """The seed for what a submission draws by itself; it tells nothing of the test's own."""
    return int.from_bytes(hashlib.sha256(f"submission {seed}".encode()).digest()[:4], "big")
