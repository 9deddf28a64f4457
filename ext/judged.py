"""Is what a recorded run judged still what it was? One digest of the files that decide it, told with every record.

Of a chapter these are its hidden tests, its right answers and mistakes, its references, what these import from one
another (the kit, and the references of other chapters), and what its exercises declare: points, forbidden names, uses.
Of the long tests of the tool it is the grader: what judges and records, and the jail. Files count byte by byte, so that
every version of Python comes to the same digest; a comment that changed is a change too.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from ext import freshness

GRADER = ("autograder/grading", "autograder/sandbox")
COURSE = ("autograder/suites", "autograder/answers", "solutions")


def chapters(root: Path) -> list[str]:
    """The chapters that have exercises, by name."""
    return sorted(path.parent.name for path in root.glob("chapters/*/exercises.md"))


def files(slug: str | None, root: Path) -> list[Path]:
    """The Python files that decide what judging comes to, in a fixed order.

    Args:
        slug: a chapter, or None for the grader itself.
        root: the course's root.
    """
    if slug is None:
        return sorted(path for folder in GRADER for path in (root / folder).glob("*.py"))
    suites, answers, solutions = folders = [root / folder for folder in COURSE]
    own = (suites / f"test_{slug}.py", suites / "conftest.py", answers / f"{slug}.py", solutions / f"{slug}.py")
    waiting = [path for path in own if path.is_file()]
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [other for other in freshness.imported_by(path, root) if other.parent in folders]
    return sorted(found)


def sheet(slug: str, root: Path) -> Path:
    """Where the exercises of a chapter are declared."""
    return root / "chapters" / slug / "exercises.md"


def mark(slug: str | None, root: Path) -> str:
    """The digest: 16 hexadecimal digits.

    Args:
        slug: a chapter, or None for the grader itself.
        root: the course's root.
    """
    digest = hashlib.sha256()
    for path in files(slug, root):
        digest.update(f"{path.relative_to(root).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    if slug is not None and sheet(slug, root).is_file():
        text = sheet(slug, root).read_text(encoding="utf-8")
        digest.update("\n".join(line for line in text.splitlines() if line.startswith('+++ {"exercise"')).encode())
    return digest.hexdigest()[:16]
