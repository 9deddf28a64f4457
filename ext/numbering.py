"""Chapters keep their number in the course, also while chapters before them are still coming.

Sphinx counts the pages that there are. The map on the front page, the atlas and the lessons say "chapter 11" of the
eleventh chapter of the course, so its page and its place in the sidebar say 11 too. Several extensions have a part in
the counting; so it is left to them, and what they counted is renamed afterwards.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from ext import data


def setup(app: Sphinx) -> None:
    """Run right before and right after everything that counts sections."""
    app.connect("env-get-updated", recall, priority=100)
    app.connect("env-get-updated", renumber, priority=900)


def recall(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Show the counters what they counted last time, lest they take every renamed number for a change."""
    env.toc_secnumbers = getattr(env, "counted_numbers", {})
    return []


def renumber(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Put the chapter's number in the place of the count.

    Returns:
        Pages to write again, because their chapter has another number than in the last build.
    """
    env.counted_numbers = copy.deepcopy(env.toc_secnumbers)  # type: ignore[attr-defined]
    before: dict[str, int] = getattr(env, "chapter_numbers", {})
    chapters = {chapter.slug: number for number, chapter in enumerate(data.chapters(Path(env.srcdir)), start=1)}
    now = {page: chapters[slug] for page in env.toc_secnumbers if (slug := _slug(page)) in chapters}
    for page, number in now.items():
        for place in [*env.tocs[page].findall(nodes.reference), env.titles[page]]:
            if place.get("secnumber"):
                place["secnumber"] = [number, *place["secnumber"][1:]]
        _rename(env.toc_secnumbers[page], number)
        for numbers in env.toc_fignumbers.get(page, {}).values():
            _rename(numbers, number)
    env.chapter_numbers = now  # type: ignore[attr-defined]
    return [page for page, number in now.items() if before.get(page) != number]


def _rename(numbers: dict[str, Any], chapter: int) -> None:
    for key, counted in numbers.items():
        if counted:
            numbers[key] = (chapter, *counted[1:])


def _slug(page: str) -> str:
    """The chapter of a page such as chapters/flash/lesson; empty for all others."""
    folder, _, rest = page.partition("/")
    return rest.partition("/")[0] if folder == "chapters" else ""
