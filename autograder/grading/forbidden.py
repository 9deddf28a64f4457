"""The source check: which forbidden calls an exercise's code can reach.

It follows names from the exercise's definition through everything else the notebook defines, resolves imports and
aliases, and compares dotted names with what the exercise's contract rules out. What no reading of source can decide is
residual risk; `exec`, `eval`, `ctypes` and importing by string are ruled out everywhere to keep that risk small.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

EVERYWHERE = (
    "exec",
    "eval",
    "compile",
    "__import__",
    "importlib",
    "ctypes",
    "builtins.exec",
    "builtins.eval",
    "get_ipython",
    "numpy.ctypeslib",
    "torch.hub",
    "torch.utils.cpp_extension",
)


@dataclass(frozen=True)
class Finding:
    """A forbidden name, as the contract writes it, and the line of its cell."""

    name: str
    line: int


class _Reach:
    """Top-level names of a notebook: what each is bound to, and which library name it is an alias of."""

    def __init__(self, cells: Sequence[str]) -> None:
        self.nodes: dict[str, list[ast.AST]] = {}
        self.aliases: dict[str, str] = {}
        for source in cells:
            try:
                tree = ast.parse(_without_magics(source))
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            for node in ast.walk(tree):
                self._imports(node)
            for node in tree.body:
                self._binding(node)

    def _imports(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                self.aliases[bound] = alias.name if alias.asname else bound
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                self.aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def _binding(self, node: ast.stmt) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self.nodes[node.name] = [node]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            return
        else:
            for child in ast.walk(node):
                if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                    self.nodes.setdefault(child.name, []).append(node)
                elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                    self.nodes.setdefault(child.id, []).append(node)

    def reachable(self, name: str) -> list[ast.AST]:
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


def _without_magics(source: str) -> str:
    return "\n".join("pass" if line.startswith(("%", "!")) else line for line in source.splitlines())


def forbidden_calls(cells: Sequence[str], exercise: str, forbids: Sequence[str]) -> list[Finding]:
    """What the exercise's code can reach of the forbidden names.

    Args:
        cells: the notebook's code cells.
        exercise: name of the function or class.
        forbids: dotted names (`torch.softmax`); one that starts with a dot is a method (`.softmax`).
    """
    reach = _Reach(cells)
    wanted = [*forbids, *EVERYWHERE]
    findings = []
    for root in reach.reachable(exercise):
        aliases = {**reach.aliases, **_local_aliases(root, reach.aliases)}
        for name, line in _dotted_names(root, aliases):
            hit = next((forbid for forbid in wanted if _matches(name, forbid)), None)
            if hit is not None:
                findings.append(Finding(hit, line))
    return findings


def _matches(name: str, forbid: str) -> bool:
    if forbid.startswith("."):
        root, _, method = name.rpartition(".")
        return "." + method == forbid and root not in ("", "numpy", "math")
    if forbid in ("exec", "eval", "compile", "__import__", "get_ipython"):
        return name == forbid
    return name == forbid or name.startswith(forbid + ".")


def _local_aliases(root: ast.AST, aliases: dict[str, str]) -> dict[str, str]:
    """Names that a plain assignment makes another word for a library name (`sm = torch.softmax`)."""
    local: dict[str, str] = {}
    for node in ast.walk(root):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            dotted = _dotted(node.value, {**aliases, **local})
            if dotted is not None and dotted.partition(".")[0] in {
                value.partition(".")[0] for value in aliases.values()
            }:
                local[node.targets[0].id] = dotted
    return local


def _dotted_names(root: ast.AST, aliases: dict[str, str]) -> Iterator[tuple[str, int]]:
    for node in ast.walk(root):
        if isinstance(node, (ast.Attribute, ast.Name)):
            dotted = _dotted(node, aliases)
            if dotted is not None:
                yield dotted, node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            owner = _dotted(node.args[0], aliases) if node.args else None
            attribute = node.args[1] if len(node.args) > 1 else None
            if owner is not None and isinstance(attribute, ast.Constant) and isinstance(attribute.value, str):
                yield f"{owner}.{attribute.value}", node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno


def _dotted(node: ast.AST, aliases: dict[str, str]) -> str | None:
    """`F.softmax` as `torch.nn.functional.softmax`; a method of something unknown as `?.softmax`."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        return ".".join([aliases.get(node.id, node.id), *reversed(parts)])
    return ".".join(["?", *reversed(parts)]) if parts else None
