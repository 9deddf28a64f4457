"""The book's Sphinx extension: exercise lists, links to labelled cells, pages made from data, and checks of quality.

It needs nothing of jupyter-book, so that the same tree builds with plain Sphinx. What it does:

- directives: `exercise-list` here, the appendix pages in `ext.appendix`;
- a code cell with `:label:` becomes a place that can be linked to (`{ref}` and the claims index use it);
- an exercise page gets a download link and a place for each exercise;
- a lesson runs again when anything it depends on changed (`ext.freshness`);
- a figure without alternative text and a source that nothing refers to are warnings, hence errors in a strict build;
- models that run in the page are put beside it (`ext.live`);
- pages load nothing from elsewhere, MathJax included.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

from ext import appendix, bibliography, data, freshness, live, pages

logger = logging.getLogger(__name__)

WIDGETS = "widgets.js"
STYLES = ("book.css", "widgets.css")
# The parts of MathJax that a page can ask for; the rest of the package is 20 MB of other output formats.
MATHJAX_PARTS = ("tex-chtml.js", "output/chtml", "input/tex/extensions", "a11y", "sre")


class ExerciseList(SphinxDirective):
    """The exercises of a chapter with points, minutes and difficulty, each linked to its place on the exercise page."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table, or a line that says that exercises are still coming."""
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
            rows.append(
                [title, [nodes.literal("", exercise.name)], str(exercise.points), str(exercise.minutes), difficulty]
            )
        points, minutes = sum(one.points for one in found), sum(one.minutes for one in found)
        time = f"{minutes} min" if minutes < 90 else f"about {minutes / 60:.1f} h"
        rows.append([[nodes.strong("", "together")], "", f"{points:g}", time, ""])
        table = pages.table(
            ["exercise", "you write", "points", "minutes", "difficulty"],
            rows,
            numbers=(2, 3),
            classes=["aid-exercises"],
        )
        if not here:
            return [table]
        lead = nodes.paragraph("", "Work through them in the notebook: ")
        lead += pages.link_to(self.env.docname, page, "", [nodes.Text("open the exercise page")])
        lead += nodes.Text(", where it can be downloaded.")
        return [lead, table]


def exercise_page(app: Sphinx, doctree: nodes.document) -> None:
    """Give the exercise page its download link, and a place for each exercise."""
    docname = app.env.docname
    slug = _slug(docname, "exercises")
    if slug is None:
        return
    source = Path(app.env.doc2path(docname))
    known = {f"{slug}-{one.name}": one for one in pages.exercises(source.with_suffix(".md"))}
    for cell in doctree.findall(nodes.container):
        grade_id = cell.get("cell_metadata", {}).get("nbgrader", {}).get("grade_id")
        section = _parent_section(cell)
        if grade_id in known and section is not None:
            anchor = pages.exercise_anchor(slug, known[grade_id].name)
            if anchor not in section["ids"]:
                section["ids"].append(anchor)
    title = next(iter(doctree.findall(nodes.title)), None)
    if title is None or title.parent is None:
        return
    target = f"/{docname}{source.suffix}"
    link = addnodes.download_reference(
        "", "", refdoc=docname, reftarget=target, refexplicit=True, classes=["aid-button"]
    )
    link += nodes.inline("", "Download this notebook (exercises.ipynb)")
    box = nodes.container(classes=["aid-start"])
    box += nodes.paragraph("", "", link)
    how = nodes.paragraph()
    how += pages.inline(
        "This page shows the notebook as you get it, not run. Download it into a folder of its own, start JupyterLab "
        "there with `jupyter lab exercises.ipynb`, and work through the cells from the top. You need Python with the "
        "packages of the course's `requirements.txt`; nothing else of the course. At first every check fails with "
        "`NotImplementedError`: that is what normal looks like."
    )
    box += how
    title.parent.insert(title.parent.index(title) + 1, box)


def label_cells(app: Sphinx, doctree: nodes.document) -> None:
    """Make every labelled code cell a place that other pages can refer to."""
    docname = app.env.docname
    domain = app.env.get_domain("std")
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") != "cell_code":
            continue
        label = cell.get("cell_metadata", {}).get("label")
        if label is None:
            continue
        slug = _slug(docname, "lesson")
        if slug is not None and not str(label).startswith(f"{slug}-"):
            logger.warning("the label %r does not start with %r", label, f"{slug}-", location=cell, type="aid")
        other = domain.data["labels"].get(label)
        if (other is not None and other[0] != docname) or label in doctree.ids:
            logger.warning("the cell label %r is used twice in the book", label, location=cell, type="aid")
        cell["ids"].append(label)
        cell["classes"].append("aid-labelled")
        doctree.ids[label] = cell
        domain.data["labels"][label] = (docname, label, label)
        domain.data["anonlabels"][label] = (docname, label)


def check_pictures(app: Sphinx, doctree: nodes.document) -> None:
    """Warn of pictures without alternative text, from Markdown and from the outputs of cells."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip() and not image.get("uri", "").startswith("data:"):
            logger.warning("a picture without alternative text: %s", image.get("uri"), location=image, type="aid")
        elif image.get("alt", "").strip() == "" or "jupyter_execute" in image.get("uri", ""):
            logger.warning("a cell shows a bare figure; give it to `show`, with an alt", location=image, type="aid")
    for raw in doctree.findall(nodes.raw):
        for tag in re.findall(r"<(?:img|svg)\b[^>]*>", raw.astext()):
            if not re.search(r'\b(?:alt|aria-label)="[^"]+"|aria-hidden="true"', tag):
                logger.warning("a picture without alternative text: %.60s", tag, location=raw, type="aid")


def check_sources(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of entries of references.bib that no page and no data file refers to."""
    used = {key for reference in env.get_domain("cite").data["citation_refs"] for key in _keys(reference)}
    for slug in [chapter.slug for chapter in data.chapters(Path(env.srcdir))] + [data.APPENDIX]:
        entries: Iterable[Any] = [*data.claims(slug, Path(env.srcdir)), *data.mechanisms(slug, Path(env.srcdir))]
        used |= {entry.citation for entry in entries if entry.citation}
    for key in sorted(data.bibliography_keys(Path(env.srcdir)) - used):
        logger.warning("references.bib: nothing in the book refers to %r", key, type="aid", subtype="citation")


def _keys(reference: Any) -> list[str]:
    return [target.key for target in reference.targets]


def freshen(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """The pages to read again because something that they depend on is not what it was."""
    marks: dict[str, str] = getattr(env, "aid_fingerprints", {})
    lessons = [docname for docname, mark in marks.items() if docname in env.found_docs and _mark(env, docname) != mark]
    seen: dict[str, str] = getattr(env, "aid_data_pages", {})
    now = appendix.lessons_mark(env)
    return lessons + [docname for docname, mark in seen.items() if docname in env.found_docs and mark != now]


def mark_lesson(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the fingerprint of what a lesson depends on where the notebook cache sees it."""
    if _slug(docname, "lesson") is None:
        return
    mark = _mark(app.env, docname, source[0])
    vars(app.env).setdefault("aid_fingerprints", {})[docname] = mark
    source[0] = freshness.with_fingerprint(source[0], mark)


def _mark(env: BuildEnvironment, docname: str, text: str | None = None) -> str:
    path = Path(env.doc2path(docname))
    return freshness.fingerprint(text or path.read_text(encoding="utf-8"), path.parent, Path(env.srcdir))


def trim_page(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Mend what the themes leave: a script that needs a network host, buttons without a name, a list of no items."""
    # sphinx-thebe is loaded by jupyter-book even when switched off: it names a network host, and fails on every page.
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "sphinx-thebe" not in str(getattr(script, "filename", script))
        and "THEBE_JS_URL" not in str(getattr(script, "attributes", {}).get("body", ""))
    ]
    if "body" in context:
        context["body"] = context["body"].replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )
    contents = context.get("generate_toctree_html")
    if contents is not None:

        def named(*args: Any, **kwargs: Any) -> Any:
            # What comes back is a tree of the sidebar, or text; in the tree a fold-out button has no name of its own.
            tree = contents(*args, **kwargs)
            for button in tree.find_all("summary") if hasattr(tree, "find_all") else []:
                link = button.find_parent("li").find("a")
                button["aria-label"] = f"Pages of: {link.get_text(strip=True)}" if link else "Pages"
            return tree

        context["generate_toctree_html"] = named


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Copy the parts of MathJax that pages use beside them, once."""
    if error is not None or app.builder.format != "html":
        return
    package = importlib.util.find_spec("sphinx-mathjax-offline")
    if package is None or package.origin is None:
        logger.warning("sphinx-mathjax-offline is not installed: formulas will not be set", type="aid")
        return
    origin = Path(package.origin).parent / "static" / "mathjax"
    target = Path(app.outdir, "_static", "mathjax")
    for part in MATHJAX_PARTS:
        if (target / part).exists() or not (origin / part).exists():
            continue
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (origin / part).is_dir():
            shutil.copytree(origin / part, target / part)
        else:
            shutil.copy2(origin / part, target / part)


def resolve_place(app: Sphinx, env: BuildEnvironment, node: Any, content: nodes.Element) -> nodes.Element | None:
    """Turn what `pages.link_to` made into a link of the builder at work."""
    if node.get("reftype") != pages.PLACE:
        return None
    return make_refnode(app.builder, node["refdoc"], node["reftarget"], node["refanchor"], content)


def _slug(docname: str, page: str) -> str | None:
    path = PurePosixPath(docname)
    if len(path.parts) == 3 and path.parts[0] == "chapters" and path.name == page:
        return path.parts[1]
    return None


def _parent_section(node: nodes.Node) -> nodes.section | None:
    parent = node.parent
    while parent is not None and not isinstance(parent, nodes.section):
        parent = parent.parent
    return parent


def _settings(app: Sphinx, config: Any) -> None:
    config.mathjax_path = "mathjax/tex-chtml.js"
    for name in STYLES:
        app.add_css_file(name)
    app.add_js_file(WIDGETS, type="module")


def _code_mark() -> str:
    """A digest of this package, so that a change of what makes the pages makes all of them anew.

    The lesson kit is left out: it runs with the lessons, and `ext.freshness` watches it.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name != "lesson.py":
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything with Sphinx."""
    app.add_config_value("aid_code", _code_mark(), "env")
    app.connect("config-inited", _settings)
    app.connect("source-read", mark_lesson)
    app.connect("env-get-outdated", freshen)
    # Before Sphinx's own collectors (priority 500), so that the download link is seen by the one for downloads.
    app.connect("doctree-read", exercise_page, priority=100)
    app.connect("doctree-read", label_cells, priority=100)
    app.connect("doctree-read", check_pictures, priority=900)
    app.connect("missing-reference", resolve_place)
    app.connect("env-check-consistency", check_sources)
    app.connect("html-page-context", trim_page, priority=900)
    app.connect("html-page-context", live.lay_out)
    app.connect("build-finished", copy_mathjax)
    app.add_directive("exercise-list", ExerciseList)
    pages.setup(app)
    bibliography.setup()
    appendix.setup(app)
    return {"version": json.dumps(1), "env_version": 1, "parallel_read_safe": False, "parallel_write_safe": True}
