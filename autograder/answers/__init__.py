"""Right alternatives and named mistakes: how a chapter's ``answers/<slug>.py`` declares them.

A mistake is best the smallest edit of the reference, so that it stays true to it and reads as a diff; a whole function
where no edit says it. Importing an answers module fills its shelf.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from autograder import CourseError
from autograder.course import Definition, definitions

T = TypeVar("T", bound=Callable[..., Any] | type)


@dataclass(frozen=True)
class Answer:
    """One way to write an exercise, as source text of its definition."""

    exercise: str
    name: str
    source: str
    says: str = ""
    hint: str = ""


@dataclass
class Shelf:
    """All answers of a chapter but the reference."""

    mistakes: dict[str, list[Answer]] = field(default_factory=dict)
    alternatives: dict[str, list[Answer]] = field(default_factory=dict)


_shelves: dict[str, Shelf] = {}


class AnswerError(CourseError):
    """An answers module contradicts its reference."""


@cache
def shelf(slug: str) -> Shelf:
    """The chapter's alternatives and mistakes.

    Raises:
        AnswerError: an edit does not match the reference, or a name stands twice.
    """
    name = f"autograder.answers.{slug}"
    _shelves[slug] = Shelf()
    sys.modules.pop(name, None)
    importlib.import_module(name)
    return _shelves[slug]


@cache
def _reference(slug: str) -> dict[str, Definition]:
    return definitions(inspect.getsource(importlib.import_module(f"solutions.{slug}")))


def reference_source(slug: str, name: str) -> str:
    """Source text of one definition of ``solutions/<slug>.py``."""
    cut = _reference(slug)
    if name not in cut:
        raise AnswerError(f"solutions/{slug}.py defines no {name}")
    return cut[name].source


def edit(
    exercise: str,
    name: str,
    *,
    replace: str,
    by: str,
    says: str,
    hint: str,
    count: int = 1,
    helpers: Sequence[str] = (),
) -> None:
    """Declare a mistake as the smallest edit of the reference.

    Args:
        exercise: function or class whose reference is edited.
        name: name of the mistake.
        replace: text that must stand exactly ``count`` times in the reference's definition.
        by: what stands there instead.
        says: one sentence that explains the mistake to a student.
        hint: points the way, without the answer.
        count: how many times ``replace`` occurs; all are replaced.
        helpers: other definitions of the module that come before the exercise's own and may be edited too, where a
            mistake in one exercise is seen in another.
    """
    slug = _caller()
    source = "\n\n".join(reference_source(slug, name) for name in (*helpers, exercise))
    found = source.count(replace)
    if found != count:
        place = f"answers/{slug}.py, {exercise}, {name}"
        raise AnswerError(f"{place}: the text to replace stands {found} times in the reference, not {count}")
    _shelve(slug, "mistakes", Answer(exercise, name, source.replace(replace, by), says, hint))


def mistake(
    exercise: str, *, says: str, hint: str, name: str | None = None, kernels: Sequence[Any] = ()
) -> Callable[[T], T]:
    """Declare a mistake as a whole function or class; its name is the mistake's name unless one is given.

    ``kernels`` are the Triton kernels that it launches; those of the reference, unless given.
    """
    slug = _caller()

    def declare(definition: T) -> T:
        source = _kernel_sources(slug, exercise, kernels) + _renamed(definition, exercise)
        _shelve(slug, "mistakes", Answer(exercise, name or definition.__name__, source, says, hint))
        return definition

    return declare


def alternative(exercise: str, *, name: str | None = None, kernels: Sequence[Any] = ()) -> Callable[[T], T]:
    """Declare another right answer."""
    slug = _caller()

    def declare(definition: T) -> T:
        source = _kernel_sources(slug, exercise, kernels) + _renamed(definition, exercise)
        _shelve(slug, "alternatives", Answer(exercise, name or definition.__name__, source))
        return definition

    return declare


def _kernel_sources(slug: str, exercise: str, kernels: Sequence[Any]) -> str:
    sources = [textwrap.dedent(inspect.getsource(_python_of(kernel))) for kernel in kernels]
    cut = _reference(slug)
    if not kernels and exercise in cut:
        sources = [cut[name].source for name in cut[exercise].kernels]
    return "".join(f"{source}\n\n" for source in sources)


def _python_of(kernel: Any) -> Any:
    while hasattr(kernel, "fn"):
        kernel = kernel.fn
    return kernel


def _caller() -> str:
    frame = sys._getframe(2)
    return str(frame.f_globals["__name__"]).rpartition(".")[2]


def _shelve(slug: str, kind: str, answer: Answer) -> None:
    shelves: dict[str, list[Answer]] = getattr(_shelves.setdefault(slug, Shelf()), kind)
    known = shelves.setdefault(answer.exercise, [])
    if any(other.name == answer.name for other in known):
        raise AnswerError(f"answers/{slug}.py: {answer.exercise} has two {kind} called {answer.name}")
    known.append(answer)


class _Rename(ast.NodeTransformer):
    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.copy_location(ast.Name(self._new, node.ctx), node) if node.id == self._old else node


def _renamed(definition: Any, exercise: str) -> str:
    """Source of a definition under the exercise's name, without our decorators."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(definition)))
    node = tree.body[0]
    assert isinstance(node, (ast.FunctionDef, ast.ClassDef))
    old, node.name = node.name, exercise
    ours = {"mistake", "alternative"}
    node.decorator_list = [
        d for d in node.decorator_list if not (isinstance(d, ast.Call) and getattr(d.func, "id", "") in ours)
    ]
    _Rename(old, exercise).visit(tree)
    return ast.unparse(tree) + "\n"
