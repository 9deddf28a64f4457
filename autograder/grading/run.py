"""Grades a class: what is new or changed goes to the workers, results come back one by one and are recorded at once.

The jobs run behind the `concurrent.futures` interface, on this machine's cores or on an existing Dask cluster. There is
one writer, and a result is on disk before it counts; a run that is killed is finished by running it again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from autograder import course
from autograder.authoring.build import build
from autograder.grading.collect import Collected, CollectError, Problem, Roster, Submission, find_submissions
from autograder.grading.judge import judge_notebook
from autograder.grading.record import Recorder, RecordError, read_result, result_path, write_problems
from autograder.grading.result import SubmissionResult
from autograder.grading.secret import course_secret
from autograder.grading.suite import SUITES

TRIES = 3


@dataclass
class GradeRun:
    """What one run of `attn grade` came to."""

    results: list[SubmissionResult] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    judged: int = 0
    reused: int = 0
    changed: list[tuple[str, str, float, float]] = field(default_factory=list)

    @property
    def ungraded(self) -> list[SubmissionResult]:
        """Submissions that the grader could not grade."""
        return [result for result in self.results if result.status != "graded"]


@dataclass(frozen=True)
class Step:
    """Progress: how many submissions are done, of how many, and the latest."""

    done: int
    total: int
    result: SubmissionResult


def grade(
    paths: Sequence[Path],
    *,
    assignment: str | None = None,
    workers: int = 2,
    scheduler: str | None = None,
    force: bool = False,
    roster: Path | None = None,
    db: str | None = None,
    root: Path | None = None,
    file_times: bool = False,
    progress: Callable[[Step], None] = lambda _: None,
) -> GradeRun:
    """Grade every submission found below the paths.

    Args:
        paths: notebooks, folders, LMS zips; none means `course/submitted`.
        assignment: only this one.
        workers: processes on this machine.
        scheduler: address of a Dask scheduler that takes the jobs instead.
        force: grade again what did not change.
        roster: CSV that maps LMS numbers to students.
        db: URL of the gradebook.
        root: the folder for everything written (by default `course/`).
        file_times: a file's own time is its time of submission where no `timestamp.txt` says otherwise.
        progress: called after each submission.

    Raises:
        CollectError: an assignment or the roster cannot be used.
        RecordError: the gradebook cannot be written; the message says what to do.
    """
    folder = root or course.COURSE
    known = course.slugs()
    for slug in known:
        build(slug)  # the gradebook learns its cells from the instructor's notebook
        if folder != course.COURSE:
            shutil.copytree(course.SOURCE / slug, folder / "source" / slug, dirs_exist_ok=True)
    register = Roster.read(roster) if roster else None
    run = GradeRun()
    places = paths or [folder / "submitted"]
    with find_submissions(places, assignment, known=known, roster=register, file_times=file_times) as collected:
        run.problems = list(collected.problems)
        config = course.ROOT / "nbgrader_config.py"
        with Recorder(folder, db=db, config=config, roster=register) as recorder:
            for submission, data, result, fresh in _judged(collected, run.problems, folder, workers, scheduler, force):
                before = _previous(folder, submission)
                # Graded again from `course/submitted`, it still came from where it came from.
                result = replace(result, upload=submission.upload or (before.upload if before else ""))
                if fresh or not recorder.is_recorded(result, submission.timestamp):
                    recorder.record(result, data, submission.timestamp)
                run.judged += fresh
                run.reused += not fresh
                if before is not None and before.status == "graded" and before.score != result.score:
                    run.changed.append((result.assignment, result.student, before.score, result.score))
                run.results.append(result)
                progress(Step(len(run.results), len(collected.submissions), result))
            run.problems += _without_a_time(recorder, collected.submissions)
    write_problems(folder, run.problems)
    run.results.sort(key=lambda result: (result.assignment, result.student))
    return run


def _without_a_time(recorder: Recorder, submissions: Sequence[Submission]) -> Iterator[Problem]:
    """Says where lateness could not be judged, although the assignment has a deadline."""
    for slug in sorted({submission.slug for submission in submissions}):
        timeless = [each for each in submissions if each.slug == slug and each.timestamp is None]
        if timeless and recorder.due(slug) is not None:
            late = ", ".join(each.student for each in timeless if each.late)
            marked = f" (the LMS marks as late: {late})" if late else ""
            reason = (
                f"{len(timeless)} submissions say no time, so nothing was taken off for lateness{marked}; let the "
                "LMS judge that, or put a timestamp.txt beside each, or trust the files' times with --file-times"
            )
            yield Problem(slug, reason, "time", slug=slug)


Judged = tuple[Submission, bytes, SubmissionResult, bool]


def _judged(
    collected: Collected, problems: list[Problem], folder: Path, workers: int, scheduler: str | None, force: bool
) -> Iterator[Judged]:
    """Results as they come, in any order; the flag says whether the submission was judged just now."""
    secret = course_secret()
    todo: list[Submission] = []
    for submission in collected.submissions:
        try:
            data = submission.read()
        except CollectError as error:  # it vanished, or changed, since it was found
            problems.append(Problem(submission.place, str(error), student=submission.student, slug=submission.slug))
            continue
        previous = None if force else _previous(folder, submission)
        if previous is not None and previous.fingerprint == fingerprint(
            submission.slug, submission.student, data, secret
        ):
            yield submission, data, previous, False
        else:
            todo.append(submission)
    if todo:
        with _executors(workers, scheduler) as start:
            yield from _run_jobs(todo, start, 2 * workers, secret)


def _run_jobs(
    todo: Sequence[Submission], start: Callable[[], Executor], window: int, secret: bytes
) -> Iterator[Judged]:
    """Keep a few jobs in flight, so that memory does not grow with the class."""
    executor = start()
    queue = [(submission, 1) for submission in reversed(todo)]
    flying: dict[Future[SubmissionResult], tuple[Submission, bytes, int]] = {}
    while queue or flying:
        while queue and len(flying) < window:
            submission, attempt = queue.pop()
            data = submission.read()
            try:
                flying[executor.submit(_job, data, submission.slug, submission.student, secret)] = (
                    submission,
                    data,
                    attempt,
                )
            except RuntimeError:  # the pool broke; its jobs come back below as failed futures
                queue.append((submission, attempt))
                break
        done, _ = wait(flying, return_when=FIRST_COMPLETED) if flying else (set(), None)
        broken = not flying
        for future in done:
            submission, data, attempt = flying.pop(future)
            try:
                result = future.result()
            except Exception as error:
                broken = True
                result = _lost(submission, data, f"a worker was lost: {type(error).__name__}: {error}")
            if result.status != "graded" and attempt < TRIES:
                queue.append((submission, attempt + 1))
            else:
                yield submission, data, result, True
        if broken:
            executor = start()


def _job(data: bytes, slug: str, student: str, secret: bytes) -> SubmissionResult:
    """One submission, judged; runs in a worker."""
    result = judge_notebook(data, slug, student, secret=secret)
    return replace(result, fingerprint=fingerprint(slug, student, data, secret))


def _lost(submission: Submission, data: bytes, message: str) -> SubmissionResult:
    total = course.sheet(submission.slug).points
    sha256 = hashlib.sha256(data).hexdigest()
    return SubmissionResult(
        submission.slug, submission.student, sha256, "", "ungraded", "infrastructure", 0.0, total, 0.0, message=message
    )


@contextmanager
def _executors(workers: int, scheduler: str | None) -> Iterator[Callable[[], Executor]]:
    """A function that starts (or restarts) the executor; all are shut down at the end."""
    if scheduler is not None:
        from distributed import Client

        with Client(scheduler, timeout=20) as client:  # type: ignore[no-untyped-call]
            yield client.get_executor
        return
    pools: list[ProcessPoolExecutor] = []

    def start() -> Executor:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        # Fresh processes: a fork would copy this one's threads' locks and its open gradebook.
        # Ctrl-C is this process's to answer.
        pool = ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
        )
        pools.append(pool)
        return pool

    try:
        yield start
    except BaseException:  # nobody waits for what the workers are in the middle of
        for pool in pools:
            for worker in list((pool._processes or {}).values()):
                worker.terminate()
        raise
    finally:
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)


def _previous(folder: Path, submission: Submission) -> SubmissionResult | None:
    path = result_path(folder, submission.slug, submission.student)
    if not path.exists():
        return None
    try:
        return read_result(path)
    except RecordError:
        return None


@cache
def _judge_version(slug: str) -> str:
    """A digest of everything but the submission that decides a grade: suite, references, answers, sheet, libraries."""
    here = Path(__file__).resolve().parent
    files = [
        SUITES / f"test_{slug}.py",
        SUITES / "kit.py",
        SUITES.parent / "answers" / f"{slug}.py",
        course.SOLUTIONS / f"{slug}.py",
        course.CHAPTERS / slug / "exercises.md",
        *(here / f"{name}.py" for name in ("judge", "suite", "diagnose", "forbidden", "intake", "result")),
        *sorted((here.parent / "sandbox").glob("*.py")),
    ]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for package in ("numpy", "torch", "ipython", "pytest"):
        digest.update(f"{package}=={importlib.metadata.version(package)}\n".encode())
    return digest.hexdigest()


def fingerprint(slug: str, student: str, data: bytes, secret: bytes) -> str:
    """What a result depends on; the same fingerprint means the same result."""
    parts = [
        _judge_version(slug),
        hashlib.sha256(data).hexdigest(),
        hashlib.sha256(secret + student.encode()).hexdigest(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


__all__ = ["CollectError", "GradeRun", "RecordError", "Step", "fingerprint", "grade"]
