"""The source check: which forbidden calls an exercise's code can reach.

It follows names from the exercise's definition through everything else the notebook defines, resolves imports and
aliases, and compares dotted names with what the exercise's contract rules out. `exec`, `eval`, `ctypes`, importing by
string and their like are ruled out in every exercise. What lies elsewhere in the notebook and could make other code of
an exercise than the one that was read is for `alone` to find.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

BARE = ("exec", "eval", "compile", "__import__", "get_ipython", "globals", "vars", "locals")
# Attributes through which code, names and frames can be reached or written, whatever they are attributes of.
BACKDOORS = (
    *("__builtins__", "__closure__", "__code__", "__defaults__", "__dict__", "__globals__", "__kwdefaults__"),
    *("__delattr__", "__getattribute__", "__loader__", "__reduce__", "__reduce_ex__", "__self__", "__setattr__"),
    *(
        "__spec__",
        "__subclasses__",
        "cr_frame",
        "f_back",
        "f_builtins",
        "f_globals",
        "f_locals",
        "gi_frame",
        "tb_frame",
    ),
)
COMPUTED = "an attribute by a computed name"
# Modules and functions that make code or names out of text, or lead to what runs the notebook; `*` stands for any end.
EVERYWHERE = (
    *BARE,
    *BACKDOORS,
    COMPUTED,
    *("__main__", "builtins.__import__", "builtins.compile", "builtins.eval", "builtins.exec", "builtins.globals"),
    *("builtins.vars", "autograder", "bdb", "cProfile", "cffi", "cloudpickle", "code", "codeop", "ctypes", "dask"),
    *("doctest", "gc", "importlib", "inspect", "IPython", "jinja2", "joblib", "mako", "marshal", "multiprocessing"),
    *("numpy.ctypeslib", "numpy.f2py", "numpy.load", "pdb", "pickle", "pkgutil", "profile", "pydoc", "runpy", "site"),
    *("string.Formatter", "sympy", "sys._getframe", "sys.meta_path", "sys.modules", "sys.path", "sys.path_hooks"),
    *(
        "sys.setprofile",
        "sys.settrace",
        "threading",
        "timeit",
        "torch._C",
        "torch._*",
        "torch.classes",
        "torch.fx",
        "torch.hub",
    ),
    *("torch.jit", "torch.library", "torch.load", "torch.nn.modules.module.register_*", "torch.ops", "torch.overrides"),
    *("torch.package", "torch.utils._python_dispatch", "torch.utils.cpp_extension", "tracemalloc", "triton.runtime"),
    *("types.CodeType", "types.FunctionType", "types.LambdaType", "typing.ForwardRef", "typing.get_type_hints"),
    *("unittest", "zipimport"),
)
# What a contract rules out with a name: classes of the library that are built from it.
RELATIVES = {"torch.nn.MultiheadAttention": ("torch.nn.Transformer*",)}
Aliases = dict[str, set[str]]


@dataclass(frozen=True)
class Finding:
    """A forbidden name, as the contract writes it, and the line of its cell."""

    name: str
    line: int


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
                for name, dotted in _imported(child):
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
        names = [node.id for node in ast.walk(target) if isinstance(node, ast.Name)]
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

    ``cells`` are its code cells, taken apart; ``imported`` the packages of which it imports something; ``replaced``
    holds what names meant before they were defined anew.
    """

    def __init__(self, cells: Sequence[str], faulted: Collection[int]) -> None:
        self.nodes: dict[str, list[Statement]] = defaultdict(list)
        self.scope = Scope(defaultdict(set))
        self.stars: list[str] = []
        self.imported: set[str] = set()
        self.replaced: dict[str, list[Statement]] = defaultdict(list)
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
        for name, dotted in _imported(node):
            self.scope.aliases[name].add(dotted)
            self.imported.add(dotted.partition(".")[0])
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == "*" for alias in node.names):
            self.stars.append(node.module)

    def _binding(self, statement: Statement, faulted: bool) -> None:
        if isinstance(statement.node, _DEFINITIONS):
            if not faulted:  # a cell that broke off may never have come to this line, so what stood before may still
                self.replaced[statement.node.name] += self.nodes.pop(statement.node.name, [])
            self.nodes[statement.node.name].append(statement)
        for target, value in statement.assignments:
            self.scope.learn(target, value)
        for name in statement.binds:
            self.nodes[name].append(statement)

    def reachable(self, name: str, judged: Collection[str] = (), ever: bool = False) -> list[Statement]:
        """Every top-level statement that the name leads to, but not by way of the names in ``judged``.

        ``ever``: by way of what names meant before they were defined anew, too.
        """
        seen: set[str] = set(judged)
        walked: set[int] = set()
        found: list[Statement] = []
        queue = [name]
        while queue:
            current = queue.pop()
            if current in seen:
                continue
            seen.add(current)
            for statement in (*self.nodes.get(current, ()), *(self.replaced.get(current, ()) if ever else ())):
                if id(statement) in walked:
                    continue
                walked.add(id(statement))
                found.append(statement)
                queue += self.read(statement).names
        return found

    def read(self, statement: Statement) -> _Reading:
        """A statement as this notebook's names give it its meaning."""
        return statement.read(self.scope, self._meaning)

    def may_come_from_a_star(self, name: str) -> bool:
        """Whether a bare name is neither the notebook's own nor Python's."""
        return name not in self.nodes and name not in self.scope.aliases and not hasattr(builtins, name)


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_Meaning = frozenset[tuple[str, frozenset[str]]]


class _Reading:
    """A statement's nodes, each with its scope; the outer names that it uses; and what was found in it so far."""

    def __init__(self, root: ast.AST, scope: Scope) -> None:
        self.walk = list(_scoped(root, scope))
        outer = (node.id for node, within in self.walk if isinstance(node, ast.Name) and node.id not in within.hidden)
        self.names = list(dict.fromkeys(outer))
        called = {id(node.func) for node, _ in self.walk if isinstance(node, ast.Call)}
        self.handed_on = {id(node) for node, _ in self.walk if isinstance(node, ast.Name)} - called
        self.findings: dict[tuple[str, ...], list[Finding]] = {}


class Statement:
    """One top-level statement, and what can be said of it whatever the other cells of its notebook are.

    ``binds`` are the names that it gives a meaning, but for the name of a definition.
    """

    def __init__(self, node: ast.stmt) -> None:
        self.node = node
        self.writes = [root for child in ast.walk(node) if (root := _written(child)) is not None]
        self.assignments: list[tuple[ast.expr, ast.expr]] = []
        self.binds: list[str] = []
        self.binds += [name for child in ast.walk(node) if isinstance(child, ast.Global) for name in child.names]
        self._readings: dict[_Meaning, _Reading] = {}
        if not isinstance(node, (*_DEFINITIONS, ast.Import, ast.ImportFrom)):
            below = _direct(node)
            passing = _loop_variables(below)
            for child in [node, *below]:
                self.assignments += _assignments(child)
                self.binds += _bound(child) if child not in passing else []

    def read(self, scope: Scope, meaning: _Meaning) -> _Reading:
        """Read the statement; once for all notebooks in which the same names mean the same."""
        if meaning not in self._readings:
            if len(self._readings) >= _MOST_READINGS:
                self._readings.clear()
            self._readings[meaning] = _Reading(self.node, scope)
        return self._readings[meaning]


_MOST_READINGS = 8


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
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
        return [name for name, _ in _imported(node)]
    if isinstance(node, (ast.MatchAs, ast.MatchStar, ast.ExceptHandler)) and node.name:
        return [node.name]
    if isinstance(node, ast.MatchMapping) and node.rest:
        return [node.rest]
    # `Class.method = …` and `module.name = …` belong to whatever the owner's name leads to.
    owner = _written(node)
    return [] if owner is None else [owner]


class Cell:
    """One cell, taken apart; ``readable`` is false if Python may run what a reader with the usual limits cannot."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.readable = True
        self.imports: list[ast.Import | ast.ImportFrom] = []
        self.statements: list[Statement] = []
        try:
            tree = ast.parse(plain_python(source))
        except (SyntaxError, ValueError):
            return  # what cannot be parsed cannot run either
        except (RecursionError, MemoryError):  # but this may, with a higher limit
            self.readable = False
            return
        self.imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        self.statements = [Statement(statement) for statement in tree.body]


_remembered = lru_cache(maxsize=128)(Cell)  # a class shares most of its cells: those given, and those still untouched


def _cell(source: str) -> Cell:
    return _remembered(source) if len(source) <= _LONG else Cell(source)


_LONG = 10_000  # characters of a cell that is not remembered: a tree takes a hundred times the room of its text


def _scoped(node: ast.AST, scope: Scope) -> Iterator[tuple[ast.AST, Scope]]:
    """Every node below this one, each with the scope in which Python reads it."""
    yield node, scope
    if isinstance(node, _FUNCTIONS):
        outside: list[ast.AST] = [*node.args.defaults, *(default for default in node.args.kw_defaults if default)]
        outside += getattr(node, "decorator_list", [])
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
    targets = [child for loop in node.generators for child in ast.walk(loop.target)]
    return frozenset(child.id for child in targets if isinstance(child, ast.Name))


def _loop_variables(below: Sequence[ast.AST]) -> set[ast.AST]:
    """The places where comprehensions bind their variables, which nobody outside of them sees."""
    return {name for child in below if isinstance(child, ast.comprehension) for name in ast.walk(child.target)}


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


@cache
def _transformer() -> Any:
    from autograder.sandbox.cells import Transformer

    return Transformer()


def plain_python(source: str) -> str:
    """The cell as IPython runs it: `%…`, `!…` and `…?` become calls of `get_ipython()`."""
    if source.lstrip().startswith("%%"):  # the magic's first line; its body runs like any other
        source = "\n" + source.lstrip().partition("\n")[2]
    return str(_transformer().transform_cell(source))


def read(cells: Sequence[str], faulted: Collection[int] = ()) -> Reach:
    """A notebook's code, read once for all its exercises; ``faulted`` are cells that did not run to their end."""
    return Reach(cells, faulted)


def forbidden_calls(reach: Reach, exercise: str, forbids: Sequence[str], judged: Collection[str] = ()) -> list[Finding]:
    """What the exercise's code can reach of the forbidden names.

    Args:
        reach: the notebook's code (see :func:`read`).
        exercise: name of the function or class.
        forbids: dotted names (`torch.softmax`); one that starts with a dot is a method (`.softmax`); `@` the operator.
        judged: other exercises that it may call and that answer for themselves.
    """
    wanted = ruled_out(forbids)
    found = [hit for statement in reach.reachable(exercise, judged) for hit in findings(statement, wanted, reach)]
    for statement in reach.patches:
        found += findings(statement, tuple(forbids), reach)
    return found


def ruled_out(forbids: Sequence[str]) -> tuple[str, ...]:
    """The names that an exercise may not use whose contract forbids these."""
    return (*forbids, *(relative for name in forbids for relative in RELATIVES.get(name, ())), *EVERYWHERE)


def findings(statement: Statement, wanted: tuple[str, ...], reach: Reach) -> list[Finding]:
    """Which of these names one statement uses."""
    reading = reach.read(statement)
    if reach.stars:  # what a bare name is depends on the whole notebook
        return list(_found(reading, wanted, reach))
    if wanted not in reading.findings:
        reading.findings[wanted] = list(_found(reading, wanted, reach))
    return reading.findings[wanted]


def _found(reading: _Reading, wanted: tuple[str, ...], reach: Reach) -> Iterator[Finding]:
    for node, scope in reading.walk:
        if id(node) in reading.handed_on and _is_getattr(node, scope):
            yield Finding(COMPUTED, getattr(node, "lineno", 0))
        # What no cell imports is no module, whatever it is called, unless a star brought it.
        named = root(node)
        here = wanted if named is None or named in scope.aliases or reach.stars else _but_modules(wanted)
        for name in _library_names(node, scope, reach):
            hit = (_hit if len(name) <= _MOST_LETTERS else _hit.__wrapped__)(name, here)
            if hit is not None:
                yield Finding(hit, getattr(node, "lineno", 0))


@lru_cache(maxsize=256)
def _but_modules(wanted: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in wanted if name in (*BARE, *BACKDOORS) or name not in EVERYWHERE)


_MOST_LETTERS = 200  # of a name that is remembered: a notebook could make each of them as long as it is itself


@lru_cache(maxsize=4096)
def _hit(name: str, wanted: tuple[str, ...]) -> str | None:
    """The first of the forbidden names that this one is, or that what it stands for has as well."""
    thing, names = _object(name), {name, _by_its_module(name)}
    for forbid in wanted:
        if any(_matches(one, forbid) for one in names) or (callable(thing) and thing is _object(forbid)):
            return name if forbid.endswith("*") else forbid
    return None


def _by_its_module(name: str) -> str:
    """A name that goes through one module into another, by the name of the last (`os.sys.path` as `sys.path`)."""
    parts = name.split(".")
    for end in range(len(parts), 1, -1):
        if isinstance(module := _object(".".join(parts[:end])), ModuleType):
            return ".".join([module.__name__, *parts[end:]])
    return name


@lru_cache(maxsize=4096)
def _object(name: str) -> Any:
    """What a library that is loaded has under a dotted name; nothing is run to find it."""
    package, *path = name.split(".")
    found: Any = sys.modules.get(package)
    for part in path:
        found = vars(found).get(part) if isinstance(found, (ModuleType, type)) else None
    return found


def _matches(name: str, forbid: str) -> bool:
    if forbid.startswith("."):
        root, _, method = name.rpartition(".")
        return "." + method == forbid and root not in ("", "numpy", "math")
    if forbid in BARE:
        return name == forbid
    if forbid in BACKDOORS:
        return name.rpartition(".")[2] == forbid
    if forbid.endswith("*"):
        return name.startswith(forbid[:-1])
    return name == forbid or name.startswith(forbid + ".")


def _defaults(arguments: ast.arguments) -> list[tuple[ast.expr, ast.expr]]:
    """Parameters whose default may be a library name (`def f(x, sm=torch.softmax)`)."""
    positional = [*arguments.posonlyargs, *arguments.args]
    given = list(zip(positional[len(positional) - len(arguments.defaults) :], arguments.defaults, strict=True))
    given += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None]
    return [(ast.Name(argument.arg, ast.Store()), default) for argument, default in given]


def _library_names(node: ast.AST, scope: Scope, reach: Reach) -> Iterator[str]:
    """Dotted names that one node stands for."""
    if isinstance(node, (ast.Attribute, ast.Name)):
        yield from dotted(node, scope)
        free = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in scope.hidden
        if isinstance(node, ast.Name) and free and reach.may_come_from_a_star(node.id):
            yield from (f"{module}.{node.id}" for module in reach.stars)
    elif isinstance(node, ast.Call):
        yield from _by_string(node, scope)
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.MatMult):
        yield "@"
    elif isinstance(node, ast.MatchClass):
        yield from (name for attribute in node.kwd_attrs for name in _of_anything(attribute, scope))
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)


def _by_string(call: ast.Call, scope: Scope) -> Iterator[str]:
    """`getattr(torch, "softmax")`, and `attrgetter("softmax")(torch)`."""
    text = next((a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)), None)
    names = set(dotted(call.func, scope))
    if names & _GETATTR:
        if text is None:
            yield from () if call.args and root(call.args[0]) == "self" else (COMPUTED,)
        else:
            yield from (f"{owner}.{text}" for owner in dotted(call.args[0], scope) or ["?"])
    elif any(name.rpartition(".")[2] in ("attrgetter", "methodcaller", "__getattribute__") for name in names):
        yield from (COMPUTED,) if text is None else _of_anything(text, scope)


def _of_anything(attribute: str, scope: Scope) -> Iterator[str]:
    """An attribute of something that is not named there: of each library that the notebook knows, or a method."""
    libraries = {value for values in scope.aliases.values() for value in values}
    yield from (f"{owner}.{attribute}" for owner in (*libraries, "?"))


_GETATTR = {"getattr", "builtins.getattr"}


def _is_getattr(node: ast.AST, scope: Scope) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and bool(_GETATTR & set(dotted(node, scope)))


def dotted(node: ast.AST, scope: Scope) -> list[str]:
    """`F.softmax` as `torch.nn.functional.softmax`; a method of something unknown as `?.softmax`."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    tail = list(reversed(parts))
    if isinstance(node, ast.Name) and node.id in scope.aliases:
        itself = (node.id,) if node.id in BARE else ()  # `globals()["f"] = …` makes no alias of it
        return [".".join([name, *tail]) for name in (*scope.aliases[node.id], *itself)]
    if isinstance(node, ast.Name) and node.id not in scope.hidden:
        return [".".join([node.id, *tail])]
    owners = [] if isinstance(node, ast.Name) or not isinstance(node, ast.expr) else _carried(node, scope)
    return [".".join([owner, *tail]) for owner in ("?", *owners)] if tail else []
