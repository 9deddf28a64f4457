"""The graded copy of a notebook: what the student wrote, the course's own cells as released, our feedback below.

nbgrader's feedback page, formgrader and ``determine_grade`` read this copy. It is rebuilt from the submitted bytes
and from the source notebook, so nothing that a student did to ids, points, locked cells or outputs survives in it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nbformat
from nbformat import NotebookNode

from autograder.grading.intake import InvalidNotebook, parse_notebook
from autograder.grading.result import ExerciseResult, SubmissionResult
from autograder.reporting.feedback import exercise_html, exercise_text

if TYPE_CHECKING:
    from traitlets.config import Config

STAMP = "attention_in_depth_graded"
"""Key in the copy's metadata that says which result it shows."""
_CELL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CELL_TYPES = ("code", "markdown", "raw")


class Unreadable(ValueError):
    """The bytes are no notebook."""


class CellMismatch(ValueError):
    """The exercises of a result and the check cells of its notebook are not the same."""


# ------------------------------------------------------------------------------------ the notebook as released


@dataclass(frozen=True)
class Released:
    """The assignment's notebook as students get it, and its nbgrader cells by id, in order."""

    notebook: NotebookNode
    cells: dict[str, NotebookNode]

    @property
    def checks(self) -> dict[str, float]:
        """The points of each check cell that the grader decides (not those that a person grades)."""
        return {name: float(_nbgrader(cell)["points"]) for name, cell in self.cells.items() if _is_check(cell)}


def released(source: NotebookNode, config: Config | None = None) -> Released:
    """Makes of the instructor's notebook the one that students get, with nbgrader's own steps, configured as given.

    Raises:
        Exception: what nbgrader raises when markers or metadata are broken (``ValidationError``, ``RuntimeError``).
    """
    from nbgrader.preprocessors import CheckCellMetadata, ClearOutput, ClearSolutions, ComputeChecksums, LockCells

    notebook = copy.deepcopy(source)
    for step in (LockCells, ClearSolutions, ClearOutput, CheckCellMetadata, ComputeChecksums):
        notebook, _ = step(config=config).preprocess(notebook, {})
    cells = {_nbgrader(cell)["grade_id"]: cell for cell in notebook.cells if _matters(cell)}
    return Released(notebook, cells)


def _nbgrader(cell: NotebookNode) -> dict[str, Any]:
    metadata = cell.metadata.get("nbgrader")
    return metadata if isinstance(metadata, dict) else {}


def _matters(cell: NotebookNode) -> bool:
    metadata = _nbgrader(cell)
    return any(metadata.get(key) for key in ("grade", "solution", "locked", "task"))


def _is_check(cell: NotebookNode) -> bool:
    metadata = _nbgrader(cell)
    return cell.cell_type == "code" and bool(metadata.get("grade")) and not metadata.get("solution")


# ---------------------------------------------------------------------------------- the notebook as handed in


def readable(data: bytes) -> NotebookNode:
    """A valid notebook with the sources and the metadata of the one handed in, and without its outputs.

    Raises:
        Unreadable: the bytes are no notebook.
    """
    try:
        raw = parse_notebook(data)
    except InvalidNotebook as error:
        raise Unreadable(str(error)) from None
    used: set[str] = set()
    cells = [_clean_cell(cell, position, used) for position, cell in enumerate(raw["cells"])]
    metadata = raw.get("metadata")
    notebook = nbformat.from_dict(
        {
            "cells": cells,
            "metadata": metadata if isinstance(metadata, dict) else {},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
    )
    # The schema alone: nbformat's own check first copies the notebook, to see whether it repairs what we made whole.
    if any(nbformat.validator.get_validator(4, 5).iter_errors(notebook)):
        notebook.metadata = NotebookNode()
        for cell in notebook.cells:
            cell.metadata = NotebookNode({"nbgrader": cell.metadata["nbgrader"]} if _nbgrader(cell) else {})
    return notebook


def _clean_cell(cell: dict[str, Any], position: int, used: set[str]) -> dict[str, Any]:
    """Only what a cell may hold, of the type that it must have."""
    kind = cell.get("cell_type")
    identity = cell.get("id")
    if not isinstance(identity, str) or not _CELL_ID.fullmatch(identity) or identity in used:
        identity = f"cell-{position}"
    used.add(identity)
    source = cell.get("source")
    if isinstance(source, list):
        source = "".join(part for part in source if isinstance(part, str))
    metadata = cell.get("metadata")
    clean: dict[str, Any] = {
        "id": identity,
        "cell_type": kind if kind in _CELL_TYPES else "raw",
        "metadata": metadata if isinstance(metadata, dict) else {},
        "source": source if isinstance(source, str) else "",
    }
    if clean["cell_type"] == "code":
        clean.update(outputs=[], execution_count=None)
    return clean


def restore(notebook: NotebookNode | None, course: Released) -> NotebookNode:
    """The student's notebook with the course's cells as released: ids, points, locked sources; missing ones put back.

    Args:
        notebook: the student's; None stands for one that could not be read.
        course: the assignment as released.
    """
    restored = _changeable(notebook) if notebook is not None else _empty()
    seen: set[str] = set()
    for cell in reversed(restored.cells):  # of two cells with one id nbgrader keeps the last
        identity = _nbgrader(cell).get("grade_id")
        if isinstance(identity, str) and identity in course.cells and identity not in seen:
            seen.add(identity)
            _reset(cell, course.cells[identity])
        else:
            cell.metadata.pop("nbgrader", None)
    if len(seen) < len(course.cells):
        _put_back(restored, course, seen)
    kernel = course.notebook.metadata.get("kernelspec")
    if kernel:
        restored.metadata["kernelspec"] = copy.deepcopy(kernel)
    return restored


def _changeable(notebook: NotebookNode) -> NotebookNode:
    """A copy of which cells, and the metadata of each and of the whole, may be changed; what lies deeper is shared."""
    cells = [_with(cell, metadata=_with(cell["metadata"])) for cell in notebook["cells"]]
    return _with(notebook, cells=cells, metadata=_with(notebook["metadata"]))


def _with(node: NotebookNode, **changed: Any) -> NotebookNode:
    made = NotebookNode()
    dict.update(made, node, **changed)  # past the checks of NotebookNode, which cost more than the copy
    return made


def _empty() -> NotebookNode:
    note = "*The file handed in could not be read as a notebook. Below stand the exercises as released.*"
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(note, id="unreadable")])


def _reset(cell: NotebookNode, ours: NotebookNode) -> None:
    if cell.cell_type != ours.cell_type:
        cell.cell_type = ours.cell_type
        if ours.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
        else:
            cell.pop("outputs", None)
            cell.pop("execution_count", None)
    for key in ("nbgrader", "deletable", "editable"):
        cell.metadata.pop(key, None)
        if key in ours.metadata:
            value = ours.metadata[key]
            cell.metadata[key] = _with(value) if isinstance(value, NotebookNode) else value
    metadata = _nbgrader(ours)
    if not metadata.get("solution") and (metadata.get("locked") or metadata.get("grade")):
        cell.source = ours.source


def _put_back(notebook: NotebookNode, course: Released, seen: set[str]) -> None:
    """Inserts the course's missing cells, each after the one that stands before it in the release."""
    used = {cell.get("id") for cell in notebook.cells}
    after = 0 if seen else len(notebook.cells)
    for identity, ours in course.cells.items():
        if identity in seen:
            place = next(at for at, cell in enumerate(notebook.cells) if _nbgrader(cell).get("grade_id") == identity)
            after = place + 1
            continue
        cell = copy.deepcopy(ours)
        if cell.get("id") in used or "id" not in cell:
            cell["id"] = f"restored-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
        used.add(cell["id"])
        notebook.cells.insert(after, cell)
        after += 1


# ---------------------------------------------------------------------------------------------- our feedback


def annotate(notebook: NotebookNode, result: SubmissionResult) -> NotebookNode:
    """A copy whose check cells show score and feedback, and in which every other output is cleared.

    Each check cell gets two outputs: the score as an ``execute_result``, from which nbgrader's ``determine_grade``
    makes exactly this score, and the feedback in HTML and in plain text.

    Raises:
        CellMismatch: a check cell has no exercise in the result (nbgrader would give it full marks), or the reverse.
        ValueError: the result is not graded.
    """
    if result.status != "graded":
        raise ValueError(f"{result.student}/{result.assignment} is not graded ({result.outcome})")
    exercises = {f"{exercise.id}-tests": exercise for exercise in result.exercises}
    annotated = _changeable(notebook)
    for cell in annotated.cells:
        if cell.cell_type != "code":
            continue
        cell.update(outputs=[], execution_count=None)
        if _is_check(cell):
            cell.outputs = _outputs(cell, exercises.pop(_nbgrader(cell)["grade_id"], None), result)
    if exercises:
        raise CellMismatch(f"the notebook has no check cell {', '.join(sorted(exercises))}")
    annotated.metadata[STAMP] = stamp(result)
    return annotated


def _outputs(cell: NotebookNode, exercise: ExerciseResult | None, result: SubmissionResult) -> list[NotebookNode]:
    if exercise is None and result.outcome != "invalid_notebook":
        raise CellMismatch(f"the result has no exercise for the check cell {_nbgrader(cell)['grade_id']}")
    score = min(exercise.score, float(_nbgrader(cell)["points"])) if exercise else 0.0
    outputs = [_output("execute_result", {"text/plain": repr(float(score))}, execution_count=None)]
    if exercise is not None:
        data = {"text/html": exercise_html(exercise), "text/plain": exercise_text(exercise)}
        outputs.append(_output("display_data", data))
    elif result.message:
        outputs.append(_output("display_data", {"text/plain": result.message}))
    return outputs


def _output(kind: str, data: dict[str, str], **more: None) -> NotebookNode:
    output: NotebookNode = nbformat.from_dict({"output_type": kind, "data": data, "metadata": {}, **more})
    return output


def stamp(result: SubmissionResult) -> dict[str, str]:
    """Which result a graded copy shows; how long it took is no part of it, so grading again changes no byte."""
    text = json.dumps({**result.as_json(), "seconds": None}, sort_keys=True)
    return {"notebook": result.notebook_sha256, "result": hashlib.sha256(text.encode()).hexdigest()}


def dump(notebook: NotebookNode) -> bytes:
    """The notebook as a file, the same bytes for the same notebook."""
    return json_lines(notebook, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")


def json_lines(record: dict[str, Any], **options: Any) -> str:
    """A record as JSON, one field a line, and of a list of objects one object a line.

    Indented all through it would be written by Python instead of C, which takes ten times as long.
    """
    fields = []
    encoder = json.JSONEncoder(**options)  # `json.dumps` would make one for each item
    for key in sorted(record) if options.get("sort_keys") else record:
        value = record[key]
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            text = "[\n  " + ",\n  ".join(map(encoder.encode, value)) + "\n ]"
        else:
            text = encoder.encode(value)
        fields.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(fields) + "\n}\n"
