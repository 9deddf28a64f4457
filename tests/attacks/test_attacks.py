"""Every attack of the corpus is graded in the real jail, among honest submissions, and changes nothing in the world."""

from __future__ import annotations

import builtins
import gc
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
import yaml
from corpus import ADDITIVE, MARK, SCALED, Archive, Attack, load

from autograder import course
from autograder.authoring.build import instructor_notebook
from autograder.grading import judge
from autograder.grading.collect import CollectError, find_submissions
from autograder.grading.judge import judge_notebook
from autograder.grading.result import SubmissionResult
from autograder.grading.suite import suite
from autograder.sandbox import client, outside
from autograder.sandbox import session as sandbox
from autograder.sandbox.jail import NOBODY, Limits
from autograder.sandbox.session import Session
from autograder.sandbox.student import Student

ATTACKS, ARCHIVES = load()
SECRET = b"no attack may know this" * 2
EVERY = 12  # after so many attacks, an honest submission is graded again
TABLE = course.CHAPTERS / "appendix" / "data" / "attacks.yaml"


class Hung(KeyboardInterrupt):
    """The grade did not come in time. No test and no grader catches an interrupt."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise Hung(f"no grade within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# The world outside


def children(pid: int) -> set[int]:
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found |= {child} | children(child)
    return found


def listening() -> set[str]:
    """Sockets that an unprivileged user outside our own namespaces holds, and those that carry the attacks' mark."""
    found = set()
    for kind in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[7] == str(NOBODY):
                found.add(f"{kind} {fields[1]}")
    return found | {line for line in Path("/proc/net/unix").read_text().splitlines() if MARK in line}


def marked_files() -> set[str]:
    """Whatever carries the attacks' mark, in the places where a process might leave something."""
    places = [Path(place) for place in ("/tmp", "/var/tmp", "/dev/shm", "/", sys.prefix, course.ROOT, Path.home())]
    return {str(path) for place in places if place.is_dir() for path in place.iterdir() if MARK in path.name}


def course_files() -> dict[str, str]:
    """Digests of what git tracks, and of what the course keeps to itself."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=course.ROOT, capture_output=True, check=True).stdout
    paths = [course.ROOT / name for name in names.decode().split("\0") if name]
    paths += [course.COURSE / "secret", course.GRADEBOOK]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def grader() -> dict[str, object]:
    """The grader's own process: what an attack that escapes into it would change first."""
    return {
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "folder": os.getcwd(),
        "builtins": {name: id(value) for name, value in vars(builtins).items() if callable(value)},
        "numpy.testing": {name: id(value) for name, value in vars(np.testing).items() if callable(value)},
        "torch.testing": id(torch.testing.assert_close),
        "torch.allclose": id(torch.allclose),
        "modules": {name for name in sys.modules if "corpus" in name or MARK in name},
        "threads": threading.active_count(),
        "files": len(os.listdir("/proc/self/fd")),
    }


def honest(slug: str) -> SubmissionResult:
    return judge_notebook(nbformat.writes(instructor_notebook(slug)).encode(), slug, f"honest-{slug}", secret=SECRET)


def without_seconds(result: SubmissionResult) -> dict[str, object]:
    return {**result.as_json(), "seconds": None}


class Watch:
    """The world before the first attack, and two honest submissions: one graded again and again, one that lives on."""

    def __init__(self) -> None:
        self.grades = {slug: honest(slug) for slug in (SCALED, ADDITIVE)}
        self.neighbour = Session(
            ["import numpy as np\ndef count(n):\n    return np.arange(n)"], Limits(cpu_seconds=3600)
        ).__enter__()  # it has to outlast all attacks, also on a machine where they take long
        self.judged = 0
        self.keeper = client.server()._process.pid
        self.processes = children(os.getpid())
        self.sockets, self.files = listening(), course_files()
        self.grader = grader()

    def after_one(self) -> None:
        """What must hold after every single attack."""
        self.judged += 1
        assert children(os.getpid()) == self.processes, "a process outlived its submission"
        if self.judged % EVERY == 0:
            self.honest_grades((SCALED, ADDITIVE)[self.judged // EVERY % 2])

    def honest_grades(self, *slugs: str) -> None:
        for slug in slugs:
            assert without_seconds(honest(slug)) == without_seconds(self.grades[slug])

    def world(self) -> None:
        self.neighbour.allow(60)
        assert Student(self.neighbour).count(5).tolist() == [0, 1, 2, 3, 4]
        assert grader() == self.grader
        assert not listening() - self.sockets
        assert not marked_files()
        now = course_files()
        assert sorted(name for name in self.files.keys() | now.keys() if self.files.get(name) != now.get(name)) == []


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    watch = Watch()
    try:
        yield watch
    finally:
        watch.neighbour.__exit__(None, None, None)


def test_honest_work_has_full_marks_before_the_attacks(watch: Watch) -> None:
    for slug, result in watch.grades.items():
        assert result.score == result.max_score == course.sheet(slug).points


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wall time is generous where machines are loaded; here nobody wants to wait for what only sleeps."""
    for name, value in (("WALL_FACTOR", 2), ("WALL_GRACE", 4), ("DEAF_SECONDS", 2), ("HANG_UP_SECONDS", 1)):
        if hasattr(sandbox, name):
            monkeypatch.setattr(sandbox, name, value)


def peak_memory() -> int:
    outside.forget_peak(os.getpid())
    return outside.peak_memory(os.getpid()) or 0


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.theme}: {attack.name}")
def test_attack(attack: Attack, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    if attack.theme != "cheating":  # the walls must hold where nobody doubts what the notebook holds
        monkeypatch.setattr(judge, "_beyond_doubt", lambda result, *_: result)
    gc.collect()
    before = peak_memory()
    try:
        with within(attack.seconds):
            result = judge_notebook(attack.data, attack.slug, "s900", secret=SECRET, limits=_limits(attack))
    except Hung as hung:
        suite.cache_clear()  # a suite that was interrupted cannot go on
        pytest.fail(str(hung))
    grown = (outside.peak_memory(os.getpid()) or 0) - before
    watch.after_one()
    assert (result.status, result.outcome) == ("graded", attack.overall), result.message
    found = {exercise.id.removeprefix(f"{attack.slug}-"): exercise for exercise in result.exercises}
    said = {name: (exercise.outcome, exercise.score, exercise.message) for name, exercise in found.items()}
    for name, outcomes in attack.outcomes.items():
        assert found[name].outcome in (*outcomes, "forbidden"), said  # the source check may be first to find it
        assert found[name].score == 0 or (attack.partial and found[name].score < found[name].max_score), said
    for name, exercise in found.items():
        if name in attack.full:
            assert exercise.outcome == "passed", said
            assert exercise.score == exercise.max_score, said
        elif name not in attack.outcomes:
            assert exercise.score == 0, said
    assert grown < attack.memory, f"the grader itself grew by {grown / 2**20:.0f} MiB"
    messages = [test.message for exercise in result.exercises for test in exercise.tests]
    messages += [exercise.message for exercise in result.exercises]
    assert all(message.isprintable() for message in messages), messages
    if attack.hides:
        assert not [message for message in messages if attack.hides in message]


@pytest.mark.parametrize("hostile", ARCHIVES, ids=lambda hostile: f"{hostile.theme}: {hostile.name}")
def test_archive(hostile: Archive, watch: Watch, tmp_path: Path) -> None:
    place = tmp_path / "class.zip"
    place.write_bytes(hostile.data)
    before = peak_memory()
    with within(30), find_submissions([place], known=course.slugs()) as collected:
        found = {submission.student: submission for submission in collected.submissions}
        assert json.loads(found["s001"].read())["cells"] == []  # the honest one, and its own bytes
        for student, submission in found.items():
            assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", student)
            assert submission.slug in course.slugs()
            try:
                assert len(submission.read()) < 100_000
            except CollectError:
                continue  # damaged: said when it is read
        assert collected.problems or len(found) > 1 or not hostile.said
        assert all(str(problem).isprintable() for problem in collected.problems)
    assert (outside.peak_memory(os.getpid()) or 0) - before < 300 << 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["class.zip"]


def _limits(attack: Attack) -> Limits:
    return Limits(cpu_seconds=attack.cpu, address_space=sandbox.LIMITS.address_space, processes=16)


def test_honest_grades_and_the_world_are_as_before(watch: Watch) -> None:
    watch.honest_grades(SCALED, ADDITIVE)
    watch.world()


def test_the_book_shows_every_attack() -> None:
    rows = [
        {"name": one.name, "theme": one.theme, "tries": one.tries, "stopped": one.stopped}
        for one in (*ATTACKS, *ARCHIVES)
    ]
    assert yaml.safe_load(TABLE.read_text(encoding="utf-8")) == rows
