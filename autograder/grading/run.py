"""Grades a class: what is new or changed goes to the workers, results come back one by one and are recorded at once.

The jobs run behind the `concurrent.futures` interface, on this machine's cores or on an existing Dask cluster. There is
one writer, and a result is on disk before it counts; a run that is killed is finished by running it again. Of a class
of any size only the names and a few submissions in flight are held in memory.

Errors::

    CollectError    the submissions or the roster cannot be used
    RecordError     a grade could not be written; the message says what to do
    ClusterError    the Dask cluster does not answer, or has no worker left
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import threading
import time
from bisect import insort
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from autograder import CourseError, course
from autograder.authoring.build import build
from autograder.grading.cache import basis, fingerprint, still_true, why
from autograder.grading.collect import Collected, CollectError, Problem, Roster, Submission, find_submissions
from autograder.grading.record import (
    Recorder,
    RecordError,
    read_result,
    result_path,
    write_problems,
    write_result,
    write_source,
    writing,
)
from autograder.grading.result import ExerciseResult, SubmissionResult
from autograder.grading.secret import course_secret
from autograder.grading.worker import begin, settle

TRIES = 3
DESERTED_SECONDS = 60.0
"""How long a cluster may be without a worker before the run gives up."""
LANDING_SECONDS = 5.0
"""How long a run that stops early waits for what a cluster is just sending back."""


class ClusterError(CourseError):
    """The Dask cluster cannot do the work; the message says why, and what to do."""


@dataclass(frozen=True)
class ExerciseChange:
    """An exercise whose score is another one than before, and which of the things it rests on differ."""

    id: str
    before: float | None
    after: float | None
    why: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.id}: {', '.join(self.why) or 'nothing that it rests on changed'}"


@dataclass(frozen=True)
class Change:
    """A grade that is another one than before."""

    assignment: str
    student: str
    before: float
    after: float
    exercises: tuple[ExerciseChange, ...]

    def __str__(self) -> str:
        because = f" ({'; '.join(map(str, self.exercises))})" if self.exercises else ""
        return f"{self.student} {self.assignment}: {self.before:g} → {self.after:g}{because}"

    def as_json(self) -> dict[str, Any]:
        """The field ``changed`` of ``attn grade --json``."""
        return {key: value for key, value in asdict(self).items() if key not in ("assignment", "student")}


class Results(Sequence[SubmissionResult]):
    """Results in the order of (assignment, student), each read from the run log when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._keys: list[tuple[str, str]] = []

    def add(self, result: SubmissionResult) -> None:
        """Note a result that is in the run log."""
        insort(self._keys, (result.assignment, result.student))

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> SubmissionResult: ...
    @overload
    def __getitem__(self, index: slice) -> list[SubmissionResult]: ...
    def __getitem__(self, index: int | slice) -> SubmissionResult | list[SubmissionResult]:
        if isinstance(index, slice):
            return [self._read(key) for key in self._keys[index]]
        return self._read(self._keys[index])

    def _read(self, key: tuple[str, str]) -> SubmissionResult:
        return read_result(result_path(self._folder, *key))


@dataclass
class GradeRun:
    """What one run of `attn grade` came to."""

    results: Results = field(default_factory=lambda: Results(course.COURSE))
    ungraded: Results = field(default_factory=lambda: Results(course.COURSE))
    """Submissions that the grader could not grade."""
    problems: list[Problem] = field(default_factory=list)
    judged: int = 0
    reused: int = 0
    exercises_judged: int = 0
    changed: list[Change] = field(default_factory=list)

    def as_json(self) -> Iterator[dict[str, Any]]:
        """The entries of ``attn grade --json``, one after the other; ``changed`` says what a regrade changed."""
        changes = {(change.assignment, change.student): change.as_json() for change in self.changed}
        for result in self.results:
            yield {**result.as_json(), "changed": changes.get((result.assignment, result.student))}


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
    run: GradeRun | None = None,
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
        run: filled as the work goes on, so that whoever stops it has what was done (by default a new one).

    Raises:
        CollectError: an assignment or the roster cannot be used.
        RecordError: a file or the gradebook cannot be written; the message says what to do.
        ClusterError: the scheduler does not answer, or has no worker left.
    """
    folder = root or course.COURSE
    run = run or GradeRun()
    run.results, run.ungraded = Results(folder), Results(folder)
    known = course.slugs()
    with writing(folder):
        for slug in known:
            build(slug)  # the gradebook learns its cells from the instructor's notebook
    register = Roster.read(roster) if roster else None
    places = paths or [folder / "submitted"]
    with find_submissions(places, assignment, known=known, roster=register, file_times=file_times) as collected:
        run.problems.extend(collected.problems)
        config = course.ROOT / "nbgrader_config.py"
        with Recorder(folder, db=db, config=config, roster=register) as recorder:
            if folder != course.COURSE:
                for slug in known:
                    write_source(folder, slug, (course.SOURCE / slug / "exercises.ipynb").read_bytes())
            # Closed at once when a grade cannot be written, and not when Python gets around to it.
            with closing(_judged(collected, folder, workers, scheduler, force)) as arriving:
                for judged in arriving:
                    submission, before = judged.submission, _previous(folder, judged.submission)
                    # Graded again from `course/submitted`, it still came from where it came from.
                    result = replace(judged.result, upload=submission.upload or (before.upload if before else ""))
                    if judged.data is None:
                        write_result(folder, result)  # there is nothing to copy, and what was copied before stays
                    elif judged.fresh or not recorder.is_recorded(result, submission.timestamp):
                        recorder.record(result, judged.data, submission.timestamp)
                    run.judged += judged.fresh
                    run.reused += not judged.fresh
                    run.exercises_judged += judged.exercises
                    if judged.fresh and before is not None and (change := _change(before, result)) is not None:
                        run.changed.append(change)
                    run.results.add(result)
                    if result.status != "graded":
                        run.ungraded.add(result)
                    progress(Step(len(run.results), len(collected.submissions), result))
            run.problems += _without_a_time(recorder, collected.submissions)
    write_problems(folder, run.problems)
    run.changed.sort(key=lambda change: (change.assignment, change.student))
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


def _change(before: SubmissionResult, after: SubmissionResult) -> Change | None:
    """What differs between two gradings of the same student, or None where no score does."""
    if before.status != "graded" or after.status != "graded":
        return None
    then, now = ({exercise.id: exercise.score for exercise in result.exercises} for result in (before, after))
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if not names and before.score == after.score:
        return None
    exercises = (ExerciseChange(name, then.get(name), now.get(name), why(before, after, name)) for name in names)
    return Change(after.assignment, after.student, before.score, after.score, tuple(exercises))


@dataclass(frozen=True)
class _Judged:
    """A result and where it is from, without its bytes if they cannot be read; ``exercises`` were judged just now."""

    submission: Submission
    data: bytes | None
    result: SubmissionResult
    exercises: int = 0
    fresh: bool = True


@dataclass(frozen=True)
class _Job:
    """A submission to be judged, the exercises that need not be, and how many times it was tried."""

    submission: Submission
    known: frozenset[str] = frozenset()
    attempt: int = 1


def _judged(
    collected: Collected, folder: Path, workers: int, scheduler: str | None, force: bool
) -> Generator[_Judged, None, None]:
    """Results as they come, in any order."""
    secret = course_secret()
    todo: list[_Job] = []
    for submission in collected.submissions:
        try:
            data = submission.read()
        except CollectError:
            todo.append(_Job(submission))  # perhaps it can be read then
            continue
        previous = None if force else _previous(folder, submission)
        if previous is None:
            todo.append(_Job(submission))
        elif previous.status == "graded" and previous.fingerprint == fingerprint(
            submission.slug, submission.student, data, secret
        ):
            yield _Judged(submission, data, previous, fresh=False)
        else:
            known = still_true(previous, data, secret)
            todo.append(_Job(submission, frozenset(exercise.id for exercise in known)))
    if todo:
        with _executors(workers, scheduler) as crew:
            yield from _run_jobs(todo, crew, folder, secret)


def _run_jobs(todo: Sequence[_Job], crew: _Crew, folder: Path, secret: bytes) -> Iterator[_Judged]:
    """Keep a few jobs in flight, so that memory does not grow with the class."""
    executor = crew.start()
    queue = list(reversed(todo))
    flying = crew.flying
    while queue or flying:
        while queue and len(flying) < crew.window:
            job = queue.pop()
            try:
                data = job.submission.read()
            except CollectError as error:  # a fault of the disk or the download, and perhaps none of the student's
                yield _Judged(job.submission, None, _lost(job.submission, None, str(error)))
                continue
            try:
                flying[_submit(executor, job, data, folder, secret)] = job, data
            except RuntimeError:  # the pool broke; its jobs come back below as failed futures
                queue.append(job)
                break
        done, _ = wait(flying, timeout=5, return_when=FIRST_COMPLETED) if flying else (set(), None)
        broken = bool(queue) and not flying
        for future in done:
            job, data = flying.pop(future)
            exercises = 0
            try:
                result, exercises = future.result()
                result = _of_this_course(result, job.submission, data, secret)
            except Exception as error:
                broken = True
                result = _lost(job.submission, data, f"a worker was lost: {type(error).__name__}: {error}")
            if result.status != "graded" and job.attempt < TRIES:
                queue.append(replace(job, attempt=job.attempt + 1))
            else:
                yield _Judged(job.submission, data, result, exercises)
        if broken or not done:
            crew.check()
        if broken:
            executor = crew.start()


def _submit(
    executor: Executor, job: _Job, data: bytes, folder: Path, secret: bytes
) -> Future[tuple[SubmissionResult, int]]:
    slug, student = job.submission.slug, job.submission.student
    previous = _previous(folder, job.submission) if job.known else None
    known = tuple(e for e in previous.exercises if e.id in job.known) if previous is not None else ()
    return executor.submit(_work, data, slug, student, secret, known)


_one_at_a_time = threading.Lock()


def _work(
    data: bytes, slug: str, student: str, secret: bytes, known: tuple[ExerciseResult, ...]
) -> tuple[SubmissionResult, int]:
    """One submission judged, and how many of its exercises were; runs in a worker."""
    from autograder.grading.judge import judge_notebook  # who sends the jobs out need not load what judges with

    with _one_at_a_time:  # a suite seats one submission, and a Dask worker may have many threads
        settle(slug)
        result = judge_notebook(data, slug, student, secret=secret, known=known)
        kept = sum(any(exercise is other for other in known) for exercise in result.exercises)
        rests_on = basis(slug)
        mark = fingerprint(slug, student, data, secret)
    return replace(result, fingerprint=mark, basis=rests_on), len(result.exercises) - kept


def _of_this_course(result: SubmissionResult, submission: Submission, data: bytes, secret: bytes) -> SubmissionResult:
    """The result, unless the worker's course or libraries are others than ours: then it is nobody's grade."""
    if result.fingerprint == fingerprint(submission.slug, submission.student, data, secret):
        return result
    ours = basis(submission.slug)
    parts = [part for part in ours if result.basis.get(part) != ours[part]]
    remedy = "give it the same files and versions"
    return _lost(submission, data, f"the worker's course differs from this one ({', '.join(parts)}); {remedy}")


def _lost(submission: Submission, data: bytes | None, message: str) -> SubmissionResult:
    total = course.sheet(submission.slug).points
    sha256 = "" if data is None else hashlib.sha256(data).hexdigest()
    return SubmissionResult(
        submission.slug, submission.student, sha256, "", "ungraded", "infrastructure", 0.0, total, 0.0, message=message
    )


@dataclass(frozen=True)
class _Crew:
    """Who does the work: how to start (or restart) them, how much to hand out at once, and whether they are there."""

    start: Callable[[], Executor]
    window: int
    check: Callable[[], None] = lambda: None
    flying: dict[Future[tuple[SubmissionResult, int]], tuple[_Job, bytes]] = field(default_factory=dict)
    """What was handed out and has not come back."""


@contextmanager
def _executors(workers: int, scheduler: str | None) -> Iterator[_Crew]:
    """The workers, all shut down at the end."""
    if scheduler is not None:
        with _cluster(scheduler) as crew:
            yield crew
        return
    pools: list[ProcessPoolExecutor] = []

    def start() -> Executor:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        # Fresh processes: a fork would copy this one's threads' locks and its open gradebook.
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=begin)
        pools.append(pool)
        return pool

    try:
        yield _Crew(start, 2 * workers)
    except BaseException:  # nobody waits for what the workers are in the middle of
        for pool in pools:
            for worker in list((pool._processes or {}).values()):
                worker.terminate()
        raise
    finally:
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _cluster(address: str) -> Iterator[_Crew]:
    """An existing Dask cluster.

    Raises:
        ClusterError: it does not answer, or for a while there has been nobody to do the work.
    """
    from distributed import Client

    again = "then run this again: nothing is lost"
    try:
        client = Client(address, timeout=20)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Dask scheduler answers at {address} ({error}); start it, {again}") from error
    seen = time.monotonic()  # when there was a worker last

    def check() -> None:
        nonlocal seen
        if client.status != "running":
            raise ClusterError(f"the Dask scheduler at {address} is gone; start it, {again}")
        if client.scheduler_info(n_workers=1)["workers"]:
            seen = time.monotonic()
        elif time.monotonic() - seen > DESERTED_SECONDS:
            raise ClusterError(f"the Dask scheduler at {address} has no worker; start some, {again}")

    threads = sum(client.ncores().values())  # type: ignore[no-untyped-call]
    # It outlives its workers: there is nothing to start again. What is "pure" would keep its outcome when tried again.
    executor = client.get_executor(pure=False)  # type: ignore[no-untyped-call]
    crew = _Crew(lambda: executor, 2 * max(threads, 1), check)
    try:
        yield crew
    finally:
        with _unheard("distributed.client", "tornado.application"):
            if client.status == "running":
                executor.shutdown(wait=False)
                wait(crew.flying, timeout=LANDING_SECONDS)
            client.close()  # type: ignore[no-untyped-call]


@contextmanager
def _unheard(*loggers: str) -> Iterator[None]:
    """What a connection says that is cut on purpose would bury the message that matters."""
    silenced = [logger for logger in map(logging.getLogger, loggers) if not logger.disabled]
    for logger in silenced:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in silenced:
            logger.disabled = False


def _previous(folder: Path, submission: Submission) -> SubmissionResult | None:
    path = result_path(folder, submission.slug, submission.student)
    if not path.exists():
        return None
    try:
        return read_result(path)
    except RecordError:
        return None


__all__ = ["Change", "ClusterError", "CollectError", "GradeRun", "RecordError", "Step", "fingerprint", "grade"]
