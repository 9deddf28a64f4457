"""The book's Sphinx extension: exercises, search, links to labelled cells, pages made from data, and checks of quality.

It needs nothing of jupyter-book, so that the same tree builds with plain Sphinx. What it does:

- directives: the appendix pages in `ext.appendix`, exercises in `ext.exercise_pages`;
- a code cell with `:label:` becomes a place that can be linked to (`{ref}` and the claims index use it);
- search finds Chinese terms too (`ext.search`); a 404 page, link cards and a report link (`ext.site`);
- a chapter keeps its number in the course while others are still coming (`ext.numbering`);
- a lesson runs again when anything it depends on changed (`ext.freshness`);
- a figure without alternative text, and a source or label that nothing refers to, are warnings, hence errors in a
  strict build;
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
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

from ext import appendix, bibliography, data, exercise_pages, freshness, live, numbering, pages, site
from ext.search import CourseSearch, keep_index_entries

logger = logging.getLogger(__name__)

WIDGETS = "widgets.js"
STYLES = ("book.css", "widgets.css")
# The parts of MathJax that a page can ask for; the rest of the package is 20 MB of other output formats.
MATHJAX_PARTS = ("tex-chtml.js", "output/chtml", "input/tex/extensions", "a11y", "sre")


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
        slug = pages.chapter_slug(docname, "lesson")
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


def note_labels(app: Sphinx, doctree: nodes.document) -> None:
    """Remember which places an author named on a page, and to which names the page refers."""
    named = {name for name, explicit in doctree.nametypes.items() if explicit and doctree.nameids.get(name)}
    named -= {name for note in doctree.findall(nodes.footnote) for name in note["names"]}
    named |= {block["label"] for block in doctree.findall(nodes.math_block) if block.get("label")}
    used = {link.get("reftarget") for link in doctree.findall(addnodes.pending_xref)}
    for link in doctree.findall(nodes.reference):
        used |= {link.get("refid"), link.get("refname"), link.get("refuri", "").rpartition("#")[2]}
    vars(app.env).setdefault("aid_labels", {})[app.env.docname] = (named, {str(name).lower() for name in used})


def check_labels(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of a named place, `(name)=` or a labelled equation, that nothing in the book refers to.

    The label of a code cell is the address of its figure, and a heading is a place by itself; neither needs a reader.
    """
    noted = {docname: found for docname, found in vars(env)["aid_labels"].items() if docname in env.found_docs}
    used = set().union(*(found[1] for found in noted.values()))
    for docname, (named, _) in sorted(noted.items()):
        for label in sorted(named):
            if label.lower() not in used:
                logger.warning("nothing in the book refers to the label %r", label, location=docname, type="aid")


def _keys(reference: Any) -> list[str]:
    return [target.key for target in reference.targets]


def freshen(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """The pages to read again because something that they depend on is not what it was."""
    marks: dict[str, str] = getattr(env, "aid_fingerprints", {})
    lessons = [docname for docname, mark in marks.items() if docname in env.found_docs and _mark(env, docname) != mark]
    seen: dict[str, str] = getattr(env, "aid_data_pages", {})
    now = appendix.lessons_mark(env)
    listing = [docname for docname, mark in seen.items() if mark != now]
    awaited: dict[str, set[str]] = getattr(env, "aid_awaited", {})
    come = {docname for path in list(awaited) if Path(path).exists() for docname in awaited.pop(path)}
    return lessons + sorted(env.found_docs & {*listing, *come})


def mark_lesson(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the fingerprint of what a lesson depends on where the notebook cache sees it."""
    if pages.chapter_slug(docname, "lesson") is None:
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


def _settings(app: Sphinx, config: Any) -> None:
    config.mathjax_path = "mathjax/tex-chtml.js"
    config.html_search_language = CourseSearch.lang
    site.configure(app, config)
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
    app.connect("doctree-read", exercise_pages.exercise_page, priority=100)
    app.connect("doctree-read", label_cells, priority=100)
    app.connect("doctree-read", check_pictures, priority=900)
    app.connect("doctree-read", note_labels, priority=900)
    app.connect("missing-reference", resolve_place)
    app.connect("env-check-consistency", check_sources)
    app.connect("env-check-consistency", check_labels)
    app.connect("html-page-context", trim_page, priority=900)
    app.connect("html-page-context", live.lay_out)
    app.connect("html-collect-pages", keep_index_entries)
    app.connect("build-finished", copy_mathjax)
    app.add_search_language(CourseSearch)
    exercise_pages.settings(app)
    site.settings(app)
    numbering.setup(app)
    pages.setup(app)
    bibliography.setup()
    appendix.setup(app)
    return {"version": json.dumps(1), "env_version": 2, "parallel_read_safe": False, "parallel_write_safe": True}
