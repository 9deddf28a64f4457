"""The command `attn`: a thin line from each word to one plain function."""

from __future__ import annotations

import json
import os
import sys
import time
import webbrowser
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from autograder import CourseError, course

app = typer.Typer(
    help="Attention in Depth: build the course, judge its exercises, grade a class.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

Slugs = Annotated[list[str] | None, typer.Argument(metavar="[SLUG]…", help="Chapters; all of them if none is named.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes on this machine.")]
CORES = os.cpu_count() or 1
INTERRUPTED = 130
SECONDS_BETWEEN_LINES = 30.0


def main() -> None:
    """Run the command line; known faults end in one message and exit code 1, Ctrl-C in 130."""
    try:
        app(standalone_mode=True)
    except (KeyboardInterrupt, SystemExit) as ended:  # typer turns Ctrl-C into an exit of its own
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
            raise
        errors.print("Stopped. Nothing that was done is lost; run the same command again to go on.")
        sys.exit(INTERRUPTED)


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the course's own exceptions into one clear message."""
    try:
        yield
    except CourseError as error:
        errors.print(f"[bold red]attn:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def _slugs(wanted: list[str] | None) -> list[str]:
    known = course.slugs()
    for slug in wanted or []:
        if slug not in known:
            raise typer.BadParameter(f"there is no chapter {slug!r} with exercises; there are: {', '.join(known)}")
    return list(wanted or known)


def _write_json(path: Path | None, data: Any) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_json_list(path: Path | None, entries: Iterable[Any]) -> None:
    """Write a list entry by entry, so that a long one need not fit into memory."""
    from autograder.grading.record import writing

    if path is None:
        return
    with _explained(), writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            separator = "["
            for entry in entries:
                file.write(f"{separator}\n{json.dumps(entry, ensure_ascii=False)}")
                separator = ","
            file.write("[]\n" if separator == "[" else "\n]\n")


class _Rate(ProgressColumn):
    """How many a second, lately."""

    def render(self, task: Task) -> Text:
        """The rate once there is one."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


@contextmanager
def _progress(title: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar with rate and time left; call what comes out with a word on each step.

    Where the total is known only later, say it in the call: ``step("s001", total=30)``. Where nobody watches, as in a
    log, a line now and then takes the place of the bar.
    """
    if not errors.is_terminal:
        yield _told_now_and_then(title, total)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[latest]}"),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(title, total=total, latest="")
        yield lambda word, **more: bar.update(task, advance=1, latest=word, **more)


def _told_now_and_then(title: str, total: int | None) -> Callable[..., None]:
    begin = told = time.monotonic()
    done = 0

    def step(word: str, total: int | None = total) -> None:
        nonlocal done, told
        done += 1
        now = time.monotonic()
        if now - told >= SECONDS_BETWEEN_LINES:
            told = now
            of = f" of {total}" if total else ""
            errors.print(f"{done}{of} {title} after {now - begin:.0f} s: {word}", highlight=False, soft_wrap=True)

    return step


@app.command()
def build(
    slug: Slugs = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a notebook is out of date.")] = False,
) -> None:
    """Make the student notebooks from their sources."""
    from autograder.authoring.build import build as make

    stale = []
    with _explained():
        for name in _slugs(slug):
            built = make(name, check=check)
            place = built.path.relative_to(course.ROOT)
            if built.up_to_date:
                console.print(f"{place}  up to date")
            else:
                stale.append(place)
                console.print(f"{place}  [bold]{'out of date' if check else 'written'}[/]")
    if check and stale:
        errors.print("[bold red]attn:[/] run `attn build` and commit the notebooks")
        raise typer.Exit(1)


@app.command()
def check(
    slug: Slugs = None,
    json_file: JsonFile = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many sets of hidden numbers each answer meets.")] = 5,
    workers: Workers = CORES,
    record: Annotated[
        bool, typer.Option("--record", help="Write down how each mistake ends each test; grading names it faster then.")
    ] = False,
) -> None:
    """Judge the course itself: every right answer passes, every named mistake is caught and named."""
    from autograder.authoring.check import TOGETHER, CheckReport
    from autograder.authoring.check import check as judge

    report = CheckReport((), ("the check did not finish",), seeds)
    slugs: list[str] = []
    try:
        slugs = _slugs(slug)
        if record and seeds < TOGETHER:
            raise typer.BadParameter(f"fewer than {TOGETHER} seeds tell too little of costs to go on record")
        with _explained():
            total = sum(len(course.sheet(name).exercises) for name in slugs)
            with _progress("exercises", total) as step:
                report = judge(slugs, seeds=seeds, workers=workers, recording=record, progress=step)
    finally:
        _write_json(json_file, report.as_json())
        _write_json(
            course.BUILD / "check.json" if slugs == course.slugs() and report.exercises else None, report.as_json()
        )
    console.print(_check_table(report))
    for problem in report.problems:
        console.print(f"[red]•[/] {problem}", highlight=False, soft_wrap=True)
    for exercise in report.exercises:
        for problem in exercise.problems:
            console.print(f"[red]•[/] {exercise.id}: {problem}", highlight=False, soft_wrap=True)
    fewer = {exercise.seeds for exercise in report.exercises} - {seeds}
    kernels = f" ({min(fewer)} for kernels, which the interpreter runs slowly)" if fewer else ""
    console.print(f"{report.caught} of {report.total} named mistakes caught and named, over {seeds} seeds{kernels}.")
    if record:
        from autograder.grading.cache import ENDINGS

        written = sum(not exercise.problems for exercise in report.exercises)
        console.print(f"How the mistakes of {written} exercises end is written down in [bold]{ENDINGS}[/].")
    if not report.holds:
        raise typer.Exit(1)


def _check_table(report: Any) -> Table:
    table = Table(title="attn check", box=box.SIMPLE)
    table.add_column("exercise", no_wrap=True)
    for heading in ("points", "reference", "altern.", "stub", "mistakes", "degen."):
        table.add_column(heading)
    for exercise in report.exercises:
        passed = sum(alternative["outcome"] == "passed" for alternative in exercise.alternatives)
        caught = sum(mistake["caught"] and mistake["named"] for mistake in exercise.mistakes)
        color = "red" if exercise.problems else "green"
        table.add_row(
            f"[{color}]{exercise.id}[/]",
            f"{exercise.points:g}",
            exercise.reference,
            f"{passed}/{len(exercise.alternatives)}",
            exercise.stub.replace("_", " "),
            f"{caught}/{len(exercise.mistakes)}",
            f"{max(exercise.degenerate.values(), default=0):g}",
        )
    return table


@app.command()
def release(
    slug: Slugs = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Where (default: _build/release).")] = None,
) -> None:
    """Write what students get: notebooks, data, requirements; no hidden file."""
    from autograder.authoring.release import release as make

    with _explained():
        folder = make(_slugs(slug), to)
    console.print(f"Released to [bold]{folder}[/]", soft_wrap=True)


@app.command()
def grade(
    path: Annotated[list[Path] | None, typer.Argument(metavar="[PATH]…", help="Notebooks, folders, LMS zips.")] = None,
    assignment: Annotated[str | None, typer.Option(metavar="SLUG", help="Only this chapter.")] = None,
    workers: Workers = CORES,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Send the jobs to this Dask scheduler.")
    ] = None,
    json_file: JsonFile = None,
    force: Annotated[bool, typer.Option("--force", help="Grade again what did not change.")] = False,
    roster: Annotated[Path | None, typer.Option(metavar="CSV", help="Maps LMS numbers to students.")] = None,
    db: Annotated[str | None, typer.Option(metavar="URL", help="The gradebook (default: course/gradebook.db).")] = None,
    file_times: Annotated[
        bool, typer.Option("--file-times", help="Without timestamp.txt, a file's own time is when it was handed in.")
    ] = False,
) -> None:
    """Grade submissions in the jail and record the grades."""
    run = _grade(path or [], json_file, assignment, workers, scheduler, force, roster, db, file_times=file_times)
    if run.ungraded:
        raise typer.Exit(1)


def _grade(
    paths: list[Path],
    json_file: Path | None,
    assignment: str | None = None,
    workers: int = CORES,
    scheduler: str | None = None,
    force: bool = False,
    roster: Path | None = None,
    db: str | None = None,
    root: Path | None = None,
    file_times: bool = False,
) -> Any:
    from autograder.grading.run import GradeRun, Step
    from autograder.grading.run import grade as run_grading

    run = GradeRun()
    try:
        for given in paths:
            if not given.exists():
                raise typer.BadParameter(f"{given} does not exist")
        if assignment is not None:
            _slugs([assignment])
        with _explained(), _progress("submissions") as step:

            def progress(latest: Step) -> None:
                step(f"{latest.result.student} {latest.result.assignment}", total=latest.total)

            run_grading(
                paths,
                assignment=assignment,
                workers=workers,
                scheduler=scheduler,
                force=force,
                roster=roster,
                db=db,
                root=root,
                file_times=file_times,
                progress=progress,
                run=run,
            )
    finally:
        _write_json_list(json_file, run.as_json())
    console.print(_grade_table(run))
    for problem in run.problems:
        console.print(f"[yellow]•[/] {escape(str(problem))}", highlight=False, soft_wrap=True)
    for change in run.changed:
        console.print(f"[yellow]•[/] {escape(str(change))}", highlight=False, soft_wrap=True)
    for result in run.ungraded[:5]:
        words = escape(f"{result.student} {result.assignment}: ungraded, {result.message}")
        console.print(f"[red]•[/] {words}", highlight=False, soft_wrap=True)
    console.print(
        f"{run.judged} graded ({run.exercises_judged} exercises), {run.reused} unchanged, {len(run.ungraded)} ungraded."
    )
    if run.ungraded:
        console.print("What is ungraded has no new grade; run the same command again when the cause is mended.")
    return run


def _grade_table(run: Any) -> Table:
    table = Table(title="attn grade", box=box.SIMPLE)
    for heading in ("student", "assignment", "score"):
        table.add_column(heading, no_wrap=True)
    table.add_column("outcome")
    table.add_column("mistakes named")
    for result in run.results[:60]:
        outcomes = [exercise.outcome for exercise in result.exercises]
        words = ", ".join(f"{outcomes.count(word)} {word}" for word in dict.fromkeys(outcomes))
        named = ", ".join(dict.fromkeys(e.mistake for e in result.exercises if e.mistake))
        score = f"{result.score:g} / {result.max_score:g}" if result.status == "graded" else "ungraded"
        table.add_row(
            result.student, result.assignment, score, words if result.outcome == "ok" else result.outcome, named
        )
    if len(run.results) > 60:
        table.caption = f"and {len(run.results) - 60} more; `attn report` shows all"
    return table


@app.command()
def report(
    open_it: Annotated[bool, typer.Option("--open", help="Open the class report in a browser.")] = False,
    anonymous: Annotated[bool, typer.Option("--anonymous", help="Leave the students' names out.")] = False,
    roster: Annotated[Path | None, typer.Option(metavar="CSV", help="Maps students to LMS numbers.")] = None,
    db: Annotated[str | None, typer.Option(metavar="URL", help="The gradebook (default: course/gradebook.db).")] = None,
    canvas_id: Annotated[
        list[str] | None, typer.Option(metavar="SLUG=NUMBER", help="Canvas's number of an assignment, for its CSV.")
    ] = None,
    similarity: Annotated[
        bool, typer.Option("--similarity", help="Also list answers that are much alike (similarity.html).")
    ] = False,
) -> None:
    """Write the class report (HTML) and the exports (CSV for Canvas and Moodle, Gradescope's results.json)."""
    if similarity and anonymous:
        raise typer.BadParameter("a list of who wrote alike names names: leave --anonymous or --similarity out")
    numbers = {slug: number for slug, _, number in (each.partition("=") for each in canvas_id or [])}
    _slugs(list(numbers))
    if not all(number.isdigit() for number in numbers.values()):
        raise typer.BadParameter("--canvas-id is SLUG=NUMBER; Canvas shows the number in the assignment's address")
    page = _report(course.COURSE, anonymous=anonymous, roster=roster, db=db, canvas_ids=numbers)
    if similarity:
        _similarity(course.COURSE)
    if open_it:
        webbrowser.open(page.as_uri())


def _similarity(folder: Path) -> None:
    from autograder.reporting.similarity import write_similarity

    with _explained(), _progress("exercises", None) as step:
        page, pairs = write_similarity(folder, progress=step)
    console.print(f"Similarity:   {page} ({pairs} pairs to look at)", soft_wrap=True)


@app.command()
def deadline(
    slug: Annotated[str, typer.Argument(metavar="SLUG", help="The chapter.")],
    due: Annotated[
        str | None, typer.Argument(metavar="[MOMENT]", help="Such as '2026-10-01 23:59 Europe/Berlin'.")
    ] = None,
    extend: Annotated[
        list[str] | None, typer.Option(metavar="STUDENT=TIME", help="48h, 2d or 1w longer; 0 takes it back.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="The chapter is not due at all.")] = False,
    db: Annotated[str | None, typer.Option(metavar="URL", help="The gradebook (default: course/gradebook.db).")] = None,
) -> None:
    """Say when a chapter is due and who has longer; without a moment, show it."""
    from autograder.authoring.build import build as make
    from autograder.grading.deadlines import parse_due, parse_extension, write_deadline

    _slugs([slug])
    if due and remove:
        raise typer.BadParameter("a moment and --remove contradict each other")
    with _explained():
        make(slug)  # the gradebook learns its cells from the instructor's notebook
        moment = parse_due(due) if due else None
        longer = dict(map(parse_extension, extend or []))
        found = write_deadline(course.COURSE, slug, due=moment, remove=remove, extensions=longer, db=db)
    console.print(f"{slug}: due {found.due:%Y-%m-%d %H:%M} UTC" if found.due else f"{slug}: no deadline")
    for student, length in found.extensions.items():
        console.print(f"{student}: {length} longer", highlight=False)
    if due or remove or extend:
        console.print("Run `attn grade` again to bring penalties up to date; nothing is judged anew.")


def _report(folder: Path, **options: Any) -> Path:
    from autograder.reporting import write_report

    with _explained():
        page, exports = write_report(folder, **options)
    console.print(f"Class report: [bold]{page}[/]", soft_wrap=True)
    for export in exports:
        console.print(f"Export:       {export}", soft_wrap=True)
    return page


@app.command()
def book(
    serve: Annotated[bool, typer.Option("--serve", help="Serve it on this machine afterwards.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A warning is an error.")] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also print the whole book into one PDF.")] = False,
    lite: Annotated[
        bool, typer.Option("--lite", help="Also build a site that runs NumPy exercises in a page.")
    ] = False,
) -> None:
    """Build the HTML book."""
    from autograder.authoring.book import build_book, serve_book

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    with _explained():
        if lite:
            from autograder.authoring.lite import build_lite

            build_lite(course.ROOT, say)
        pages = build_book(strict=strict, report=say)
        if pdf:
            from autograder.authoring.pdf import print_book

            say(f"The PDF is {print_book(course.ROOT, course.BUILD / 'attention-in-depth.pdf', say)}")
        if serve:
            serve_book(pages, say)


@app.command()
def doctor(json_file: JsonFile = None) -> None:
    """Say what works on this machine: sandbox, GPU, browser, versions."""
    from autograder.doctor import examine

    findings = examine()
    _write_json(json_file, [finding.as_json() for finding in findings])
    table = Table("what", "", "detail", title="attn doctor", box=box.SIMPLE)
    for finding in findings:
        mark = {"ok": "[green]works[/]", "missing": "[yellow]not here[/]", "broken": "[red]broken[/]"}[finding.state]
        table.add_row(finding.name, mark, finding.detail)
    console.print(table)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(json_file: JsonFile = None, workers: Workers = CORES) -> None:
    """Grade the sample class of `examples/` end to end and say where the report is.

    It has a course folder of its own, `_build/demo`: your students' grades are not touched.
    """
    folder = course.BUILD / "demo"
    db = f"sqlite:///{folder / 'gradebook.db'}"  # not the one that ATTN_DB names
    run = _grade([course.ROOT / "examples" / "submitted"], json_file, workers=workers, db=db, root=folder)
    _report(folder, db=db, problems=run.problems)
    if run.ungraded:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
