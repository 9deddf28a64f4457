"""Reads a submitted notebook that nobody vouches for: cells, release stamp, or the reason why it is none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

MAX_BYTES = 40 * 2**20  # with figures in it, a notebook rarely passes 2 MiB
MAX_CELLS = 2_000
MAX_CODE = 2**20  # as a syntax tree it takes a hundred times as much
MAX_PIECES = 2**20  # three bytes of "{}," take seventy in memory; a notebook of many megabytes has some thousand


class InvalidNotebook(Exception):
    """The file cannot be read as a notebook; the message says why, for the student."""


@dataclass(frozen=True)
class Notebook:
    """What grading needs of a submitted notebook: code cells in order, each with its ``grade_id`` if it has one."""

    cells: tuple[str, ...]
    grade_ids: tuple[str | None, ...]
    release: str | None = None


def read_notebook(data: bytes, slug: str, given: dict[str, str] | None = None) -> Notebook:
    """The code cells of a notebook.

    Locked cells count as they were released: cells whose ``grade_id`` stands in ``given`` are replaced by its source,
    and those that are missing are put in front. Visible checks (``…-tests``) are left out: they decide no grade.

    Args:
        data: the file's bytes.
        slug: the assignment.
        given: source of the assignment's read-only cells by ``grade_id``.

    Raises:
        InvalidNotebook: it is empty, too large, not JSON, or not a notebook.
    """
    notebook = parse_notebook(data)
    given = dict(given or {})
    cells: list[str] = []
    grade_ids: list[str | None] = []
    for cell in notebook["cells"]:
        if cell.get("cell_type") != "code":
            continue
        source = _source(cell)
        identity = _grade_id(cell)
        if identity is not None and identity.startswith(slug) and identity.endswith("-tests"):
            continue
        if identity in given:
            source = given.pop(identity)
        cells.append(source)
        grade_ids.append(identity)
    size = sum(map(len, cells))
    if size > MAX_CODE:
        raise InvalidNotebook(f"the notebook has {size / 2**20:.1f} MiB of code; at most {MAX_CODE // 2**20} are read")
    front = list(given.items())
    return Notebook(
        cells=tuple([source for _, source in front] + cells),
        grade_ids=tuple([identity for identity, _ in front] + grade_ids),
        release=_release(notebook),
    )


def parse_notebook(data: bytes) -> dict[str, Any]:
    """The notebook as a dictionary whose ``cells`` are a list of dictionaries; nothing else about it is certain.

    Raises:
        InvalidNotebook: as `read_notebook` does.
    """
    if not data.strip():
        raise InvalidNotebook("the file is empty")
    if len(data) > MAX_BYTES:
        raise InvalidNotebook(
            f"the file has more than {MAX_BYTES // 2**20} MiB; clear its outputs, and hand it in again"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidNotebook(f"the file is not UTF-8 text: byte {error.start} cannot be read") from None
    if not bounded(data):
        raise InvalidNotebook(f"the file is nested into more than {MAX_PIECES:,} pieces; clear its outputs")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidNotebook(f"the file is not JSON{place}, so it is no notebook") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("nbformat"), int):
        raise InvalidNotebook("the file is JSON, but not a notebook: it names no nbformat")
    if raw["nbformat"] not in (3, 4):
        raise InvalidNotebook(f"nbformat {raw['nbformat']} is not supported; save the notebook with a current Jupyter")
    cells = _cells_of_3(raw) if raw["nbformat"] == 3 else raw.get("cells")
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise InvalidNotebook("the notebook's structure is damaged: its cells are not a list of cells")
    if len(cells) > MAX_CELLS:
        raise InvalidNotebook(f"the notebook has {len(cells)} cells; at most {MAX_CELLS} are read")
    return {**raw, "cells": cells}


def bounded(data: bytes) -> bool:
    """Whether JSON of these bytes takes memory in proportion to them."""
    return data.count(b"{") + data.count(b"[") <= MAX_PIECES


def _cells_of_3(raw: dict) -> list[Any] | None:
    """The cells of a notebook as Jupyter wrote them until 2015: on worksheets, and code is called ``input``."""
    worksheets = raw.get("worksheets")
    if not isinstance(worksheets, list):
        return None
    cells: list[Any] = []
    for worksheet in worksheets:
        found = worksheet.get("cells") if isinstance(worksheet, dict) else None
        if not isinstance(found, list):
            return None
        cells += found
    return [
        {**cell, "source": cell["input"]}
        if isinstance(cell, dict) and "input" in cell and cell.get("cell_type") == "code"
        else cell
        for cell in cells
    ]


def _source(cell: dict) -> str:
    source = cell.get("source", "")
    if isinstance(source, list):
        source = "".join(part for part in source if isinstance(part, str))
    if not isinstance(source, str):
        raise InvalidNotebook("a code cell's source is not text")
    return _utf8(source).replace("\r\n", "\n")


def _grade_id(cell: dict) -> str | None:
    metadata = cell.get("metadata")
    nbgrader = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    identity = nbgrader.get("grade_id") if isinstance(nbgrader, dict) else None
    return _utf8(identity) if isinstance(identity, str) else None


def _release(notebook: dict) -> str | None:
    metadata = notebook.get("metadata")
    ours = metadata.get("attention_in_depth") if isinstance(metadata, dict) else None
    release = ours.get("release") if isinstance(ours, dict) else None
    return _utf8(release[:80]) if isinstance(release, str) else None


def _utf8(text: str) -> str:
    """The text without lone surrogates, which JSON can hold and nothing else can write."""
    return text.encode("utf-8", "replace").decode()
