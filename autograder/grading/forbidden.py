"""The source check: which forbidden calls an exercise's code can reach.

It follows names from the exercise's definition through everything else the notebook defines, resolves imports and
aliases, and compares dotted names with what the exercise's contract rules out. `exec`, `eval`, `ctypes`, importing by
string and their like are ruled out in every exercise. What lies elsewhere in the notebook and could make other code of
an exercise than the one that was read is for `alone` to find.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

BARE = (
    *("exec", "eval", "compile", "__import__", "get_ipython", "globals", "vars", "locals"),
    *("__builtin__", "__builtins__", "_ih", "_oh", "_dh"),
)
# Ruled out in every exercise: what makes code or names out of text, or leads to what runs the notebook.
EVERYWHERE = (
    *BARE,
    *(f"builtins.{name}" for name in ("exec", "eval", "compile", "__import__", "globals", "vars")),
    "__main__",
    "autograder",
    "code",
    "codeop",
    "ctypes",
    "gc",
    "importlib",
    "inspect",
    "marshal",
    "multiprocessing",
    "numpy.ctypeslib",
    "numpy.load",
    "pickle",
    "pkgutil",
    "runpy",
    "sys.modules",
    "sys.path",
    "sys.setprofile",
    "sys.settrace",
    "threading",
    "torch._C",
    "torch.hub",
    "torch.load",
    "torch.utils._python_dispatch",
    "torch.utils.cpp_extension",
    "tracemalloc",
    "triton.runtime",
    "types.CodeType",
    "types.FunctionType",
    "types.LambdaType",
    "unittest",
)
# Attributes by which code, names and frames can be reached, whatever they are attributes of.
BACKDOORS = (
    *("__annotations__", "__builtins__", "__closure__", "__code__", "__defaults__", "__dict__", "__globals__"),
    *("__kwdefaults__", "__loader__", "__self__", "__spec__", "__subclasses__", "_evaluate", "_ip"),
    *("cr_frame", "f_back", "f_builtins", "f_globals", "f_locals", "gi_frame", "tb_frame"),
)
COMPUTED = "an attribute by a computed name"
HANDED_ON = "a module handed on as a value"
PRIVATE = "a private name of a library"
# Ruled out besides where a contract rules anything out: other roads to what it names. `*` stands for any end.
STRICT = (
    *BACKDOORS,
    COMPUTED,
    HANDED_ON,
    *(
        "logging.config",
        "numpy.f2py",
        "numpy.lib.format",
        "numpy.testing",
        "string.Formatter",
        "sys._getframe",
        "sys.meta_path",
    ),
    *(
        "sys.path_hooks",
        "torch._*",
        "torch.ao",
        "torch.classes",
        "torch.fx",
        "torch.jit",
        "torch.library",
        "torch.onnx",
    ),
    *("torch.nn.modules.module.register_*", "torch.ops", "torch.overrides", "torch.package", "torch.testing"),
    *("torch.utils.benchmark", "typing.ForwardRef", "typing.get_type_hints"),
)
# The packages that a solution may use where a contract rules anything out. Too many others evaluate text or import.
LIBRARIES = (
    *("__future__", "abc", "array", "bisect", "builtins", "cmath", "collections", "contextlib", "copy", "dataclasses"),
    *("decimal", "enum", "fractions", "functools", "heapq", "io", "itertools", "jaxtyping", "json", "logging", "math"),
    *("numbers", "numpy", "operator", "os", "pprint", "random", "re", "solutions", "statistics", "string", "sys"),
    *("textwrap", "time", "torch", "triton", "types", "typing", "warnings"),
)
# What a contract rules out with a name: what is built from it, or computes the same.
RELATIVES = {
    "torch.nn.MultiheadAttention": (
        *("torch.nn.modules.transformer.*", "torch.nn.functional.multi_head_attention_forward", "torch.nn.attention"),
    ),
    "torch.autograd": (".grad_fn", ".next_functions"),
    ".roll": ("numpy.roll",),
    ".gather": ("numpy.take_along_axis",),
    ".take_along_dim": ("numpy.take_along_axis",),
    "torch.softmax": (
        *("torch.log_softmax", "torch.nn.functional.log_softmax", "torch.nn.functional.softmin", ".log_softmax"),
        *("torch.nn.modules.activation.LogSoftmax", "torch.nn.modules.activation.Soft*", "torch.special"),
    ),
    "torch.matmul": (
        *("torch.addbmm", "torch.addmm", "torch.baddbmm", "torch.chain_matmul", "torch.inner", "torch.linalg"),
        *(
            "torch.nn.functional.linear",
            "torch.nn.modules.linear.*",
            "torch.tensordot",
            ".addbmm",
            ".addmm",
            ".baddbmm",
        ),
    ),
}
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
        for name, dotted in _imported(node):
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

    def read(self, statement: Statement) -> _Reading:
        """A statement as this notebook's names give it its meaning."""
        return statement.read(self.scope, self._meaning)

    def from_stars(self, name: str) -> Iterator[str]:
        """What a bare name may mean because of `from … import *`: it is nobody else's, or the module has it too."""
        free = name not in self.nodes and name not in self.scope.aliases and not hasattr(builtins, name)
        yield from (f"{star}.{name}" for star in self.stars if free or _object(f"{star}.{name}") is not None)


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


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


_Meaning = frozenset[tuple[str, frozenset[str]]]


class _Reading:
    """A statement's nodes, each with its scope; the outer names that it uses; and what was found in it so far."""

    def __init__(self, root: ast.AST, scope: Scope) -> None:
        self.walk = list(_scoped(root, scope))
        outer = (node.id for node, within in self.walk if isinstance(node, ast.Name) and node.id not in within.hidden)
        self.names = list(dict.fromkeys(outer))
        nodes = [node for node, _ in self.walk]
        called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
        self.owners = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
        followed = {id(node) for node in nodes for value in _followed(node) for node in ast.walk(value)}
        loaded = {id(node) for node in nodes if isinstance(getattr(node, "ctx", None), ast.Load)}
        self.of_classes = {id(child) for node in nodes if isinstance(node, ast.ClassDef) for child in node.body}
        in_classes = {
            id(c.value) for n in nodes if isinstance(n, ast.ClassDef) for c in n.body if isinstance(c, ast.Assign)
        }
        self.handed_on = (loaded - called - self.owners - followed) | in_classes
        self.loops = _loops([*nodes, *(loop for node in nodes for loop in getattr(node, "generators", ()))])
        # A type that is only asked for, or only noted, is not used.
        self.asked = {id(part) for node in nodes for test in _types(node) for part in ast.walk(test)}
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
        source = "\n" + "".join(source.lstrip().splitlines(keepends=True)[1:])
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
    if not forbids:
        return EVERYWHERE
    return (*forbids, *(relative for name in forbids for relative in RELATIVES.get(name, ())), *EVERYWHERE, *STRICT)


def findings(statement: Statement, wanted: tuple[str, ...], reach: Reach) -> list[Finding]:
    """Which of these names one statement uses."""
    reading = reach.read(statement)
    if reach.stars:  # what a bare name is depends on the whole notebook
        return list(_found(reading, wanted, reach))
    if wanted not in reading.findings:
        reading.findings[wanted] = list(_found(reading, wanted, reach))
    return reading.findings[wanted]


def _found(reading: _Reading, wanted: tuple[str, ...], reach: Reach) -> Iterator[Finding]:
    strict = HANDED_ON in wanted
    for node, scope in reading.walk:
        line = getattr(node, "lineno", 0)
        if strict:
            yield from (Finding(name, line) for name in _elsewhere(node, scope, reading, reach, wanted))
        if id(node) in reading.asked:
            continue
        # What no cell imports is no module, whatever it is called, unless a star brought it.
        named = root(node)
        here = wanted if named is None or named in scope.aliases or reach.stars else _but_modules(wanted)
        for name in _library_names(node, scope, reach, reading.loops):
            if name == f"?.{COMPUTED}" and any(forbid.startswith(".") for forbid in wanted):
                name = COMPUTED  # of a tensor it may be the method that is ruled out
            hit = (_hit if len(name) <= _MOST_LETTERS else _hit.__wrapped__)(name, here)
            if hit is not None and not (hit == "__dict__" and named == "self"):
                yield Finding(hit, line)


def _elsewhere(node: ast.AST, scope: Scope, reading: _Reading, reach: Reach, wanted: tuple[str, ...]) -> Iterator[str]:
    """Ways out of what reading can follow: other packages, modules as values, attributes by computed names."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        dotted_names = [dotted_name for _, dotted_name in _imported(node)] or [getattr(node, "module", None) or ""]
        for dotted_name in dotted_names:
            package = dotted_name.partition(".")[0]
            if package not in LIBRARIES:
                yield package or "a relative import"
            elif id(node) in reading.of_classes and _holds(dotted_name, wanted):
                yield HANDED_ON
    elif isinstance(node, (ast.Name, ast.Attribute)) and id(node) not in reading.owners:
        names = dotted(node, scope) if root(node) in scope.aliases else []
        yield from (p for p in (name.partition(".")[0] for name in names) if p in reach.imported and p not in LIBRARIES)
        yield from (PRIVATE for name in names if re.match(r"(?!(?:os|sys|torch)\.).*\._(?!_)", name))
        if id(node) in reading.handed_on and any(_holds(name, wanted) for name in names):
            yield HANDED_ON
    if isinstance(node, ast.Name) and id(node) in reading.handed_on and _GETATTR & set(dotted(node, scope)):
        yield COMPUTED
    if isinstance(node, ast.Global) and any(name in reach.scope.aliases for name in node.names):
        yield COMPUTED
    if isinstance(node, ast.Subscript) and any(name.startswith("jaxtyping.") for name in dotted(node.value, scope)):
        texts = [part.value for part in ast.walk(node.slice) if isinstance(part, ast.Constant)]
        yield from (COMPUTED for text in texts if isinstance(text, str) and "(" in text)  # it would be evaluated


def _holds(name: str, wanted: tuple[str, ...]) -> bool:
    """Whether a name is that of a module in which something forbidden lies."""
    return isinstance(_object(name), ModuleType) and any(forbid.startswith(f"{name}.") for forbid in wanted)


@lru_cache(maxsize=256)
def _but_modules(wanted: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in wanted if name in (*BARE, *BACKDOORS) or name not in (*EVERYWHERE, *STRICT))


_MOST_LETTERS = 200  # of a name that is remembered: a notebook could make each of them as long as it is itself


@lru_cache(maxsize=4096)
def _hit(name: str, wanted: tuple[str, ...]) -> str | None:
    """The first of the forbidden names that this one is, or that what it stands for has as well."""
    thing, names = _object(name), {name, _by_its_module(name)}
    if isinstance(thing, type) and thing.__module__.startswith("torch.nn."):
        names.add(f"{thing.__module__}.{thing.__qualname__}")
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


def _library_names(node: ast.AST, scope: Scope, reach: Reach, loops: Loops) -> Iterator[str]:
    """Dotted names that one node stands for."""
    if isinstance(node, (ast.Attribute, ast.Name)):
        yield from dotted(node, scope)
        free = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in scope.hidden
        if isinstance(node, ast.Name) and free:
            yield from reach.from_stars(node.id)
    elif isinstance(node, ast.Call):
        yield from _by_string(node, scope, reach, loops)
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.MatMult):
        yield "@"
    elif isinstance(node, ast.MatchClass):
        yield from (name for attribute in node.kwd_attrs for name in _of_anything(attribute, scope))
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)


def _by_string(call: ast.Call, scope: Scope, reach: Reach, loops: Loops) -> Iterator[str]:
    """`getattr(torch, "softmax")`, and `attrgetter("softmax")(torch)`."""
    text = next((a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)), None)
    names = set(dotted(call.func, scope))
    if names & _GETATTR:
        owner = call.args[0] if call.args else None
        texts = [text] if text is not None else _texts(call.args[1:2], loops)
        if owner is not None and texts:
            yield from (f"{name}.{text}" for text in texts for name in dotted(owner, scope) or ["?"])
        elif owner is None or any(name.partition(".")[0] in reach.imported for name in dotted(owner, scope)):
            yield COMPUTED
        elif not (isinstance(owner, ast.Name) and owner.id == "self"):
            yield f"?.{COMPUTED}"
    elif any(name.rpartition(".")[2] in ("attrgetter", "methodcaller", "__getattribute__") for name in names):
        yield from (COMPUTED,) if text is None else _of_anything(text, scope)


def _texts(name: Sequence[ast.expr], loops: Loops) -> Sequence[str]:
    """What a variable may be that does nothing but run through texts that are written out."""
    return loops.get(name[0].id, ()) if name and isinstance(name[0], ast.Name) else ()


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


def _of_anything(attribute: str, scope: Scope) -> Iterator[str]:
    """An attribute of something that is not named there: of each library that the notebook knows, or a method."""
    libraries = {value for values in scope.aliases.values() for value in values}
    yield from (f"{owner}.{attribute}" for owner in (*libraries, "?"))


_GETATTR = {"getattr", "builtins.getattr"}


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
