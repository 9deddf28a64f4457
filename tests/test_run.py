"""What a regrade does: judges what changed and no more, comes to what a full run would, and keeps what people wrote."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from nbgrader.api import Gradebook
from servers import dask_cluster

from autograder import course
from autograder.grading import cache
from autograder.grading import run as run_module
from autograder.grading.intake import MAX_BYTES
from autograder.grading.record import COURSE_ID, database_url
from autograder.grading.result import ExerciseResult, SubmissionResult, TestResult
from autograder.grading.run import TRIES, ClusterError, Step, _change, grade

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("autograder", "solutions", "chapters", "_toc.yml", "nbgrader_config.py", "references.bib")
SUITE, ANSWERS = "autograder/suites/test_additive.py", "autograder/answers/additive.py"
REFERENCE, SHEET = "solutions/additive.py", "chapters/additive/exercises.md"


ATTN = """
import sys
from autograder.cli import main
if __name__ == "__main__":
    try:
        main()
    finally:
        print([name for name in ("torch", "triton", "matplotlib", "pytest") if name in sys.modules], file=sys.stderr)
"""


def copy_of_the_course(folder: Path) -> Path:
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


# ---------------------------------------------------------------------------------------- which exercises are stale


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Callable[[], dict]:
    """A copy of the course that may be changed; call what comes out for the basis of its chapter `additive`."""
    copy_of_the_course(tmp_path)
    monkeypatch.setattr(cache, "TOOL", tmp_path / "autograder")
    monkeypatch.setattr(cache, "ENDINGS", tmp_path / "autograder/answers/endings")
    monkeypatch.setattr(course, "CHAPTERS", tmp_path / "chapters")
    monkeypatch.setattr(course, "SOLUTIONS", tmp_path / "solutions")

    def forget() -> None:
        for remembered in (
            cache.basis,
            cache.recorded_endings,
            cache._module,
            cache._grader,
            course.sheet,
            course.solution,
            course.current_release,
        ):
            remembered.cache_clear()

    def basis() -> dict:
        forget()
        return cache.basis("additive")

    yield basis
    monkeypatch.undo()
    forget()


EVERY = {exercise.name for exercise in course.sheet("additive").exercises}
CHANGES = {
    "a comment": (SUITE, "def softmax_by_loop", "# A remark.\ndef softmax_by_loop", set()),
    "a helper of one exercise": (
        SUITE,
        "v.dot(np.tanh(",
        "v.dot(1 * np.tanh(",
        {"additive_scores"},
    ),
    "a weight": (
        SUITE,
        '@hidden("softmax", kind="property", weight=1',
        '@hidden("softmax", kind="property", weight=3',
        {"softmax", "attend"},
    ),
    "a new test": (
        SUITE,
        "MIB = 2**20\n",
        'MIB = 2**20\n\n\n@hidden("hard_alignment")\ndef test_new(student):\n    """New."""\n',
        {"hard_alignment"},
    ),
    "a statement of the whole suite": (SUITE, "MIB = 2**20\n", "MIB = 2**20\ntorch.manual_seed(0)\n", EVERY),
    "the suites' kit": ("autograder/suites/kit.py", '"float64": 1e-9', '"float64": 2e-9', EVERY),
    "the judge": ("autograder/grading/judge.py", "round(earned, 6)", "round(earned, 7)", EVERY),
    "the sandbox": ("autograder/sandbox/session.py", "MAX_RESPAWNS = 24", "MAX_RESPAWNS = 25", EVERY),
    "a mistake": (ANSWERS, 'by="scores.max()"', 'by="(scores.max())"', {"softmax", "attend"}),
    "how a mistake ends": (
        "autograder/answers/endings/additive.json",
        '"no_max_subtraction": "...F..."',
        '"no_max_subtraction": "...?..."',
        {"softmax", "attend"},
    ),
    "points": (SHEET, '"exercise": "attend", "points": 5', '"exercise": "attend", "points": 6', {"attend"}),
    "a forbidden name": (
        SHEET,
        '"forbids": ["torch.nn.Multihead',
        '"forbids": ["torch.save", "torch.nn.Multihead',
        {"AdditiveAttention", "BahdanauDecoderStep"},
    ),
    "prose": (SHEET, '+++ {"exercise": "attend"', 'One more word.\n\n+++ {"exercise": "attend"', set()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_exactly_those_stale_that_rest_on_it(copied, tmp_path, change):
    file, old, new, stale = CHANGES[change]
    before = copied()
    path = tmp_path / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    after = copied()
    if any(before[part] != after[part] for part in ("grader", "libraries", "given")):
        found = EVERY
    else:
        found = {i.partition("-")[2] for i in after["exercises"] if before["exercises"][i] != after["exercises"][i]}
    assert found == stale


def test_a_reference_makes_all_stale_that_lean_on_it(copied, tmp_path):
    before = copied()
    path = tmp_path / REFERENCE
    text = path.read_text()
    at = text.index("def softmax(")
    body = text.index("    return", at)
    path.write_text(text[:body] + "    scores = scores + 0\n" + text[body:])
    after = copied()
    assert before["given"] == after["given"]
    stale = {i.partition("-")[2] for i in after["exercises"] if before["exercises"][i] != after["exercises"][i]}
    assert {"softmax", "attend"} <= stale
    assert not stale & {"steps_to_connect", "hard_alignment"}


STEADY = (
    "import numpy as np\nBIG = -1e9\ndef f(x, axis=-1):\n    y = x.copy()\n    y[0] = BIG\n    return y",
    "class A:\n    size = 3\n    def __init__(self, n):\n        self.n = n\n    def go(self):\n        self.n += 1",
    "results = [1, 2]\nresults.append(3)\ndef f(x):\n    return [y for y in x]",
)
REMEMBERING = (
    "n = 0\ndef f(x):\n    global n\n    n += 1\n    return n",
    "seen = {}\ndef f(x):\n    seen[1] = x",
    "seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)",
    "def f(x, seen=[]):\n    seen.append(x)\n    return len(seen)",
    "def f(x):\n    f.calls = getattr(f, 'calls', 0) + 1\n    return f.calls",
    "def outer():\n    n = 0\n    def f(x):\n        nonlocal n\n        n += 1\n        return n\n    return f",
    "import numpy as np\nrng = np.random.default_rng(0)\ndef f(x):\n    return rng.normal()",
    "class A:\n    seen = []\n    def go(self, x):\n        self.seen.append(x)",
    "import numpy as np\ndef f(x):\n    np.exp = None",
    "def f(x):\n    setattr(f, 'n', 1)",
)


@pytest.mark.parametrize(("source", "keeps"), [(s, False) for s in STEADY] + [(s, True) for s in REMEMBERING])
def test_a_notebook_that_remembers_calls_is_judged_as_a_whole(source, keeps):
    assert cache.keeps_state([source]) is keeps
    known = [ExerciseResult("additive-softmax", "", "passed", 1.0, 1.0)]
    assert bool(cache.known_still(known, [source])) is not keeps


def test_only_a_sound_result_of_the_same_notebook_and_numbers_is_kept():
    now = cache.basis("additive")
    exercises = tuple(ExerciseResult(i, "", "passed", 1.0, 1.0) for i in now["exercises"])
    seed = cache.student_seed(b"secret", "additive", "s001")
    sha256 = cache.hashlib.sha256(b"data").hexdigest()
    kept = SubmissionResult("additive", "s001", sha256, seed, "graded", "ok", 8, 8, 0.1, exercises, basis=now)
    assert cache.still_true(kept, b"data", b"secret") == exercises
    assert not cache.still_true(kept, b"other", b"secret")
    assert not cache.still_true(kept, b"data", b"another secret")
    assert not cache.still_true(replace(kept, status="ungraded", outcome="infrastructure"), b"data", b"secret")
    assert not cache.still_true(replace(kept, basis={}), b"data", b"secret")
    for outcome, message in (("timeout", ""), ("memory", ""), ("crashed", "its process ended in the middle of a call")):
        test = TestResult("test_x", "", outcome, 0.0, 1.0, message)
        ended = replace(exercises[0], outcome=outcome, tests=(test,))
        assert not cache.still_true(replace(kept, exercises=(ended, *exercises[1:])), b"data", b"secret")
    raised = replace(exercises[0], tests=(TestResult("test_x", "", "crashed", 0.0, 1.0, "it raised ValueError"),))
    assert cache.still_true(replace(kept, exercises=(raised, *exercises[1:])), b"data", b"secret")


def test_a_fault_of_the_grader_is_no_change_of_a_grade():
    result = SubmissionResult("additive", "s001", "", "", "graded", "ok", 8, 8, 0.1)
    assert _change(result, replace(result, status="ungraded", score=0.0)) is None
    assert _change(result, replace(result, seconds=3.0)) is None
    change = _change(result, replace(result, score=7.5, notebook_sha256="other"))
    assert (change.before, change.after) == (8, 7.5)


# -------------------------------------------------------------------------------------------------- a real regrade


def hidden_tests_of(folder: Path, exercise: str) -> set[str]:
    """Names of the hidden tests of one exercise, as the suite's source has them."""
    found = set()
    for node in ast.parse((folder / SUITE).read_text()).body:
        for decorator in getattr(node, "decorator_list", []):
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.args[0]) == repr(exercise):
                found.add(node.name)
    return found


def steady(entry: dict) -> dict:
    return {key: value for key, value in entry.items() if key not in ("seconds", "changed")}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_regrade_after_one_suite_changed(tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    copy_of_the_course(folder)
    # The copy writes down each test that runs on a submission.
    module = folder / "autograder/grading/suite.py"
    given = '        given = {"student": student, "rng": rng}\n'
    note = """        if type(student._transport).__name__ == "Session":
            with open(os.environ["RAN"], "a") as ran:
                print(test.name, file=ran)
"""
    assert module.read_text().count(given) == 1
    module.write_text(module.read_text().replace(given, given + note))
    for student in ("s001", "s004"):
        shutil.copytree(ROOT / "examples/submitted" / student / "additive", tmp_path / "class" / student / "additive")
    ran = tmp_path / "ran"
    (tmp_path / "secret").write_text("5a" * 32)
    environment = os.environ | {
        "RAN": str(ran),
        "PYTHONPATH": str(folder),
        "ATTN_SECRET_FILE": str(tmp_path / "secret"),
    }
    environment.pop("ATTN_DB", None)

    def attn_grade(*options: str, ends: int = 0) -> tuple[str, list[dict], set[str]]:
        ran.write_text("")
        command = [sys.executable, "-c", ATTN, "grade", str(tmp_path / "class"), "--workers", "1"]
        command += ["--json", str(tmp_path / "out.json"), *options]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == ends, done.stdout + done.stderr
        # Who sends jobs out and writes results down does not load what judges: it takes seconds, and a quarter GiB.
        assert done.stderr.split()[-1] == "[]"
        return done.stdout, json.loads((tmp_path / "out.json").read_text()), set(ran.read_text().split())

    everything = {name for exercise in EVERY for name in hidden_tests_of(folder, exercise)}
    _, first, names = attn_grade()
    assert names == everything
    url = f"sqlite:///{folder / 'course' / 'gradebook.db'}"
    with Gradebook(url, COURSE_ID) as book:
        book.find_grade("additive-softmax-tests", "exercises", "additive", "s001").manual_score = 1.5
        book.find_grade("additive-hard_alignment-tests", "exercises", "additive", "s004").manual_score = 0.5
        book.find_comment("additive-softmax", "exercises", "additive", "s001").manual_comment = "Come and see me."
        book.db.commit()

    suite = folder / SUITE
    suite.write_text(
        suite.read_text() + '\n\n@hidden("hard_alignment", kind="edge")\ndef test_nobody_passes(student, rng):\n'
        '    """Never holds."""\n    student.hard_alignment\n    require(False, "This never holds.")\n'
    )
    said, second, names = attn_grade()
    assert names == hidden_tests_of(folder, "hard_alignment")
    assert "2 graded (2 exercises)" in said
    before, after = first[0]["score"], second[0]["score"]
    assert after < before
    line = f"s001 additive: {before:g} → {after:g} (additive-hard_alignment: its suite changed)"
    assert line in " ".join(said.split())
    (exercise,) = second[0]["changed"]["exercises"]
    assert (exercise["id"], exercise["why"]) == ("additive-hard_alignment", ["its suite changed"])
    assert (second[0]["changed"]["before"], second[0]["changed"]["after"]) == (before, after)

    said, third, names = attn_grade("--force")
    assert names == everything | {"test_nobody_passes"}
    assert "→" not in said
    assert [entry["changed"] for entry in third] == [None, None]
    assert [steady(entry) for entry in third] == [steady(entry) for entry in second]

    with Gradebook(url, COURSE_ID) as book:
        kept = book.find_grade("additive-softmax-tests", "exercises", "additive", "s001")
        touched = book.find_grade("additive-hard_alignment-tests", "exercises", "additive", "s004")
        assert (kept.manual_score, kept.needs_manual_grade) == (1.5, False)
        assert touched.manual_score == 0.5
        comment = book.find_comment("additive-softmax", "exercises", "additive", "s001")
        assert comment.manual_comment == comment.comment == "Come and see me."
        assert book.find_submission("additive", "s001").score == pytest.approx(after - 3 + 1.5)

    (tmp_path / "class/s009/additive").mkdir(parents=True)
    os.mkfifo(tmp_path / "class/s009/additive/exercises.ipynb")
    said, fourth, names = attn_grade(ends=1)
    assert not names
    assert "s009 additive: ungraded, " in said
    assert "is no regular file; ask for the notebook itself" in said
    assert [entry["status"] for entry in fourth] == ["graded", "graded", "ungraded"]
    assert [steady(entry) for entry in fourth[:2]] == [steady(entry) for entry in third]


# ------------------------------------------------------------------------------------------------- no fault is a zero


@pytest.fixture
def inbox(tmp_path, monkeypatch) -> Path:
    """A class of five whose files are no notebooks, which needs no jail."""
    (tmp_path / "secret").write_text("5a" * 32)
    monkeypatch.setenv("ATTN_SECRET_FILE", str(tmp_path / "secret"))
    monkeypatch.delenv("ATTN_DB", raising=False)
    for number in range(1, 6):
        notebook_of(tmp_path / "class", number).parent.mkdir(parents=True)
        notebook_of(tmp_path / "class", number).write_text("no notebook")
    return tmp_path / "class"


def notebook_of(folder: Path, number: int) -> Path:
    return folder / f"s{number:03}" / "additive" / "exercises.ipynb"


def scores_in(root: Path) -> dict[str, float]:
    with Gradebook(database_url(root), COURSE_ID) as book:
        return {each.student.id: each.score for assignment in book.assignments for each in assignment.submissions}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_cannot_be_read_any_more_is_ungraded_and_what_is_too_large_is_graded_zero(inbox, tmp_path):
    root = tmp_path / "course"
    with notebook_of(inbox, 5).open("wb") as large:
        large.truncate(MAX_BYTES + 2**20)

    def spoil(step: Step) -> None:
        if step.done == 1:  # one is done, another in the works, and the rest was found and is not read
            notebook_of(inbox, 3).unlink()
            notebook_of(inbox, 4).unlink()
            notebook_of(inbox, 4).mkdir()

    run = grade([inbox], root=root, workers=1, progress=spoil)
    assert run.problems == []
    assert [result.outcome for result in run.results] == [
        *("invalid_notebook", "invalid_notebook", "infrastructure", "infrastructure", "invalid_notebook")
    ]
    assert "more than 40 MiB" in run.results[4].message
    assert [result.student for result in run.ungraded] == ["s003", "s004"]
    for result in run.ungraded:
        assert f"{result.student}/additive/exercises.ipynb: " in result.message
        assert not (root / "submitted" / result.student).exists()
    assert "No such file" in run.ungraded[0].message
    assert "Is a directory" in run.ungraded[1].message
    assert scores_in(root) == {"s001": 0, "s002": 0, "s005": 0}

    notebook_of(inbox, 4).rmdir()
    for number in (3, 4):
        notebook_of(inbox, number).write_text("no notebook")
    run = grade([inbox], root=root, workers=1)
    assert (run.judged, run.reused, len(run.ungraded)) == (2, 3, 0)
    assert scores_in(root) == {f"s{number:03}": 0 for number in range(1, 6)}

    def take_away(step: Step) -> None:
        if step.done == 1:  # nothing has changed, so the next is read only now
            notebook_of(inbox, 3).rename(inbox / "away")
        elif step.done == 4:  # all others are done
            (inbox / "away").rename(notebook_of(inbox, 3))

    run = grade([inbox], root=root, workers=1, progress=take_away)
    assert (run.judged, run.reused, len(run.ungraded)) == (1, 4, 0)


def worker_of(folder: Path, tries: Path) -> Path:
    """A copy of the course for a worker that writes down each try, and breaks down as often as `tries` says."""
    folder.mkdir()
    copy_of_the_course(folder)
    module = folder / "autograder/grading/worker.py"  # what it does is no part of what a grade rests on
    given = "    _load(slug)\n"
    broken = f"""    with open({str(tries)!r}, "r+") as tries:
        faults = int(tries.readline())
        tries.seek(0, 2)
        tries.write("tried\\n")
        tries.seek(0)
        tries.write(str(max(faults - 1, 0)))
    if faults:
        raise OSError("this worker has a cold")
"""
    assert module.read_text().count(given) == 1
    module.write_text(module.read_text().replace(given, broken + given))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_that_fail_or_are_of_another_course_or_are_gone(inbox, tmp_path, monkeypatch):
    """A Dask cluster whose one worker breaks down, then one that has another suite than we, then none."""
    for number in range(2, 6):
        notebook_of(inbox, number).unlink()
    tries = tmp_path / "tries"

    def graded(faults: int, root: str) -> tuple[SubmissionResult, int]:
        tries.write_text(f"{faults}\n")
        (result,) = grade([inbox], root=tmp_path / root, scheduler=cluster.address).results
        return result, tries.read_text().count("tried")

    monkeypatch.setenv("PYTHONPATH", str(worker_of(tmp_path / "sick", tries)))
    with dask_cluster(tmp_path / "dask", 1) as cluster:
        result, tried = graded(TRIES, "once")
        assert (result.status, result.outcome, tried) == ("ungraded", "infrastructure", TRIES)
        assert "a worker was lost: OSError: this worker has a cold" in result.message
        result, tried = graded(TRIES - 1, "once")  # the last try succeeds
        assert (result.status, result.outcome, tried) == ("graded", "invalid_notebook", TRIES)

        suite = worker_of(tmp_path / "other", tries) / SUITE
        suite.write_text(suite.read_text().replace("MIB = 2**20\n", "MIB = 2**10\n"))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
        cluster.workers[0].kill()
        cluster.workers[0].wait()
        cluster.add_worker()
        cluster.wait_for_workers(1)
        result, tried = graded(0, "twice")
        assert (result.status, result.outcome, tried) == ("ungraded", "infrastructure", TRIES)
        assert "the worker's course differs from this one (exercises)" in result.message
        assert scores_in(tmp_path / "twice") == {}

        cluster.workers[1].kill()
        cluster.workers[1].wait()
        monkeypatch.setattr(run_module, "DESERTED_SECONDS", 2)
        monkeypatch.setattr(run_module, "LANDING_SECONDS", 0.1)
        with pytest.raises(ClusterError, match="has no worker; start some, then run this again: nothing is lost"):
            graded(0, "never")
