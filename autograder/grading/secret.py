"""The course secret, and the seeds of every student's hidden numbers, which are derived from it.

The secret is made on first use and kept outside what git tracks; whoever holds it can predict hidden inputs.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from autograder import course


def secret_path() -> Path:
    """Where the secret lies: ``ATTN_SECRET_FILE``, or ``course/secret``."""
    return Path(os.environ.get("ATTN_SECRET_FILE") or course.COURSE / "secret")


def course_secret() -> bytes:
    """The secret, made on first use (32 random bytes, readable by its owner alone)."""
    path = secret_path()
    try:
        return bytes.fromhex(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = secrets.token_hex(32)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return bytes.fromhex(path.read_text(encoding="ascii"))
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
        return bytes.fromhex(text)


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
