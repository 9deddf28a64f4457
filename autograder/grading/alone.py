"""Whether the rest of a notebook could make other code of an exercise than the code that was read, and it without that.

The source check reads what the names in an exercise lead to. Text that is run, an attribute hung on a library, a name
that a function binds outside of itself, a container filled elsewhere: each can give an exercise what no reader of it
sees, and most of them are innocent. So none is ruled out. An exercise in doubt is judged once more in a process in
which nothing but the statements that were read has run, and what that is worth is what it is worth.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from autograder.grading.cache import holders, steady
from autograder.grading.forbidden import EVERYWHERE, Cell, Reach, Statement, dotted, findings, root, ruled_out

IDLE = ("config", "conda", "mamba", "matplotlib", "pip", "uv")  # magics that do nothing in the jail
PLAIN = ("capture", "time")  # cell magics under which the rest of the cell is what it looks like


@dataclass(frozen=True)
class Doubt:
    """Something that can change code without being seen, and the code cell in which it stands, counted from 1."""

    what: str
    cell: int


class Notebook:
    """A notebook's code with the places where doubts lie.

    Args:
        code: the cells as the source check reads them.
        given: sources of the cells that students are given; they are beyond doubt.
    """

    def __init__(self, code: Reach, given: Collection[str]) -> None:
        self._code = code
        self._given = frozenset(given)

    def doubts(self, exercise: str) -> list[Doubt]:
        """What could have changed an exercise, in the order of the cells."""
        read = {id(statement) for statement in self._code.reachable(exercise)}
        found = [doubt for statement, doubt in self._opaque if id(statement) not in read]
        own = [statement for _, statement in self._own if id(statement) in read]
        for number, statement in self._own:  # what stands between the two may have kept the first
            node = statement.node
            if id(statement) in read and isinstance(node, _DEFINITIONS) and self._code.replaced.get(node.name):
                found.append(Doubt(f"an earlier {node.name}", number))
        changeable = {name for statement in own for name in _changeable(statement.node)}
        for number, statement in self._own if changeable else ():
            if id(statement) not in read:
                used = changeable.intersection(self._code.read(statement).names)
                found += [Doubt(name, number) for name in sorted(used)]
        return sorted(found, key=lambda doubt: doubt.cell)

    def alone(self, exercise: str, forbids: Sequence[str]) -> tuple[str, ...]:
        """The cells with nothing of the student's but imports of libraries and what the exercise leads to.

        ``forbids`` is what its contract rules out: what a name meant before it was defined anew stays if it uses none.
        """
        read = {id(statement) for statement in self._code.reachable(exercise)}
        wanted = ruled_out(forbids)
        earlier = [statement for statement in self._code.reachable(exercise, ever=True) if id(statement) not in read]
        read |= {id(statement) for statement in earlier if not findings(statement, wanted, self._code)}
        return tuple(cell.source if cell.source in self._given else _only(cell, read) for cell in self._code.cells)

    @cached_property
    def _own(self) -> list[tuple[int, Statement]]:
        numbered = enumerate(self._code.cells, start=1)
        return [
            (n, statement) for n, cell in numbered if cell.source not in self._given for statement in cell.statements
        ]

    @cached_property
    def _opaque(self) -> list[tuple[Statement | None, Doubt]]:
        found: list[tuple[Statement | None, Doubt]] = []
        for number, cell in enumerate(self._code.cells, start=1):
            if cell.source in self._given:
                continue
            if not cell.readable:
                found.append((None, Doubt("code that cannot be read", number)))
            elif (magic := _cell_magic(cell.source)) is not None:
                found.append((None, Doubt(magic, number)))
        for number, statement in self._own:
            what = next(_opaque(statement, self._code), None)
            if what is not None:
                found.append((statement, Doubt(what, number)))
        return found


def _only(cell: Cell, read: Collection[int]) -> str:
    kept = [s.node for s in cell.statements if id(s) in read or _imports_libraries(s.node)]
    return "\n".join(map(ast.unparse, kept))


def _cell_magic(source: str) -> str | None:
    first, *_ = source.lstrip().split(maxsplit=1) or [""]
    return first if first.startswith("%%") and first[2:] not in PLAIN else None


def _opaque(statement: Statement, code: Reach) -> Iterator[str]:
    """What in a statement can change other code than its own without naming it."""
    if isinstance(statement.node, (ast.Import, ast.ImportFrom)):
        if not _imports_libraries(statement.node):
            yield ast.unparse(statement.node)
        return
    if _is_idle(statement.node):
        return
    yield from (finding.name for finding in findings(statement, EVERYWHERE, code))
    walk = code.read(statement).walk
    owners = {id(node.value) for node, _ in walk if isinstance(node, ast.Attribute)}
    for node, scope in walk:
        if isinstance(node, ast.Global):
            yield "global"
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and not _imports_libraries(node):
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            if not node.args or root(node.args[0]) not in _OWN:
                yield node.func.id
        elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            # On a name of the notebook's own, outside of functions, it belongs to what that name leads to.
            owner = root(node)
            seen = isinstance(statement.node, _DEFINITIONS) or owner in scope.aliases or owner in scope.hidden
            if owner not in _OWN and (owner is None or seen):
                yield f"an attribute set on {owner or 'a value'}"
        elif isinstance(node, (ast.Name, ast.Attribute)) and id(node) not in owners and root(node) in scope.aliases:
            yield from (f"{name} as a value" for name in dotted(node, scope) if _is_module(name, code))


def _is_module(name: str, code: Reach) -> bool:
    return name in sys.modules and name.partition(".")[0] in code.imported


_OWN = ("self", "cls", "ctx")  # what methods call the object or the note-book of a gradient that is theirs to write in
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _is_idle(node: ast.stmt) -> bool:
    """Whether it is a line of IPython's that does nothing in the jail (`%matplotlib inline`, `!pip install`)."""
    match node:
        case ast.Expr(ast.Call(ast.Attribute(ast.Call(ast.Name("get_ipython"), [], []), "system"))):
            return True
        case ast.Expr(
            ast.Call(
                ast.Attribute(ast.Call(ast.Name("get_ipython"), [], []), "run_line_magic"), [ast.Constant(name), _]
            )
        ):
            return name in IDLE
    return False


def _changeable(node: ast.stmt) -> Iterator[str]:
    """Names that a statement gives to something that may be another from one moment to the next."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        writes_outside = any(isinstance(child, ast.Global) for child in ast.walk(node))
        if writes_outside or not all(map(steady, [*node.args.defaults, *node.args.kw_defaults])):
            yield node.name
    elif isinstance(node, ast.ClassDef):
        if any(name for child in node.body for name in (*_changeable(child), *holders(child))):
            yield node.name
    else:
        yield from holders(node)


def _imports_libraries(node: ast.AST) -> bool:
    """Whether it is an import, and of nothing but installed libraries: not of files that a notebook wrote."""
    if isinstance(node, ast.Import):
        return all(_is_library(alias.name.partition(".")[0]) for alias in node.names)
    return isinstance(node, ast.ImportFrom) and not node.level and _is_library((node.module or "").partition(".")[0])


@cache
def _is_library(package: str) -> bool:
    if package in sys.stdlib_module_names:
        return True
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    places = [spec.origin or "", *(spec.submodule_search_locations or ())] if spec is not None else []
    homes = [Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")]
    return any(Path(place).is_relative_to(home) for place in places for home in homes)
