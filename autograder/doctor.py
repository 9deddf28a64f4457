"""What works on this machine: versions, the jail and its walls, GPU, browser, database; each with a remedy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autograder import course
from autograder.grading.secret import SecretError, course_secret, secret_path

PACKAGES = ("jupyter-book", "nbgrader", "numpy", "torch", "triton", "matplotlib", "pytest", "distributed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; ``state`` is ok, missing (optional and not here) or broken (grading cannot run)."""

    name: str
    state: str
    detail: str

    def as_json(self) -> dict[str, Any]:
        """The finding as a dictionary."""
        return asdict(self)


def examine() -> list[Finding]:
    """Look at everything that the course uses."""
    return [*_versions(), *_sandbox(), _gpu(), _browser(), _postgres(), _secret()]


def _versions() -> Iterator[Finding]:
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Finding("Python", "ok" if supported else "broken", f"{platform.python_version()}; 3.11 to 3.13 are supported")
    for package in PACKAGES:
        try:
            yield Finding(package, "ok", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            optional = package == "triton" and sys.platform != "linux"
            yield Finding(package, "missing" if optional else "broken", "not installed; run `make env`")


def _sandbox() -> Iterator[Finding]:
    """The walls of the jail, each proved by attacking it; grading fails closed where one does not stand."""
    if sys.platform != "linux":
        yield Finding("jail", "broken", "grading runs on Linux only; authoring and the book work here")
        return
    from autograder.sandbox.client import VARIABLE
    from autograder.sandbox.probes import prove

    kind = os.environ.get(VARIABLE) or "warm"
    other = {"warm": "cold", "cold": "warm"}.get(kind)
    if other is None:
        yield Finding("jail", "broken", f"{VARIABLE} is {kind!r}, where it may be warm or cold")
        return
    results = prove(kind=kind)
    if all(result.held for result in results):
        from autograder.sandbox.trial import try_out  # seconds of imports, for a jail that stands

        results += try_out()
    for result in results:
        yield Finding(f"{kind} jail: {result.name}", "ok" if result.held else "broken", result.detail)
    failed = [result for result in prove(["system files"], kind=other) if not result.held]
    detail = f"works too; {VARIABLE}={other} grades in it"
    yield Finding(f"{other} jail", "missing" if failed else "ok", failed[0].detail if failed else detail)


def _gpu() -> Finding:
    import torch

    from autograder.sandbox.native import VARIABLE, asked_for

    if torch.cuda.is_available():
        how = "native checks run, outside of the jail" if asked_for() else f"{VARIABLE}=1 runs native checks too"
        return Finding("GPU", "ok", f"{torch.cuda.get_device_name(0)}; {how}")
    return Finding(
        "GPU", "missing", "none found; kernels are judged in Triton's interpreter, native checks are not run"
    )


def browser_path() -> Path | None:
    """Debian's Chromium, or another one on the path."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    return Path(found) if found else None


def _browser() -> Finding:
    path = browser_path()
    if path is None:
        return Finding("browser", "missing", "no Chromium; `make system` installs it, the book's browser tests need it")
    return Finding("browser", "ok", str(path))


def _postgres() -> Finding:
    if os.environ.get("ATTN_DB", "").startswith("postgresql"):
        return Finding("gradebook", "ok", "PostgreSQL, from ATTN_DB")
    return Finding(
        "gradebook", "ok", f"SQLite, {course.GRADEBOOK.relative_to(course.ROOT)}; set ATTN_DB for PostgreSQL"
    )


def _secret() -> Finding:
    path = secret_path()
    shown = path.relative_to(course.ROOT) if path.is_relative_to(course.ROOT) else path
    if not path.exists():
        return Finding("course secret", "ok", f"made on the first grading, in {shown}")
    try:
        course_secret()
    except SecretError as error:
        return Finding("course secret", "broken", str(error))
    private = path.stat().st_mode & 0o077 == 0
    return Finding("course secret", "ok" if private else "broken", f"{shown}" + ("" if private else ": chmod 600 it"))
