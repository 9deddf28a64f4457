"""One writer: whoever writes to a course or to a gradebook holds a lock on it, and the next to come is told so at once.

The course and its gradebook are locked each for itself, because two courses may share a database. A lock dies with its
process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_KEY = int.from_bytes(b"attn book", "big") >> 8
"""PostgreSQL's name for our lock; it counts within one database."""


class TakenError(Exception):
    """Another process holds the lock."""


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock that this file stands for; the file itself stays, empty.

    Raises:
        TakenError: another process holds it.
        OSError: the file cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TakenError(path) from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def gradebook_lock(url: str) -> Iterator[None]:
    """Hold the lock of a gradebook: a file beside it, or PostgreSQL's own. Of other databases nothing is held.

    Raises:
        TakenError: another process holds it.
        OSError: the file cannot be made.
        SQLAlchemyError: the server refused, or this is no URL.
    """
    from sqlalchemy import NullPool, create_engine, func, select
    from sqlalchemy.engine import make_url

    address = make_url(url)
    if address.get_backend_name() == "sqlite" and address.database:
        book = Path(address.database).resolve()  # by whatever name somebody calls it
        with file_lock(book.with_name(f"{book.name}.lock")):
            yield
    elif address.get_backend_name() == "postgresql":
        engine = create_engine(address, poolclass=NullPool, pool_reset_on_return=None, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            if not connection.scalar(select(func.pg_try_advisory_lock(_KEY))):
                raise TakenError(url)
            yield
    else:
        yield
