"""The course secret, from which the hidden numbers of every student are derived.

It is made on first use and kept outside what git tracks; whoever holds it can predict hidden inputs.
"""

from __future__ import annotations

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
