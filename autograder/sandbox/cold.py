"""The cold jail: one fresh interpreter a submission, in a root and namespaces that bubblewrap makes.

For machines that let ``bwrap`` make namespaces and refuse the same to everybody else (Ubuntu 24.04 does so by default).
It costs seconds of imports for every submission, and is used only where somebody asks for it: ``ATTN_JAIL=cold``.

The program inside is ours until the walls stand::

    bwrap     private root of libraries, /tmp and three devices; pid, net, ipc, uts and user namespaces
    inside    imports what submissions import, says hello, hears how large it is, becomes nobody, ``jail.confine``
    then      serves cells and calls, as a child of the warm server does

A root that bubblewrap makes for root has no user namespace: with one, the submission would be root outside, and root is
exempt from the limit on processes. So the program makes its own, as root, and leaves root.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from autograder.sandbox import jail, outside

PLACE: Final = Path("/attn")  # where the sandbox's own code lies inside
PATIENCE = 180.0  # seconds until the program has imported everything, on a loaded machine
_PROGRAM: Final = f"import sys; sys.path.insert(0, {str(PLACE)!r}); from autograder.sandbox import cold; cold.inside()"
_NUMBER: Final = struct.Struct("<Q")
_NAMESPACES: Final = ("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
_TO_LEAVE_ROOT: Final = ("CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")


class Process:
    """A program in a cold jail: bubblewrap itself, the jail's first process as we see it, and our end of its socket."""

    def __init__(self, module: str, limits: jail.Limits, order: Any = None, readable: Sequence[Path] = ()) -> None:
        """Start ``module.serve_cold(descriptor, order)`` inside; the walls stand when it is called.

        Args:
            module: of the sandbox; its ``prepare_cold(order)`` runs first, behind bubblewrap's walls alone.
            limits: what the submission may use.
            order: what both functions are told, as JSON.
            readable: folders that it may read besides the libraries.

        Raises:
            JailError: bubblewrap is missing, or could not build its walls.
        """
        self.connection, theirs = socket.socketpair()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        told = json.dumps([module, theirs.fileno(), asdict(limits), order])
        with theirs, tempfile.TemporaryFile() as log:
            self.bwrap = subprocess.Popen(
                [*_bwrap(limits, readable), sys.executable, "-I", "-W", "ignore", "-c", _PROGRAM, told],
                pass_fds=[theirs.fileno()],
                env={},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                extra_groups=[] if os.geteuid() == 0 else None,
            )
            theirs.close()
            try:
                self.pid = sender(self.connection, PATIENCE)
                self._let_in()
                if self.connection.recv(1) != b"!":
                    raise OSError("it ended before its walls stood")
                self._handle = os.pidfd_open(self.pid)  # its number may be another's one day
            except OSError as error:
                self.bwrap.kill()
                self.bwrap.wait()
                self.connection.close()
                log.seek(0)
                said = log.read().decode(errors="replace").strip().rpartition("\n")[2]
                raise jail.JailError("bubblewrap", said or str(error)) from None

    def _let_in(self) -> None:
        """Do for the program what it cannot do for itself: it has no /proc."""
        proc = jail.open_proc(str(self.pid))
        try:
            if os.geteuid() == 0:
                users = f"0 0 1\n{jail.NOBODY} {jail.NOBODY} 1\n"
                jail.map_ids(proc, users, users)
            jail.write(proc, "oom_score_adj", "1000")  # when the machine runs out of memory, a submission goes first
        finally:
            os.close(proc)
        self.connection.sendall(_NUMBER.pack(outside.address_space(self.pid)))

    def end(self, kill: bool) -> int:
        """Reap it with all that it started, killed first if asked; its wait status, as the kernel would give it."""
        if kill:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        code = self.bwrap.wait()
        os.close(self._handle)
        return code - 128 if code > 128 else code << 8


def sender(connection: socket.socket, seconds: float) -> int:
    """The process number, as we see it, of whoever says hello; the kernel vouches for it.

    Raises:
        OSError: nobody did.
    """
    credentials = struct.Struct("3i")
    connection.settimeout(seconds)
    _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(credentials.size))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    for _, kind, data in ancillary:
        if kind == socket.SCM_CREDENTIALS:
            return int(credentials.unpack(data)[0])
    raise OSError("nobody said hello")


def _bwrap(limits: jail.Limits, readable: Sequence[Path]) -> list[str]:
    """The command that makes root and namespaces."""
    program = shutil.which("bwrap")
    if program is None:
        raise jail.JailError("bubblewrap", "not installed; on Debian or Ubuntu: sudo apt-get install bubblewrap")
    libraries = [*jail.libraries(), *readable]
    jail.layout(tuple(libraries))  # refuses what would show the course
    package = Path(__file__).resolve().parents[1]
    command = [program, *_NAMESPACES, "--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    if os.geteuid() == 0:
        command += [word for name in _TO_LEAVE_ROOT for word in ("--cap-add", name)]
    else:
        command += ["--unshare-user"]
    command += ["--clearenv", *(word for name, value in jail.ENVIRONMENT.items() for word in ("--setenv", name, value))]
    command += ["--size", str(limits.tmp_bytes), "--perms", "1777", "--tmpfs", "/tmp"]
    binds = {path: path for path in libraries}
    binds |= {PLACE / "autograder" / name: package / name for name in ("__init__.py", "sandbox")}
    folders = {parent for path in (*binds, Path("/proc/self"), Path("/dev/null")) for parent in path.parents}
    for folder in sorted(folders - {Path("/"), Path("/tmp")}):  # left to itself, bubblewrap opens them to root alone
        command += ["--perms", "0755", "--dir", str(folder)]
    for path, source in binds.items():
        command += ["--ro-bind", str(source), str(path)]
    for device in jail.DEVICES:
        command += ["--dev-bind", device, device]
    return [*command, "--symlink", "/tmp", "/dev/shm", "--remount-ro", "/", "--chdir", "/tmp", "--"]


def inside() -> None:
    """Be the program inside: prepare, build the other half of the walls, serve."""
    module, descriptor, limits, order = json.loads(sys.argv[1])
    os.environ.pop("PWD", None)  # bubblewrap's own
    served = importlib.import_module(module)
    served.prepare_cold(order)
    line = socket.socket(fileno=descriptor)
    root = os.geteuid() == 0
    if root:
        jail.enter_user_namespace()
    line.sendall(b"!")
    (size,) = _NUMBER.unpack(line.recv(_NUMBER.size, socket.MSG_WAITALL))
    if root:
        jail.drop_bounding_set()
        os.setresgid(jail.NOBODY, jail.NOBODY, jail.NOBODY)
        os.setresuid(jail.NOBODY, jail.NOBODY, jail.NOBODY)
    jail.confine(jail.Limits(**limits), [descriptor], [*jail.libraries(), PLACE], size)
    line.sendall(b"!")
    served.serve_cold(line.detach(), order)
