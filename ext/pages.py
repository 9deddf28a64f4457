"""Building blocks of pages made by code: links, tables, inline text, and what an exercise file declares."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import jupytext
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

DIFFICULTY = {1: "warm-up", 2: "solid", 3: "demanding"}
PLACE = "aid-place"
Cell: TypeAlias = str | Sequence[nodes.Node]


@dataclass(frozen=True)
class Exercise:
    """What an exercise list says of one exercise."""

    name: str
    title: str
    points: float
    minutes: int
    difficulty: int


def exercises(source: Path) -> list[Exercise]:
    """The exercises that a chapter's `exercises.md` declares, in order; none if there is no such file."""
    return _exercises(source, source.stat().st_mtime_ns) if source.is_file() else []


@cache
def _exercises(source: Path, changed: int) -> list[Exercise]:
    notebook = jupytext.read(source, fmt="md:myst")
    found = []
    for cell in notebook.cells:
        name = cell.metadata.get("exercise")
        if name is None:
            continue
        title = re.search(r"^##\s+(?:\d+\.\s+)?(.*)$", cell.source, re.M)
        found.append(
            Exercise(
                name,
                title[1].strip() if title else name,
                cell.metadata.get("points", 0),
                cell.metadata.get("minutes", 0),
                cell.metadata.get("difficulty", 1),
            )
        )
    return found


class scroll_box(nodes.General, nodes.Element):
    """A frame around a table that scrolls sideways on a narrow page, and that the keyboard can reach."""


def _visit_scroll_box(self: Any, node: scroll_box) -> None:
    name = html.escape(node["label"])
    self.body.append(f'<div class="aid-tablebox" role="region" tabindex="0" aria-label="{name}">\n')


def _depart_scroll_box(self: Any, node: scroll_box) -> None:
    self.body.append("</div>\n")


class marked_row(nodes.row):
    """A table row that says what it is in `data-…` attributes, for `<aid-filter>`."""


def _visit_marked_row(self: Any, node: marked_row) -> None:
    marks = {f"data-{name}": value for name, value in node["marks"].items()}
    self.body.append(self.starttag(node, "tr", "", **marks))
    node.column = 0


def _depart_marked_row(self: Any, node: marked_row) -> None:
    self.body.append("</tr>\n")


def setup(app: Sphinx) -> None:
    """Register the nodes."""
    app.add_node(scroll_box, html=(_visit_scroll_box, _depart_scroll_box))
    app.add_node(marked_row, html=(_visit_marked_row, _depart_marked_row))


def duration(found: Iterable[Exercise]) -> str:
    """How long exercises take together, in the words of a timetable."""
    minutes = sum(one.minutes for one in found)
    return f"{minutes} min" if minutes < 90 else f"about {minutes / 60:.1f}\N{NO-BREAK SPACE}h"


def chapter_slug(docname: str, page: str) -> str | None:
    """The chapter that a page (`lesson` or `exercises`) belongs to, if it is one."""
    path = PurePosixPath(docname)
    if len(path.parts) == 3 and path.parts[0] == "chapters" and path.name == page:
        return path.parts[1]
    return None


def exercise_anchor(slug: str, name: str) -> str:
    """The place of an exercise on its page."""
    return f"exercise-{slug}-{name}"


def inline(text: str) -> list[nodes.Node]:
    """Text with `code` in backticks, as nodes."""
    return [
        nodes.literal("", part[1:-1]) if part.startswith("`") and len(part) > 2 else nodes.Text(part)
        for part in re.split(r"(`[^`]+`)", text)
        if part
    ]


def link_to(docname: str, target: str, anchor: str, children: Iterable[nodes.Node]) -> nodes.Node:
    """A link to a page, or to a place on it, resolved by whatever builder writes the book."""
    link = addnodes.pending_xref(
        "",
        refdomain="",
        reftype=PLACE,
        reftarget=target,
        refanchor=anchor,
        refdoc=docname,
        refexplicit=True,
        refwarn=False,
    )
    inner = nodes.inline()
    inner += list(children)
    link += inner
    return link


def outside(uri: str, text: str) -> nodes.reference:
    """A link to another site."""
    return nodes.reference("", text, refuri=uri, internal=False)


def raw(markup: str) -> nodes.raw:
    """HTML as it is."""
    return nodes.raw("", markup, format="html")


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    numbers: Sequence[int] = (),
    classes: Sequence[str] = (),
    attributes: Sequence[dict[str, Any]] = (),
    label: str = "",
) -> nodes.Element:
    """A table that scrolls by itself where it is wider than the page.

    Args:
        heads: the column heads.
        rows: cells of text or of nodes.
        numbers: the columns to set flush right.
        classes: classes of the table.
        label: what the table is, for those who hear it; by default the column heads.
        attributes: for each row its `ids`, and `marks` to filter by (`data-…` in the page).
    """
    body = nodes.tbody()
    for k, cells in enumerate(rows):
        line: nodes.row = nodes.row()
        if k < len(attributes):
            line = marked_row(marks=attributes[k]["marks"], ids=attributes[k].get("ids", []))
        for j, cell in enumerate(cells):
            entry = nodes.entry(classes=["aid-number"] if j in numbers else [])
            paragraph = nodes.paragraph()
            paragraph += inline(cell) if isinstance(cell, str) else list(cell)
            entry += paragraph
            line += entry
        body += line
    head_line = nodes.row()
    for j, head in enumerate(heads):
        entry = nodes.entry(classes=["aid-number"] if j in numbers else [])
        entry += nodes.paragraph("", head)
        head_line += entry
    head_body = nodes.thead()
    head_body += head_line
    group = nodes.tgroup(cols=len(heads))
    group += [nodes.colspec(colwidth=1) for _ in heads]
    group += [head_body, body]
    label = label or "Table: " + ", ".join(heads)
    whole = nodes.table(classes=["aid-table", *classes])
    whole += group
    box = scroll_box(label=label)
    box += whole
    return box
