"""The course secret, and the seeds of every student's hidden numbers, which are derived from it.

The secret is made on first use and kept outside what git tracks; whoever holds it can predict hidden inputs.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from autograder import CourseError, course

BYTES = 32


class SecretError(CourseError):
    """There is no course secret that can be used; the message names the file, and what to do."""


def secret_path() -> Path:
    """Where the secret lies: ``ATTN_SECRET_FILE``, or ``course/secret``."""
    return Path(os.environ.get("ATTN_SECRET_FILE") or course.COURSE / "secret")


def course_secret() -> bytes:
    """The secret, made on first use (32 random bytes, readable by its owner alone).

    Raises:
        SecretError: the file is not a whole secret, or can be neither read nor made.
    """
    path = secret_path()
    try:
        if not os.path.lexists(path):
            _make(path)
        secret = bytes.fromhex(path.read_text(encoding="ascii"))
    except OSError as error:
        remedy = "free some space there or name another place with ATTN_SECRET_FILE, then run this again"
        raise SecretError(f"{path}: the course secret cannot be read or made ({error.strerror}); {remedy}") from error
    except ValueError:
        secret = b""
    if len(secret) != BYTES:
        remedy = "put back your copy; if there is none, delete the file, and the next run makes a new secret"
        raise SecretError(f"{path}: this is no whole course secret, which has {2 * BYTES} hexadecimal digits; {remedy}")
    return secret


def _make(path: Path) -> None:
    """Write a new secret: it appears as a whole and on the disk, or not at all, and never in place of another's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, half = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # readable by its owner alone
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another run was faster, and its secret counts
            os.link(half, path)  # a rename would replace it
    finally:
        os.unlink(half)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def seed_of(secret: bytes, assignment: str, student: str, test: str) -> int:
    """The seed from which a test draws its numbers: an HMAC, so that nobody without the secret can know it.

    It depends on neither the notebook's text nor the time: white space cannot reroll it, and a regrade repeats it.
    """
    digest = hmac.new(secret, f"{assignment}/{student}/{test}".encode(), hashlib.sha256).digest()
    return int.from_bytes(digest[:16], "big")


def student_seed(secret: bytes, assignment: str, student: str) -> str:
    """What a result shows of the numbers that a student met: the same mark means the same numbers."""
    return f"{seed_of(secret, assignment, student, ''):032x}"[:16]


def own_seed(seed: int) -> int:
    """The seed for what a submission draws by itself; it tells nothing of the test's own."""
    return int.from_bytes(hashlib.sha256(f"submission {seed}".encode()).digest()[:4], "big")
