"""Judges one submission: runs the hidden tests against it, scores, and names the mistake behind a failure."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from autograder import course
from autograder.course import Exercise
from autograder.grading import diagnose
from autograder.grading.alone import Doubt, Surroundings
from autograder.grading.cache import disturbs, known_still
from autograder.grading.forbidden import Finding, forbidden_calls
from autograder.grading.intake import InvalidNotebook, read_notebook
from autograder.grading.reading import Reach, read
from autograder.grading.result import ExerciseResult, SubmissionResult, TestResult
from autograder.grading.secret import course_secret, own_seed, seed_of, student_seed
from autograder.grading.suite import HiddenTest, Run, Suite, Verdict, suite
from autograder.sandbox import native
from autograder.sandbox.errors import SandboxUnavailable, StudentError
from autograder.sandbox.jail import Limits
from autograder.sandbox.session import CellFault, Session
from autograder.sandbox.student import Journal, Student
from autograder.suites.kit import Wrong

Seeds = Callable[[str], int]


def judge_notebook(
    data: bytes,
    slug: str,
    student: str,
    *,
    secret: bytes | None = None,
    limits: Limits | None = None,
    known: Iterable[ExerciseResult] = (),
) -> SubmissionResult:
    """Grade one notebook.

    Args:
        data: the notebook file.
        slug: the assignment.
        student: the student's id; hidden numbers depend on it.
        secret: the course secret (by default the one kept beside the course).
        limits: of the jail.
        known: results of exercises that need not be judged again.

    Returns:
        The result; a notebook that cannot be read scores 0, a fault of the grader leaves it ungraded.
    """
    secret = course_secret() if secret is None else secret
    start = time.perf_counter()
    exercises = course.sheet(slug).exercises
    total = course.sheet(slug).points
    seed = student_seed(secret, slug, student)

    def result(status: str, outcome: str, graded: Sequence[ExerciseResult], **more: object) -> SubmissionResult:
        seconds = round(time.perf_counter() - start, 3)
        score = round(sum(exercise.score for exercise in graded), 6)
        return SubmissionResult(
            slug,
            student,
            sha256,
            seed,
            status,
            outcome,
            score,
            total,
            seconds,
            tuple(graded),
            **more,  # type: ignore[arg-type]
        )

    sha256 = hashlib.sha256(data).hexdigest()
    try:
        notebook = read_notebook(data, slug, course.given_cells(slug))
    except InvalidNotebook as error:
        blank = [_blank(exercise, "invalid_notebook", str(error)) for exercise in exercises]
        return result("graded", "invalid_notebook", blank, message=str(error))
    try:
        graded = _judged(
            notebook.cells,
            exercises,
            lambda test: seed_of(secret, slug, student, test),
            limits,
            known_still(known, notebook.cells),
        )
    except SandboxUnavailable as error:
        return result(
            "ungraded", "infrastructure", [_blank(e, "infrastructure") for e in exercises], message=str(error)
        )
    found = (*_notes(slug, notebook.release), *native.notes(notebook.cells, [exercise.name for exercise in exercises]))
    return result("graded", "ok", graded, release=notebook.release, notes=found)


def _judged(
    cells: Sequence[str],
    exercises: Sequence[Exercise],
    seeds: Seeds,
    limits: Limits | None,
    known: Mapping[str, ExerciseResult],
) -> list[ExerciseResult]:
    """The exercises judged in a process of their own, all but those that are known."""
    if all(exercise.id in known for exercise in exercises):
        return [known[exercise.id] for exercise in exercises]
    with Session(cells, limits) as session:
        code = read(cells, session.faults)
        graded = judge_exercises(session, cells, exercises, seeds, known, code)
    if known and any(map(disturbs, graded)):  # judged together, the others would have felt it
        return _judged(cells, exercises, seeds, limits, {})
    around = Surroundings(code, exercises[0].slug)
    return [
        result if exercise.id in known else _second_look(result, exercise, code, around, seeds, limits)
        for exercise, result in zip(exercises, graded, strict=True)
    ]


def _second_look(
    result: ExerciseResult, exercise: Exercise, code: Reach, around: Surroundings, seeds: Seeds, limits: Limits | None
) -> ExerciseResult:
    """The result of an exercise as far as it owes nothing to the rest of the notebook, good or bad.

    A first try may stand there with the library, and the right answer in a cell that ends with an error. With each
    statement in a cell of its own it shows which of the two holds, and that one is judged.
    """
    if result.outcome == "forbidden" and code.is_open:
        numbers, cells = zip(*around.apart(), strict=True)
        with Session(cells, limits) as session:
            code = read(cells, session.faults)
            (result,) = judge_exercises(session, cells, [exercise], seeds, code=code)
        around = Surroundings(code, exercise.slug, numbers)
    return _beyond_doubt(result, exercise, around, seeds, limits)


def _beyond_doubt(
    result: ExerciseResult, exercise: Exercise, around: Surroundings, seeds: Seeds, limits: Limits | None
) -> ExerciseResult:
    """The result of an exercise, or what it is worth by itself if the rest of the notebook could have changed it."""
    if not result.score or not (doubts := around.doubts(exercise)):
        return result
    cells = around.without(exercise)
    with Session(cells, limits) as session:
        (alone,) = judge_exercises(session, cells, [exercise], seeds)
    if alone.score >= result.score:
        return result
    return replace(alone, message=f"{_in_doubt(doubts)} {alone.message}".strip())


def _in_doubt(doubts: Sequence[Doubt]) -> str:
    first = doubts[0]
    return (
        f"Code cell {first.cell} of your notebook has what this exercise may not use: {first.what}. Its own code does "
        "not use that, but could be changed by it, so the exercise was judged without."
    )


def _notes(slug: str, release: str | None) -> tuple[str, ...]:
    """What instructor and student should know about the notebook as a whole."""
    if release is not None and release != course.current_release(slug):
        return ("This notebook is of another release of the exercises than the one that is graded here.",)
    return ()


def _blank(exercise: Exercise, outcome: str, message: str = "") -> ExerciseResult:
    return ExerciseResult(exercise.id, exercise.title, outcome, 0.0, exercise.points, message=message)


def judge_exercises(
    session: Session,
    cells: Sequence[str],
    exercises: Sequence[Exercise],
    seeds: Seeds,
    known: Mapping[str, ExerciseResult] | None = None,
    code: Reach | None = None,
) -> list[ExerciseResult]:
    """Judge these exercises of a running submission, and take over those that are known.

    ``code`` is what the source check reads in the cells, where that was done already.
    """
    results: list[ExerciseResult] = []
    code = code or read(cells, session.faults)
    for exercise in exercises:
        if known and exercise.id in known:
            results.append(known[exercise.id])
            continue
        ruled_out = forbidden_result(exercise, cells, session, code)
        if ruled_out is not None:
            results.append(ruled_out)
            continue
        hidden = suite(exercise.slug)
        verdicts = run_tests(hidden, hidden.tests.get(exercise.name, []), session, seeds)
        results.append(score(exercise, verdicts, seeds, session, cells, results))
    return results


def forbidden_result(
    exercise: Exercise, cells: Sequence[str], session: Session, code: Reach | None = None
) -> ExerciseResult | None:
    """The result of an exercise whose code reaches what its contract rules out, or None.

    Args:
        exercise: the exercise.
        cells: the notebook's code cells.
        session: in which they ran.
        code: the cells as the source check reads them, where that was done already.
    """
    code = code or read(cells, session.faults)
    findings = forbidden_calls(code, exercise.name, exercise.forbids, _judged_alike(exercise))
    return _forbidden(exercise, suite(exercise.slug), findings) if findings else None


def _judged_alike(exercise: Exercise) -> list[str]:
    """Exercises that this one may call and that rule out at least as much: a forbidden call costs theirs alone."""
    others = course.sheet(exercise.slug).exercises
    return [o.name for o in others if o.name in exercise.uses and set(o.forbids) >= set(exercise.forbids)]


def run_tests(hidden: Suite, tests: Sequence[HiddenTest], session: Session, seeds: Seeds) -> list[Verdict]:
    """Run an exercise's tests in order; after a timeout, or the death of the process, the rest is not run."""
    verdicts: list[Verdict] = []
    ended: tuple[str, str] | None = None
    for test in tests:
        if ended is not None:
            verdicts.append(Verdict(test, ended[0], ended[1], None, Journal()))
            continue
        session.allow(test.mark.seconds)
        seed = seeds(test.name)
        student, before = Student(session, own_seed(seed)), session.cpu_seconds
        run = hidden.run(test, student, np.random.default_rng(seed))
        outcome, message = outcome_of(run)
        verdicts.append(Verdict(test, outcome, message, run, student.journal, session.cpu_seconds - before))
        if outcome == "timeout":
            ended = ("timeout", "not run, because an earlier test of this exercise reached its time limit")
        elif outcome != "passed" and not session.alive:
            # Each death costs a new process, and an exercise must not use up what the others need.
            ended = (outcome, "not run, because its process ended in an earlier test of this exercise")
        elif outcome == "not_attempted" and len(verdicts) == 1:
            ended = ("not_attempted", "")
    return verdicts


def outcome_of(run: Run) -> tuple[str, str]:
    """Outcome and message of one run.

    Raises:
        SandboxUnavailable: the sandbox broke.
    """
    error = run.error
    if error is None:
        return "passed", ""
    if isinstance(error, SandboxUnavailable):
        raise error
    if isinstance(error, Wrong):
        return "failed", str(error)
    if isinstance(error, StudentError):
        return error.outcome, str(error)
    # Suites take values apart (`a, b = student.f(x)`, `weights.sum()`), so a value of the wrong kind surfaces here.
    return "failed", "what came back could not be used as the contract describes it"


def score(
    exercise: Exercise,
    verdicts: Sequence[Verdict],
    seeds: Seeds,
    session: Session,
    cells: Sequence[str],
    before: Sequence[ExerciseResult],
) -> ExerciseResult:
    """Points of one exercise: value tests first; the others count only if all of those passed."""
    weights = sum(verdict.test.mark.weight for verdict in verdicts) or 1.0
    sound = all(verdict.outcome == "passed" for verdict in verdicts if verdict.test.mark.kind == "value")
    tests = []
    earned = 0.0
    for verdict in verdicts:
        most = exercise.points * verdict.test.mark.weight / weights
        earns = verdict.outcome == "passed" and (sound or verdict.test.mark.kind == "value")
        message = verdict.message
        if verdict.outcome == "passed" and not earns:
            message = "holds; it earns its points once the values are right"
        hint = verdict.test.mark.hint if verdict.outcome != "passed" else ""
        points = most if earns else 0.0
        earned += points
        tests.append(
            TestResult(
                verdict.test.name, verdict.test.claim, verdict.outcome, round(points, 6), round(most, 6), message, hint
            )
        )
    outcome = next((test.outcome for test in tests if test.outcome != "passed"), "passed")
    if outcome == "not_attempted" and (fault := _defining_fault(exercise, session, cells)) is not None:
        outcome = fault.outcome if fault.outcome in ("timeout", "memory") else outcome
    named = None
    if outcome not in ("passed", "not_attempted"):
        named = diagnose.name_mistake(exercise, verdicts, seeds)
    return ExerciseResult(
        exercise.id,
        exercise.title,
        outcome,
        exercise.points if outcome == "passed" else round(earned, 6),
        exercise.points,
        named.name if named else None,
        named.says if named else None,
        named.hint if named else None,
        _remark(exercise, outcome, session, cells, before),
        tuple(tests),
    )


def _remark(
    exercise: Exercise, outcome: str, session: Session, cells: Sequence[str], before: Sequence[ExerciseResult]
) -> str:
    """What a student should know beside the tests: a cell that did not run, or a broken exercise that this one uses."""
    if outcome == "passed":
        return ""
    if (fault := _defining_fault(exercise, session, cells)) is not None:
        return _fault(fault)
    broken = [r.id.partition("-")[2] for r in before if r.outcome != "passed"]
    used = [name for name in exercise.uses if name in broken]
    if outcome != "not_attempted" and used:
        names = " and ".join(f"`{name}`" for name in used)
        return f"Not right yet, and of use here: {names}. If your code calls it, mend that first."
    return ""


def _defining_fault(exercise: Exercise, session: Session, cells: Sequence[str]) -> CellFault | None:
    """Why the cell that defines an exercise did not run to its end, if it did not."""
    for index, source in enumerate(cells):
        if index in session.faults and _defines(source, exercise.name):
            return session.faults[index]
    return None


def _defines(source: str, name: str) -> bool:
    return f"def {name}(" in source or f"class {name}(" in source or f"class {name}:" in source


def _fault(fault: CellFault) -> str:
    place = f" (line {fault.line})" if fault.line is not None else ""
    return f"The cell that defines it did not run to its end: {fault.error}{place}."


def _forbidden(exercise: Exercise, hidden: Suite, findings: Sequence[Finding]) -> ExerciseResult:
    names = sorted({finding.name for finding in findings})
    message = f"Your code uses {', '.join(f'`{n}`' for n in names)}, which this exercise's contract rules out."
    weights = sum(test.mark.weight for test in hidden.tests.get(exercise.name, [])) or 1.0
    tests = tuple(
        TestResult(test.name, test.claim, "forbidden", 0.0, round(exercise.points * test.mark.weight / weights, 6))
        for test in hidden.tests.get(exercise.name, [])
    )
    return ExerciseResult(exercise.id, exercise.title, "forbidden", 0.0, exercise.points, message=message, tests=tests)
