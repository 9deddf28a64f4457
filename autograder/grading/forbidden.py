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
    "importlib",
    "ctypes",
    "gc",
    "pkgutil",
    "runpy",
    "sys.modules",
    "numpy.ctypeslib",
    "torch.hub",
    "torch.utils.cpp_extension",
)
Aliases = dict[str, set[str]]


@dataclass(frozen=True)
class Finding:
    """A forbidden name, as the contract writes it, and the line of its cell."""

    name: str
    line: int


class _Reach:
    """Top-level names of a notebook: what each is bound to, and which library names it may be another word for."""

    def __init__(self, cells: Sequence[str], faulted: Collection[int]) -> None:
        self.nodes: dict[str, list[ast.AST]] = defaultdict(list)
        self.aliases: Aliases = defaultdict(set)
        self.stars: list[str] = []
        for index, source in enumerate(cells):
            try:
                tree = ast.parse(_plain_python(source))
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue  # what cannot be parsed cannot run either
            for node in ast.walk(tree):
                self._import(node)
            for statement in tree.body:
                self._binding(statement, index in faulted)

    def _import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                self.aliases[bound].add(alias.name if alias.asname else bound)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if alias.name == "*":
                    self.stars.append(node.module)
                else:
                    self.aliases[alias.asname or alias.name].add(f"{node.module}.{alias.name}")

    def _binding(self, node: ast.stmt, faulted: bool) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if not faulted:  # a cell that broke off may never have come to this line, so what stood before may still
                self.nodes[node.name].clear()
            self.nodes[node.name].append(node)
        elif not isinstance(node, (ast.Import, ast.ImportFrom)):
            for child in ast.walk(node):
                if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                    self.nodes[child.name].append(node)
                elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                    self.nodes[child.id].append(node)
                elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
                    # `Class.method = …` and `module.name = …` belong to whatever the owner's name leads to.
                    owner = _root(child)
                    if owner is not None:
                        self.nodes[owner].append(node)

    def reachable(self, name: str) -> list[ast.AST]:
        """Every top-level statement that the name leads to."""
        seen: set[str] = set()
        found: list[ast.AST] = []
        queue = [name]
        while queue:
            current = queue.pop()
            if current in seen:
                continue
            seen.add(current)
            for node in self.nodes.get(current, []):
                found.append(node)
                queue += [child.id for child in ast.walk(node) if isinstance(child, ast.Name)]
        return found

    def may_come_from_a_star(self, name: str) -> bool:
        return name not in self.nodes and name not in self.aliases and not hasattr(builtins, name)


def _root(node: ast.AST) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


@cache
def _transformer() -> Any:
    from IPython.core.inputtransformer2 import TransformerManager

    return TransformerManager()  # type: ignore[no-untyped-call]


def _plain_python(source: str) -> str:
    """The cell as IPython runs it: `%…`, `!…` and `…?` become calls of `get_ipython()`."""
    if source.lstrip().startswith("%%"):  # the magic's first line; its body runs like any other
        source = "\n" + source.lstrip().partition("\n")[2]
    return str(_transformer().transform_cell(source))


def forbidden_calls(
    cells: Sequence[str], exercise: str, forbids: Sequence[str], faulted: Collection[int] = ()
) -> list[Finding]:
    """What the exercise's code can reach of the forbidden names.

    Args:
        cells: the notebook's code cells.
        exercise: name of the function or class.
        forbids: dotted names (`torch.softmax`); one that starts with a dot is a method (`.softmax`).
        faulted: indices of cells that did not run to their end.
    """
    reach = _Reach(cells, faulted)
    wanted = [*forbids, *EVERYWHERE]
    findings = []
    for root in reach.reachable(exercise):
        aliases = _with_local(root, reach.aliases)
        for name, line in _dotted_names(root, aliases, reach):
            hit = next((forbid for forbid in wanted if _matches(name, forbid)), None)
            if hit is not None:
                findings.append(Finding(hit, line))
    return findings


def _matches(name: str, forbid: str) -> bool:
    if forbid.startswith("."):
        root, _, method = name.rpartition(".")
        return "." + method == forbid and root not in ("", "numpy", "math")
    if forbid in BARE:
        return name == forbid
    return name == forbid or name.startswith(forbid + ".")


def _with_local(root: ast.AST, aliases: Aliases) -> Aliases:
    """The aliases, and names that an assignment makes another word for a library name (`sm = torch.softmax`)."""
    known = {key: set(values) for key, values in aliases.items()}
    libraries = {value.partition(".")[0] for values in aliases.values() for value in values}
    for node in ast.walk(root):
        pairs: list[tuple[ast.expr, ast.expr]] = []
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
        elif isinstance(node, (ast.NamedExpr, ast.AnnAssign)) and node.value is not None:
            pairs = [(node.target, node.value)]
        elif isinstance(node, (ast.FunctionDef, ast.Lambda)):
            pairs = _defaults(node.args)
        for target, value in pairs:
            if isinstance(target, ast.Name):
                for dotted in _dotted(value, known):
                    if dotted.partition(".")[0] in libraries:
                        known.setdefault(target.id, set()).add(dotted)
    return known


def _defaults(arguments: ast.arguments) -> list[tuple[ast.expr, ast.expr]]:
    """Parameters whose default may be a library name (`def f(x, sm=torch.softmax)`)."""
    positional = [*arguments.posonlyargs, *arguments.args]
    given = list(zip(positional[len(positional) - len(arguments.defaults) :], arguments.defaults, strict=True))
    given += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None]
    return [(ast.Name(argument.arg, ast.Store()), default) for argument, default in given]


def _dotted_names(root: ast.AST, aliases: Aliases, reach: _Reach) -> Iterator[tuple[str, int]]:
    for node in ast.walk(root):
        if isinstance(node, (ast.Attribute, ast.Name)):
            for dotted in _dotted(node, aliases):
                yield dotted, node.lineno
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and reach.may_come_from_a_star(node.id):
                for module in reach.stars:
                    yield f"{module}.{node.id}", node.lineno
        elif isinstance(node, ast.Call):
            yield from _by_string(node, aliases)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno


def _by_string(call: ast.Call, aliases: Aliases) -> Iterator[tuple[str, int]]:
    """`getattr(torch, "softmax")`, and `attrgetter("softmax")(torch)`."""
    text = next((a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)), None)
    if text is None:
        return
    names = set(_dotted(call.func, aliases))
    if names & {"getattr", "builtins.getattr"}:
        owners = _dotted(call.args[0], aliases) or ["?"]
        yield from ((f"{owner}.{text}", call.lineno) for owner in owners)
    elif any(name.rpartition(".")[2] in ("attrgetter", "methodcaller", "__getattribute__") for name in names):
        libraries = {value for values in aliases.values() for value in values}
        yield from ((f"{owner}.{text}", call.lineno) for owner in (*libraries, "?"))


def _dotted(node: ast.AST, aliases: Aliases) -> list[str]:
    """`F.softmax` as `torch.nn.functional.softmax`; a method of something unknown as `?.softmax`."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    tail = list(reversed(parts))
    if isinstance(node, ast.Name):
        return [".".join([name, *tail]) for name in aliases.get(node.id) or {node.id}]
    return [".".join(["?", *tail])] if tail else []
