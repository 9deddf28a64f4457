"""The warm fork server: imports the libraries once, then forks one jailed child per submission.

Namespaces do not hide inherited memory, so this process must never load a suite, a reference, a secret or the
gradebook: it is started afresh with ``python -m``, imports only the sandbox, and gets nothing but one socket. It stays
single-threaded, because a fork copies only the thread that calls it: numeric libraries are told to use one thread
before they are imported, and no parallel operation runs here.
"""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
import sys
from typing import Any

import msgpack

from autograder.sandbox import jail, pages

ALSO = ("MPLCONFIGDIR", "IPYTHONDIR")  # where matplotlib and IPython may put their own files before the first fork


def main() -> None:
    """Become the keeper of jails and serve until the socket whose number is the first argument closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    jail.become_keeper(ALSO)
    from autograder.sandbox import child  # numeric libraries are large: only the keeper needs them

    child.warm_up()
    pages.fill_holes()
    pages.gather()
    used = pages.touched_by(child.rehearse)
    pages.bring(used)  # what fails here would fail in every child
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control.sendall(b"ready")
    while True:
        data, ancillary, _, _ = control.recvmsg(1 << 16, socket.CMSG_SPACE(array.array("i").itemsize))
        if not data:
            return
        control.sendall(msgpack.packb(_serve(msgpack.unpackb(data), _descriptor(ancillary), used)))


def _serve(request: dict[str, Any], descriptor: int | None, used: list[pages.Span]) -> dict[str, Any]:
    if request["op"] == "end":
        return {"status": _end(int(request["pid"]), bool(request["kill"]))}
    if descriptor is None:
        return {"error": "a fork was asked for without a socket"}
    from autograder.sandbox import child

    def serve() -> None:
        os.write(descriptor, b"!")  # the kernel puts this process's number beside it
        pages.bring(used)
        child.serve(descriptor)

    limits = jail.Limits(**request["limits"])
    os.sched_setaffinity(0, request["cores"])
    try:
        return {"pid": jail.fork_jailed(limits, [descriptor], jail.libraries(), serve)}
    except (jail.JailError, OSError) as error:
        return {"error": str(error)}
    finally:
        os.close(descriptor)


def _end(pid: int, kill: bool) -> int:
    """Reap a child, killed first if asked; its wait status."""
    if kill:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return 0


def _descriptor(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors = array.array("i")
            descriptors.frombytes(data[: descriptors.itemsize])
            return descriptors[0]
    return None


if __name__ == "__main__":
    main()
