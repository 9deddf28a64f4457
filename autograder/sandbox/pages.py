"""What the fork server does about memory, so that its forks are quick and their readings fair.

A fork begins with its parent's pages, copied when either side writes, and without those of the libraries, which come
with the first use. Where copies can be avoided, a submission waits for less; where library pages come late, they would
be counted, up to 30 MiB, as memory that an answer has asked for. Speed may be missing: a kernel or a C library that
cannot save copies leaves them. Fairness may not: what cannot bring the pages gives no jail.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import mmap
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

Span = tuple[int, int]
"""Address and length, in bytes."""

_PR_SET_DUMPABLE = 4
_MADV_POPULATE_READ, _MADV_COLLAPSE = 22, 25
_LARGE = 2 << 20
_CHUNKS = (*range(4096, 1024, -256), *range(1024, 16, -16))  # sizes that the C library keeps apart when they are free
_RUN, _MOST = 64, 100_000

_C = ctypes.CDLL(None, use_errno=True)
_C.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_C.malloc.argtypes, _C.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p


def fill_holes() -> None:
    """Take all free room in the heap: what a fork allocates then lies together, and not on a thousand shared pages."""
    for size in _CHUNKS:
        last, run = 0, 0
        for _ in range(_MOST):
            address = _C.malloc(size - 8)  # as large as a chunk can be with its own eight bytes of size
            run, last = (run + 1 if address == last + size else 0), address
            if run == _RUN:  # side by side: no hole of this size is left
                break


def gather() -> None:
    """Ask the kernel to put what we hold into large pages: a fork copies one entry for each, and its end lets go of it.

    A child that writes still copies four kilobytes at a time.
    """
    with contextlib.suppress(OSError):
        for start, end, access, name in _maps():
            if access == "rw-p" and name in ("", "[heap]"):
                start, end = -(-start // _LARGE) * _LARGE, end // _LARGE * _LARGE
                if start < end:
                    _C.madvise(start, end - start, _MADV_COLLAPSE)


def touched_by(rehearsal: Callable[[], object]) -> list[Span]:
    """What of the libraries a rehearsal uses, as a fork of this process finds out.

    Raises:
        OSError: it could not.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _C.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # the keeper hides its pages from itself too
            rehearsal()
            with os.fdopen(writer, "w") as answer:
                json.dump(list(_present()), answer)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as answer:
        found = answer.read()
    if os.waitpid(pid, 0)[1]:
        raise OSError("the pages that answers use could not be listed")
    return [(start, length) for start, length in json.loads(found)]


def bring(spans: list[Span]) -> None:
    """Have these pages present in this process.

    Raises:
        OSError: one cannot be.
    """
    for start, length in spans:
        if _C.madvise(start, length, _MADV_POPULATE_READ):
            code = ctypes.get_errno()
            raise OSError(code, f"pages of libraries cannot be brought in: {os.strerror(code)}")


def _present() -> Iterator[Span]:
    """The stretches of files that this process has in memory and cannot write to."""
    page = mmap.PAGESIZE
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for start, end, access, name in _maps():
            if not name.startswith("/") or "w" in access:
                continue
            pagemap.seek(start // page * 8)
            highest = pagemap.read((end - start) // page * 8)[7::8]  # byte of each page's eight; its highest bit counts
            for present, group in itertools.groupby(enumerate(highest), lambda entry: entry[1] >> 7):
                pages = [number for number, _ in group]
                if present:
                    yield start + pages[0] * page, len(pages) * page


def _maps() -> Iterator[tuple[int, int, str, str]]:
    """Start, end, access and name of each stretch of this process's memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in span.split("-"))
        yield start, end, access, "".join(name)
