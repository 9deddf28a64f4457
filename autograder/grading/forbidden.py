"""The source check: which forbidden calls an exercise's code can reach.

It follows names from the exercise's definition through everything else the notebook defines, resolves imports and
aliases, and compares dotted names with what the exercise's contract rules out. What no reading of source can decide is
residual risk; `exec`, `eval`, `ctypes` and importing by string are ruled out everywhere to keep that risk small.
"""

from __future__ import annotations

import ast
import builtins
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

BARE = ("exec", "eval", "compile", "__import__", "get_ipython", "globals", "vars", "locals")
EVERYWHERE = (
    *BARE,
    *(f"builtins.{name}" for name in ("exec", "eval", "compile", "__import__", "globals", "vars")),
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
)
# Whoever rewrites cells on their way to Python makes the text that was checked another one than the text that runs.
REWRITERS = ("input_transformers_post", "input_transformers_cleanup", "input_transformer_manager", "ast_transformers")
UNREADABLE = "source that cannot be read"
Aliases = dict[str, set[str]]


@dataclass(frozen=True)
class Finding:
    """A forbidden name, as the contract writes it, and the line of its cell."""

    name: str
    line: int


@dataclass(frozen=True)
class _Scope:
    """What names mean at one place: library names they are other words for, and names that hide outer ones."""

    aliases: Aliases
    hidden: frozenset[str] = frozenset()

    def inside(self, node: Function) -> _Scope:
        """The scope of a function's body: its own names hide those outside."""
        below = _direct(node)
        own = _own_names(node.args, below)
        aliases = {name: values for name, values in self.aliases.items() if name not in own}
        scope = _Scope(aliases, self.hidden | own)
        pairs = [pair for child in below for pair in _assignments(child)]
        for target, value in [*_defaults(node.args), *pairs]:
            scope.learn(target, value, self)
        return scope

    def learn(self, target: ast.expr, value: ast.expr, outer: _Scope | None = None) -> None:
        """An assignment makes a name another word for a library name (`sm = torch.softmax`)."""
        if isinstance(target, ast.Name):
            for dotted in (*_dotted(value, self), *(_dotted(value, outer) if outer else ())):
                if not dotted.startswith("?"):
                    self.aliases.setdefault(target.id, set()).add(dotted)


Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_OWN_SCOPE = (*_FUNCTIONS, ast.ClassDef)


class Reach:
    """Top-level names of a notebook: what each is bound to, and which library names it may be another word for."""

    def __init__(self, cells: Sequence[str], faulted: Collection[int]) -> None:
        self.nodes: dict[str, list[ast.AST]] = defaultdict(list)
        self.scope = _Scope(defaultdict(set))
        self.stars: list[str] = []
        self.everywhere: list[Finding] = []
        self.patches: list[ast.AST] = []
        self._walks: dict[int, list[tuple[ast.AST, _Scope]]] = {}
        for index, source in enumerate(cells):
            try:
                tree = ast.parse(plain_python(source))
            except (SyntaxError, ValueError):
                continue  # what cannot be parsed cannot run either
            except (RecursionError, MemoryError):  # but this may, with a higher limit
                self.everywhere.append(Finding(UNREADABLE, 1))
                continue
            for node in ast.walk(tree):
                self._import(node)
                if isinstance(node, ast.Attribute) and node.attr in REWRITERS:
                    self.everywhere.append(Finding(node.attr, node.lineno))
            for statement in tree.body:  # a write into a library concerns every exercise of the notebook
                if any(self._writes_into_a_library(node) for node in ast.walk(statement)):
                    self.patches.append(statement)
            for statement in tree.body:
                self._binding(statement, index in faulted)

    def _import(self, node: ast.AST) -> None:
        aliases = self.scope.aliases
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                aliases[bound].add(alias.name if alias.asname else bound)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if alias.name == "*":
                    self.stars.append(node.module)
                else:
                    aliases[alias.asname or alias.name].add(f"{node.module}.{alias.name}")

    def _writes_into_a_library(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            return _root(node) in self.scope.aliases
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr" and node.args:
            return _root(node.args[0]) in self.scope.aliases
        return False

    def _binding(self, node: ast.stmt, faulted: bool) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if not faulted:  # a cell that broke off may never have come to this line, so what stood before may still
                self.nodes[node.name].clear()
            self.nodes[node.name].append(node)
        elif not isinstance(node, (ast.Import, ast.ImportFrom)):
            for child in [node, *_direct(node)]:
                for target, value in _assignments(child):
                    self.scope.learn(target, value)
                if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                    self.nodes[child.name].append(node)
                elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                    self.nodes[child.id].append(node)
                elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
                    # `Class.method = …` and `module.name = …` belong to whatever the owner's name leads to.
                    owner = _root(child)
                    if owner is not None:
                        self.nodes[owner].append(node)

    def reachable(self, name: str, judged: Collection[str] = ()) -> list[ast.AST]:
        """Every top-level statement that the name leads to, but not by way of the names in ``judged``."""
        seen: set[str] = set(judged)
        walked: set[int] = set()
        found: list[ast.AST] = []
        queue = [name]
        while queue:
            current = queue.pop()
            if current in seen:
                continue
            seen.add(current)
            for node in self.nodes.get(current, []):
                if id(node) in walked:
                    continue
                walked.add(id(node))
                found.append(node)
                for child, scope in self.walk(node):
                    if isinstance(child, ast.Name) and child.id not in scope.hidden:
                        queue.append(child.id)
        return found

    def walk(self, root: ast.AST) -> list[tuple[ast.AST, _Scope]]:
        """Every node of a top-level statement with its scope; read once, because several exercises may lead to it."""
        if id(root) not in self._walks:
            self._walks[id(root)] = list(_scoped(root, self.scope))
        return self._walks[id(root)]

    def may_come_from_a_star(self, name: str) -> bool:
        """Whether a bare name is neither the notebook's own nor Python's."""
        return name not in self.nodes and name not in self.scope.aliases and not hasattr(builtins, name)


def _scoped(node: ast.AST, scope: _Scope) -> Iterator[tuple[ast.AST, _Scope]]:
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
    for child in ast.iter_child_nodes(node):
        yield from _scoped(child, scope)


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
    for child in below:
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            own.add(child.id)
        elif isinstance(child, (ast.Global, ast.Nonlocal)):
            foreign.update(child.names)
    # A comprehension's variable is its own, not the function's: the name may still mean the outer one beside it.
    for child in below:
        if isinstance(child, ast.comprehension):
            foreign.update(n.id for n in ast.walk(child.target) if isinstance(n, ast.Name))
    return frozenset(own - foreign)


def _assignments(node: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    if isinstance(node, ast.Assign):
        return [(target, node.value) for target in node.targets]
    if isinstance(node, (ast.NamedExpr, ast.AnnAssign)) and node.value is not None:
        return [(node.target, node.value)]
    return []


def _root(node: ast.AST) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


@cache
def _transformer() -> Any:
    from IPython.core.inputtransformer2 import TransformerManager

    return TransformerManager()  # type: ignore[no-untyped-call]


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
    wanted = [*forbids, *EVERYWHERE]
    findings = list(reach.everywhere)
    for root in reach.reachable(exercise, judged):
        findings += _findings(root, wanted, reach)
    for statement in reach.patches:
        findings += _findings(statement, forbids, reach)
    return findings


def _findings(root: ast.AST, wanted: Sequence[str], reach: Reach) -> Iterator[Finding]:
    for node, scope in reach.walk(root):
        for name in _library_names(node, scope, reach):
            hit = next((forbid for forbid in wanted if _matches(name, forbid)), None)
            if hit is not None:
                yield Finding(hit, getattr(node, "lineno", 0))


def _matches(name: str, forbid: str) -> bool:
    if forbid.startswith("."):
        root, _, method = name.rpartition(".")
        return "." + method == forbid and root not in ("", "numpy", "math")
    if forbid in BARE:
        return name == forbid
    return name == forbid or name.startswith(forbid + ".")


def _defaults(arguments: ast.arguments) -> list[tuple[ast.expr, ast.expr]]:
    """Parameters whose default may be a library name (`def f(x, sm=torch.softmax)`)."""
    positional = [*arguments.posonlyargs, *arguments.args]
    given = list(zip(positional[len(positional) - len(arguments.defaults) :], arguments.defaults, strict=True))
    given += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None]
    return [(ast.Name(argument.arg, ast.Store()), default) for argument, default in given]


def _library_names(node: ast.AST, scope: _Scope, reach: Reach) -> Iterator[str]:
    """Dotted names that one node stands for."""
    if isinstance(node, (ast.Attribute, ast.Name)):
        yield from _dotted(node, scope)
        free = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in scope.hidden
        if isinstance(node, ast.Name) and free and reach.may_come_from_a_star(node.id):
            yield from (f"{module}.{node.id}" for module in reach.stars)
    elif isinstance(node, ast.Call):
        yield from _by_string(node, scope)
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ast.MatMult):
        yield "@"
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)


def _by_string(call: ast.Call, scope: _Scope) -> Iterator[str]:
    """`getattr(torch, "softmax")`, and `attrgetter("softmax")(torch)`."""
    text = next((a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)), None)
    if text is None:
        return
    names = set(_dotted(call.func, scope))
    if names & {"getattr", "builtins.getattr"}:
        yield from (f"{owner}.{text}" for owner in _dotted(call.args[0], scope) or ["?"])
    elif any(name.rpartition(".")[2] in ("attrgetter", "methodcaller", "__getattribute__") for name in names):
        libraries = {value for values in scope.aliases.values() for value in values}
        yield from (f"{owner}.{text}" for owner in (*libraries, "?"))


def _dotted(node: ast.AST, scope: _Scope) -> list[str]:
    """`F.softmax` as `torch.nn.functional.softmax`; a method of something unknown as `?.softmax`."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    tail = list(reversed(parts))
    if isinstance(node, ast.Name) and node.id in scope.aliases:
        return [".".join([name, *tail]) for name in scope.aliases[node.id]]
    if isinstance(node, ast.Name) and node.id not in scope.hidden:
        return [".".join([node.id, *tail])]
    return [".".join(["?", *tail])] if tail else []
