"""One whole submission tried out: the limits that no wall of the jail holds, but the grader, who reads a clock outside.

The probes attack a bare jail. Here a real session runs a small notebook in the real server, with all libraries. The
three limits that it is tried against are those on wall time, on the size of an answer, and on memory as gates read it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from autograder.sandbox import protocol
from autograder.sandbox.errors import Crashed, SandboxUnavailable, StudentError, TimedOut
from autograder.sandbox.probes import Breach, ProbeResult
from autograder.sandbox.session import Session
from autograder.sandbox.student import Student

WALL_SECONDS, SLEEP_SECONDS = 0.5, 20.0
BYTES = 64 << 20
CELL = """
import time
import numpy as np

def answer():
    return 42

def sleep_on(seconds):
    time.sleep(seconds)

def flood(size):
    return np.zeros(size, dtype=np.uint8)

def allocate(size):
    return int(np.ones(size, dtype=np.uint8)[-1])
"""

Trial = Callable[[Session, Student], str]


def try_out() -> list[ProbeResult]:
    """What one submission after the other came to in the server that grades; one failed result where it cannot run."""
    found = []
    for trial in (a_call, wall_time, a_large_answer, memory_readings):
        name = trial.__name__.replace("_", " ")
        try:
            with Session([CELL]) as session:
                session.allow(10)
                found.append(ProbeResult(name, True, trial(session, Student(session))))
        except (Breach, StudentError) as error:
            found.append(ProbeResult(name, False, str(error)))
        except SandboxUnavailable as error:
            return [*found, ProbeResult(name, False, str(error))]
    return found


def a_call(session: Session, student: Student) -> str:
    """Call a function."""
    if student.answer() != 42:
        raise Breach("a call came back with another value")
    return "a notebook ran with all its libraries, and answered"


def wall_time(session: Session, student: Student) -> str:
    """Sleep without using CPU time."""
    session.allow(10, wall=WALL_SECONDS)
    before = time.monotonic()
    try:
        student.sleep_on(SLEEP_SECONDS)
    except TimedOut:
        return f"a call that slept was ended after {time.monotonic() - before:.1f} s"
    raise Breach(f"a call slept for {SLEEP_SECONDS:g} s where it had {WALL_SECONDS:g}")


def a_large_answer(session: Session, student: Student) -> str:
    """Answer with more than the grader takes."""
    student.flood(1 << 20)
    try:
        student.flood(protocol.MAX_REPLY)
    except Crashed:
        return f"an answer of more than {protocol.MAX_REPLY >> 20} MiB was not taken"
    raise Breach(f"an answer of more than {protocol.MAX_REPLY >> 20} MiB was taken")


def memory_readings(session: Session, student: Student) -> str:
    """Use memory once, and again: the second reading must not be hidden by the first."""
    grown = [student.trace("allocate", size).outside_bytes for size in (2 * BYTES, BYTES)]
    if not all(0.9 < bytes / size < 1.3 for bytes, size in zip(grown, (2 * BYTES, BYTES), strict=True)):
        raise Breach(f"{2 * BYTES} and {BYTES} bytes were used, {grown[0]} and {grown[1]} were seen from outside")
    return f"{BYTES >> 20} MiB in a call are seen from outside, after more in another"
