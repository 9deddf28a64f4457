"""What the kernel says of a submission's processes: readings and limits that no code inside them can forge.

``pid`` is always the first process of a jail. When it dies, so does everything that it started.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = resource.getpagesize()
_ROUNDS = 200  # of looking for a thread that is left
_END_SECONDS = 10.0  # for what a notebook left running, once it is killed: letting go of gigabytes takes a while
_QUIET = 3  # lists without anybody alive: the kernel may leave one out while others end


def _read(name: str) -> str:
    """A file of /proc, which is read many times a second."""
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while piece := os.read(descriptor, 1 << 16):
            text += piece
        return text.decode(errors="replace")
    finally:
        os.close(descriptor)


def tree(pid: int) -> list[int]:
    """Return a process and its descendants, whichever of their threads started them."""
    found = [pid]
    for one in found:  # grows while it is read
        with contextlib.suppress(OSError):  # it ended meanwhile
            for task in os.listdir(f"/proc/{one}/task"):
                found += map(int, _read(f"/proc/{one}/task/{task}/children").split())
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its descendants, ended and waited-for ones included."""
    seconds = 0.0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            fields = _read(f"/proc/{one}/stat").rpartition(")")[2].split()
            own, children = (sum(map(int, fields[at : at + 2])) / _TICKS for at in (11, 13))
            with contextlib.suppress(OSError):  # a kernel that hides this clock must not stop the others
                own = own_cpu_seconds(one)  # nanoseconds, where the lines above have hundredths
            seconds += own + children
    return seconds


def own_cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, those that ended included.

    Raises:
        OSError: it has ended, or the kernel hides this clock.
    """
    # ``clock_getcpuclockid`` of the C library makes the same number of a clock; Python has it for threads alone.
    return time.clock_gettime((~pid << 3) | 2)


def address_space(pid: int) -> int:
    """Bytes that one process has mapped; 0 when it has ended.

    A process goes on without its first thread, and then shows them at the others alone, which may take turns.
    """
    with contextlib.suppress(OSError):
        if mapped := _mapped(f"/proc/{pid}"):
            return mapped
        for _ in range(_ROUNDS):
            tasks = os.listdir(f"/proc/{pid}/task")
            for task in tasks:
                with contextlib.suppress(OSError):
                    if mapped := _mapped(f"/proc/{pid}/task/{task}"):
                        return mapped
            if len(tasks) == 1:
                break
    return 0


def _mapped(place: str) -> int:
    return int(_read(f"{place}/statm").split()[0]) * _PAGE


def growth(pid: int, birth: int) -> int:
    """Bytes that a process and its descendants have mapped, each beyond what the first had mapped at its ``birth``.

    Mapped, not resident: a map is seen before it is filled, and shared memory that a process has let go of for the
    moment is still mapped. Memory that is held and not mapped is bounded elsewhere: /tmp by its size, pipes and sockets
    by the number of open files; files in memory alone (memfd) are refused.
    """
    return sum(max(address_space(one) - birth, 0) for one in tree(pid))


def peak_memory(pid: int) -> int | None:
    """Highest resident memory since the last ``forget_peak``; None where the kernel shows none."""
    with contextlib.suppress(OSError):
        for line in _read(f"/proc/{pid}/status").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def forget_peak(pid: int) -> None:
    """Set the peak of a process's resident memory back to its present size.

    Raises:
        OSError: it has ended, it keeps its memory from its own user (prctl's PR_SET_DUMPABLE does that, and root alone
            is not kept out), or this kernel lets nobody do so.
    """
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def keeps_peaks() -> bool:
    """Whether this kernel shows and resets a peak at all: what it does not do for us, no submission hides."""
    with contextlib.suppress(OSError):
        forget_peak(os.getpid())
        return peak_memory(os.getpid()) is not None
    return False


def leave_alone(pid: int) -> bool:
    """End all that a process has started, and let it start nothing more; whether that was possible.

    One that forks and ends, again and again, is gone when it is killed and has a successor that was not listed. But the
    oldest that lives is a child of ``pid`` at all times, so a list of none but the dead proves that nobody is left.
    """
    dead: set[int] = set()
    quiet, until = 0, time.monotonic() + _END_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NPROC, (0, 0))
        others = tree(pid)[1:]
        for one in others:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(one, resource.RLIMIT_NPROC, (0, 0))
                os.kill(one, signal.SIGKILL)
        quiet = quiet + 1 if dead.issuperset(others) else 0
        if quiet == _QUIET:
            return True
        dead = {one for one in others if ended(one, 0.1)}
    return False


def ended(pid: int, seconds: float) -> bool:
    """Whether a process has ended with all its threads, or does so within these seconds."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)
