"""A submission behind its process boundary: spawn, run the cells, ask, and kill what does not answer.

All limits are decided here, outside, by the CPU time that the kernel reports; a generous wall limit stands behind for
code that sleeps. A child that dies is replaced: the cells run again without the one that killed it, so that one
bad cell costs its own exercises and no others.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from autograder.sandbox import outside
from autograder.sandbox.client import Child, Server
from autograder.sandbox.client import server as jail_server
from autograder.sandbox.errors import Crashed, OutOfMemory, SandboxUnavailable, StudentError, TimedOut
from autograder.sandbox.jail import Limits
from autograder.sandbox.protocol import MAX_REPLY, Closed, ProtocolError, builtin_bases, receive, send
from autograder.sandbox.student import Reading

LIMITS = Limits(cpu_seconds=60, address_space=3 << 30, processes=16)
CELL_SECONDS = 20.0
DEAF_SECONDS = 60.0  # for a process to take what it is sent
WALL_FACTOR, WALL_GRACE = 6.0, 20.0  # code that sleeps uses no CPU time; a loaded machine must not change a grade
HANG_UP_SECONDS = 5.0  # from the end of a connection to the end of its process
MAX_RESPAWNS = 24
CLAIM = "\0attention-in-depth core {}"  # a name without a file, held while a submission runs on that core
TICK = 0.05  # seconds between two looks at what it uses: with several processes, memory fills fast
NO_PEAKS = "this kernel keeps no account of a process's highest memory (/proc/PID/clear_refs), on which gates rest"
_LIBC = ctypes.CDLL(None)
CORES = os.sched_getaffinity(0)  # on which this process may run when no submission is in the jail


@dataclass(frozen=True)
class CellFault:
    """Why a cell of the notebook did not run to its end."""

    cell: int
    outcome: str
    error: str
    line: int | None = None


class Session:
    """One submission's process; a :class:`~autograder.sandbox.student.Transport`."""

    def __init__(self, cells: Sequence[str], limits: Limits | None = None, server: Server | None = None) -> None:
        self._cells, self._limits = list(cells), limits or LIMITS
        self._server = server
        self._child: Child | None = None
        self._born = (0.0, 0)  # its CPU seconds and address space before any cell ran
        self._most = 0.0  # CPU seconds of it that were seen at a time: a process that is gone shows none
        self._spent = 0.0  # CPU seconds of children that ended
        self._others = 0.0  # CPU seconds of what its cells had started, once nothing of it is left
        self._alone = False
        self._respawns = -1
        self.faults: dict[int, CellFault] = {}
        self._skip: set[int] = set()
        self._deadline = time.monotonic() + WALL_FACTOR * self._limits.cpu_seconds + WALL_GRACE
        self._watched: _Watched | None = None
        self._claim: socket.socket | None = None
        self.allow(self._limits.cpu_seconds)

    def __enter__(self) -> Session:
        self._server = self._server or jail_server()
        # Grader and submission take turns. On two cores each would wake the other up from sleep, a fifth of all time.
        core, self._claim = _claimed_core()
        os.sched_setaffinity(0, {core})
        try:
            with contextlib.suppress(StudentError):
                self._ensure()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._end(kill=True)
        finally:
            os.sched_setaffinity(0, CORES)
            if self._claim is not None:
                self._claim.close()

    def allow(self, seconds: float, wall: float | None = None) -> None:
        """Give the next calls together this much CPU time, and wall time: left to itself, a generous multiple."""
        self._budget, self._mark = seconds, self.cpu_seconds
        wall = WALL_FACTOR * seconds + WALL_GRACE if wall is None else wall
        self._wall = min(time.monotonic() + wall, self._deadline)

    @property
    def alive(self) -> bool:
        """Whether a process stands ready; the next call makes a new one where none does."""
        return self._child is not None

    @property
    def cpu_seconds(self) -> float:
        """CPU time that the submission has used so far, all its children together."""
        return self._spent + (self._used() if self._child is not None else 0.0)

    def _used(self) -> float:
        assert self._child is not None
        used = None
        if self._alone:  # one clock to read in place of a tree of processes: several times a test
            with contextlib.suppress(OSError):
                used = outside.own_cpu_seconds(self._child.pid) + self._others - self._born[0]
        if used is None:
            used = outside.cpu_seconds(self._child.pid) - self._born[0]
        self._most = max(self._most, used)
        return used

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """See :class:`~autograder.sandbox.student.Transport`."""
        self._ensure()
        return self._exchange(message)

    def requests(self, messages: Sequence[dict[str, Any]], past_errors: bool = False) -> Iterator[dict[str, Any]]:
        """See :class:`~autograder.sandbox.student.Transport`; all travel in one frame."""
        if not messages:
            return
        replies = self.request({"requests": list(messages), "past_errors": past_errors}).get("replies")
        if not isinstance(replies, list) or not _can_answer(replies, len(messages), past_errors):
            self._end(kill=True)
            raise Crashed("its process sent an answer that is none")
        yield from map(self._believable, replies)

    def measure(self, message: dict[str, Any], memory: bool) -> tuple[dict[str, Any], Reading]:
        """The reply, and what the kernel says that making it has cost."""
        self._ensure()
        assert self._child is not None
        before = self._peak(anew=True) if memory else 0
        seconds = self.cpu_seconds
        reply = self._exchange(message)
        return reply, Reading(self._peak() - before if memory else None, self.cpu_seconds - seconds)

    def _peak(self, anew: bool = False) -> int:
        """Highest resident memory of the submission's first process since it was last read ``anew``.

        Raises:
            Crashed: the process ended, or hid it: a peak that is not reset would hide all that stays below it.
            SandboxUnavailable: this kernel shows or resets nobody's peak.
        """
        assert self._child is not None
        with contextlib.suppress(OSError):
            if anew:
                outside.forget_peak(self._child.pid)
            if (peak := outside.peak_memory(self._child.pid)) is not None:
                return peak
        if not outside.keeps_peaks():
            raise SandboxUnavailable(NO_PEAKS)
        if outside.ended(self._child.pid, 0):
            raise self._death()
        self._end(kill=True)
        raise Crashed("its process hid how much memory it uses")

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._child is not None
        try:
            self._child.connection.settimeout(max(min(DEAF_SECONDS, self._wall - time.monotonic()), 0.1))
            send(self._child.connection, message)
            return self._believable(self._receive())
        except (TimedOut, OutOfMemory):
            self._end(kill=True)
            raise
        except (OSError, Closed):
            raise self._death() from None
        except ProtocolError:
            self._end(kill=True)
            raise Crashed("its process sent an answer that is none") from None

    def _receive(self) -> dict[str, Any]:
        return receive(self._watched, MAX_REPLY)  # type: ignore[arg-type]

    def _believable(self, reply: dict[str, Any]) -> dict[str, Any]:
        """The reply without a place that is not in the notebook: any number could carry a hidden input out."""
        error = reply.get("error")
        if isinstance(error, dict) and not self._has_line(error.get("cell"), error.get("line")):
            reply = {"error": {**error, "cell": None, "line": None}}
        return reply

    def _has_line(self, cell: Any, line: Any) -> bool:
        if type(cell) is not int or type(line) is not int or not 0 <= cell < len(self._cells):
            return False
        return 1 <= line <= self._cells[cell].count("\n") + 1

    def _check(self) -> None:
        # The kernel holds one process to the limit; that they hold it all together is ours to see. A control group
        # would do the same, but where one may be written to differs from machine to machine.
        if self._child is not None and outside.growth(self._child.pid, self._born[1]) > self._limits.address_space:
            raise OutOfMemory("its processes together took more memory than a submission may use")
        used = self.cpu_seconds
        if used > self._limits.cpu_seconds:
            raise TimedOut(f"the submission used up its {self._limits.cpu_seconds:g} s of CPU time")
        if used - self._mark > self._budget or time.monotonic() > self._wall:
            raise TimedOut(f"it did not finish within {self._budget:g} s")

    def _death(self) -> StudentError:
        """What ended the child, or that it only hung up: then it is killed, because the server must not wait for it."""
        assert self._child is not None
        if not outside.ended(self._child.pid, HANG_UP_SECONDS):
            self._end(kill=True)
            return Crashed("its process closed its connection to the grader")
        status = self._end(kill=False)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
            # The kernel kills at the limit of CPU time with the same signal as at a limit of memory.
            if self._most >= self._limits.cpu_seconds - 0.5:
                return TimedOut(f"the submission used up its {self._limits.cpu_seconds:g} s of CPU time")
            return OutOfMemory("its process was killed at a limit")
        return Crashed("its process ended in the middle of a call")

    def _end(self, kill: bool) -> int:
        if self._child is None:
            return 0
        self._used()
        self._spent += self._most
        assert self._server is not None
        child, self._child = self._child, None
        child.connection.close()
        return self._server.end(child.inner_pid, kill)

    def _ensure(self) -> None:
        """Have a living child in which the cells have run."""
        while self._child is None:
            self._respawns += 1
            if self._respawns > MAX_RESPAWNS:
                raise Crashed("its process died again and again")
            if self._spent > self._limits.cpu_seconds or time.monotonic() > self._deadline:
                raise TimedOut(f"the submission used up its {self._limits.cpu_seconds:g} s of CPU time")
            assert self._server is not None
            budget = self._budget
            self._child, self._alone, self._most = self._server.spawn(self._limits), False, 0.0
            self._born = outside.cpu_seconds(self._child.pid), outside.address_space(self._child.pid)
            self._watched = _Watched(self._child.connection, self._check)
            self._run_cells()
            self.allow(budget)

    def _run_cells(self) -> None:
        assert self._child is not None
        connection = self._child.connection
        current = -1
        try:
            self.allow(CELL_SECONDS)
            connection.settimeout(DEAF_SECONDS)
            send(connection, {"cells": self._cells, "skip": sorted(self._skip)})
            while True:
                reply = self._receive()
                if reply.get("error") is not None:
                    self._note(current, reply["error"])
                if reply.get("ready"):
                    # What runs beside a call is not measured with it.
                    if not outside.leave_alone(self._child.pid):
                        raise ProtocolError("processes that cannot be ended")
                    with contextlib.suppress(OSError):
                        own = outside.own_cpu_seconds(self._child.pid)
                        self._others, self._alone = outside.cpu_seconds(self._child.pid) - own, True
                    return
                if "cell" in reply:
                    current = self._next_cell(reply["cell"], current)
                    self.allow(CELL_SECONDS)
        except (TimedOut, OutOfMemory) as error:
            self._end(kill=True)
            self._give_up(current, error.outcome, str(error))
        except (OSError, Closed):
            death = self._death()
            self._give_up(current, death.outcome, str(death))
        except ProtocolError:
            self._end(kill=True)
            self._give_up(current, "crashed", "its process sent an answer that is none")

    def _next_cell(self, cell: Any, current: int) -> int:
        """The cell that begins, believed only where it can be: a cell may write to our socket itself."""
        if not isinstance(cell, int) or not current < cell < len(self._cells) or cell in self._skip:
            raise ProtocolError("a cell that cannot be next")
        return cell

    def _note(self, cell: int, error: Any) -> None:
        if not isinstance(error, dict):
            raise ProtocolError("an error that is none")
        bases = builtin_bases(error) or ["an exception of its own"]
        outcome = "memory" if error.get("memory") else "crashed"
        line = error.get("line")
        self.faults.setdefault(cell, CellFault(cell, outcome, bases[0], line if self._has_line(cell, line) else None))

    def _give_up(self, cell: int, outcome: str, error: str) -> None:
        if cell < 0:
            raise SandboxUnavailable(f"the sandbox died before the first cell ran: {error}")
        self._skip.add(cell)
        self.faults[cell] = CellFault(cell, outcome, error)


def _claimed_core() -> tuple[int, socket.socket | None]:
    """A core on which no other pair of grader and submission runs, and the claim on it; where there is none, this one.

    Two pairs on one core would stay there, each for as long as its submission takes, beside a core that idles. One
    process of this machine can hold a socket's name, and the name is free again when that dies.
    """
    here = _LIBC.sched_getcpu()
    for core in (here, *sorted(CORES - {here})):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with contextlib.suppress(OSError):
            claim.bind(CLAIM.format(core))
            return core, claim
        claim.close()
    return here, None


def _can_answer(replies: list[Any], count: int, past_errors: bool) -> bool:
    """Whether these can be the replies to so many requests: one each, or fewer up to an error that ends them."""
    if not all(isinstance(reply, dict) for reply in replies):
        return False
    ended = not past_errors and 0 < len(replies) < count and "error" in replies[-1]
    return ended or len(replies) == count


class _Watched:
    """A socket whose ``recv`` gives up when the budget is spent, so that no child can keep us waiting."""

    def __init__(self, connection: socket.socket, check: Callable[[], None]) -> None:
        self._connection, self._check = connection, check
        self._patience, self._next = 0.02, 0.0
        self._ahead = b""  # most replies are short, and come with their length in one piece

    def recv(self, count: int) -> bytes:
        """Bytes as they come. The clock decides when to check, not silence: drops that never end are a way to hang."""
        if not self._ahead:
            self._ahead = self._more(max(count, 1 << 14))
        given, self._ahead = self._ahead[:count], self._ahead[count:]
        return given

    def _more(self, count: int) -> bytes:
        while True:
            ready = select.select([self._connection], [], [], self._patience)[0]
            now = time.monotonic()
            if not ready or now >= self._next:
                self._check()
                self._next = now + TICK
            if ready:
                self._patience = 0.02
                return self._connection.recv(count)
            self._patience = min(2 * self._patience, TICK)
