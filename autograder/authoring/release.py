"""The student bundle: a folder ready to be a public repository of its own, without one hidden line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from autograder import CourseError, course
from autograder.authoring.build import build
from autograder.authoring.leaks import leak_problems

TEMPLATES = Path(__file__).parent / "bundle"


class ReleaseError(CourseError):
    """The bundle cannot be released as it stands."""


def release(slugs: Sequence[str], to: Path | None = None) -> Path:
    """Write the bundle and prove that nothing hidden is in it.

    Args:
        slugs: chapters to release.
        to: the folder (by default `_build/release`); a `.git` folder in it is kept, so that it can be a repository.

    Returns:
        The folder.

    Raises:
        ReleaseError: something hidden would leave, or the folder holds files that are not a bundle's.
    """
    folder = to or course.BUILD / "release"
    made = {slug: build(slug) for slug in slugs}  # before anything is deleted: a source may be wrong
    _empty(folder)
    assignments = {}
    for slug, built in made.items():
        target = folder / slug
        target.mkdir(parents=True)
        (target / "exercises.ipynb").write_text(built.text, encoding="utf-8")
        data = course.CHAPTERS / slug / "data"
        if data.is_dir():
            shutil.copytree(data, target / "data")
        stamp = json.loads(built.text)["metadata"]["attention_in_depth"]["release"]
        sheet = course.sheet(slug)
        assignments[slug] = {
            "title": sheet.title,
            "release": stamp,
            "points": sheet.points,
            "exercises": len(sheet.exercises),
        }
        # nbgrader's own tools (formgrader, the exchange) look for releases here.
        own = course.RELEASE / slug
        own.mkdir(parents=True, exist_ok=True)
        (own / "exercises.ipynb").write_text(built.text, encoding="utf-8")
    for template in sorted(TEMPLATES.iterdir()):
        shutil.copy(template, folder / template.name.replace("dot-", "."))
    (folder / "release.json").write_text(
        json.dumps({"schema": 1, "assignments": assignments}, indent=2) + "\n", encoding="utf-8"
    )
    problems = leak_problems(slugs, [folder])
    if problems:
        _empty(folder)
        raise ReleaseError("nothing was released, because the bundle would leak:\n" + "\n".join(problems))
    return folder


def _empty(folder: Path) -> None:
    """Make the folder an empty one; refuse to delete what no release wrote."""
    found = [path for path in folder.iterdir() if path.name != ".git"] if folder.exists() else []
    if found and not (folder / "release.json").is_file():
        raise ReleaseError(f"{folder} is not empty and holds no release; name an empty folder with --to")
    for path in found:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
