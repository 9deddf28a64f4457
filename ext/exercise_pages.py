"""Exercises on the page: the list in a lesson, the ways to open a notebook, and a reader's own progress.

Progress is what the reader ticks off; it stays in the browser (`web/progress.js`) and is sent nowhere.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ext import data, pages

LITE = "lite"  # where the site that runs notebooks in the browser lies within the book


class ExerciseList(SphinxDirective):
    """The exercises of a chapter with points, minutes and difficulty, each linked to its place on the exercise page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table, with the way to the exercise page where there is one."""
        slug = self.arguments[0]
        source = Path(self.env.srcdir, "chapters", slug, "exercises.md")
        if not source.is_file():
            raise self.error(f"there is no chapters/{slug}/exercises.md")
        self.env.note_dependency(str(source))
        page = f"chapters/{slug}/exercises"
        here = page in self.env.found_docs
        rows: list[list[pages.Cell]] = []
        found = pages.exercises(source)
        for exercise in found:
            title: list[nodes.Node] = [nodes.Text(exercise.title)]
            if here:
                title = [pages.link_to(self.env.docname, page, pages.exercise_anchor(slug, exercise.name), title)]
            difficulty = pages.DIFFICULTY[exercise.difficulty]
            name = [nodes.literal("", exercise.name)]
            points, minutes = f"{exercise.points:g}", str(exercise.minutes)
            rows.append([title, name, points, minutes, difficulty, [done_box(slug, exercise)]])
        together = [progress(slug, found)]
        points = f"{sum(one.points for one in found):g}"
        rows.append([[nodes.strong("", "together")], "", points, pages.duration(found), "", together])
        table = pages.table(
            ["exercise", "you write", "points", "minutes", "difficulty", "done"],
            rows,
            numbers=(2, 3),
            classes=["aid-exercises"],
        )
        if not here:
            return [table]
        lead = nodes.paragraph("", "Work through them in the notebook: ")
        lead += pages.link_to(self.env.docname, page, "", [nodes.Text("open the exercise page")])
        lead += nodes.Text(", where it can be downloaded. What you tick off is remembered by this browser alone.")
        return [lead, table]


def done_box(slug: str, exercise: pages.Exercise) -> nodes.raw:
    """A box to tick off an exercise; nothing where JavaScript is off."""
    return pages.raw(
        f'<aid-done exercise="{slug}-{exercise.name}" name="{html.escape(exercise.title, quote=True)}"></aid-done>'
    )


def progress(slug: str, found: Iterable[pages.Exercise]) -> nodes.raw:
    """How many exercises of a chapter are ticked off."""
    return pages.raw(f'<aid-progress exercises="{" ".join(f"{slug}-{one.name}" for one in found)}"></aid-progress>')


class CourseProgress(SphinxDirective):
    """How much of the whole course a reader has ticked off, with ways to keep, restore and forget it."""

    def run(self) -> list[nodes.Node]:
        """The element, with the exercises of all chapters that are there."""
        root = Path(self.env.srcdir)
        every = []
        for chapter in data.chapters(root):
            source = root / "chapters" / chapter.slug / "exercises.md"
            if f"chapters/{chapter.slug}/exercises" in self.env.found_docs:
                self.env.note_dependency(str(source))
                every += [f"{chapter.slug}-{one.name}" for one in pages.exercises(source)]
        return [pages.raw(f'<aid-progress exercises="{" ".join(every)}" keep></aid-progress>')]


def colab_address(bundle: str, branch: str, slug: str) -> str | None:
    """Where Colab opens a chapter's notebook; None if the student bundle is not on GitHub, from which alone it reads.

    Example:
        >>> colab_address("https://github.com/uni/attention", "main", "additive")
        'https://colab.research.google.com/github/uni/attention/blob/main/additive/exercises.ipynb'
    """
    parts = urlsplit(bundle)
    path = parts.path.strip("/").removesuffix(".git")
    if parts.hostname != "github.com" or path.count("/") != 1:
        return None
    return f"https://colab.research.google.com/github/{path}/blob/{branch}/{slug}/exercises.ipynb"


def in_browser(root: Path) -> list[str]:
    """The chapters whose notebooks the built JupyterLite site holds; none where it was not built."""
    listing = root / "_build" / LITE / "chapters.json"
    return list(json.loads(listing.read_text(encoding="utf-8"))) if listing.is_file() else []


def exercise_page(app: Sphinx, doctree: nodes.document) -> None:
    """Give an exercise page its ways to open the notebook, and each exercise a place and a box to tick off."""
    slug = pages.chapter_slug(app.env.docname, "exercises")
    title = next(iter(doctree.findall(nodes.title)), None)
    if slug is None or title is None or title.parent is None:
        return
    found = pages.exercises(Path(app.env.doc2path(app.env.docname)).with_suffix(".md"))
    known = {f"{slug}-{one.name}": one for one in found}
    for cell in doctree.findall(nodes.container):
        exercise = known.get(cell.get("cell_metadata", {}).get("nbgrader", {}).get("grade_id"))
        section = _parent_section(cell)
        if exercise is None or section is None:
            continue
        anchor = pages.exercise_anchor(slug, exercise.name)
        if anchor not in section["ids"]:
            section["ids"].append(anchor)
            section.insert(1, done_box(slug, exercise))
    title.parent.insert(title.parent.index(title) + 1, _start(app, slug, found))


def _start(app: Sphinx, slug: str, found: Sequence[pages.Exercise]) -> nodes.container:
    docname = app.env.docname
    box = nodes.container(classes=["aid-start"])
    points = sum(one.points for one in found)
    summary = nodes.paragraph("", f"{len(found)} exercises · {points:g} points · {pages.duration(found)} · ")
    summary += progress(slug, found)
    buttons = nodes.paragraph(classes=["aid-buttons"])
    link = addnodes.download_reference(
        "",
        "",
        refdoc=docname,
        reftarget=f"/{docname}{Path(app.env.doc2path(docname)).suffix}",
        refexplicit=True,
        classes=["aid-button"],
    )
    link += nodes.inline("", "Download the notebook")
    buttons += link
    colab = colab_address(app.config.aid_bundle, app.config.aid_bundle_branch, slug)
    if colab is not None:
        buttons += _button(colab, "Open in Colab")
    if slug in app.config.aid_lite:
        # The site is no page of the book, so that its address is written by hand.
        buttons += _button(f"../../{LITE}/lab/index.html?path={slug}/exercises.ipynb", "Open in this browser")
    box += [summary, buttons]
    how = [
        "**JupyterLab, on your machine.** Put the notebook into a folder of its own, install Python 3.11 to 3.13 and "
        f"the packages with `pip install jupyterlab {' '.join(_packages(app))}`, and start "
        "`jupyter lab exercises.ipynb` there. Nothing else of the course is needed.",
        "**Colab.** "
        + (
            "The button opens the notebook there; save a copy to keep your work. "
            if colab
            else "Download the notebook, go to colab.research.google.com and choose *Upload*. "
        )
        + "Run `!pip install jaxtyping` in a cell of its own first; the rest is there.",
    ]
    if slug in app.config.aid_lite:
        how.append(
            "**In this browser.** The exercises of this chapter that need NumPy alone run in the page, on Pyodide. It "
            "fetches Python and NumPy from its network host when it starts, so this one way needs a connection. "
            "torch does not exist there; exercises that need it are left out. Download your work before you leave."
        )
    how.append(
        "This page shows the notebook as you get it, not run. At first every check fails with `NotImplementedError`: "
        "that is what normal looks like. Unfold the hints one at a time."
    )
    box += pages.raw('<details class="aid-how"><summary>How to open and use it</summary>')
    for text in how:
        paragraph = nodes.paragraph()
        paragraph += _strong(text)
        box += paragraph
    box += pages.raw("</details>")
    return box


def _button(address: str, words: str) -> nodes.reference:
    return nodes.reference("", words, refuri=address, internal=False, classes=["aid-button", "aid-second"])


def _packages(app: Sphinx) -> list[str]:
    """What the notebook imports, as pip knows it."""
    text = Path(app.env.doc2path(app.env.docname)).read_text(encoding="utf-8")
    known = ("numpy", "torch", "matplotlib", "jaxtyping")
    return [name for name in known if re.search(rf"\b(import|from) {name}\b", text)]


def _strong(text: str) -> list[nodes.Node]:
    """Text with `code`, **strong** and *emphasised* words."""
    result: list[nodes.Node] = []
    for part in re.split(r"(\*\*[^*]+\*\*|\*[^*]+\*)", text):
        if part.startswith("**"):
            result.append(nodes.strong("", part[2:-2]))
        elif part.startswith("*"):
            result.append(nodes.emphasis("", part[1:-1]))
        else:
            result += pages.inline(part)
    return result


def _parent_section(node: nodes.Node) -> nodes.section | None:
    parent = node.parent
    while parent is not None and not isinstance(parent, nodes.section):
        parent = parent.parent
    return parent


def settings(app: Sphinx) -> None:
    """Register directives, the settings of the student bundle, and the mark of what the browser can run."""
    app.add_config_value("aid_bundle", "", "env", str)
    app.add_config_value("aid_bundle_branch", "main", "env", str)
    app.add_config_value("aid_lite", in_browser(Path(app.srcdir)), "env", list)
    app.add_directive("exercise-list", ExerciseList)
    app.add_directive("course-progress", CourseProgress)
