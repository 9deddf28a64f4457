"""A submission behind its process boundary: spawn, run the cells, ask, and kill what does not answer.

All limits are decided here, outside, by the CPU time that the kernel reports; a generous wall limit stands behind for
code that sleeps. A child that dies is replaced: the cells run again without the one that killed it, so that one
bad cell costs its own exercises and no others.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgpack

from autograder.sandbox.errors import Crashed, OutOfMemory, SandboxUnavailable, StudentError, TimedOut
from autograder.sandbox.jail import ENVIRONMENT, Limits
from autograder.sandbox.protocol import MAX_REPLY, Closed, ProtocolError, builtin_bases, receive, send

LIMITS = Limits(cpu_seconds=60, address_space=3 << 30, processes=16)
CELL_SECONDS = 20.0
DEAF_SECONDS = 60.0  # for a process to take what it is sent
WALL_FACTOR, WALL_GRACE = 6.0, 20.0  # code that sleeps uses no CPU time; a loaded machine must not change a grade
HANG_UP_SECONDS = 5.0  # from the end of a connection to the end of its process
MAX_RESPAWNS = 24
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Child:
    """A jailed process: its number in the keeper's pid namespace and in ours, and our end of its socket."""

    inner_pid: int
    pid: int
    connection: socket.socket


def _sender(connection: socket.socket) -> int:
    """The child's process number as we see it. The kernel vouches for it, and no student code has run yet."""
    credentials = struct.Struct("3i")
    connection.settimeout(30)
    try:
        _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(credentials.size))
        pid = next(credentials.unpack(data)[0] for _, kind, data in ancillary if kind == socket.SCM_CREDENTIALS)
    except (OSError, StopIteration):
        raise SandboxUnavailable("a jailed process did not say hello") from None
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    return int(pid)


class WarmServer:
    """The client's side of the fork server; one per grading process."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._home = tempfile.TemporaryDirectory(prefix="attn-warm-")
        # The keeper accepts this environment and no other: what it was started with, every child could read.
        environment = {**ENVIRONMENT, "MPLCONFIGDIR": str(_font_cache()), "IPYTHONDIR": self._home.name}
        self._log = Path(self._home.name) / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-W", "ignore", "-m", "autograder.sandbox.server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        theirs.close()
        self._lost = False
        self._control = ours
        self._control.settimeout(120)
        self._expect_ready()

    def _expect_ready(self) -> None:
        try:
            ready = self._control.recv(64)
        except OSError:
            ready = b""
        if ready != b"ready":
            text = self._log.read_text(errors="replace")[-800:]
            self.close()
            raise SandboxUnavailable(f"the sandbox's server did not start; `attn doctor` says why.\n{text}")

    @property
    def alive(self) -> bool:
        """Whether it still runs and has answered every request so far."""
        return not self._lost and self._process.poll() is None

    def spawn(self, limits: Limits) -> Child:
        """Fork a jailed child."""
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with theirs:
            reply = self._ask({"op": "fork", "limits": asdict(limits)}, theirs.fileno())
        if "pid" not in reply:
            ours.close()
            raise SandboxUnavailable(f"no jail could be built: {reply.get('error')}; `attn doctor` says more")
        return Child(int(reply["pid"]), _sender(ours), ours)

    def end(self, pid: int, kill: bool) -> int:
        """Reap a child, killed first if asked; its wait status."""
        return int(self._ask({"op": "end", "pid": pid, "kill": kill})["status"])

    def _ask(self, request: dict[str, Any], descriptor: int | None = None) -> dict[str, Any]:
        ancillary = []
        if descriptor is not None:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [descriptor]))]
        try:
            self._control.sendmsg([msgpack.packb(request)], ancillary)
            reply = self._control.recv(1 << 16)
        except OSError as error:
            self._lost = True
            raise SandboxUnavailable(f"the sandbox's server stopped answering: {error}") from None
        if not reply:
            self._lost = True
            raise SandboxUnavailable("the sandbox's server is gone")
        return dict(msgpack.unpackb(reply))

    def close(self) -> None:
        """Stop the server."""
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._home.cleanup()


def _font_cache() -> Path:
    """Where matplotlib keeps its list of fonts, which takes half a minute to make."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "attention-in-depth" / "matplotlib"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


_warm: WarmServer | None = None


def warm_server() -> WarmServer:
    """This process's fork server, started on first use, and anew where it has died: others need not pay for that."""
    global _warm
    if _warm is not None and not _warm.alive:
        atexit.unregister(_warm.close)
        _warm.close()
        _warm = None
    if _warm is None:
        _warm = WarmServer()
        atexit.register(_warm.close)
    return _warm


@dataclass(frozen=True)
class CellFault:
    """Why a cell of the notebook did not run to its end."""

    cell: int
    outcome: str
    error: str
    line: int | None = None


class Session:
    """One submission's process; a :class:`~autograder.sandbox.student.Transport`."""

    def __init__(self, cells: Sequence[str], limits: Limits | None = None, server: WarmServer | None = None) -> None:
        self._cells, self._limits = list(cells), limits or LIMITS
        self._server = server
        self._child: Child | None = None
        self._spent = 0.0  # CPU seconds of children that ended
        self._respawns = -1
        self.faults: dict[int, CellFault] = {}
        self._skip: set[int] = set()
        self._deadline = time.monotonic() + WALL_FACTOR * self._limits.cpu_seconds + WALL_GRACE
        self._watched: _Watched | None = None
        self.allow(self._limits.cpu_seconds)

    def __enter__(self) -> Session:
        self._server = self._server or warm_server()
        with contextlib.suppress(StudentError):
            self._ensure()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end(kill=True)

    def allow(self, seconds: float) -> None:
        """Give the next calls together this much CPU time."""
        self._budget, self._mark = seconds, self.cpu_seconds
        self._wall = min(time.monotonic() + WALL_FACTOR * seconds + WALL_GRACE, self._deadline)

    @property
    def alive(self) -> bool:
        """Whether a process stands ready; the next call makes a new one where none does."""
        return self._child is not None

    @property
    def cpu_seconds(self) -> float:
        """CPU time that the submission has used so far, all its children together."""
        return self._spent + (_tree_cpu(self._child.pid) if self._child is not None else 0.0)

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """See :class:`~autograder.sandbox.student.Transport`."""
        self._ensure()
        return self._exchange(message)

    def measure(self, message: dict[str, Any]) -> tuple[dict[str, Any], int | None]:
        """The reply, and the growth of the process's peak resident memory while it was made."""
        self._ensure()
        assert self._child is not None
        worker = self._child.pid
        with contextlib.suppress(OSError):
            Path(f"/proc/{worker}/clear_refs").write_text("5")  # 5 sets the peak back to the present size
        before = _peak_memory(worker)
        reply = self._exchange(message)
        after = _peak_memory(worker)
        if before is None or after is None:  # a process without a first thread shows no peak
            self._end(kill=True)
            raise Crashed("its process hid how much memory it uses")
        return reply, after - before

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._child is not None
        try:
            self._child.connection.settimeout(max(min(DEAF_SECONDS, self._wall - time.monotonic()), 0.1))
            send(self._child.connection, message)
            return self._believable(self._receive())
        except TimedOut:
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
        used = self.cpu_seconds
        if used > self._limits.cpu_seconds:
            raise TimedOut(f"the submission used up its {self._limits.cpu_seconds:g} s of CPU time")
        if used - self._mark > self._budget or time.monotonic() > self._wall:
            raise TimedOut(f"it did not finish within {self._budget:g} s")

    def _death(self) -> StudentError:
        """What ended the child, or that it only hung up: then it is killed, because the server must not wait for it."""
        assert self._child is not None
        if not _ended(self._child.pid, HANG_UP_SECONDS):
            self._end(kill=True)
            return Crashed("its process closed its connection to the grader")
        used = _tree_cpu(self._child.pid)
        status = self._end(kill=False)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
            # The kernel kills at the limit of CPU time with the same signal as at a limit of memory.
            if used >= self._limits.cpu_seconds - 0.5:
                return TimedOut(f"the submission used up its {self._limits.cpu_seconds:g} s of CPU time")
            return OutOfMemory("its process was killed at a limit")
        return Crashed("its process ended in the middle of a call")

    def _end(self, kill: bool) -> int:
        if self._child is None:
            return 0
        self._spent += _tree_cpu(self._child.pid)
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
            self._child = self._server.spawn(self._limits)
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
                if reply.get("ready"):
                    _leave_alone(self._child.pid)
                    return
                if "cell" in reply:
                    current = self._next_cell(reply["cell"], current)
                    self.allow(CELL_SECONDS)
                elif reply.get("error") is not None:
                    self._note(current, reply["error"])
        except TimedOut as error:
            self._end(kill=True)
            self._give_up(current, "timeout", str(error))
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


class _Watched:
    """A socket whose ``recv`` gives up when the budget is spent, so that no child can keep us waiting."""

    def __init__(self, connection: socket.socket, check: Callable[[], None]) -> None:
        self._connection, self._check = connection, check
        self._patience, self._next = 0.02, 0.0

    def recv(self, count: int) -> bytes:
        """Bytes as they come. The clock decides when to check, not silence: drops that never end are a way to hang."""
        while True:
            ready = select.select([self._connection], [], [], self._patience)[0]
            now = time.monotonic()
            if not ready or now >= self._next:
                self._check()
                self._next = now + 0.25
            if ready:
                self._patience = 0.02
                return self._connection.recv(count)
            self._patience = min(2 * self._patience, 0.25)


def _tree_cpu(pid: int) -> float:
    """CPU seconds of a process and its descendants, ended and waited-for ones included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own = sum(int(field) for field in fields[11:15]) / _TICKS
    return own + sum(_tree_cpu(int(child)) for child in children)


def _leave_alone(pid: int) -> None:
    """End what a notebook's cells left running, and let no call start anything: what runs beside is not measured."""
    for other in _descendants(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(other, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_NPROC, (0, 0))


def _descendants(pid: int) -> list[int]:
    try:
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [other for child in children for other in (child, *_descendants(child))]


def _ended(pid: int, seconds: float) -> bool:
    """Whether a process has ended, or does so within these seconds."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def _peak_memory(pid: int) -> int | None:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
