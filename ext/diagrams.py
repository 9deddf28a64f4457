"""Diagrams drawn by code as SVG: which chapter needs which, when each mechanism was published, how they group.

Lines and text take the page's text colour, so that the diagrams read on a light and on a dark page; text stays text.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ext.data import Chapter, Mechanism

PART_COLOURS = {"Foundations": "--aid-blue", "Beyond quadratic": "--aid-orange", "Fast on hardware": "--aid-green"}
WIDTH = 800


@dataclass(frozen=True)
class Box:
    """Where a chapter stands in the map."""

    x: float
    y: float


def _open(height: float, label: str, role: str = "img") -> str:
    return (
        f'<svg class="aid-diagram" viewBox="0 0 {WIDTH} {height:g}" role="{role}" aria-label="{html.escape(label)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )


def _wrap(words: Sequence[str], room: int) -> list[str]:
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def chapter_map(chapters: Sequence[Chapter], link: Callable[[Chapter], str | None]) -> str:
    """The chapters as boxes, each below those that it needs; a chapter that is still coming has a dashed outline.

    Args:
        chapters: in the order of the course.
        link: the address of a chapter's page, None if it is still coming.
    """
    by_slug = {chapter.slug: chapter for chapter in chapters}
    depth: dict[str, int] = {}

    def level(slug: str) -> int:
        if slug not in depth:
            depth[slug] = max((level(before) + 1 for before in by_slug[slug].needs), default=0)
        return depth[slug]

    rows: dict[int, list[str]] = {}
    for chapter in chapters:
        rows.setdefault(level(chapter.slug), []).append(chapter.slug)
    wide, high, step = 186, 60, 94
    boxes: dict[str, Box] = {}
    for k, slugs in rows.items():
        # Below its parents where there is room, in the order of the parents.
        slugs.sort(key=lambda slug: sum(boxes[n].x for n in by_slug[slug].needs) / max(1, len(by_slug[slug].needs)))
        gap = WIDTH / len(slugs)
        for j, slug in enumerate(slugs):
            boxes[slug] = Box(gap * (j + 0.5) - wide / 2, 8 + k * step)
    height = 16 + (len(rows) - 1) * step + high
    lines, shapes = [], []
    for number, chapter in enumerate(chapters, start=1):
        box = boxes[chapter.slug]
        for before in chapter.needs:
            start = boxes[before]
            x1, y1, x2, y2 = start.x + wide / 2, start.y + high, box.x + wide / 2, box.y
            bend = (y2 - y1) / 2
            lines.append(
                f'<path class="aid-edge" d="M{x1:g} {y1:g}C{x1:g} {y1 + bend:g} {x2:g} {y2 - bend:g} {x2:g} {y2:g}"/>'
            )
        address = link(chapter)
        title = _wrap(f"{number}. {chapter.title}".split(), 25)[:3]
        top = box.y + high / 2 - (len(title) - 1) * 8 + 4.5
        text = "".join(
            f'<text x="{box.x + wide / 2:g}" y="{top + 16 * k:g}" text-anchor="middle">{html.escape(line)}</text>'
            for k, line in enumerate(title)
        )
        colour = PART_COLOURS.get(chapter.part, "--aid-grey")
        shape = (
            f'<g class="{"aid-box" if address else "aid-box aid-coming"}" style="--aid-part: var({colour})">'
            f'<rect x="{box.x:g}" y="{box.y:g}" width="{wide}" height="{high}" rx="7"/>{text}</g>'
        )
        shapes.append(f'<a href="{html.escape(address)}">{shape}</a>' if address else shape)
    label = "Map of the chapters: each stands below the chapters that it needs; those with a dashed outline are coming"
    return _open(height, label, "group") + "".join(lines) + "".join(shapes) + "</svg>"


def _flow(items: Sequence[tuple[str, str, str]], left: float, top: float, right: float) -> tuple[str, float]:
    """Names in running lines, a coloured dot before each: (name, colour, tooltip); gives the markup and its height."""
    x, y, parts = left, top, []
    for name, colour, tip in items:
        wide = 7.3 * len(name) + 26
        if x + wide > right and x > left:
            x, y = left, y + 21
        parts.append(
            f'<g><title>{html.escape(tip)}</title><circle cx="{x + 4:g}" cy="{y - 4:g}" r="4" '
            f'style="fill: var({colour})"/><text x="{x + 12:g}" y="{y:g}">{html.escape(name)}</text></g>'
        )
        x += wide
    return "".join(parts), y - top + 21


def _legend(y: float) -> str:
    x, parts = 76.0, []
    for part, colour in PART_COLOURS.items():
        parts.append(
            f'<circle cx="{x:g}" cy="{y - 4:g}" r="5" style="fill: var({colour})"/>'
            f'<text x="{x + 10:g}" y="{y:g}">{html.escape(part)}</text>'
        )
        x += 7.4 * len(part) + 44
    return "".join(parts)


def timeline(mechanisms: Sequence[tuple[Mechanism, str]]) -> str:
    """Every mechanism under the year of its first paper, coloured by the part of the course that teaches it.

    Args:
        mechanisms: each with the name of its part.
    """
    years: dict[int, list[tuple[str, str, str]]] = {}
    for mechanism, part in mechanisms:
        paper = next((paper for paper in mechanism.papers if paper.year), None)
        if mechanism.kind == "mechanism" and paper is not None and paper.year is not None:
            tip = f"{mechanism.name}: {paper.authors}, {paper.title}, {paper.year}"
            colour = PART_COLOURS.get(part, "--aid-grey")
            years.setdefault(paper.year, []).append((_short(mechanism.name), colour, tip))
    y, parts = 58.0, [_legend(20)]
    for year in sorted(years):
        markup, high = _flow(years[year], 76, y, WIDTH - 6)
        parts.append(f'<text class="aid-year" x="50" y="{y:g}" text-anchor="end">{year}</text>')
        parts.append(f'<circle class="aid-node" cx="62" cy="{y - 4.5:g}" r="3.5"/>{markup}')
        y += high + 7
    rail = f'<line class="aid-edge" x1="62" x2="62" y1="46" y2="{y - 24:g}"/>'
    return _open(y - 8, f"Timeline of mechanisms by year of publication, {min(years)} to {max(years)}") + (
        rail + "".join(parts) + "</svg>"
    )


def taxonomy(mechanisms: Sequence[tuple[Mechanism, str]], branches: Mapping[str, Sequence[str]]) -> str:
    """A tree of two levels: branches of attention research, their groups, and the mechanisms in each.

    Args:
        mechanisms: each with the name of its part.
        branches: the groups of each branch.
    """
    y, parts = 26.0, []
    for branch, groups in branches.items():
        parts.append(f'<text class="aid-branch" x="16" y="{y:g}">{html.escape(branch)}</text>')
        start, last = y + 8, y
        y += 26
        for group in groups:
            items = [
                (_short(one.name), PART_COLOURS.get(part, "--aid-grey"), one.name)
                for one, part in mechanisms
                if one.group == group and one.kind == "mechanism"
            ]
            last = y - 4
            parts.append(f'<path class="aid-edge" d="M22 {last:g}H34"/>')
            parts.append(f'<text class="aid-group" x="40" y="{y:g}">{html.escape(group)}</text>')
            markup, high = _flow(items, 58, y + 21, WIDTH - 6)
            parts.append(markup)
            y += 21 + high + 9
        parts.append(f'<path class="aid-edge" d="M22 {start:g}V{last:g}"/>')
        y += 8
    return (
        _open(y - 10, "Tree of the mechanisms: branches, groups, and what belongs to each") + "".join(parts) + "</svg>"
    )


def _short(name: str) -> str:
    """A name without what stands in brackets, cut at a length that fits a line."""
    plain = name.split(" (")[0].replace("`", "")
    return plain if len(plain) <= 40 else plain[:38].rstrip(" ,") + "…"
