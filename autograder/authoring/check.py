"""The author's judge: proves that the hidden suites judge well, chapter by chapter.

For every exercise: the reference and each alternative pass, the untouched stub is "not attempted", every named mistake
fails and its feedback names it, and no degenerate answer earns a point; over several seeds, with margin at every
numeric gate, through the very jail in which students' work is graded. And what is right by itself is right in a whole
notebook too, among the examples and the other answers.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from typing import Any

import nbformat

from autograder import course
from autograder.answers import Answer, shelf
from autograder.authoring.build import build, instructor_notebook, marked
from autograder.course import Exercise
from autograder.grading import diagnose, endings
from autograder.grading.judge import forbidden_result, judge_exercises, run_tests, score
from autograder.grading.result import ExerciseResult
from autograder.grading.secret import seed_of
from autograder.grading.suite import Verdict, suite
from autograder.grading.worker import begin, settle, sweep
from autograder.sandbox.session import Session
from ext.judged import mark

KERNEL_SHARE = 0.4  # of the seeds, for exercises with Triton kernels: the interpreter takes milliseconds for every tile
TOGETHER = 5  # seeds judged in one process: its CPU time is limited to what one submission may use
OFTEN, FEW = 100, 10  # numbers with which recording tries a test, and a cost
PATIENCE = 1.0  # CPU seconds after which fewer numbers are enough
MIN_MISTAKES, MEAN_MISTAKES = 5, 8.0

# Answers that know nothing. Each keeps the reference's call: shapes and dtypes are right, only the values are not.
DEGENERATE = {
    "none": "None",
    "echo": "_args[0] if _args else next(iter(_kwargs.values()), None)",
    "zeros": "_fill(_out(), 0.0)",
    "ones": "_fill(_out(), 1.0)",
    "nan": "_fill(_out(), float('nan'))",
}
_FILL = """
def _fill(value, number):
    import numpy, torch
    if isinstance(value, (tuple, list)):
        return type(value)(_fill(item, number) for item in value)
    if isinstance(value, torch.Tensor):
        return torch.full_like(value, number) if value.is_floating_point() else torch.zeros_like(value) + (number == 1)
    if isinstance(value, (numpy.ndarray, numpy.generic)):
        whole = value.dtype.kind in "biu"
        return numpy.full_like(value, (1 if number == 1 else 0) if whole else number)
    if isinstance(value, (int, float)):
        return type(value)(number) if number == number else number
    return number if type(value).__module__.startswith("triton") else value
"""


@dataclass
class ExerciseCheck:
    """What the judge found about one exercise."""

    id: str
    points: float
    seeds: int = 0
    reference: str = "missing"
    alternatives: list[dict[str, Any]] = field(default_factory=list)
    stub: str = "missing"
    mistakes: list[dict[str, Any]] = field(default_factory=list)
    degenerate: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CheckReport:
    """The judge's report over all chapters asked for."""

    exercises: tuple[ExerciseCheck, ...]
    problems: tuple[str, ...]
    seeds: int
    judged: Mapping[str, str] = field(default_factory=dict)
    """Digests of what was judged, by chapter (`ext.judged`): so a record tells whether it has changed since."""

    @property
    def caught(self) -> int:
        """Mistakes that failed and were named."""
        return sum(m["caught"] and m["named"] for e in self.exercises for m in e.mistakes)

    @property
    def total(self) -> int:
        """All named mistakes."""
        return sum(len(e.mistakes) for e in self.exercises)

    @property
    def holds(self) -> bool:
        """Whether everything that is to be proved is."""
        return not self.problems and not any(exercise.problems for exercise in self.exercises)

    def as_json(self) -> dict[str, Any]:
        """Schema 1 of ``attn check --json``."""
        return {
            "schema": 1,
            "exercises": [asdict(exercise) for exercise in self.exercises],
            "caught": self.caught,
            "total": self.total,
            "seeds": self.seeds,
            "judged": dict(self.judged),
            "problems": list(self.problems),
        }


def check(
    slugs: Sequence[str],
    *,
    seeds: int = 5,
    workers: int = 2,
    recording: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> CheckReport:
    """Judge these chapters.

    Args:
        slugs: chapters.
        seeds: how many different sets of hidden numbers each answer meets; fewer where there are kernels
            (``KERNEL_SHARE``).
        workers: processes.
        recording: write down how the mistakes of exercises without problems end, instead of comparing it with what
            is on record.
        progress: called with an exercise's id when it is done.
    """
    from autograder.authoring.coverage import coverage_problems
    from autograder.authoring.leaks import leak_problems

    problems: list[str] = []
    judged = {slug: mark(slug, course.ROOT) for slug in slugs}
    exercises = [exercise for slug in slugs for exercise in course.sheet(slug).exercises]
    for slug in slugs:
        problems += [f"{slug}: {problem}" for problem in _chapter_problems(slug)]
        problems += [f"{slug}: {problem}" for problem in coverage_problems(slug)]
    problems += leak_problems(slugs)
    done: dict[str, ExerciseCheck] = {}
    with _pool(workers) as pool:
        whole = [pool.submit(notebook_problems, slug) for slug in slugs]
        # The dearest, kernels and late chapters, come first: else a worker stands idle while another is busy with one.
        ordered = sorted(exercises, key=_has_kernels)[::-1]
        jobs = {pool.submit(check_exercise, e.slug, e.name, _seeds_for(e, seeds), recording): e for e in ordered}
        for job in as_completed(jobs):
            done[jobs[job].id] = job.result()
            progress(jobs[job].id)
        for notebook in whole:
            problems += notebook.result()
    if recording:
        for slug in slugs:
            sound = [e for e in exercises if e.slug == slug and not done[e.id].problems]
            endings.record(slug, {exercise: _endings_of(exercise, done[exercise.id]) for exercise in sound})
    return CheckReport(tuple(done[exercise.id] for exercise in exercises), tuple(problems), seeds, judged)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that are stopped in the middle of their work when the block is left by an exception."""
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=begin)
    try:
        yield pool
    except BaseException:
        for worker in list(pool._processes.values()):
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _has_kernels(exercise: Exercise) -> bool:
    return bool(course.solution(exercise.slug).definitions[exercise.name].kernels)


def _seeds_for(exercise: Exercise, seeds: int) -> int:
    return max(1, round(seeds * KERNEL_SHARE)) if _has_kernels(exercise) else seeds


def _chapter_problems(slug: str) -> Iterator[str]:
    if not build(slug, check=True).up_to_date:
        yield f"chapters/{slug}/exercises.ipynb is not what its sources make; run `attn build {slug}`"
    mistakes = [len(shelf(slug).mistakes.get(e.name, [])) for e in course.sheet(slug).exercises]
    if mistakes and sum(mistakes) / len(mistakes) < MEAN_MISTAKES:
        mean = sum(mistakes) / len(mistakes)
        yield f"{mean:.1f} named mistakes an exercise on average; {MEAN_MISTAKES:g} are asked for"
    known = {exercise.name for exercise in course.sheet(slug).exercises}
    for name in (set(suite(slug).tests) | set(shelf(slug).mistakes) | set(shelf(slug).alternatives)) - known:
        yield f"{name} has tests or answers, but chapters/{slug}/exercises.md has no such exercise"


def notebook_problems(slug: str) -> list[str]:
    """What is wrong when right answers are handed in together, in the notebook that students work in."""
    from autograder.grading.intake import read_notebook

    problems = []
    exercises = course.sheet(slug).exercises
    handed_in = nbformat.writes(instructor_notebook(slug)).encode()
    cells = read_notebook(handed_in, slug, course.given_cells(slug)).cells
    with Session(cells) as session:
        for result in judge_exercises(session, cells, exercises, _seeds(slug, 0)):
            if result.outcome != "passed":
                problems.append(
                    f"{slug}: in a notebook of references {result.id} is {result.outcome}. {result.message}"
                )
        for exercise in exercises:
            original = marked(course.solution(slug).definitions[exercise.name])
            for answer in shelf(slug).alternatives.get(exercise.name, []):
                other = [answer.source if cell == original else cell for cell in cells]
                ruled_out = forbidden_result(exercise, other, session)
                if ruled_out is not None:
                    name = f"alternative {answer.name} of {exercise.id}"
                    problems.append(f"{slug}: in a whole notebook {name} is ruled out. {ruled_out.message}")
    return problems


def check_exercise(slug: str, name: str, seeds: int, recording: bool = False) -> ExerciseCheck:
    """Judge one exercise: every answer on the shelf, over several seeds."""
    settle(slug)
    exercise = next(e for e in course.sheet(slug).exercises if e.name == name)
    found = ExerciseCheck(exercise.id, exercise.points, seeds)
    found.problems += _static_problems(exercise)
    module = course.solution(slug)
    original = module.definitions[name].source
    found.reference = _right(exercise, "reference", original, seeds, found)
    for answer in shelf(slug).alternatives.get(name, []):
        outcome = _right(exercise, f"alternative {answer.name}", answer.source, seeds, found)
        found.alternatives.append({"name": answer.name, "outcome": outcome})
    found.stub = _stub(exercise, found)
    known = endings.NOTHING if recording else endings.endings(exercise)
    for answer in shelf(slug).mistakes.get(name, []):
        row, letters = _wrong(exercise, answer, seeds, found, known)
        if recording and not _has_kernels(exercise):
            letters = {test: _tried(exercise, answer, test, letter) for test, letter in letters.items()}
        found.mistakes.append(row | {"endings": letters})
    for label, expression in DEGENERATE.items():
        cells = [module.text, _FILL + _degenerate(exercise, expression)]
        scores = [r.score for r in _judged(exercise, cells, seeds)]
        found.degenerate[label] = max(scores)
        if max(scores) > 0:
            found.problems.append(f"the answer {label!r} earns {max(scores):g} of {exercise.points:g} points")
    if known is endings.NOTHING and not recording and not found.problems:  # else it waits until they are mended
        found.problems.append(
            "how its mistakes end, as they are now, is not on record, so grading names them slowly; "
            f"`attn check {slug} --record` writes it down"
        )
    return found


def _judged(exercise: Exercise, cells: Sequence[str], seeds: int) -> Iterator[ExerciseResult]:
    settle(exercise.slug)
    for seed, session in _sessions(cells, seeds):
        yield judge_exercises(session, cells, [exercise], _seeds(exercise.slug, seed))[0]


def _sessions(cells: Sequence[str], seeds: int) -> Iterator[tuple[int, Session]]:
    """Each seed with a process in which the cells ran; a few seeds share one."""
    for first in range(0, seeds, TOGETHER):
        with Session(cells) as session:
            for seed in range(first, min(first + TOGETHER, seeds)):
                sweep()
                yield seed, session


def _seeds(slug: str, seed: int) -> Callable[[str], int]:
    return lambda test: seed_of(b"check", slug, str(seed), test)


def _cells_with(exercise: Exercise, source: str) -> list[str]:
    """The reference module with one definition replaced, as a notebook's cells."""
    module = course.solution(exercise.slug)
    return [module.text.replace(module.definitions[exercise.name].source, source)]


def _right(exercise: Exercise, label: str, source: str, seeds: int, found: ExerciseCheck) -> str:
    cells = _cells_with(exercise, source)
    outcome = "passed"
    for seed, verdicts, result in _runs(exercise, cells, seeds):
        if result.outcome == "forbidden":
            found.problems.append(f"{label} is ruled out: {result.message}")
            return "forbidden"
        for verdict in verdicts:
            if verdict.outcome != "passed":
                outcome = verdict.outcome
                detail = verdict.message or (repr(verdict.run.error) if verdict.run else "")
                found.problems.append(f"{label} fails {verdict.test.name} at seed {seed}: {detail}")
            if outcome == "passed":
                found.problems += _narrow(label, verdict, f"at seed {seed}")
    if outcome == "passed":
        found.problems += _alone(exercise, label, cells)
    return outcome


def _narrow(label: str, verdict: Verdict, where: str) -> Iterator[str]:
    for gauge in verdict.run.gauges if verdict.run else ():
        if gauge.ratio * endings.MARGIN > 1:
            yield (
                f"{label} passes {verdict.test.name} by too little {where}: "
                f"{gauge.what} reaches {gauge.ratio:.2f} of its limit"
            )


def _alone(exercise: Exercise, label: str, cells: Sequence[str]) -> Iterator[str]:
    """What a right answer's first call costs: its process is a new one too after another exercise has ended it."""
    hidden, where = suite(exercise.slug), "in a process that has done nothing before"
    for test in hidden.tests.get(exercise.name, []):
        if test.mark.kind == "cost":
            with Session(cells) as session:
                (verdict,) = run_tests(hidden, [test], session, _seeds(exercise.slug, 0))
            if verdict.outcome != "passed":
                yield f"{label} fails {test.name} {where}: {verdict.message}"
            yield from _narrow(label, verdict, where)


def _wrong(
    exercise: Exercise, answer: Answer, seeds: int, found: ExerciseCheck, known: endings.Endings
) -> tuple[dict[str, Any], endings.Letters]:
    caught = named = True
    seen: list[Verdict] = []
    for seed, verdicts, result in _runs(exercise, _cells_with(exercise, answer.source), seeds):
        seen += verdicts
        if result.outcome == "passed":
            caught = named = False
            found.problems.append(f"mistake {answer.name} passes at seed {seed}")
        elif endless := [verdict.test.name for verdict in verdicts if verdict.outcome == "timeout" and verdict.run]:
            named = False
            found.problems.append(
                f"mistake {answer.name} does not end in {', '.join(endless)} at seed {seed}: what does not end has no "
                "name, and its replays hold up the diagnosis of others; have it return something wrong, or raise"
            )
        elif result.mistake != answer.name:
            named = False
            tests = ", ".join(f"{t.name} {t.outcome}" for t in result.tests if t.outcome != "passed")
            found.problems.append(f"mistake {answer.name} is named {result.mistake} at seed {seed} ({tests})")
        for verdict in verdicts:
            if verdict.run and not known.may_be(answer.name, verdict) and not known.may_mislead:
                found.problems.append(
                    f"mistake {answer.name}: {verdict.test.name} is {verdict.outcome} at seed {seed}, and another "
                    f"ending is on record; `attn check {exercise.slug} --record` writes it anew"
                )
            for gauge in verdict.run.gauges if verdict.run and verdict.outcome == "failed" else ():
                if 1 < gauge.ratio < endings.MARGIN:
                    found.problems.append(
                        f"mistake {answer.name} fails {verdict.test.name} by too little at seed {seed}: "
                        f"{gauge.what} reaches {gauge.ratio:.2f} of its limit"
                    )
    return {"name": answer.name, "caught": caught, "named": named}, endings.together(seen)


def _tried(exercise: Exercise, answer: Answer, name: str, letter: str) -> str:
    """The letter of a mistake's ending in a test, if it ends so with many more numbers too: a few may agree by chance.

    The numbers are tried in this process. Costs are read otherwise here, so of a cost only whether its ending changes
    from one to the next tells anything, and a few numbers show that.
    """
    (test,) = (test for test in suite(exercise.slug).tests[exercise.name] if test.name == name)
    cost = test.mark.kind == "cost"
    outcomes = {outcome for outcome, sign in endings.LETTERS.items() if sign == letter and not cost}
    begin = time.process_time()
    for tries in range(FEW if cost else OFTEN):
        if letter == endings.UNSURE or (tries == endings.MANY and time.process_time() - begin > PATIENCE):
            break
        seed = seed_of(b"often", exercise.slug, str(tries), name)
        outcomes.add(diagnose.own_verdict(exercise, answer, test, seed).outcome)
        if len(outcomes) > 1:
            return endings.UNSURE
    return letter


def _endings_of(exercise: Exercise, found: ExerciseCheck) -> endings.Endings:
    letters = {mistake["name"]: mistake["endings"] for mistake in found.mistakes}
    return endings.Endings(letters, found.seeds if _has_kernels(exercise) else endings.MANY)


def _runs(
    exercise: Exercise, cells: Sequence[str], seeds: int
) -> Iterator[tuple[int, Sequence[Verdict], ExerciseResult]]:
    """One answer judged as a student's is, seed by seed, with what each test saw."""
    hidden = suite(exercise.slug)
    settle(exercise.slug)
    for seed, session in _sessions(cells, seeds):
        if seed == 0 and (ruled_out := forbidden_result(exercise, cells, session)) is not None:
            yield 0, (), ruled_out
            return
        numbers = _seeds(exercise.slug, seed)
        verdicts = run_tests(hidden, hidden.tests.get(exercise.name, []), session, numbers)
        yield seed, verdicts, score(exercise, verdicts, numbers, session, cells, [])


def _stub(exercise: Exercise, found: ExerciseCheck) -> str:
    """The released notebook as students get it: every exercise not attempted, no point."""
    from autograder.grading.intake import read_notebook

    released = (course.CHAPTERS / exercise.slug / "exercises.ipynb").read_bytes()
    cells = read_notebook(released, exercise.slug, course.given_cells(exercise.slug)).cells
    with Session(cells) as session:
        result = judge_exercises(session, cells, [exercise], _seeds(exercise.slug, 0))[0]
        for fault in session.faults.values():
            found.problems.append(f"cell {fault.cell} of the untouched notebook does not run: {fault.error}")
    if result.outcome != "not_attempted" or result.score:
        found.problems.append(f"the untouched stub is {result.outcome} with {result.score:g} points")
    notebook = instructor_notebook(exercise.slug)
    identity = f"{exercise.id}-tests"
    checks = next(c.source for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == identity)
    for label, head, wanted in (
        ("reference", [course.solution(exercise.slug).text], False),
        ("stub", list(cells), True),
    ):
        with Session([*head, checks]) as session:
            failed = len(head) in session.faults
        if failed != wanted:
            found.problems.append(f"the visible checks {'reject' if failed else 'accept'} the {label}")
    return result.outcome


def _degenerate(exercise: Exercise, expression: str) -> str:
    """Source that puts an answer which knows nothing in the place of the reference."""
    name = exercise.name
    node = course.solution(exercise.slug).definitions[name].node
    if isinstance(node, ast.FunctionDef):
        return (
            f"_right = {name}\n"
            f"def {name}(*_args, **_kwargs):\n"
            f"    _out = lambda: _right(*_args, **_kwargs)\n"
            f"    return {expression}\n"
        )
    methods = [m.name for m in node.body if isinstance(m, ast.FunctionDef) and m.name != "__init__"]
    body = "".join(
        f"    def {method}(self, *_args, **_kwargs):\n"
        f"        _out = lambda: super({name}, self).{method}(*_args, **_kwargs)\n"
        f"        return {expression}\n"
        for method in methods
    )
    return f"_right = {name}\nclass {name}(_right):\n{body}"


def _static_problems(exercise: Exercise) -> Iterator[str]:
    slug, name = exercise.slug, exercise.name
    node = course.solution(slug).definitions[name].node
    docstring = ast.get_docstring(node) or ""
    if isinstance(node, ast.ClassDef):
        docstring += "".join(ast.get_docstring(m) or "" for m in node.body if isinstance(m, ast.FunctionDef))
    if "Args:" not in docstring or "Returns:" not in docstring:
        yield f"the docstring of {name} needs Args and Returns with shapes"
    if "Source:" not in docstring:
        yield f"the docstring of {name} names no source"
    checks = next(cell.source for cell in exercise.cells if cell.kind == "checks")
    if "assert" not in checks:
        yield "the visible checks assert nothing"
    hints = next(cell.source for cell in exercise.cells if cell.kind == "hints")
    if sum(line[:2] in ("1.", "2.", "3.") for line in hints.splitlines()) != 3:
        yield "the hint ladder needs three steps"
    tests = suite(slug).tests.get(name, [])
    if not any(test.mark.kind == "value" for test in tests):
        yield "no hidden value test"
    if not any(test.mark.kind != "value" for test in tests):
        yield "no hidden test of a property, gradient, edge case or cost"
    kinds = [test.mark.kind == "value" for test in tests]
    if kinds != sorted(kinds, reverse=True):
        yield "value tests must come first"
    if len(shelf(slug).mistakes.get(name, [])) < MIN_MISTAKES:
        yield f"{len(shelf(slug).mistakes.get(name, []))} named mistakes; {MIN_MISTAKES} are asked for"
    if not shelf(slug).alternatives.get(name):
        yield "no alternative answer"
    for answer in shelf(slug).mistakes.get(name, []):
        if not answer.says.strip() or not answer.hint.strip():
            yield f"mistake {answer.name} has no words for the student"
