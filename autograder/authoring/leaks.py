"""The leak scan: nothing of suites, answers or solution bodies may reach the student bundle or the built book."""

from __future__ import annotations

import contextlib
import html
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from autograder import course
from autograder.answers import shelf
from autograder.authoring.build import clear_solutions, instructor_notebook
from autograder.grading.suite import SUITES

LONG_LINE = 40
MANY_LINES = 3
_READABLE = {".html", ".ipynb", ".md", ".txt", ".json", ".js", ".py", ".csv", ".xml", ".svg", ".toml", ".yml"}


def leak_problems(slugs: Sequence[str], places: Sequence[Path] | None = None) -> list[str]:
    """What the student bundle and the built HTML hold that they must not.

    Args:
        slugs: chapters whose secrets are looked for.
        places: folders or files to scan (by default notebooks and lessons, the bundle and the built book).
    """
    if places is None:
        pages = [course.CHAPTERS / slug / name for slug in slugs for name in ("exercises.ipynb", "lesson.md")]
        places = [*pages, course.BUILD / "release", course.BUILD / "html"]
    secrets = {slug: _secrets(slug) for slug in slugs}
    problems = []
    for path in _files(places):
        text = _normal(_text(path))
        for lines, solutions in secrets.values():
            problems += [
                f"{_name(path)} holds a line of {origin}: {line[:60]}…" for line, origin in lines if line in text
            ]
            for name, body in solutions.items():
                if sum(line in text for line in body) >= min(MANY_LINES, len(body)) and body:
                    problems.append(f"{_name(path)} holds the solution of {name}")
    return problems


def _files(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        files = sorted(place.rglob("*")) if place.is_dir() else [place]
        yield from (path for path in files if path.is_file() and path.suffix in _READABLE)


def _name(path: Path) -> str:
    return str(path.relative_to(course.ROOT)) if path.is_relative_to(course.ROOT) else path.name


def _text(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".html":
        # Highlighting puts every word into a tag of its own.
        return html.unescape(re.sub(r"<[^>]*>", "", text))
    if path.suffix in (".ipynb", ".json"):
        with contextlib.suppress(ValueError):
            return "\n".join(_strings(json.loads(text)))
    return text.replace('\\"', '"').replace("\\n", "\n") if path.suffix in (".ipynb", ".json", ".js") else text


def _strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value, as it reads once its escapes are undone."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _strings(part)


def _normal(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@cache
def _secrets(slug: str) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
    """Telling lines of suite and answers with their origin, and the telling lines of each solution body."""
    public = _public(slug)
    lines = []
    for path in (SUITES / f"test_{slug}.py", SUITES.parent / "answers" / f"{slug}.py"):
        lines += [
            (line, f"{path.parent.name}/{path.name}")
            for line in _telling(path.read_text(encoding="utf-8"), public, LONG_LINE)
        ]
    for answers in shelf(slug).mistakes.values():
        lines += [(_normal(a.hint), f"answers/{slug}.py") for a in answers if _normal(a.hint) not in public]
    bodies = {}
    for cell in instructor_notebook(slug).cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            hidden = set(cell.source.splitlines()) - set(clear_solutions(cell.source).splitlines())
            bodies[cell.metadata["nbgrader"]["grade_id"]] = _telling("\n".join(sorted(hidden)), public, 20)
    return lines, bodies


def _public(slug: str) -> str:
    """What students are meant to see: prose, checks, stubs. No lesson: it must not print an answer either."""
    texts = [(course.CHAPTERS / slug / "exercises.md").read_text(encoding="utf-8")]
    texts += [clear_solutions(cell.source) for cell in instructor_notebook(slug).cells]
    return _normal("\n".join(texts))


def _telling(text: str, public: str, length: int) -> list[str]:
    """Lines long enough to be recognised, in code and not in what is public or common."""
    found = []
    for line in text.splitlines():
        line = _normal(line.strip())
        if (
            len(line) >= length
            and not line.startswith(("import ", "from ", "#", '"""', "BEGIN", "### "))
            and line not in public
        ):
            found.append(line)
    return found
