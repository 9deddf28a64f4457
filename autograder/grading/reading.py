"""What a notebook's code says: its statements, what names mean in each place, and what a name leads to.

It is read, never run. Names are followed through imports, aliases, scopes and containers, as far as they are written
out; what a library has under a name is looked up in the library.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from types import ModuleType
from typing import Any

# Names of Python's and IPython's own that can be meant although something else is assigned to what they give.
BARE = (
    *("exec", "eval", "compile", "__import__", "get_ipython", "globals", "vars", "locals"),
    *("__builtin__", "__builtins__", "_ih", "_oh", "_dh"),
)
Aliases = dict[str, set[str]]


@dataclass(frozen=True)
class Scope:
    """What names mean at one place: library names they are other words for, and names that hide outer ones."""

    aliases: Aliases
    hidden: frozenset[str] = frozenset()

    def inside(self, node: Function) -> Scope:
        """The scope of a function's body: its own names hide those outside."""
        below = _direct(node)
        scope = self.hiding(_own_names(node.args, below))
        for child in below:  # a name that is imported here means that, whatever else is bound to it here
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                for name, dotted in imported(child):
                    scope.aliases[name] = scope.aliases.get(name, set()) | {dotted}
        pairs = [pair for child in below for pair in _assignments(child)]
        for target, value in [*_defaults(node.args), *pairs]:
            scope.learn(target, value, self)
        return scope

    def hiding(self, names: frozenset[str]) -> Scope:
        """This scope, seen from where names of their own hide the outer ones."""
        aliases = {name: values for name, values in self.aliases.items() if name not in names}
        return Scope(aliases, self.hidden | names)

    def learn(self, target: ast.expr, value: ast.expr, outer: Scope | None = None) -> None:
        """An assignment makes a name another word for the library names in its value (`sm = torch.softmax`)."""
        names = list(_targets(target))
        if names:
            carried = {*_carried(value, self), *(_carried(value, outer) if outer else ())}
            for name in names:
                if carried:
                    self.aliases.setdefault(name, set()).update(carried)


Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_OWN_SCOPE = (*_FUNCTIONS, ast.ClassDef)
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Reach:
    """Top-level names of a notebook: what each is bound to, and which library names it may be another word for.

    ``cells`` are its code cells, taken apart; ``imported`` the packages of which it imports something.
    """

    def __init__(self, cells: Sequence[str], faulted: Collection[int]) -> None:
        self.nodes: dict[str, list[Statement]] = defaultdict(list)
        self.scope = Scope(defaultdict(set))
        self.stars: list[str] = []
        self.imported: set[str] = set()
        self.patches: list[Statement] = []
        self.cells = [_cell(source) for source in cells]
        for index, cell in enumerate(self.cells):
            for imported in cell.imports:
                self._import(imported)
            for statement in cell.statements:  # a write into a library concerns every exercise of the notebook
                if any(root in self.scope.aliases for root in statement.writes):
                    self.patches.append(statement)
            for statement in cell.statements:
                self._binding(statement, index in faulted)
        self._meaning: _Meaning = frozenset((name, frozenset(values)) for name, values in self.scope.aliases.items())

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for name, dotted in imported(node):
            self.scope.aliases[name].add(dotted)
            self.imported.add(dotted.partition(".")[0])
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == "*" for alias in node.names):
            self.stars.append(node.module)

    def _binding(self, statement: Statement, faulted: bool) -> None:
        if isinstance(statement.node, _DEFINITIONS):
            if not faulted:  # a cell that broke off may never have come to this line, so what stood before may still
                self.nodes[statement.node.name].clear()
            self.nodes[statement.node.name].append(statement)
        for target, value in statement.assignments:
            self.scope.learn(target, value)
        for name in statement.binds:
            self.nodes[name].append(statement)

    def reachable(self, name: str, judged: Collection[str] = ()) -> list[Statement]:
        """Every top-level statement that the name leads to, but not by way of the names in ``judged``."""
        seen: set[str] = set(judged)
        walked: set[int] = set()
        found: list[Statement] = []
        queue = [name]
        while queue:
            current = queue.pop()
            if current in seen:
                continue
            seen.add(current)
            for statement in self.nodes.get(current, []):
                if id(statement) in walked:
                    continue
                walked.add(id(statement))
                found.append(statement)
                queue += self.read(statement).names
        return found

    @property
    def is_open(self) -> bool:
        """Whether it is open which of several definitions of a name holds: the cell of a later one broke off."""
        return any(sum(isinstance(one.node, _DEFINITIONS) for one in found) > 1 for found in self.nodes.values())

    def read(self, statement: Statement) -> Reading:
        """A statement as this notebook's names give it its meaning."""
        return statement.read(self.scope, self._meaning)

    def from_stars(self, name: str) -> Iterator[str]:
        """What a bare name may mean because of `from … import *`: it is nobody else's, or the module has it too."""
        free = name not in self.nodes and name not in self.scope.aliases and not hasattr(builtins, name)
        yield from (f"{star}.{name}" for star in self.stars if free or library_object(f"{star}.{name}") is not None)


def read(cells: Sequence[str], faulted: Collection[int] = ()) -> Reach:
    """A notebook's code, read once for all its exercises; ``faulted`` are cells that did not run to their end."""
    return Reach(cells, faulted)


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_Meaning = frozenset[tuple[str, frozenset[str]]]


class Reading:
    """A statement's nodes, each with its scope; the outer names that it uses; and what was found in it so far."""

    def __init__(self, root: ast.AST, scope: Scope) -> None:
        self.walk = list(_scoped(root, scope))
        outer = (node.id for node, within in self.walk if isinstance(node, ast.Name) and node.id not in within.hidden)
        self.names = list(dict.fromkeys(outer))
        self.findings: dict[tuple[str, ...], list[Any]] = {}  # by what was looked for

    @property
    def _nodes(self) -> list[ast.AST]:
        return [node for node, _ in self.walk]

    @cached_property
    def owners(self) -> set[int]:
        """The nodes of which an attribute is taken, by their ids, as all that follows."""
        return {id(node.value) for node in self._nodes if isinstance(node, ast.Attribute)}

    @cached_property
    def handed_on(self) -> set[int]:
        """What is used as a value, not called, not followed further by its attributes or under a second name."""
        nodes = self._nodes
        called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
        followed = {id(part) for node in nodes for value in _followed(node) for part in ast.walk(value)}
        loaded = {id(node) for node in nodes if isinstance(getattr(node, "ctx", None), ast.Load)}
        classes = [child for node in nodes if isinstance(node, ast.ClassDef) for child in node.body]
        kept = {id(child.value) for child in classes if isinstance(child, ast.Assign)}
        return (loaded - called - self.owners - followed) | kept

    @cached_property
    def of_classes(self) -> set[int]:
        """Statements that stand in the body of a class."""
        return {id(child) for node in self._nodes if isinstance(node, ast.ClassDef) for child in node.body}

    @cached_property
    def loops(self) -> Loops:
        """Variables that run through texts, and these."""
        nodes = self._nodes
        return _loops([*nodes, *(loop for node in nodes for loop in getattr(node, "generators", ()))])

    @cached_property
    def asked(self) -> set[int]:
        """Types that are only asked for or only noted, and so not used."""
        return {id(part) for node in self._nodes for test in _types(node) for part in ast.walk(test)}


def _followed(node: ast.AST) -> Iterator[ast.expr]:
    """Values that reading can follow: one that gets a second name, and one of which `getattr` takes a part."""
    if isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets):
        yield from [node.value] if isinstance(node.value, (ast.Name, ast.Attribute)) else []
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        yield from node.args[:1]


def _types(node: ast.AST) -> Iterator[ast.expr]:
    """Annotations, and the types that `isinstance` is given, as far as nothing is called in them."""
    noted = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    if isinstance(node, _FUNCTIONS):
        noted += [part.annotation for part in ast.walk(node.args) if isinstance(part, ast.arg)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
        noted += node.args[1:]
    yield from (one for one in noted if one and not any(isinstance(part, ast.Call) for part in ast.walk(one)))


Loops = Mapping[str, Sequence[str]]


def _loops(nodes: Sequence[ast.AST]) -> Loops:
    """Variables of loops over texts that are written out, and are bound by nothing else."""
    found: dict[str, list[str]] = {}
    counted: dict[str, int] = defaultdict(int)
    for name, values in (pair for node in nodes for pair in _runs_through(node)):
        texts = [getattr(part, "value", None) for part in getattr(values, "elts", ())]
        if texts and all(isinstance(text, str) for text in texts):
            found.setdefault(name, []).extend(map(str, texts))
            counted[name] += 1
    bound = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return {name: texts for name, texts in found.items() if bound.count(name) == counted[name]}


def _runs_through(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """The variables of a loop with what each runs through, also by `enumerate` and `zip`."""
    if isinstance(node, (ast.For, ast.comprehension)):
        targets, values = [node.target], [node.iter]
        if (
            isinstance(node.iter, ast.Call)
            and isinstance(node.iter.func, ast.Name)
            and isinstance(node.target, ast.Tuple)
        ):
            skipped = {"enumerate": 1, "zip": 0}.get(node.iter.func.id)
            targets, values = node.target.elts[skipped:] if skipped is not None else [], node.iter.args
        yield from ((t.id, v) for t, v in zip(targets, values, strict=False) if isinstance(t, ast.Name))


class Statement:
    """One top-level statement, and what can be said of it whatever the other cells of its notebook are.

    ``binds`` are the names that it gives a meaning, but for the name of a definition.
    """

    def __init__(self, node: ast.stmt) -> None:
        self.node = node
        self.writes = [root for child in ast.walk(node) if (root := _written(child)) is not None]
        self.assignments: list[tuple[ast.expr, ast.expr]] = []
        self.binds = [name for child in ast.walk(node) if isinstance(child, ast.Global) for name in child.names]
        self._readings: dict[_Meaning, Reading] = {}
        if not isinstance(node, (*_DEFINITIONS, ast.Import, ast.ImportFrom)):
            below = _direct(node)
            passing = _loop_variables(below)
            for child in [node, *below]:
                self.assignments += _assignments(child)
                self.binds += _bound(child) if child not in passing else []

    def read(self, scope: Scope, meaning: _Meaning) -> Reading:
        """Read the statement; once for all notebooks in which the same names mean the same."""
        if meaning not in self._readings:
            if len(self._readings) >= _MOST_READINGS:
                self._readings.clear()
            self._readings[meaning] = Reading(self.node, scope)
        return self._readings[meaning]


_MOST_READINGS = 8


def imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    """The names that an import binds, each with what it is another word for."""
    for alias in node.names:
        if isinstance(node, ast.Import):
            bound = alias.asname or alias.name.partition(".")[0]
            yield bound, alias.name if alias.asname else bound
        elif node.module and alias.name != "*":
            yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _written(node: ast.AST) -> str | None:
    """The name on which an attribute is set."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return root(node)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr" and node.args:
        return root(node.args[0])
    return None


def _bound(node: ast.AST) -> list[str]:
    """The names that one node binds."""
    if isinstance(node, _DEFINITIONS):
        return [node.name]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [name for name, _ in imported(node)]
    if isinstance(node, (ast.MatchAs, ast.MatchStar, ast.ExceptHandler)) and node.name:
        return [node.name]
    if isinstance(node, ast.MatchMapping) and node.rest:
        return [node.rest]
    # `Class.method = …` and `module.name = …` belong to whatever the owner's name leads to.
    owner = _written(node)
    return [] if owner is None else [owner]


class Cell:
    """One cell, taken apart; ``readable`` is false if it is no Python, at least with the usual limit on nesting."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.readable = True
        self.imports: list[ast.Import | ast.ImportFrom] = []
        self.statements: list[Statement] = []
        try:
            tree = ast.parse(plain_python(source))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            self.readable = False
            return
        self.imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        self.statements = [Statement(statement) for statement in tree.body]


_remembered = lru_cache(maxsize=128)(Cell)  # a class shares most of its cells: those given, and those still untouched


def _cell(source: str) -> Cell:
    return _remembered(source) if len(source) <= _LONG else Cell(source)


_LONG = 10_000  # characters of a cell that is not remembered: a tree takes a hundred times the room of its text


@cache
def _transformer() -> Any:
    from autograder.sandbox.cells import Transformer

    return Transformer()


def plain_python(source: str) -> str:
    """The cell as IPython runs it: `%…`, `!…` and `…?` become calls of `get_ipython()`."""
    if source.lstrip().startswith("%%"):  # the magic's first line; its body runs like any other
        source = "\n" + "".join(source.lstrip().splitlines(keepends=True)[1:])
    return str(_transformer().transform_cell(source))


def _scoped(node: ast.AST, scope: Scope) -> Iterator[tuple[ast.AST, Scope]]:
    """Every node below this one, each with the scope in which Python reads it."""
    yield node, scope
    if isinstance(node, _FUNCTIONS):
        outside: list[ast.AST] = [*node.args.defaults, *(default for default in node.args.kw_defaults if default)]
        outside += getattr(node, "decorator_list", [])
        outside += [a.annotation for a in ast.walk(node.args) if isinstance(a, ast.arg) and a.annotation]
        outside += [annotation] if (annotation := getattr(node, "returns", None)) else []
        for child in outside:
            yield from _scoped(child, scope)
        inner = scope.inside(node)
        body = node.body if isinstance(node.body, list) else [node.body]
        for child in body:
            yield from _scoped(child, inner)
        return
    if isinstance(node, _COMPREHENSIONS):  # its variables are its own; only the first loop reads outside of them
        first, *rest = node.generators
        inner = scope.hiding(_bound_by(node))
        for loop in node.generators:
            inner.learn(loop.target, loop.iter, scope)
        yield from _scoped(first.iter, scope)
        inside: list[ast.AST] = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        inside += [first.target, *first.ifs]
        for loop in rest:
            inside += [loop.target, loop.iter, *loop.ifs]
        for child in inside:
            yield from _scoped(child, inner)
        return
    for child in ast.iter_child_nodes(node):
        yield from _scoped(child, scope)


def _bound_by(node: Comprehension) -> frozenset[str]:
    """Names of a comprehension's variables."""
    return frozenset(child.id for child in _loop_variables(node.generators) if isinstance(child, ast.Name))


def _loop_variables(below: Sequence[ast.AST]) -> set[ast.AST]:
    """The places where comprehensions bind their variables, which nobody outside of them sees."""
    targets = [child for loop in below if isinstance(loop, ast.comprehension) for child in ast.walk(loop.target)]
    return {child for child in targets if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store)}


def _direct(node: ast.AST) -> list[ast.AST]:
    """Nodes below this one that lie in its own scope, not in that of a function or class inside it."""
    found: list[ast.AST] = []
    queue = list(ast.iter_child_nodes(node))[::-1]
    while queue:
        child = queue.pop()
        found.append(child)
        if not isinstance(child, _OWN_SCOPE):
            queue += list(ast.iter_child_nodes(child))[::-1]
    return found


def _own_names(arguments: ast.arguments, below: Sequence[ast.AST]) -> frozenset[str]:
    """Names that belong to a function: its parameters and what it binds, but for those it declares global."""
    own = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    own |= {a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None}
    foreign: set[str] = set()
    # A comprehension's variable is its own, not the function's: the name may still mean the outer one beside it.
    passing = _loop_variables(below)
    for child in below:
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store) and child not in passing:
            own.add(child.id)
        elif isinstance(child, _DEFINITIONS):
            own.add(child.name)
        elif isinstance(child, (ast.Global, ast.Nonlocal)):
            foreign.update(child.names)
    return frozenset(own - foreign)


def _assignments(node: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    if isinstance(node, ast.Assign):
        return [(target, node.value) for target in node.targets]
    if isinstance(node, (ast.NamedExpr, ast.AnnAssign)) and node.value is not None:
        return [(node.target, node.value)]
    if isinstance(node, (ast.For, ast.AsyncFor)):
        return [(node.target, node.iter)]
    if isinstance(node, ast.withitem) and node.optional_vars is not None:
        return [(node.optional_vars, node.context_expr)]
    return []


def _targets(target: ast.expr) -> Iterator[str]:
    """The names to which an assignment gives something: of `a.b[c] = …`, that is `a`."""
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, (ast.Tuple, ast.List)):
        for part in target.elts:
            yield from _targets(part)
    elif isinstance(target, (ast.Attribute, ast.Subscript, ast.Starred)):
        yield from _targets(target.value)


def _defaults(arguments: ast.arguments) -> list[tuple[ast.expr, ast.expr]]:
    """Parameters whose default may be a library name (`def f(x, sm=torch.softmax)`)."""
    positional = [*arguments.posonlyargs, *arguments.args]
    given = list(zip(positional[len(positional) - len(arguments.defaults) :], arguments.defaults, strict=True))
    given += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None]
    return [(ast.Name(argument.arg, ast.Store()), default) for argument, default in given]


def _carried(value: ast.expr, scope: Scope) -> Iterator[str]:
    """Library names that a value may hand on: itself, or what lies in it (`[torch][0]`), but not what it calls."""
    if isinstance(value, (ast.Name, ast.Attribute)):
        yield from (name for name in dotted(value, scope) if not name.startswith("?"))
        return
    for child in ast.iter_child_nodes(value):
        if isinstance(value, ast.Call) and child is value.func:
            if isinstance(child, ast.Attribute) and not _is_chain(child):
                yield from _carried(child.value, scope)
        elif isinstance(child, ast.expr):
            yield from _carried(child, scope)
        elif isinstance(child, ast.keyword):
            yield from _carried(child.value, scope)


def _is_chain(node: ast.expr) -> bool:
    """Whether it is names joined by dots, and nothing else."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name)


def root(node: ast.AST) -> str | None:
    """The name with which a chain of attributes begins, if it begins with one."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def dotted(node: ast.AST, scope: Scope) -> list[str]:
    """`F.softmax` as `torch.nn.functional.softmax`; a method of something unknown as `?.softmax`."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    tail = list(reversed(parts))
    if isinstance(node, ast.Name) and node.id.startswith("__") and not node.id.endswith("__"):
        within = [name for name in scope.aliases if name.endswith(node.id)]  # in a class, `__x` means `_Class__x`
        return [".".join([meaning, *tail]) for name in within for meaning in scope.aliases[name]]
    if isinstance(node, ast.Name) and node.id in scope.aliases:
        itself = (node.id,) if node.id in BARE else ()  # `globals()["f"] = …` makes no alias of it
        return [".".join([name, *tail]) for name in (*scope.aliases[node.id], *itself)]
    if isinstance(node, ast.Name) and node.id not in scope.hidden:
        return [".".join([node.id, *tail])]
    owners = [] if isinstance(node, ast.Name) or not isinstance(node, ast.expr) else _carried(node, scope)
    return [".".join([owner, *tail]) for owner in ("?", *owners)] if tail else []


@lru_cache(maxsize=4096)
def library_object(name: str) -> Any:
    """What a library that is loaded has under a dotted name; nothing is run to find it."""
    package, *path = name.split(".")
    found: Any = sys.modules.get(package)
    for part in path:
        found = vars(found).get(part) if isinstance(found, (ModuleType, type)) else None
    return found
