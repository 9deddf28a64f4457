"""Where the course lies on disk, and what its exercises are: the one reader of `chapters/<slug>/exercises.md`.

Everything else is derived from here and from `solutions/<slug>.py`; nothing is said twice.
"""

from __future__ import annotations

import ast
import json
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from autograder import CourseError

ROOT = Path(os.environ.get("ATTN_ROOT") or Path(__file__).resolve().parent.parent)
CHAPTERS = ROOT / "chapters"
SOLUTIONS = ROOT / "solutions"
COURSE = ROOT / "course"
SOURCE, RELEASE, SUBMITTED = COURSE / "source", COURSE / "release", COURSE / "submitted"
AUTOGRADED, FEEDBACK = COURSE / "autograded", COURSE / "feedback"
RESULTS, REPORT, GRADEBOOK = COURSE / "results", COURSE / "report", COURSE / "gradebook.db"
BUILD = ROOT / "_build"


@dataclass(frozen=True)
class Cell:
    """One cell of `exercises.md`: ``kind`` is prose, example, given, solution, checks or hints."""

    kind: str
    source: str


@dataclass(frozen=True)
class Exercise:
    """One exercise as its author wrote it."""

    slug: str
    name: str
    title: str
    points: float
    minutes: int
    difficulty: int
    forbids: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    cells: tuple[Cell, ...] = field(default=(), repr=False)

    @property
    def id(self) -> str:
        """The exercise's id, and the ``grade_id`` of its solution cell."""
        return f"{self.slug}-{self.name}"


@dataclass(frozen=True)
class ExerciseSheet:
    """All of `exercises.md`: what stands before the first exercise, and the exercises in order."""

    slug: str
    title: str
    front: tuple[Cell, ...]
    exercises: tuple[Exercise, ...]

    @property
    def points(self) -> float:
        """Points of all exercises."""
        return sum(exercise.points for exercise in self.exercises)


def slugs() -> list[str]:
    """Chapters that have exercises, in the order of `_toc.yml`."""
    present = {path.parent.name for path in CHAPTERS.glob("*/exercises.md")}
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8") if (ROOT / "_toc.yml").exists() else ""
    return sorted(present, key=lambda slug: (toc.find(f"chapters/{slug}/") % (len(toc) + 1), slug))


def check_slugs(wanted: list[str] | None) -> list[str]:
    """The slugs asked for, or all.

    Raises:
        CourseError: one of them has no exercises.
    """
    known = slugs()
    for slug in wanted or []:
        if slug not in known:
            raise CourseError(
                f"chapters/{slug}/exercises.md does not exist; chapters with exercises: {', '.join(known)}"
            )
    return list(wanted or known)


@cache
def sheet(slug: str) -> ExerciseSheet:
    """The parsed `exercises.md` of a chapter.

    Raises:
        CourseError: the file is missing or a block in it is malformed.
    """
    import jupytext

    path = CHAPTERS / slug / "exercises.md"
    place = f"chapters/{slug}/exercises.md"
    if not path.is_file():
        raise CourseError(f"{place} does not exist")
    try:
        notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="md:myst")
    except Exception as error:  # of several libraries' own kinds: YAML, MyST, nbformat
        said = str(error).strip().partition("\n")[0]
        raise CourseError(f"{place} cannot be read as a MyST notebook: {type(error).__name__}: {said}") from None
    front: list[Cell] = []
    blocks: list[tuple[dict[str, Any], list[Cell]]] = []
    for cell in notebook.cells:
        metadata = dict(cell.metadata)
        if "exercise" in metadata:
            blocks.append((metadata, []))
        cells = blocks[-1][1] if blocks else front
        cells.append(Cell(_kind(cell, metadata, place), cell.source))
    exercises = tuple(_exercise(slug, metadata, tuple(cells), place) for metadata, cells in blocks)
    names = [exercise.name for exercise in exercises]
    if len(set(names)) != len(names):
        raise CourseError(f"{place}: an exercise stands twice among {', '.join(names)}")
    title = next((line[2:] for cell in front for line in cell.source.splitlines() if line.startswith("# ")), slug)
    return ExerciseSheet(slug, title, tuple(front), exercises)


def _kind(cell: Any, metadata: dict[str, Any], place: str) -> str:
    if cell.cell_type == "markdown":
        return "hints" if "hints" in metadata else "prose"
    tags = [tag for tag in metadata.get("tags", []) if tag in ("example", "given", "solution", "checks")]
    if len(tags) != 1:
        first = cell.source.splitlines()[0] if cell.source else "(empty)"
        raise CourseError(f"{place}: the code cell `{first}` needs exactly one tag of example, given, solution, checks")
    return str(tags[0])


def _exercise(slug: str, metadata: dict[str, Any], cells: tuple[Cell, ...], place: str) -> Exercise:
    name = str(metadata["exercise"])
    where = f"{place}, exercise {name}"
    for key in ("points", "minutes", "difficulty"):
        if not isinstance(metadata.get(key), (int, float)):
            raise CourseError(f'{where}: its block needs a number "{key}"')
    if metadata["difficulty"] not in (1, 2, 3):
        raise CourseError(f"{where}: its difficulty is 1, 2 or 3, not {metadata['difficulty']}")
    title = next((line.lstrip("# ") for line in cells[0].source.splitlines() if line.startswith("## ")), name)
    kinds = [cell.kind for cell in cells]
    for kind in ("solution", "checks", "hints"):
        if kinds.count(kind) != 1:
            raise CourseError(f"{where}: it has {kinds.count(kind)} {kind} cells and needs one")
    return Exercise(
        slug,
        name,
        title,
        float(metadata["points"]),
        int(metadata["minutes"]),
        int(metadata["difficulty"]),
        tuple(metadata.get("forbids", ())),
        tuple(metadata.get("uses", ())),
        cells,
    )


@dataclass(frozen=True)
class Definition:
    """One top-level definition of a solutions module, cut out by its AST, with the kernels right above it."""

    name: str
    source: str
    node: ast.FunctionDef | ast.ClassDef
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class SolutionModule:
    """`solutions/<slug>.py` taken apart: the exercises' definitions, and what is shared with students."""

    slug: str
    text: str
    shared: str
    definitions: dict[str, Definition]


@cache
def solution(slug: str) -> SolutionModule:
    """The chapter's solutions module, taken apart.

    Raises:
        CourseError: the file is missing, or an exercise has no definition in it.
    """
    path = SOLUTIONS / f"{slug}.py"
    if not path.is_file():
        raise CourseError(f"solutions/{slug}.py does not exist")
    text = path.read_text(encoding="utf-8")
    try:
        body = ast.parse(text).body
    except SyntaxError as error:
        raise CourseError(f"solutions/{slug}.py, line {error.lineno}: {error.msg}") from None
    graded = {exercise.name for exercise in sheet(slug).exercises}
    found = definitions(text)
    taken = {name: found[name] for name in graded & found.keys()}
    for name in graded - found.keys():
        raise CourseError(f"solutions/{slug}.py defines no {name}, which chapters/{slug}/exercises.md asks for")
    own = graded | {kernel for definition in taken.values() for kernel in definition.kernels}
    shared = [
        _source(node, text)
        for node in body
        if getattr(node, "name", None) not in own
        and not (_is_docstring(node) or _is_future(node) or _is_dunder_all(node))
    ]
    return SolutionModule(slug, text, "\n".join(shared), taken)


def definitions(text: str) -> dict[str, Definition]:
    """Every top-level function and class of a module by its name, cut out of the text.

    Kernels (functions decorated with ``triton.jit``) belong to the function that they stand right above.
    """
    lines = text.splitlines(keepends=True)
    found: dict[str, Definition] = {}
    kernels: list[ast.FunctionDef] = []
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            owned = () if is_kernel(node) else tuple(kernels)
            source = "".join(lines[_first_line((*owned, node)[0]) - 1 : node.end_lineno])
            found[node.name] = Definition(node.name, source, node, tuple(kernel.name for kernel in owned))
        kernels = [*kernels, node] if isinstance(node, ast.FunctionDef) and is_kernel(node) else []
    return found


def is_kernel(node: ast.stmt) -> bool:
    """Whether a definition is a function that Triton compiles."""
    return any(ast.unparse(decorator) == "triton.jit" for decorator in getattr(node, "decorator_list", []))


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def _source(node: ast.stmt, text: str) -> str:
    return "\n".join(text.splitlines()[_first_line(node) - 1 : node.end_lineno])


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _is_dunder_all(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"


@cache
def current_release(slug: str) -> str | None:
    """The stamp of the chapter's student notebook as it stands, which submissions carry."""
    path = CHAPTERS / slug / "exercises.ipynb"
    if not path.is_file():
        return None
    stamp = json.loads(path.read_text(encoding="utf-8"))["metadata"]["attention_in_depth"]["release"]
    return str(stamp)


def given_cells(slug: str) -> dict[str, str]:
    """Source of the read-only cells that students get, by ``grade_id``, in the notebook's order."""
    cells = {f"{slug}-given": solution(slug).shared}
    for exercise in sheet(slug).exercises:
        own = [cell.source for cell in exercise.cells if cell.kind == "given"]
        cells |= {f"{exercise.id}-given-{number}": source for number, source in enumerate(own, start=1)}
    return cells
