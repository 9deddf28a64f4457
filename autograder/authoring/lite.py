"""The notebooks of the NumPy chapters in a page: a JupyterLite site beside the book, made on request.

The site itself builds and opens without a network. Its kernel, Pyodide, does not: it fetches Python and NumPy from
its own host when it starts, which the exercise pages say. torch does not exist there, so a notebook holds the
exercises that need NumPy alone; a chapter without any is left out.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from autograder.authoring.book import BookError

PACKAGES = ("jupyterlite-core", "jupyterlite-pyodide-kernel")
TORCH = frozenset({"torch", "nn", "F", "triton"})
NOTE = """**NumPy edition.** This copy holds the exercises that need NumPy alone: torch does not run in a browser.
Your work is kept by this browser; to hand it in, copy your functions into the notebook that the exercise page offers
for download."""
# Type annotations of the exercises; everything else that they import comes with the kernel.
SET_UP = "%pip install -q jaxtyping"


def numpy_edition(notebook: NotebookNode) -> NotebookNode | None:
    """A student notebook without what needs torch; None if no exercise is left.

    Statements of given cells go where they name torch, exercises where their code names torch or what went with them.
    """
    front, sections = _sections(notebook)
    gone = set(TORCH)
    kept_front = []
    for cell in front:
        new = copy.deepcopy(cell)
        if cell.cell_type == "code":
            new.source, lost = _without(cell.source, gone)
            gone |= lost
            if not new.source.strip():
                continue
        kept_front.append(new)
    kept: list[list[NotebookNode]] = []
    for cells in sections:
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        if _names(code) & gone:
            # What its examples and checks assign is no name that other exercises build on.
            gone |= {node.name for node in ast.parse(code).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        else:
            kept.append(cells)
    if not kept:
        return None
    edition = copy.deepcopy(notebook)
    start = [nbformat.v4.new_markdown_cell(NOTE, id="numpy-note"), nbformat.v4.new_code_cell(SET_UP, id="numpy-set-up")]
    edition.cells = [*kept_front[:1], *start, *kept_front[1:], *(cell for cells in kept for cell in cells)]
    return edition


def _sections(notebook: NotebookNode) -> tuple[list[NotebookNode], list[list[NotebookNode]]]:
    """What stands before the first exercise, and the cells of each."""
    front: list[NotebookNode] = []
    sections: list[list[NotebookNode]] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            sections.append([])
        (sections[-1] if sections else front).append(cell)
    return front, sections


def _without(source: str, gone: set[str]) -> tuple[str, set[str]]:
    """The source without the statements that name what is gone, and the names that go with them."""
    kept: list[str] = []
    lost: set[str] = set()
    for node in ast.parse(source).body:
        text = ast.get_source_segment(source, node) or ""
        if _names(text) & (gone | lost):
            lost |= _defined(text)
        else:
            kept.append(text)
    return "\n".join(kept), lost


def _names(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def _defined(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return found


def build_lite(root: Path, report: Callable[[str], None] = print) -> Path:
    """Build the site into `_build/lite`; the next build of the book takes it in and links to it.

    Raises:
        BookError: its packages are not installed, or its own build failed.
    """
    if not all(importlib.util.find_spec(name.replace("-", "_")) for name in PACKAGES):
        raise BookError(f"the site needs packages that the course does not: pip install {' '.join(PACKAGES)}")
    target = root / "_build" / "lite"
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "files")
        chapters = []
        for path in sorted(root.glob("chapters/*/exercises.ipynb")):
            edition = numpy_edition(nbformat.read(path, as_version=4))
            if edition is None:
                continue
            slug = path.parent.name
            chapters.append(slug)
            (files / slug).mkdir(parents=True)
            nbformat.write(edition, files / slug / "exercises.ipynb")
            if (path.parent / "data").is_dir():
                shutil.copytree(path.parent / "data", files / slug / "data")
            report(f"      {slug}: {len(_sections(edition)[1])} exercises in the browser")
        # Only the kernel: what else this environment adds to JupyterLab, nbgrader's menus among it, is not for readers.
        kernel = Path(sys.prefix, "share/jupyter/labextensions/@jupyterlite/pyodide-kernel-extension")
        settings = {"ignore_sys_prefix": ["federated_extensions"], "federated_extensions": [str(kernel)]}
        Path(folder, "jupyter_lite_config.json").write_text(json.dumps({"LiteBuildConfig": settings}), encoding="utf-8")
        command = [sys.executable, "-m", "jupyterlite_core", "build", "--no-sourcemaps", "--no-unused-shared-packages"]
        command += ["--contents", str(files), "--output-dir", str(target), "--lite-dir", folder]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise BookError(f"JupyterLite could not build:\n{(done.stderr or done.stdout)[-2000:]}")
    (target / "chapters.json").write_text(json.dumps(chapters), encoding="utf-8")
    return target
