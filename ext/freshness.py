"""When must a lesson run again? When its code changed, or anything that its code reads.

The notebook cache keys a lesson by its code cells alone, and Sphinx looks at the page's file alone. Both would keep old
figures after a change in `solutions/<slug>.py`, in the lesson kit, in recorded results or in the libraries. So each
lesson gets a fingerprint of what it depends on:

- it is put into the kernel entry of the page's header, which is part of the cache's key;
- it is remembered in the environment, so that a page whose fingerprint changed is read again.

A change of prose leaves the fingerprint and the code cells alone, and runs nothing.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

LIBRARIES = ("numpy", "torch", "matplotlib")
CODE = re.compile(r"^(?P<fence>`{3,}|~{3,}|:{3,})\{code-cell\}.*?\n(?P<body>.*?)^(?P=fence)\s*$", re.M | re.S)
HEADER = re.compile(r"\A---\n(.*?)\n---\n", re.S)


def fingerprint(text: str, folder: Path, root: Path) -> str:
    """A short digest of everything that a lesson's code depends on beside its own cells.

    Args:
        text: the lesson's source.
        folder: where it lies and runs.
        root: the course's root; only files below it count.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for library in LIBRARIES:
        digest.update(f"{library} {metadata.version(library)}\n".encode())
    for path in dependencies(text, folder, root):
        digest.update(f"{path.relative_to(root).as_posix()} {_digest(path, path.stat().st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:16]


def dependencies(text: str, folder: Path, root: Path) -> list[Path]:
    """The files of the course that a lesson's code imports or names, and the data beside it, in a fixed order."""
    found: set[Path] = {path for path in (folder / "data").rglob("*") if path.is_file()}
    waiting: list[Path] = []
    for cell in CODE.finditer(text):
        try:
            tree = ast.parse(re.sub(r"^(?::.*|[%!].*)$", "", cell["body"], flags=re.M))
        except SyntaxError:
            continue  # running the page will say where
        waiting += _imported(tree, root)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and 3 < len(node.value) < 200:
                found.update(_named(node.value, folder, root))
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += imported_by(path, root)
    return sorted(found)


def imported_by(path: Path, root: Path) -> list[Path]:
    """The files of the course that a Python file imports, at its top or within a function."""
    return _imported_by(path, path.stat().st_mtime_ns, root)


def with_fingerprint(text: str, mark: str) -> str:
    """The lesson's source with the mark in its kernel entry, every line at its old number."""
    match = HEADER.match(text)
    if match is None:
        return text
    header: Any = yaml.safe_load(match[1])
    if not isinstance(header, dict) or not isinstance(header.get("kernelspec"), dict):
        return text
    header["kernelspec"]["depends_on"] = mark
    # JSON on one line is YAML too; empty lines make up for the rest.
    line = json.dumps(header, ensure_ascii=False)
    return f"---\n{line}\n{chr(10) * match[1].count(chr(10))}---\n{text[match.end() :]}"


@cache
def _imported_by(path: Path, changed: int, root: Path) -> list[Path]:
    return _imported(ast.parse(path.read_text(encoding="utf-8")), root)


def _imported(tree: ast.AST, root: Path) -> list[Path]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    paths = []
    for name in names:
        stem = root.joinpath(*name.split("."))
        paths += [path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()]
    return paths


def _named(value: str, folder: Path, root: Path) -> list[Path]:
    """The file that a string names, seen from the lesson's folder or from the root."""
    if "\n" in value or "." not in value:
        return []
    found = []
    for base in (folder, root):
        try:
            path = (base / value).resolve()
            if path.is_file() and path.is_relative_to(root):
                found.append(path)
        except (OSError, ValueError):
            continue
    return found


@cache
def _digest(path: Path, changed: int) -> str:
    content = path.read_bytes()
    if path.suffix == ".py":
        # Comments and layout change no result.
        content = ast.dump(ast.parse(content)).encode()
    return hashlib.sha256(content).hexdigest()
