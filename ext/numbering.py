"""Chapters keep their number in the course, also while chapters before them are still coming.

Sphinx counts the pages that there are. The map on the front page, the atlas and the lessons say "chapter 11" of the
eleventh chapter of the course, so its page and its place in the sidebar say 11 too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors.toctree import TocTreeCollector

from ext import data

Assign = Callable[[TocTreeCollector, BuildEnvironment], list[str]]


def install(app: Sphinx, env: BuildEnvironment, pages: list[str]) -> None:
    """Have whatever numbers the sections go on to number them by chapter.

    Called before pages are read: Jupyter Book loads its own numbering after all extensions.
    """
    assign = TocTreeCollector.assign_section_numbers
    if not hasattr(assign, "by_chapter"):
        TocTreeCollector.assign_section_numbers = _by_chapter(assign)  # type: ignore[method-assign, assignment]


def _by_chapter(assign: Assign) -> Assign:
    def assign_section_numbers(self: TocTreeCollector, env: BuildEnvironment) -> list[str]:
        before = env.toc_secnumbers
        assign(self, env)
        chapters = {chapter.slug: number for number, chapter in enumerate(data.chapters(Path(env.srcdir)), start=1)}
        for page, numbers in env.toc_secnumbers.items():
            number = chapters.get(_slug(page))
            if number is None:
                continue
            places = [*env.tocs[page].findall(nodes.reference), env.titles[page]]
            for place in places:
                if place.get("secnumber"):
                    place["secnumber"] = [number, *place["secnumber"][1:]]
            for anchor, old in numbers.items():
                numbers[anchor] = (number, *old[1:]) if old else old
        return [page for page, numbers in env.toc_secnumbers.items() if numbers != before.get(page)]

    assign_section_numbers.by_chapter = True  # type: ignore[attr-defined]
    return assign_section_numbers


def _slug(page: str) -> str:
    """The chapter of a page such as chapters/flash/lesson; empty for all others."""
    folder, _, rest = page.partition("/")
    return rest.partition("/")[0] if folder == "chapters" else ""
