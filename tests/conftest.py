"""One book and one browser for all tests: a second Playwright in the same process would not start."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import CHROMIUM, FLAGS, HTML, ROOT, serving
from playwright.sync_api import Browser, sync_playwright

from autograder.authoring.book import build_book


@pytest.fixture(scope="session")
def book() -> Path:
    """The built book, built first where it is missing or older than its sources."""
    lock = ROOT / "_build" / "book.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # test processes side by side build it once
        stamp = ROOT / "_build" / "book.tested"
        newest = max(path.stat().st_mtime for path in _sources())
        if not (HTML / "index.html").is_file() or not stamp.is_file() or stamp.stat().st_mtime < newest:
            build_book(strict=True)
            stamp.touch()
    return HTML


def _sources() -> list[Path]:
    folders = ("chapters", "ext", "web", "solutions")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts and ".ipynb_checkpoints" not in path.parts]
    return [*files, ROOT / "_config.yml", ROOT / "_toc.yml", ROOT / "index.md", ROOT / "references.bib"]


@pytest.fixture(scope="session")
def site(book: Path) -> Iterator[str]:
    """The book on the loopback address."""
    with serving(book) as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()
