"""Makes the student notebooks: `exercises.md` and `solutions/<slug>.py` in, `exercises.ipynb` out.

The instructor's notebook (with answers between nbgrader's markers) goes to `course/source/`, which git ignores;
nbgrader's own generate step turns it into the student's, so that its metadata is nbgrader's to the byte. Rebuilding
changes no byte.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import os
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from autograder import CourseError, course
from autograder.course import Cell, Definition, Exercise

DIFFICULTY = {1: "warm-up", 2: "solid", 3: "demanding"}
_BEGIN, _END = "### BEGIN SOLUTION", "### END SOLUTION"


@dataclass(frozen=True)
class Built:
    """A student notebook: where it belongs, its text, and whether the file on disk was already that."""

    slug: str
    path: Path
    text: str
    up_to_date: bool


def build(slug: str, *, check: bool = False) -> Built:
    """Make the student notebook of a chapter, and the instructor's beside it.

    Args:
        slug: the chapter.
        check: write nothing; only compare.

    Raises:
        CourseError: a source is wrong.
    """
    source = instructor_notebook(slug)
    text = _student_text(slug, source)
    path = course.CHAPTERS / slug / "exercises.ipynb"
    up_to_date = path.exists() and path.read_text(encoding="utf-8") == text
    if not check:
        instructor = course.SOURCE / slug / "exercises.ipynb"
        instructor.parent.mkdir(parents=True, exist_ok=True)
        _write(instructor, nbformat.writes(source) + "\n")
        if not up_to_date:
            _write(path, text)
    return Built(slug, path, text, up_to_date)


def _write(path: Path, text: str) -> None:
    data = text.encode()
    if not path.exists() or path.read_bytes() != data:
        half = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            half.write_bytes(data)
            half.replace(path)  # whoever is killed before this leaves the old notebook whole
        finally:
            half.unlink(missing_ok=True)


def instructor_notebook(slug: str) -> NotebookNode:
    """The notebook with the reference solutions between nbgrader's markers."""
    sheet, module = course.sheet(slug), course.solution(slug)
    given = course.given_cells(slug)
    cells = [*_front(sheet.front), _code(given[f"{slug}-given"], f"{slug}-given", locked=True)]
    for exercise in sheet.exercises:
        cells += _exercise_cells(exercise, module.definitions[exercise.name], given)
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        attention_in_depth={"assignment": slug},
    )
    for number, cell in enumerate(notebook.cells):
        identity = cell.metadata.get("nbgrader", {}).get("grade_id") or f"{slug}-text-{number}"
        cell.id = hashlib.sha256(identity.encode()).hexdigest()[:8]
    notebook.metadata.attention_in_depth["release"] = release_stamp(notebook)
    return notebook


def release_stamp(notebook: NotebookNode) -> str:
    """A stamp of what students see: it changes when prose, stubs or checks do, and grading compares it."""
    # The stub, not the answer: a better reference must not make a released notebook look old.
    seen = [clear_solutions(cell.source) for cell in notebook.cells]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:12]


def clear_solutions(source: str) -> str:
    """The text with every solution region replaced by nbgrader's stub."""
    kept: list[str] = []
    inside = False
    for line in source.splitlines():
        if line.strip() == _BEGIN:
            inside = True
            kept.append(line.replace(_BEGIN, "raise NotImplementedError"))
        elif line.strip() == _END:
            inside = False
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def _front(cells: tuple[Cell, ...]) -> Iterator[NotebookNode]:
    for cell in cells:
        yield _markdown(cell.source) if cell.kind == "prose" else nbformat.v4.new_code_cell(cell.source)


def _exercise_cells(exercise: Exercise, definition: Definition, given: dict[str, str]) -> Iterator[NotebookNode]:
    number = 0
    for position, cell in enumerate(exercise.cells):
        if position == 0:
            yield _markdown(_headline(exercise, cell.source))
        elif cell.kind == "prose":
            yield _markdown(cell.source)
        elif cell.kind == "hints":
            yield _markdown(_folded(cell.source))
        elif cell.kind == "example":
            yield nbformat.v4.new_code_cell(cell.source)
        elif cell.kind == "given":
            number += 1
            identity = f"{exercise.id}-given-{number}"
            yield _code(given[identity], identity, locked=True)
        elif cell.kind == "solution":
            yield _code(marked(definition), exercise.id, solution=True)
        elif cell.kind == "checks":
            said = f'print("All visible checks of {exercise.name} pass.")'  # silence would leave a student in doubt
            yield _code(f"{cell.source}\n{said}", f"{exercise.id}-tests", locked=True, points=exercise.points)


def _headline(exercise: Exercise, prose: str) -> str:
    heading, _, rest = prose.partition("\n")
    points = f"{exercise.points:g} point{'s' if exercise.points != 1 else ''}"
    lines = [f"`{exercise.name}` · **{points}** · about {exercise.minutes} minutes · {DIFFICULTY[exercise.difficulty]}"]
    if exercise.forbids:
        lines.append(f"Not allowed here: {', '.join(f'`{name}`' for name in exercise.forbids)}.")
    if exercise.uses:
        called = ", ".join(f"`{name}`" for name in exercise.uses)
        lines.append(f"May call {called} from above; the grader runs it with yours.")
    return f"{heading}\n\n" + "\n\n".join(lines) + f"\n{rest}"


def _folded(hints: str) -> str:
    """A numbered list as three hints that unfold one by one."""
    steps: list[str] = []
    for line in hints.strip().splitlines():
        head, dot, rest = line.partition(". ")
        if dot and head.strip().isdigit() and not line.startswith(" "):
            steps.append(rest)
        elif steps:
            steps[-1] += "\n" + line.strip()
        elif line.strip():
            raise CourseError(f"hints must be a numbered list; found {line!r}")
    return "\n\n".join(
        f"<details><summary>Hint {number} of {len(steps)}</summary>\n\n{step.strip()}\n\n</details>"
        for number, step in enumerate(steps, start=1)
    )


def marked(definition: Definition) -> str:
    """The definition with solution markers: around a function's body, or around each method's body of a class.

    Of a function with kernels, students write the kernels; the function, which launches them, is given.
    """
    lines = definition.source.rstrip("\n").split("\n")
    *kernels, node = ast.parse(definition.source).body
    parts = kernels or (node.body if isinstance(node, ast.ClassDef) else [node])
    for function in reversed([part for part in parts if isinstance(part, ast.FunctionDef)]):
        documented = ast.get_docstring(function) is not None
        body = function.body[1:] if documented else function.body
        if not body or (len(body) == 1 and isinstance(body[0], ast.Pass)):
            raise CourseError(f"{definition.name}: {function.name} has no body to be written")
        if lines[body[0].lineno - 1][: body[0].col_offset].strip():
            raise CourseError(f"{definition.name}: the body of {function.name} needs lines of its own")
        # A comment above the first statement belongs to the answer, so the region starts right after the docstring.
        first = (function.body[0].end_lineno or 0) if documented else body[0].lineno - 1
        last = function.end_lineno or len(lines)
        indent = " " * body[0].col_offset
        lines[first:last] = [indent + _BEGIN, *_stripped(lines[first:last]), indent + _END]
    return textwrap.dedent("\n".join(lines))


def _stripped(lines: list[str]) -> list[str]:
    while lines and not lines[0].strip():
        lines = lines[1:]
    return lines


def _markdown(source: str) -> NotebookNode:
    return nbformat.v4.new_markdown_cell(source)


def _code(
    source: str, identity: str, *, locked: bool = False, solution: bool = False, points: float | None = None
) -> NotebookNode:
    cell = nbformat.v4.new_code_cell(source)
    metadata = {
        "schema_version": 3,
        "grade_id": identity,
        "grade": points is not None,
        "solution": solution,
        "task": False,
        "locked": locked,
    }
    if points is not None:
        metadata["points"] = points if points % 1 else int(points)
    cell.metadata["nbgrader"] = metadata
    return cell


def _student_text(slug: str, source: NotebookNode) -> str:
    """What nbgrader's generate step makes of the instructor's notebook, run in a throw-away course."""
    with tempfile.TemporaryDirectory(prefix="attn-build-") as folder:
        root = Path(folder)
        place = root / "source" / slug
        place.mkdir(parents=True)
        nbformat.write(source, place / "exercises.ipynb")
        _generate(root, slug)
        notebook = nbformat.read(root / "release" / slug / "exercises.ipynb", as_version=4)
    return nbformat.writes(notebook) + "\n"


def _generate(root: Path, slug: str) -> None:
    from nbgrader.converters import GenerateAssignment
    from nbgrader.converters.base import NbGraderException
    from nbgrader.coursedir import CourseDirectory
    from nbgrader.preprocessors import SaveCells
    from traitlets.config import Config

    settings = Config()
    settings.CourseDirectory.root = str(root)
    settings.ClearSolutions.code_stub = {"python": "raise NotImplementedError"}
    # The build needs no gradebook; `nbgrader generate_assignment` fills the course's own.
    settings.GenerateAssignment.no_database = True
    converter = GenerateAssignment(coursedir=CourseDirectory(config=settings), config=settings)
    converter.preprocessors = [step for step in converter.preprocessors if step is not SaveCells]
    converter.log = logging.getLogger("attn.nbgrader")
    converter.log.propagate = False
    converter.log.handlers = [said := _Said()]
    converter.coursedir.assignment_id = slug
    try:
        converter.start()
    except NbGraderException:
        raise CourseError(f"nbgrader could not generate {slug}:\n" + "\n".join(said.lines)) from None


class _Said(logging.Handler):
    """Keeps what nbgrader says, to show it only where something failed."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
