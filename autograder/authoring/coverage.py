"""Does a chapter show everything it is home to?

Each claim and each mechanism of `chapters/appendix/data` has one home chapter. Once that chapter's lesson exists, every
one of them must name the cell of the lesson that shows it, or a source where nothing can be computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ext import data


def coverage_problems(slug: str, root: Path = data.ROOT) -> list[str]:
    """What a chapter still owes to the claims index and the atlas, one line each.

    Args:
        slug: the chapter; one without a lesson owes nothing yet.
        root: the course's root.

    Returns:
        Problems in the order of the data files; empty when all is shown.

    Example:
        >>> coverage_problems("no_such_chapter")
        []
    """
    if not (root / "chapters" / slug / "lesson.md").is_file():
        return []
    labels = data.cell_labels(slug, root)
    keys = data.bibliography_keys(root)
    entries: Iterable[tuple[str, data.Claim | data.Mechanism]] = [
        *(("claims", claim) for claim in data.claims(slug, root)),
        *(("mechanisms", mechanism) for mechanism in data.mechanisms(slug, root)),
    ]
    problems = []
    for kind, entry in entries:
        place = f"chapters/appendix/data/{kind}/{slug}.yaml: {entry.id}"
        if entry.cell is None and entry.citation is None:
            problems.append(f"{place}: names neither a cell that shows it nor a citation")
        if entry.cell is not None and entry.cell not in labels:
            problems.append(f"{place}: no cell of chapters/{slug}/lesson.md is labelled {entry.cell!r}")
        if entry.citation is not None and entry.citation not in keys:
            problems.append(f"{place}: references.bib has no {entry.citation!r}")
    return problems


def all_coverage_problems(root: Path = data.ROOT) -> dict[str, list[str]]:
    """The problems of every chapter that has any."""
    found = {chapter.slug: coverage_problems(chapter.slug, Path(root)) for chapter in data.chapters(root)}
    return {slug: problems for slug, problems in found.items() if problems}
