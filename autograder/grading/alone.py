"""A notebook without what an exercise may not use, for an exercise to which other cells may have given just that.

The source check reads what the names in an exercise lead to. What other cells do to it unseen it does not read: text
that is run, a name bound in a default value, a container filled elsewhere, a library's hook. There is no end of such
roads, and most notebooks that hold something like it are innocent. So none is ruled out. Where code that the exercise
does not lead to uses what its contract rules out, the exercise is judged in a process in which none of that has run,
and what it is worth there it is worth.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from autograder import course
from autograder.course import Exercise
from autograder.grading.forbidden import EVERYWHERE, STRICT, Finding, findings, ruled_out
from autograder.grading.intake import MAX_CELLS
from autograder.grading.reading import Cell, Reach, Statement
from autograder.sandbox.cells import IDLE

POWERS = frozenset((*EVERYWHERE, *STRICT))


@dataclass(frozen=True)
class Doubt:
    """Something that an exercise may not use and does not lead to, and the code cell where it is, counted from 1."""

    what: str
    cell: int


class Surroundings:
    """The code around the exercises of a notebook, and what of it each exercise must do without.

    Args:
        code: the cells as the source check reads them.
        slug: the chapter. What it was released with, given cells and examples, is beyond doubt.
        numbers: what the student's notebook counts each of these cells as; by default from 1.
    """

    def __init__(self, code: Reach, slug: str, numbers: Sequence[int] | None = None) -> None:
        exercises = course.sheet(slug).exercises
        examples = (cell.source for exercise in exercises for cell in exercise.cells if cell.kind == "example")
        self._code = code
        self._numbers = numbers or range(1, len(code.cells) + 1)
        self._given = frozenset((*course.given_cells(slug).values(), *examples))
        self._exercises = frozenset(exercise.name for exercise in exercises)

    def doubts(self, exercise: Exercise) -> list[Doubt]:
        """What could have changed an exercise, in the order of the cells; nothing can where nothing is ruled out.

        The other exercises' definitions are no doubt: each has its own contract, and nobody but the tests calls them.
        They are where this one may call them, or where some other code of the student's names them.
        """
        if not exercise.forbids:
            return []
        found: list[Doubt] = []
        quiet: dict[str, Doubt] = {}
        for number, cell in self._own:
            if not cell.readable or not _is_plain(cell.source):
                found.append(Doubt("code that cannot be read", number))
        for number, statement, hits in self._tainted(exercise):
            name = _name(statement)
            what = next((hit for hit in hits if hit.name in POWERS), hits[0]).name
            if name is not None and name in self._exercises and name not in exercise.uses and what not in POWERS:
                quiet[name] = Doubt(what, number)
            else:
                found.append(Doubt(what, number))
        for _, cell in self._own if quiet else ():
            for statement in cell.statements:
                if _name(statement) not in self._exercises:
                    found += [quiet[name] for name in quiet.keys() & set(self._code.read(statement).names)]
        return sorted(found, key=lambda doubt: doubt.cell)

    def without(self, exercise: Exercise) -> tuple[str, ...]:
        """The notebook without what the exercise may not use and does not lead to."""
        tainted = {id(statement) for _, statement, _ in self._tainted(exercise)}
        return tuple(source for _, source in self._apart(tainted))

    def apart(self) -> tuple[tuple[int, str], ...]:
        """The whole notebook, each statement by itself with the number of its cell: so it shows which of them ran."""
        return self._apart(set())

    def _apart(self, left_out: Collection[int]) -> tuple[tuple[int, str], ...]:
        """The notebook with each statement in a cell of its own, so that one that fails costs no other.

        Where they are more than a notebook may have cells, the cells stay together.
        """
        cells: list[tuple[int, list[str]]] = []
        for number, cell in zip(self._numbers, self._code.cells, strict=True):
            if cell.source in self._given:
                cells.append((number, [cell.source]))
            else:
                kept = (one for one in cell.statements if id(one) not in left_out)
                cells.append((number, [ast.unparse(one.node) for one in kept]))
        if sum(len(statements) for _, statements in cells) > MAX_CELLS:
            return tuple((number, "\n".join(statements)) for number, statements in cells)
        return tuple((number, statement) for number, statements in cells for statement in statements)

    @property
    def _own(self) -> Iterator[tuple[int, Cell]]:
        numbered = zip(self._numbers, self._code.cells, strict=True)
        return ((number, cell) for number, cell in numbered if cell.source not in self._given)

    def _tainted(self, exercise: Exercise) -> Iterator[tuple[int, Statement, list[Finding]]]:
        """Statements that the exercise does not lead to and that use what is ruled out, with that."""
        read = {id(statement) for statement in self._code.reachable(exercise.name)}
        wanted = ruled_out(exercise.forbids)
        for number, cell in self._own:
            for statement in cell.statements:
                harmless = id(statement) in read or _is_idle(statement.node) or self._only_imports(statement.node)
                if not harmless and (hits := findings(statement, wanted, self._code)):
                    yield number, statement, hits

    def _only_imports(self, node: ast.stmt) -> bool:
        """Whether it makes something known and uses nothing; an exercise's name cannot come from a library."""
        named = {alias.asname or alias.name for alias in getattr(node, "names", ())}
        return isinstance(node, (ast.Import, ast.ImportFrom)) and not named & self._exercises


def _name(statement: Statement) -> str | None:
    """The name of the function or class that a statement defines."""
    return getattr(statement.node, "name", None)


def _is_plain(source: str) -> bool:
    """Whether a cell without magics of its own is what it looks like; under these, it is."""
    first, *_ = source.lstrip().splitlines() or [""]
    return not first.startswith("%%") or first.strip() in ("%%time", "%%capture")


def _is_idle(node: ast.stmt) -> bool:
    """Whether it is a line of IPython's that does nothing in the jail (`%matplotlib inline`)."""
    match node:
        case ast.Expr(
            ast.Call(
                ast.Attribute(ast.Call(ast.Name("get_ipython")), "run_line_magic"),
                [ast.Constant(name), ast.Constant(words)],
            )
        ):
            return name in IDLE and not set(str(words)) & {"{", "$"}  # IPython puts in what stands there
    return False
