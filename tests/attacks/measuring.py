"""What an attack comes to: it is graded in the real jail, among honest submissions, and must change nothing outside.

``measure`` and ``measure_archive`` give the outcome that the book's table shows. The tests compare it with the recorded
one, and ``record.py`` writes the record.
"""

from __future__ import annotations

import builtins
import gc
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import nbformat
import numpy as np
import torch
from corpus import ADDITIVE, MARK, SCALED, Archive, Attack

from autograder import course
from autograder.authoring.build import instructor_notebook
from autograder.grading import judge
from autograder.grading.collect import CollectError, find_submissions
from autograder.grading.judge import judge_notebook
from autograder.grading.result import ExerciseResult, SubmissionResult
from autograder.grading.suite import suite
from autograder.sandbox import client, outside
from autograder.sandbox import session as sandbox
from autograder.sandbox.jail import NOBODY, Limits
from autograder.sandbox.session import Session
from autograder.sandbox.student import Student

SECRET = b"no attack may know this, not one"
EVERY = 12  # after so many attacks, an honest submission is graded again
STOPPED, OPEN = "gains nothing", "open"
HOST = "grades.example"  # a name that only the control can look up
# Wall time is generous where machines are loaded; here nobody wants to wait for what only sleeps.
IMPATIENT = {"WALL_FACTOR": 2, "WALL_GRACE": 4, "DEAF_SECONDS": 2, "HANG_UP_SECONDS": 1}


@dataclass
class Measured:
    """What an attack came to, and what speaks against it; nothing does where it gains nothing."""

    complaints: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """The word in the table."""
        return OPEN if self.complaints else STOPPED


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
        self.bait = Bait()
        self.grades = {slug: honest(slug) for slug in (SCALED, ADDITIVE)}
        self.neighbour = Session(
            ["import numpy as np\ndef count(n):\n    return np.arange(n)"], Limits(cpu_seconds=3600)
        ).__enter__()  # it has to outlast all attacks, also on a machine where they take long
        self.judged = 0
        self.keeper = client.server()._process.pid
        self.processes = children(os.getpid())
        self.sockets, self.files = listening(), course_files()
        self.grader = grader()

    def close(self) -> None:
        self.neighbour.__exit__(None, None, None)
        self.bait.close()

    def after_one(self) -> Iterator[str]:
        """What does not hold after an attack, and must.

        Raises:
            AssertionError: an honest submission has another grade than before.
        """
        self.judged += 1
        if children(os.getpid()) != self.processes:
            yield "a process outlived its submission"
        if visited := self.bait.visited():
            yield f"it reached a service outside: {sorted(visited)}"
        if self.judged % EVERY == 0:
            self.honest_grades((SCALED, ADDITIVE)[self.judged // EVERY % 2])

    def honest_grades(self, *slugs: str) -> None:
        for slug in slugs:
            now, before = without_seconds(honest(slug)), without_seconds(self.grades[slug])
            assert now == before, f"an honest submission to {slug} has another grade: {now}"

    def world(self) -> None:
        self.neighbour.allow(60)
        assert Student(self.neighbour).count(5).tolist() == [0, 1, 2, 3, 4]
        assert grader() == self.grader
        assert not listening() - self.sockets
        assert not marked_files()
        now = course_files()
        changed = sorted(name for name in self.files.keys() | now.keys() if self.files.get(name) != now.get(name))
        assert not changed, changed


class Bait:
    """Services outside that the attacks on the network try to reach: each notices who comes."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="attn-bait-")
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.abstract, self.path = Path(self.folder.name).name, f"{self.folder.name}/service"
        self.unix = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
        for service, name in zip(self.unix, (f"\0{self.abstract}", self.path), strict=True):
            service.bind(name)
            service.listen()
        for service in (self.tcp, self.udp, *self.unix):
            service.setblocking(False)

    def fill(self, data: bytes) -> bytes:
        """A submission with the names of the services in it."""
        words = {
            "BAIT_TCP": str(self.tcp.getsockname()[1]),
            "BAIT_UDP": str(self.udp.getsockname()[1]),
            "BAIT_ABSTRACT": self.abstract,
            "BAIT_UNIX": self.path,
            "BAIT_HOST": HOST,
        }
        for word, meaning in words.items():
            data = data.replace(word.encode(), meaning.encode())
        return data

    def visited(self) -> set[str]:
        """The kinds of service that somebody came to since this was last asked; whoever came over TCP is answered."""
        kinds = set()
        with suppress(BlockingIOError):
            while True:
                guest = self.tcp.accept()[0]
                with guest:
                    kinds.add("tcp")
                    guest.settimeout(0.2)
                    with suppress(OSError):
                        guest.recv(4096)
                        guest.sendall(b"HTTP/1.0 200 OK\r\n\r\ngrades")
        with suppress(BlockingIOError):
            while self.udp.recv(16):
                kinds.add("udp")
        for kind, service in zip(("abstract", "path"), self.unix, strict=True):
            with suppress(BlockingIOError):
                while True:
                    service.accept()[0].close()
                    kinds.add(kind)
        return kinds

    def close(self) -> None:
        for service in (self.tcp, self.udp, *self.unix):
            service.close()
        self.folder.cleanup()


@contextmanager
def watching() -> Iterator[Watch]:
    """The world, watched: made before the first attack, closed after the last."""
    with ExitStack() as stack:
        for name, value in IMPATIENT.items():
            stack.enter_context(patch.object(sandbox, name, value))
        watch = Watch()
        stack.callback(watch.close)
        yield watch


def peak_memory() -> int:
    outside.forget_peak(os.getpid())
    return outside.peak_memory(os.getpid()) or 0


def limits(attack: Attack) -> Limits:
    return Limits(cpu_seconds=attack.cpu, address_space=sandbox.LIMITS.address_space, processes=16)


def measure(attack: Attack, watch: Watch) -> Measured:
    """Hand the attack in, and once more without the source check where that alone has stopped it."""
    data, measured = watch.bait.fill(attack.data), Measured()
    gc.collect()
    before = peak_memory()
    try:
        with within(attack.seconds), undoubted(attack.theme):
            result = judge_notebook(data, attack.slug, "s900", secret=SECRET, limits=limits(attack))
            grown = (outside.peak_memory(os.getpid()) or 0) - before
            second = None
            if any(_of(result, name).outcome == "forbidden" for name in _behind(attack)):
                with patch.object(judge, "forbidden_result", lambda *arguments: None):
                    second = judge_notebook(data, attack.slug, "s900", secret=SECRET, limits=limits(attack))
    except Hung as hung:
        suite.cache_clear()  # a suite that was interrupted cannot go on
        measured.complaints.append(str(hung))
        return measured
    measured.complaints += complaints(attack, result)
    if second is not None:
        walls = _undeserved(attack, second, _behind(attack), ())
        measured.complaints += [f"without the source check: {complaint}" for complaint in walls]
    if grown >= attack.memory:
        measured.complaints.append(f"the grader itself grew by {grown / 2**20:.0f} MiB")
    measured.complaints += watch.after_one()
    return measured


@contextmanager
def undoubted(theme: str) -> Iterator[None]:
    """Walls must hold where nobody doubts what other cells hold; only cheating is judged with that second look."""
    if theme == "cheating":
        yield
    else:
        with patch.object(judge, "_beyond_doubt", lambda result, *_: result):
            yield


def _behind(attack: Attack) -> list[str]:
    """Exercises that must not pass for another reason than what the source check finds."""
    return [name for name, outcomes in attack.outcomes.items() if outcomes != ("forbidden",)]


def _of(result: SubmissionResult, name: str) -> ExerciseResult:
    return next(exercise for exercise in result.exercises if exercise.id == f"{result.assignment}-{name}")


def _said(exercise: ExerciseResult) -> str:
    points = f"{exercise.score:g} of {exercise.max_score:g}"
    return f"{exercise.id} is {exercise.outcome}, {points} ({exercise.message})"


def _undeserved(attack: Attack, result: SubmissionResult, names: list[str], also: tuple[str, ...]) -> Iterator[str]:
    """Says which of these exercises did not end as they must."""
    for name in names:
        exercise = _of(result, name)
        if exercise.outcome not in (*attack.outcomes[name], *also):
            yield _said(exercise)
        elif exercise.score and not (attack.partial and exercise.score < exercise.max_score):
            yield f"{_said(exercise)}: points that are not its own"


def complaints(attack: Attack, result: SubmissionResult) -> Iterator[str]:
    if (result.status, result.outcome) != ("graded", attack.overall):
        yield f"{result.status}, {result.outcome}: {result.message}"
        return
    yield from _undeserved(attack, result, list(attack.outcomes), ("forbidden",))  # the source check may be first
    for exercise in result.exercises:
        name = exercise.id.removeprefix(f"{attack.slug}-")
        if name in attack.full and (exercise.outcome != "passed" or exercise.score != exercise.max_score):
            yield f"{_said(exercise)}, where full marks are due"
        elif name not in attack.full and name not in attack.outcomes and exercise.score:
            yield f"{_said(exercise)}: points for nothing"
    messages = [test.message for exercise in result.exercises for test in exercise.tests]
    messages += [exercise.message for exercise in result.exercises]
    for message in messages:
        if not message.isprintable() or (attack.hides and attack.hides in message):
            yield f"a message says {message!r}"


def measure_archive(hostile: Archive) -> Measured:
    """Hand the zip in, look at all that comes out of it."""
    measured = Measured()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "class.zip"
        place.write_bytes(hostile.data)
        before = peak_memory()
        try:
            with within(30):
                measured.complaints += _collected(hostile, place)
        except Hung as hung:
            measured.complaints.append(str(hung))
        if (outside.peak_memory(os.getpid()) or 0) - before >= 300 << 20:
            measured.complaints.append("the grader itself grew")
        if [path.name for path in Path(folder).iterdir()] != ["class.zip"]:
            measured.complaints.append("something was unpacked")
    return measured


def _collected(hostile: Archive, place: Path) -> Iterator[str]:
    with find_submissions([place], known=course.slugs()) as collected:
        found = {submission.student: submission for submission in collected.submissions}
        if "s001" not in found or json.loads(found["s001"].read())["cells"] != []:
            yield "the honest submission is not what was handed in"
        for student, submission in found.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", student) or submission.slug not in course.slugs():
                yield f"a submission of {student!r} to {submission.slug!r}"
            with suppress(CollectError):  # damaged: said when it is read
                if len(submission.read()) >= 100_000:
                    yield f"{student} hands in {len(submission.read())} bytes"
        if hostile.said and not collected.problems and len(found) == 1:
            yield "nobody is told that something was left out"
        if hostile.alone and len(found) != 1:
            yield f"{sorted(found)} came out"
        if not all(str(problem).isprintable() for problem in collected.problems):
            yield "a message that cannot be printed"
