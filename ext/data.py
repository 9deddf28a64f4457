"""The course's own data, read and checked: chapters, claims, mechanisms, and the labelled cells of the lessons.

The files lie in `chapters/appendix/data`. The appendix pages, the checks of coverage and the tests all read them
through this module, so that a malformed file is reported once, with its name and the entry at fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
VERDICTS = ("right", "imprecise", "wrong", "broken code")
APPENDIX = "appendix"


class DataError(ValueError):
    """A data file of the course does not hold what it should."""


@dataclass(frozen=True)
class Chapter:
    """One chapter of the course, written or still coming."""

    slug: str
    title: str
    part: str
    about: str
    needs: tuple[str, ...] = ()

    def lesson(self, root: Path = ROOT) -> Path:
        """Where the lesson lies, or will lie."""
        return root / "chapters" / self.slug / "lesson.md"


@dataclass(frozen=True)
class Paper:
    """A source of a mechanism, as the atlas prints it."""

    authors: str
    title: str
    year: int | None = None
    arxiv: str | None = None
    venue: str | None = None
    where: str | None = None


@dataclass(frozen=True)
class Claim:
    """A statement of one of the five articles, with its verdict and where it is shown."""

    id: str
    article: int
    line: str
    claim: str
    verdict: str
    correct: str | None = None
    show: str | None = None
    also: tuple[str, ...] = ()
    cell: str | None = None
    citation: str | None = None


@dataclass(frozen=True)
class Note:
    """What the atlas says of a mechanism beside its papers: the exercise that builds it, and its cost."""

    id: str
    exercise: str | None = None
    cost: str | None = None


@dataclass(frozen=True)
class Mechanism:
    """Something the articles name that can be built, measured or drawn (`kind` is "mechanism" or "figure")."""

    id: str
    name: str
    kind: str
    group: str
    section: str
    says: str | None = None
    refuted: bool = False
    papers: tuple[Paper, ...] = field(default=())
    build: str | None = None
    also: tuple[str, ...] = ()
    cell: str | None = None
    citation: str | None = None


@dataclass(frozen=True)
class Attack:
    """An attack on the grader that the tests carry out, and what it came to: "gains nothing", or "open"."""

    name: str
    theme: str
    tries: str
    stopped: str
    outcome: str


def data_folder(root: Path = ROOT) -> Path:
    """The folder of the data files."""
    return root / "chapters" / APPENDIX / "data"


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        DataError: if it cannot be read; the message names file and line.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML: {error}") from error


def _entries(path: Path, kind: type, texts: tuple[str, ...] = ()) -> list[Any]:
    result = []
    for number, entry in enumerate(read_yaml(path) or [], start=1):
        entry = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        if "papers" in entry:
            entry["papers"] = tuple(Paper(**paper) for paper in entry["papers"])
        for name in texts:
            if entry.get(name) is not None:
                entry[name] = str(entry[name])
        try:
            result.append(kind(**entry))
        except TypeError as error:
            raise DataError(f"{path}: entry {number} ({entry.get('id', entry.get('slug'))}): {error}") from error
    return result


def chapters(root: Path = ROOT) -> list[Chapter]:
    """All chapters of the course in their order."""
    return _entries(data_folder(root) / "chapters.yaml", Chapter)


def claims(slug: str, root: Path = ROOT) -> list[Claim]:
    """The claims at home in a chapter."""
    found: list[Claim] = _entries(data_folder(root) / "claims" / f"{slug}.yaml", Claim, ("line",))
    for claim in found:
        if claim.verdict not in VERDICTS:
            raise DataError(f"claims/{slug}.yaml: {claim.id}: no verdict {claim.verdict!r}")
    return found


def mechanisms(slug: str, root: Path = ROOT) -> list[Mechanism]:
    """The mechanisms and figures at home in a chapter (or in the appendix)."""
    return _entries(data_folder(root) / "mechanisms" / f"{slug}.yaml", Mechanism)


def notes(root: Path = ROOT) -> dict[str, Note]:
    """The atlas's notes by the id of the mechanism."""
    return {note.id: note for note in _entries(data_folder(root) / "atlas.yaml", Note)}


def attacks(root: Path = ROOT) -> list[Attack]:
    """The attacks of the tests' corpus, in its words and order, each with the outcome that was measured."""
    return _entries(data_folder(root) / "attacks.yaml", Attack)


def data_files(root: Path = ROOT) -> list[Path]:
    """Every data file of the appendix, in a fixed order."""
    return sorted(path for path in data_folder(root).rglob("*") if path.suffix in (".yaml", ".json"))


CELL = re.compile(r"^(?P<fence>`{3,}|~{3,}|:{3,})\{code-cell\}")


@cache
def _labels(path: Path, changed: float) -> frozenset[str]:
    labels: set[str] = set()
    fence = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if fence:
            option = re.match(r":label:\s*(\S+)", line)
            if option:
                labels.add(option[1])
            if line.startswith(fence) or not line.startswith(":"):
                fence = ""
        elif match := CELL.match(line):
            fence = match["fence"]
    return frozenset(labels)


def cell_labels(slug: str, root: Path = ROOT) -> frozenset[str]:
    """The labels of the code cells of a chapter's lesson; empty where there is no lesson yet."""
    path = root / "chapters" / slug / "lesson.md"
    return _labels(path, path.stat().st_mtime) if path.is_file() else frozenset()


def bibliography_keys(root: Path = ROOT) -> frozenset[str]:
    """The keys of `references.bib`."""
    path = root / "references.bib"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return frozenset(re.findall(r"^\s*@(?!comment|string|preamble)\w+\s*\{\s*([^,\s]+)\s*,", text, flags=re.M | re.I))
