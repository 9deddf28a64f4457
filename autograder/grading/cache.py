"""What a grade depends on, exercise by exercise: the digests by which a regrade knows what it need not judge again.

A result keeps its ``basis``. Three parts of it concern a whole chapter: the grader's own code, its libraries, and the
cells that students are given. Six concern one exercise: its hidden tests, its reference, its named mistakes and how
they end, its entry in `exercises.md`, and all of that for the exercises it may call. Source counts as its syntax tree,
cut to what a name leads to: a comment, or a helper of another exercise, makes nobody's grade stale.

Where reading cannot decide, more is judged again: a statement that defines nothing concerns every exercise, and so does
a notebook whose functions keep state from call to call, or whose process a test has ended.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from autograder import course
from autograder.course import Exercise
from autograder.grading.reading import plain_python
from autograder.grading.result import ExerciseResult, SubmissionResult
from autograder.grading.secret import student_seed

Basis = dict[str, Any]

TOOL = Path(__file__).resolve().parent.parent
ENDINGS = TOOL / "answers" / "endings"  # how each mistake ends each test, a file for each chapter
_TRITON = ("triton",) if importlib.util.find_spec("triton") else ()  # it exists for Linux only
LIBRARIES = ("ipython", "msgpack", "nbformat", "numpy", "pytest", "safetensors", "torch", *_TRITON)
GRADER = (
    "judge",
    "suite",
    "diagnose",
    "reading",
    "forbidden",
    "alone",
    "endings",
    "intake",
    "result",
    "secret",
    "cache",
)
_DYNAMIC = frozenset(("globals", "vars", "eval", "exec", "importlib", "__import__"))
_WHY = {
    "grader": "the grader changed",
    "libraries": "a library changed",
    "given": "the cells that students are given changed",
    "suite": "its suite changed",
    "reference": "its reference changed",
    "mistakes": "its named mistakes changed",
    "endings": "how its named mistakes end was recorded anew",
    "sheet": "its entry in exercises.md changed",
    "uses": "an exercise that it may call changed",
}


# ------------------------------------------------------------------------------------------- what a grade rests on


@cache
def basis(slug: str) -> Basis:
    """Digests of everything but the submission and the secret that decides the results of a chapter."""
    sheet = course.sheet(slug)
    own = {exercise.name: _own(exercise) for exercise in sheet.exercises}
    exercises = {}
    for place, exercise in enumerate(sheet.exercises):
        before = {other.name for other in sheet.exercises[:place]}
        uses = [(name, name in before, own[name]) for name in exercise.uses if name in own]
        exercises[exercise.id] = {**own[exercise.name], "uses": _digest(uses)}
    return {
        "grader": _grader(),
        "libraries": _digest([platform.python_version(), *map(importlib.metadata.version, LIBRARIES)]),
        "given": _digest(course.given_cells(slug)),
        "release": course.current_release(slug) or "",
        "exercises": exercises,
    }


def fingerprint(slug: str, student: str, data: bytes, secret: bytes) -> str:
    """What a result depends on; the same fingerprint means the same result."""
    return _digest([hashlib.sha256(data).hexdigest(), student_seed(secret, slug, student), basis(slug)], 64)


def still_true(previous: SubmissionResult, data: bytes, secret: bytes) -> tuple[ExerciseResult, ...]:
    """The exercises of an earlier result that need not be judged again."""
    now = basis(previous.assignment)
    if (
        previous.status != "graded"
        or previous.outcome != "ok"
        or previous.notebook_sha256 != hashlib.sha256(data).hexdigest()
        or previous.seed != student_seed(secret, previous.assignment, previous.student)
        or any(previous.basis.get(part) != now[part] for part in ("grader", "libraries", "given"))
        or any(disturbs(exercise) for exercise in previous.exercises)
    ):
        return ()
    before = previous.basis.get("exercises", {})
    return tuple(
        e for e in previous.exercises if e.id in now["exercises"] and before.get(e.id) == now["exercises"][e.id]
    )


def why(before: SubmissionResult, after: SubmissionResult, exercise: str) -> tuple[str, ...]:
    """Which of the things that the result of an exercise depends on differ between two gradings."""
    if before.notebook_sha256 != after.notebook_sha256:
        return ("another notebook was handed in",)
    if before.seed != after.seed:
        return ("the course secret changed",)
    if not before.basis:
        return ("an earlier version of the tool graded it",)
    then, now = (_parts(result.basis, exercise) for result in (before, after))
    return tuple(words for part, words in _WHY.items() if then.get(part) != now.get(part))


def _parts(kept: Basis, exercise: str) -> dict[str, str]:
    return {
        **{part: kept.get(part, "") for part in _WHY if part in kept},
        **kept.get("exercises", {}).get(exercise, {}),
    }


def disturbs(exercise: ExerciseResult) -> bool:
    """Whether a test of the exercise may have ended the submission's process or used up its time: others feel that."""
    return any(
        test.outcome in ("timeout", "memory")
        or (test.outcome == "crashed" and not test.message.startswith("it raised"))
        for test in exercise.tests
    )


def _digest(value: object, length: int = 16) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:length]


@cache
def _grader() -> str:
    files = [
        *(TOOL / "grading" / f"{name}.py" for name in GRADER),
        *sorted((TOOL / "sandbox").glob("*.py")),
        *(TOOL / "suites" / name for name in ("kit.py", "conftest.py")),
        TOOL / "answers" / "__init__.py",
        TOOL / "course.py",
    ]
    return _digest([(path.name, path.read_bytes()) for path in files])


# ------------------------------------------------------------------------------------- what one exercise rests on


def _own(exercise: Exercise) -> dict[str, str]:
    """Digests of what is written for this exercise."""
    suite, answers = f"autograder.suites.test_{exercise.slug}", f"autograder.answers.{exercise.slug}"
    solution = f"solutions.{exercise.slug}"
    reached = _Reached()
    reached.follow(solution, [exercise.name])
    for module, roles in ((suite, ("hidden",)), (answers, ("edit", "mistake"))):
        for index, statement in enumerate(_module(module)):
            role, about = statement.role
            if role in roles and about in (exercise.name, None):
                reached.take(module, index)
                if module == answers:  # a mistake runs among the references, and an edit says so in a string
                    reached.follow(solution, statement.names | statement.words, statement.bare)
            elif statement.concerns_all:
                reached.take(module, index)
    sheet = (exercise.id, exercise.title, exercise.points, exercise.forbids, exercise.uses)
    return {
        "suite": reached.digest("autograder.suites."),
        "reference": reached.digest("solutions."),
        "mistakes": reached.digest("autograder.answers."),
        "endings": _digest(recorded_endings(exercise.slug).get(exercise.name)),
        "sheet": _digest(sheet),
    }


@cache
def recorded_endings(slug: str) -> dict[str, Any]:
    """What is on record of how the mistakes of a chapter end, by exercise; nothing where that cannot be read."""
    try:
        return dict(json.loads((ENDINGS / f"{slug}.json").read_text(encoding="utf-8"))["exercises"])
    except (OSError, ValueError, LookupError, TypeError):
        return {}


@dataclass(frozen=True)
class _Statement:
    """A top-level statement: what it defines, the names in it, and what it declares to the grader."""

    node: ast.stmt
    text: str
    binds: frozenset[str]
    names: frozenset[str]

    @property
    def bare(self) -> frozenset[str]:
        """Names that are used as they are, not only to reach an attribute."""
        bases = {id(n.value) for n in ast.walk(self.node) if isinstance(n, ast.Attribute)}
        return frozenset(n.id for n in ast.walk(self.node) if isinstance(n, ast.Name) and id(n) not in bases)

    @property
    def words(self) -> frozenset[str]:
        """Every word that could be a name in the text that an edit puts into the reference."""
        placed = [keyword.value for n in ast.walk(self.node) if isinstance(n, ast.Call) for keyword in n.keywords]
        texts = (c.value for value in placed for c in ast.walk(value) if isinstance(c, ast.Constant))
        return frozenset(word for text in texts for word in re.findall(r"[^\W\d]\w*", str(text)))

    @property
    def role(self) -> tuple[str, str | None]:
        """The decorator or function that declares it to the grader, and the exercise it names, if that can be read."""
        calls: Sequence[ast.expr] = getattr(self.node, "decorator_list", [])
        if isinstance(self.node, ast.Expr):
            calls = [self.node.value]
        for call in calls:
            function = call.func if isinstance(call, ast.Call) else call
            name = function.id if isinstance(function, ast.Name) else ""
            if name in ("hidden", "edit", "mistake", "alternative"):
                first = call.args[0] if isinstance(call, ast.Call) and call.args else None
                return name, str(first.value) if isinstance(first, ast.Constant) else None
        return "", None

    @property
    def concerns_all(self) -> bool:
        """Whether it may change what any test does: it runs when the module is loaded, or is a fixture."""
        if self.role[0]:
            return False
        if isinstance(self.node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            return bool(self.node.decorator_list)
        return not isinstance(self.node, (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)) or bool(
            self.binds & {"*", "pytestmark"}
        )


@cache
def _module(name: str) -> tuple[_Statement, ...]:
    """The top-level statements of one of the course's own modules; none where the name is no such module."""
    path = _path(name)
    if path is None:
        return ()
    body = ast.parse(path.read_text(encoding="utf-8")).body
    body = [node for node in body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    return tuple(_Statement(node, ast.unparse(node), frozenset(_bound(node)), frozenset(_named(node))) for node in body)


def _path(name: str) -> Path | None:
    package, _, module = name.rpartition(".")
    folders = {
        "solutions": course.SOLUTIONS,
        "autograder.suites": TOOL / "suites",
        "autograder.answers": TOOL / "answers",
    }
    path = folders[package] / f"{module}.py" if package in folders else None
    return path if path is not None and path.is_file() else None


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that a top-level statement gives a meaning."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
        yield node.name
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    else:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        for child in ast.iter_child_nodes(node):
            yield from _bound(child)


def _named(node: ast.AST) -> Iterator[str]:
    """Names, arguments (pytest hands fixtures in by name) and attributes that occur in a statement."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id
        elif isinstance(inner, ast.arg):
            yield inner.arg
        elif isinstance(inner, ast.Attribute):
            yield inner.attr


@dataclass
class _Reached:
    """The statements that some names lead to, across the course's own modules."""

    statements: set[tuple[str, int]] = field(default_factory=set)

    def follow(self, module: str, names: Collection[str], bare: Collection[str] = ()) -> None:
        """Take every statement of a module that defines one of these names, and what those need.

        Args:
            module: where to look.
            names: what occurs in the place that we come from.
            bare: those of them that do not only lead to an attribute.
        """
        for index, statement in enumerate(_module(module)):
            if not statement.binds.isdisjoint(names):
                if isinstance(statement.node, (ast.Import, ast.ImportFrom)):
                    self.statements.add((module, index))
                    self._import(statement.node, names, bare)
                else:
                    self.take(module, index)

    def take(self, module: str, index: int) -> None:
        """Take one statement and what it needs."""
        if (module, index) in self.statements:
            return
        self.statements.add((module, index))
        statement = _module(module)[index]
        if statement.names & _DYNAMIC:
            self._everything(module)
        self.follow(module, statement.names, statement.bare)

    def _import(self, node: ast.Import | ast.ImportFrom, names: Collection[str], bare: Collection[str]) -> None:
        for alias in node.names:
            called = alias.asname or alias.name
            if isinstance(node, ast.Import):
                self._everything(alias.name)
            elif alias.name == "*":
                self._everything(node.module or "")
            elif _path(f"{node.module}.{alias.name}") is None:
                self._some(node.module or "", [alias.name] if called in names else [])
            elif called in bare:
                self._everything(f"{node.module}.{alias.name}")
            elif called in names:
                self._some(f"{node.module}.{alias.name}", names)

    def _some(self, module: str, names: Collection[str]) -> None:
        """Follow only names not followed yet, so that modules that import each other come to an end."""
        new = {n for i, s in enumerate(_module(module)) if (module, i) not in self.statements for n in s.binds}
        self.follow(module, new & set(names))

    def _everything(self, module: str) -> None:
        for index in range(len(_module(module))):
            if (module, index) not in self.statements:
                self.take(module, index)

    def digest(self, package: str) -> str:
        """Digest of what was reached in one package, in the order in which it is written."""
        return _digest([(m, _module(m)[i].text) for m, i in sorted(self.statements) if m.startswith(package)])


# ---------------------------------------------------------------------------------------- notebooks that keep state


def keeps_state(cells: Sequence[str]) -> bool:
    """Whether a function of the notebook may remember earlier calls, so that one exercise may feel another's tests.

    It may if it rebinds or writes into what lies outside it, or reads a top-level name that holds more than a constant.
    """
    trees = []
    for source in cells:
        try:
            trees.append(ast.parse(plain_python(source)))
        except (SyntaxError, ValueError):
            continue  # what cannot be parsed cannot run either
        except (RecursionError, MemoryError):
            return True
    held = {name for tree in trees for statement in tree.body for name in _holders(statement)}
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return any(_remembers(n, held) for n in nodes if isinstance(n, (*_FUNCTIONS, ast.ClassDef)))


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_STEADY = (ast.Constant, ast.Lambda, ast.Name, ast.Attribute)


def _steady(value: ast.expr | None) -> bool:
    """Whether a value cannot change under the name that is given to it."""
    if isinstance(value, ast.UnaryOp):
        return _steady(value.operand)
    if isinstance(value, ast.Tuple):
        return all(map(_steady, value.elts))
    return value is None or isinstance(value, _STEADY)


def _holders(statement: ast.stmt) -> Iterator[str]:
    """Names that a statement gives to something which may change."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef, ast.Import, ast.ImportFrom)):
        return
    if isinstance(statement, (ast.Assign, ast.AnnAssign)) and _steady(statement.value):
        return
    yield from _bound(statement)


def _remembers(definition: ast.AST, held: set[str]) -> bool:
    if isinstance(definition, ast.ClassDef):  # what a class holds, all of its instances share
        return any(name for statement in definition.body for name in _holders(statement))
    arguments: ast.arguments = definition.args  # type: ignore[attr-defined]
    inner = list(ast.walk(definition))
    own = {n.arg for n in inner if isinstance(n, ast.arg)}
    own |= {n.id for n in inner if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return (
        not all(map(_steady, [*arguments.defaults, *arguments.kw_defaults]))
        or any(isinstance(n, (ast.Global, ast.Nonlocal)) for n in inner)
        or any(isinstance(n, ast.Name) and n.id in held - own for n in inner)
        or any(_writes_outside(n, own) for n in inner)
    )


def _writes_outside(node: ast.AST, own: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in ("setattr", "delattr", "globals", "vars")
    if not isinstance(node, (ast.Attribute, ast.Subscript)) or isinstance(node.ctx, ast.Load):
        return False
    root: ast.expr = node
    while isinstance(root, (ast.Attribute, ast.Subscript)):
        root = root.value
    return not (isinstance(root, ast.Name) and root.id in own)


def known_still(known: Iterable[ExerciseResult], cells: Sequence[str]) -> Mapping[str, ExerciseResult]:
    """The known results by exercise; none where the notebook keeps state, because its exercises then hang together."""
    results = {exercise.id: exercise for exercise in known}
    return {} if results and keeps_state(cells) else results
