"""The grader's side of the jail: a server gives processes in which a submission runs, and reaps them.

Two kinds exist, and a submission cannot tell them apart. ``warm`` forks a process that has imported everything, in
hundredths of a second; ``cold`` has bubblewrap start one, in seconds, where the kernel lets nobody else make
namespaces. Which one is used is never guessed: the environment variable ``ATTN_JAIL`` names it, and where that one does
not work nothing is graded.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import msgpack

from autograder.sandbox import cold, jail
from autograder.sandbox.errors import SandboxUnavailable
from autograder.sandbox.jail import ENVIRONMENT, Limits

VARIABLE = "ATTN_JAIL"
HELLO_SECONDS = 30.0


@dataclass(frozen=True)
class Child:
    """A jailed process: its number to the server that gave it and to us, and our end of its socket."""

    inner_pid: int
    pid: int
    connection: socket.socket


class Server(Protocol):
    """Gives jailed processes."""

    @property
    def alive(self) -> bool:
        """Whether it can give more."""
        ...

    def spawn(self, limits: Limits) -> Child:
        """A jailed process that waits for cells.

        Raises:
            SandboxUnavailable: a wall could not be built.
        """
        ...

    def end(self, pid: int, kill: bool) -> int:
        """Reap the process that is ``inner_pid`` to the server, killed first if asked; its wait status."""
        ...

    def close(self) -> None:
        """Stop the server, and all that it gave."""
        ...


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
            why = _last_words(self._log.read_text(errors="replace"))
            self.close()
            raise SandboxUnavailable(f"the sandbox's server did not start: {why}; `attn doctor` says more")

    @property
    def alive(self) -> bool:
        """Whether it still runs and has answered every request so far."""
        return not self._lost and self._process.poll() is None

    def spawn(self, limits: Limits) -> Child:
        """Fork a jailed child, which runs on the cores on which we may."""
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with theirs:
            request = {"op": "fork", "limits": asdict(limits), "cores": list(os.sched_getaffinity(0))}
            reply = self._ask(request, theirs.fileno())
        if "pid" not in reply:
            ours.close()
            raise SandboxUnavailable(f"no jail could be built: {reply.get('error')}; `attn doctor` says more")
        try:
            return Child(int(reply["pid"]), cold.sender(ours, HELLO_SECONDS), ours)
        except OSError:
            raise SandboxUnavailable("a jailed process did not say hello") from None

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


def _last_words(log: str) -> str:
    """Why the server ended: what it raised, without the traceback, which would tell students of our files."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["it said nothing"]
    refusals = [line.partition("JailError: ")[2] for line in lines if "JailError: " in line]
    return (refusals or lines)[-1]


def _font_cache() -> Path:
    """Where matplotlib keeps its list of fonts, which takes half a minute to make."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "attention-in-depth" / "matplotlib"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class ColdServer:
    """Has bubblewrap start a process for each submission."""

    alive = True

    def __init__(self) -> None:
        self._running: dict[int, cold.Process] = {}

    def spawn(self, limits: Limits) -> Child:
        """See :class:`Server`."""
        import torch  # the grader's own judges have it; only to ask which vector instructions it uses

        fonts = _font_cache()
        order = {"fonts": str(fonts), "capability": torch.backends.cpu.get_cpu_capability().lower()}
        try:
            process = cold.Process("autograder.sandbox.child", limits, order, [fonts])
        except jail.JailError as error:
            raise SandboxUnavailable(f"no jail could be built: {error}; `attn doctor` says more") from None
        self._running[process.bwrap.pid] = process
        return Child(process.bwrap.pid, process.pid, process.connection)

    def end(self, pid: int, kill: bool) -> int:
        """See :class:`Server`."""
        return self._running.pop(pid).end(kill)

    def close(self) -> None:
        """See :class:`Server`."""
        for pid in list(self._running):
            self.end(pid, kill=True)


_servers: dict[str, Server] = {}
_KINDS: dict[str, type[Server]] = {"warm": WarmServer, "cold": ColdServer}


def server() -> Server:
    """This process's server, started on first use, and anew where it has died: others need not pay for that.

    Raises:
        SandboxUnavailable: it does not start, or ``ATTN_JAIL`` names none.
    """
    kind = os.environ.get(VARIABLE) or "warm"
    if kind not in _KINDS:
        raise SandboxUnavailable(f"{VARIABLE} is {kind!r}, where it may be {' or '.join(_KINDS)}")
    if kind in _servers and not _servers[kind].alive:
        atexit.unregister(_servers[kind].close)
        _servers.pop(kind).close()
    if kind not in _servers:
        _servers[kind] = _KINDS[kind]()
        atexit.register(_servers[kind].close)
    return _servers[kind]
