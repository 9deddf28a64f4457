"""The author's judge is judged: each defect of a small course is reported, and a sound exercise is not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autograder.authoring.check import _sessions, check_exercise
from autograder.sandbox.student import Student

ROOT = Path(__file__).resolve().parent.parent

# Exercises that ask for the same thing. The first is sound; each of the others has a defect of its own, apart from the
# last, whose record is of few numbers, as one of kernels is, and tells of an ending that others contradict.
DEFECTS = (
    "sound", "weak", "alike", "gift", "narrow", "lonely", "broken", "endless", "warmed", "unrecorded", "misrecorded",
    "rarely_tried"
)  # fmt: skip

SOLUTION = '''
def {name}(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Two times x.

    Args:
        x: (n,).

    Returns:
        (n,).

    Source: arithmetic.
    """
    return 2 * x
'''

SHEET = """
+++ {{"exercise": "{name}", "points": 2, "minutes": 5, "difficulty": 1, "forbids": [], "uses": []}}

## The {name} one

**Contract.** Twice as much.

```{{code-cell}} ipython3
:tags: [solution]
```

```{{code-cell}} ipython3
:tags: [checks]
{checks}
```

+++ {{"hints": "{name}"}}

1. Think.
2. Think on.
3. Write.
"""

SUITE = '''
@hidden("{name}", seconds={seconds})
def test_{name}_doubles(student, rng):
    """Gives twice as much."""
    x = rng.normal(size=5) + 3
    {value}


@hidden("{name}", kind="cost", seconds={seconds})
def test_{name}_of_nothing(student, rng):
    """Gives nothing for nothing."""
    {edge}
    close(student.{name}(np.zeros(0)), np.zeros(0), what="twice nothing")
'''

ANSWERS = """
for mistake_name, by in {mistakes}.items():
    edit("{name}", mistake_name, replace="2 * x", by=by, says=f"You return {{by}}.", hint="Twice.")
"""

ALTERNATIVE = """
@alternative("{name}")
def {name}_by_sum(x):
    return {right}
"""

MISTAKES = {"thrice": "3 * x", "four_times": "4 * x", "negative": "-2 * x", "one_more": "2 * x + 1", "square": "x * x"}


def course_text():
    """Sources of the small course, by path."""
    solutions, sheet, suite, answers = [], [], [], []
    for name in DEFECTS:
        mistakes, value, edge, right = dict(MISTAKES), f'close(student.{name}(x), 2 * x, what="twice")', "", "x + x"
        checks = f"assert {name}(np.ones(2)).tolist() == [2, 2]"
        if name == "weak":
            mistakes["only_small_ones"] = "2 * x if x.size < 100 else x"
        if name == "alike":
            mistakes["thrice_again"] = "x * 3"
        if name == "gift":
            value = f'require(student.{name}(x).shape == x.shape, "The shape is wrong.")'
            mistakes = {f"longer_by_{n}": f"np.ones(x.size + {n})" for n in range(1, 6)}
        if name == "narrow":
            edge = 'at_most(0.8, 1.0, what="a measured number")'
        if name == "lonely":
            checks = f"{name}(np.ones(2))"
        if name == "endless":
            mistakes["never"] = "all(True for _ in iter(int, 1))"
        if name == "warmed":
            edge = f'at_most(student.trace("{name}", np.ones(5)).peak_bytes, 10**5, what="bytes")'
            right = "x + x + np.zeros(FIRST.pop() if FIRST else 0).sum()"
        if name == "broken":
            right = "x + x + 1e-3"
        solutions.append(SOLUTION.format(name=name))
        sheet.append(SHEET.format(name=name, checks=checks))
        suite.append(
            SUITE.format(name=name, value=value, edge=edge or "pass", seconds=0.5 if name == "endless" else 10)
        )
        answers.append(ANSWERS.format(name=name, mistakes=mistakes))
        if name != "lonely":
            answers.append(ALTERNATIVE.format(name=name, right=right))
    front = (
        "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n  display_name: Python 3\n---\n\n# Twice\n\nWelcome.\n"
    )
    return {
        "_toc.yml": "chapters/tiny/exercises.ipynb\n",
        "references.bib": "",
        "solutions/__init__.py": "",
        "solutions/tiny.py": "import numpy as np\nfrom jaxtyping import Float\n\nFIRST = [10**6]\n\n"
        + "\n".join(solutions),
        "chapters/tiny/exercises.md": front + "\n".join(sheet),
        "autograder/suites/test_tiny.py": "import numpy as np\n\n"
        "from autograder.suites.kit import at_most, close, hidden, require\n" + "\n".join(suite),
        "autograder/answers/tiny.py": "from autograder.answers import alternative, edit\n" + "\n".join(answers),
    }


def attn(root, *arguments):
    """Run the command in a copy of the course, as its author would."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ATTN_")}
    return subprocess.run(
        [sys.executable, "-m", "autograder.cli", *arguments],
        cwd=root,
        env=environment | {"PYTHONPATH": os.pathsep.join([str(root), str(ROOT)]), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """The small course with its notebook built and then left to go stale, and what the judge says of it."""
    root = tmp_path_factory.mktemp("tiny")
    unwanted = shutil.ignore_patterns("__pycache__", "test_*.py", "scaled_dot_product.py", "additive.py")
    shutil.copytree(ROOT / "autograder", root / "autograder", ignore=unwanted)
    for path, text in course_text().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    assert attn(root, "build").returncode == 0
    attn(root, "check", "tiny", "--record")
    endings = root / "autograder/answers/endings/tiny.json"
    recorded = json.loads(endings.read_text())
    recorded["exercises"]["unrecorded"]["basis"] = "of an earlier suite"
    for name in ("misrecorded", "rarely_tried"):
        recorded["exercises"][name]["mistakes"]["thrice"] = ".."
    recorded["exercises"]["rarely_tried"]["numbers"] = 2
    endings.write_text(json.dumps(recorded))
    sheet = root / "chapters/tiny/exercises.md"
    sheet.write_text(sheet.read_text().replace("Welcome.", "Welcome back."))
    done = attn(root, "check", "tiny", "--seeds", "2", "--workers", "2", "--json", str(root / "out" / "check.json"))
    report = json.loads((root / "out" / "check.json").read_text())
    return done, report, {exercise["id"].removeprefix("tiny-"): exercise for exercise in report["exercises"]}


def test_a_course_with_defects_does_not_hold(judged):
    done, report, exercises = judged
    assert done.returncode == 1, done.stderr
    assert report["schema"] == 1
    assert list(exercises) == list(DEFECTS)
    total = sum(len(exercise["mistakes"]) for exercise in exercises.values())
    assert (report["caught"], report["total"]) == (total - 5, total)  # one passes, four have no name
    for exercise in exercises.values():
        for problem in exercise["problems"]:
            assert problem[:60] in done.stdout


def test_a_sound_exercise_has_no_problem(judged):
    sound = judged[2]["sound"]
    assert sound["problems"] == []
    assert (sound["reference"], sound["stub"], sound["points"]) == ("passed", "not_attempted", 2)
    assert sound["alternatives"] == [{"name": "sound_by_sum", "outcome": "passed"}]
    endings = {"test_sound_doubles": "F", "test_sound_of_nothing": "."}
    assert sound["mistakes"] == [{"name": name, "caught": True, "named": True, "endings": endings} for name in MISTAKES]
    assert sound["degenerate"] == dict.fromkeys(("none", "echo", "zeros", "ones", "nan"), 0)


def test_a_mistake_that_passes_is_reported(judged):
    weak = judged[2]["weak"]
    assert [m["name"] for m in weak["mistakes"] if not m["caught"]] == ["only_small_ones"]
    assert weak["problems"] == [f"mistake only_small_ones passes at seed {seed}" for seed in range(2)]


def test_two_mistakes_that_look_alike_are_reported(judged):
    alike = judged[2]["alike"]
    assert [m["name"] for m in alike["mistakes"] if not m["named"]] == ["thrice", "thrice_again"]
    assert all(m["caught"] for m in alike["mistakes"])
    assert len(alike["problems"]) == 4
    assert all("is named None" in problem for problem in alike["problems"])


def test_a_mistake_that_does_not_end_is_reported_and_holds_up_no_other(judged):
    endless = judged[2]["endless"]
    assert [m["name"] for m in endless["mistakes"] if not m["named"]] == ["never"]
    assert len(endless["problems"]) == 2  # at two seeds
    assert all(p.startswith("mistake never does not end in test_endless_doubles") for p in endless["problems"])


def test_points_for_an_answer_that_knows_nothing_are_reported(judged):
    gift = judged[2]["gift"]
    assert gift["degenerate"] == {"none": 0, "echo": 2, "zeros": 2, "ones": 2, "nan": 2}
    assert "the answer 'nan' earns 2 of 2 points" in gift["problems"]
    assert not any("'none'" in problem for problem in gift["problems"])


def test_too_little_margin_is_reported(judged):
    problems = judged[2]["narrow"]["problems"]
    assert len(problems) == 6  # the reference and the alternative, at two seeds and in a process of their own
    assert all("passes test_narrow_of_nothing by too little" in problem for problem in problems)
    assert "a measured number reaches 0.80 of its limit" in problems[0]


def test_a_limit_that_only_a_second_call_keeps_is_reported(judged):
    warmed = judged[2]["warmed"]
    assert warmed["alternatives"] == [{"name": "warmed_by_sum", "outcome": "passed"}]
    problems = [problem for problem in warmed["problems"] if "in a process that has done nothing before" in problem]
    assert problems
    assert all(problem.startswith("alternative warmed_by_sum ") for problem in problems)
    assert warmed["problems"] == problems


def test_what_is_missing_or_wrong_on_the_shelf_is_reported(judged):
    exercises = judged[2]
    assert sorted(exercises["lonely"]["problems"]) == ["no alternative answer", "the visible checks assert nothing"]
    assert exercises["broken"]["alternatives"] == [{"name": "broken_by_sum", "outcome": "failed"}]
    assert any(p.startswith("alternative broken_by_sum fails test_broken_") for p in exercises["broken"]["problems"])


def test_endings_that_are_not_on_record_or_wrong_are_reported(judged):
    (unrecorded,) = judged[2]["unrecorded"]["problems"]
    assert unrecorded.startswith("how its mistakes end, as they are now, is not on record")
    assert unrecorded.endswith("`attn check tiny --record` writes it down")
    assert all(mistake["named"] for mistake in judged[2]["unrecorded"]["mistakes"])  # more slowly
    wrong = [problem for problem in judged[2]["misrecorded"]["problems"] if "is on record" in problem]
    assert len(wrong) == 2  # at two seeds
    assert all(p.startswith("mistake thrice: test_misrecorded_doubles is failed at seed") for p in wrong)
    assert [m["name"] for m in judged[2]["misrecorded"]["mistakes"] if not m["named"]] == ["thrice"]


def test_endings_of_few_numbers_may_be_contradicted_by_others(judged):
    rarely_tried = judged[2]["rarely_tried"]
    assert rarely_tried["problems"] == []
    assert all(mistake["named"] for mistake in rarely_tried["mistakes"])


def test_a_stale_notebook_and_too_few_mistakes_are_reported(judged):
    stale, few = judged[1]["problems"]
    assert stale == "tiny: chapters/tiny/exercises.ipynb is not what its sources make; run `attn build tiny`"
    assert few.startswith("tiny: 5.2 named mistakes an exercise on average")


def test_an_exercise_of_the_real_course_is_clean():
    found = check_exercise("scaled_dot_product", "causal_mask", seeds=1)
    assert found.problems == []
    assert found.reference == "passed"
    assert len(found.mistakes) >= 5
    assert all(mistake["caught"] and mistake["named"] for mistake in found.mistakes)


def test_a_process_judges_few_sets_of_numbers():
    """All seeds of an answer together would use up the CPU time that one submission has."""
    cells = ["calls = []\n\ndef count():\n    calls.append(0)\n    return len(calls)\n"]
    assert [Student(session, 0).count() for _, session in _sessions(cells, 7)] == [1, 2, 3, 4, 5, 1, 2]
