"""Building the book, and showing it.

`build_book` runs jupyter-book in a process of its own, turns its output into progress and into problems that say where
they are and what to do, and leaves the pages in `_build/html`. Building again reads and runs only what changed.
"""

from __future__ import annotations

import functools
import http
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autograder import CourseError

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
Report = Callable[[str], None]

# "reading sources... [ 25%] chapters/additive/lesson", and the same for "writing output"
STEP = re.compile(r"^(reading sources|writing output)\.\.\. \[\s*(\d+)%\] (.+)$")
# "/course/chapters/x/lesson.md:12: WARNING: text", with or without the line (and then with two colons)
PROBLEM = re.compile(
    r"^(?:(?P<place>[^\s:][^:]*?(?::\d+)?)::? ?)?(?P<kind>WARNING|ERROR|CRITICAL|SEVERE): (?P<text>.*)$"
)
# "checking consistency... WARNING: …", "reading sources... [ 25%] chapters/x/lesson /course/chapters/x/lesson.md:1: …"
PROGRESS = re.compile(r"^[a-z][\w ,\[\]-]*\.\.\. (?:\[\s*\d+%\] \S+ ?)?")
# A build that stops says what it was on the line after one of these.
STOPPED = re.compile(
    r"^(?:Sphinx|Extension|Configuration|Theme|Application|Version requirement) error:|^Exception occurred:"
)
# The last line of a traceback; the first of several tells the cause.
CAUSE = re.compile(r"^[\w.]*(?:Error|Exception): .")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
VERBS = {"reading sources": "reading", "writing output": "writing"}


class BookError(CourseError):
    """The book could not be built, or in strict mode has problems; the message names them."""


@dataclass(frozen=True)
class Problem:
    """One warning or error of the build."""

    place: str
    text: str

    @property
    def remedy(self) -> str:
        """What to do about it, in one line."""
        for pattern, remedy in REMEDIES:
            if re.search(pattern, self.text):
                return remedy
        return "Mend the named line; `attn book --strict` tells when nothing is left."

    def __str__(self) -> str:
        return f"{self.place}: {self.text}\n    {self.remedy}"


REMEDIES = [
    (r"could not find bibtex key", "Add the entry to references.bib, in the chapter's own block, or mend the key."),
    (r"nothing in the book refers to the label", "Refer to it, or take the label away."),
    (r"nothing in the book refers to", "Cite it with {cite:p}, or take it out of references.bib."),
    (r"without alternative text", "Say in alt what the picture shows."),
    (r"bare figure", "End the cell with show(fig, label=..., alt=...) from ext.lesson."),
    (
        r"[Ee]xecut\w+ notebook failed|CellExecutionError",
        "Run the lesson's cells in JupyterLab; the traceback is above.",
    ),
    (r"stderr", "The cell warns; a reader would see it. Cure the cause or the call."),
    (
        r"nonexisting document|excluded document",
        "Make the file, or take it out of _toc.yml; `attn build` makes notebooks.",
    ),
    (r"used twice", "Give one of the two cells another label."),
    (
        r"cross-reference|reference target|undefined label",
        "Mend the link; the target has another name or is not in the book.",
    ),
    (r"duplicate label", "Give one of the two another label."),
]


def build_book(strict: bool = False, report: Report = print, root: Path = ROOT) -> Path:
    """Builds the HTML book.

    Args:
        strict: treat every warning as an error, and every reference that leads nowhere as a warning.
        report: called with each line of progress.
        root: the course's root.

    Returns:
        The folder of the pages.

    Raises:
        BookError: if the build fails, or in strict mode has problems; each is named with its place and a remedy.
    """
    _check_before(root)
    problems, tail, code = _run(root, strict, report)
    if code != 0 or (strict and problems):
        if not problems:
            causes = [line for line in tail if CAUSE.match(line)]
            problems = [Problem("the build", "\n".join([*causes, *tail[-25:]]))]
        raise BookError("\n".join(str(problem) for problem in problems))
    for problem in problems:
        report(str(problem))
    pages = root / "_build" / "html"
    report(f"The book is in {pages}: {sum(1 for _ in pages.rglob('*.html'))} pages.")
    return pages


def _check_before(root: Path) -> None:
    if importlib.util.find_spec("jupyter_book") is None:
        raise BookError("jupyter-book is not installed: run `make env`, or `pip install -r requirements.txt`.")
    missing = [name for name in ("_config.yml", "_toc.yml", "index.md") if not (root / name).is_file()]
    if missing:
        raise BookError(f"{', '.join(missing)} not found in {root}: run this in a checkout of the course.")
    for source in sorted(root.glob("chapters/*/exercises.md")):
        if not source.with_suffix(".ipynb").is_file():
            place = source.relative_to(root).as_posix()
            raise BookError(f"{place} has no notebook beside it: run `attn build {source.parent.name}` first.")


def _run(root: Path, strict: bool, report: Report) -> tuple[list[Problem], list[str], int]:
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(root),
        "--keep-going",
    ]
    if strict:
        command += ["-W", "-n"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        "MPLBACKEND": "agg",
        # Where other programs share the cores, idle threads of torch that spin make a lesson ten times slower.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
    problems: list[Problem] = []
    tail: list[str] = []
    with subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            for line in _lines(process, root):
                tail = [*tail[-199:], line]
                if step := STEP.match(line):
                    report(f"{step[2]:>3} % {VERBS[step[1]]} {step[3]}")
                elif match := PROBLEM.match(line):
                    problems.append(Problem(_place(match["place"], root), match["text"]))
                elif len(tail) > 1 and STOPPED.match(tail[-2]):
                    problems.append(Problem("the build", line))
                elif problems and line.startswith(("  ", "\t")) and len(problems[-1].text) < 2000:
                    # What follows a problem, indented, belongs to it.
                    problems[-1] = Problem(problems[-1].place, f"{problems[-1].text}\n{line}")
                elif "Executing notebook" in line:
                    report(f"      running {_place(line.split(':')[0], root)}")
            code = process.wait()
        except BaseException:
            process.terminate()
            raise
    return problems, tail, code


def _lines(process: subprocess.Popen[str], root: Path) -> Iterator[str]:
    assert process.stdout is not None
    for line in process.stdout:
        # Sphinx rewrites its progress line in place.
        for part in line.split("\r"):
            text = COLOURS.sub("", part).rstrip()
            # A problem may follow progress on the same line.
            after = PROGRESS.match(text)
            if after and PROBLEM.match(text[after.end() :]):
                yield after[0].rstrip()
                text = text[after.end() :]
            if text:
                yield text


def _place(place: str | None, root: Path) -> str:
    text = (place or "the book").strip()
    return text.removeprefix(f"{root}{os.sep}")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that does not talk, and tells browsers not to keep what may change."""

    extensions_map = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".js": "text/javascript"}  # noqa: RUF012

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What static hosts do: at an address that leads nowhere, the book's own page says so."""
        lost = Path(self.directory, "404.html")
        if code != http.HTTPStatus.NOT_FOUND or not lost.is_file():
            super().send_error(code, message, explain)
            return
        content = lost.read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def end_headers(self) -> None:
        """Never cache: the author reloads to see a change."""
        self.send_header("Cache-Control", "no-store")
        super().end_headers()


def server(pages: Path, port: int = 0) -> http.server.ThreadingHTTPServer:
    """A server for a built book on the loopback address, not yet running; port 0 takes a free one."""
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(_Quiet, directory=str(pages)))


def serve_book(pages: Path, report: Report = print) -> None:
    """Serves a built book on the loopback address until Ctrl-C: no browser loads the widgets' modules from a file."""
    try:
        serving = server(pages, 8000)
    except OSError:
        serving = server(pages)
    report(f"Open http://127.0.0.1:{serving.server_address[1]}/ (stop with Ctrl-C).")
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        report("Stopped.")
    finally:
        serving.shutdown()
        serving.server_close()
