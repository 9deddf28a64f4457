"""The rules of grading, on a chapter of three tiny exercises whose every point can be counted by hand."""

import importlib
import json
import shutil
import sys
import textwrap

import pytest

import autograder.answers
import solutions
from autograder import course
from autograder.grading import suite as suite_module
from autograder.grading.forbidden import forbidden_calls
from autograder.grading.intake import InvalidNotebook, read_notebook
from autograder.grading.judge import judge_notebook
from autograder.grading.reading import read
from autograder.sandbox import session as session_module

SECRET = b"a secret that only tests know...."

# ------------------------------------------------------------------------------------------------ a tiny chapter

SHEET = """
---
file_format: mystnb
kernelspec: {name: python3, display_name: Python 3}
---
# Exercises: tiny
"""
EXERCISE = """
+++ {{"exercise": "{name}", "points": {points}, "minutes": 1, "difficulty": 1, "forbids": {forbids}, "uses": {uses}}}

## {name}

```{{code-cell}} ipython3
:tags: [solution]
```

```{{code-cell}} ipython3
:tags: [checks]
assert {name} is not None
```

+++ {{"hints": "{name}"}}

1. Think.
"""
SOLUTION = '''
"""Three functions of a vector."""

import numpy as np

OFFSET = 3.0


def double(x):
    """Twice x."""
    if x.size == 0:
        raise ValueError("nothing to double")
    return x + x


def both(x):
    """Twice x, and then the offset."""
    return double(x) + OFFSET


def shift(x):
    """x moved by the offset."""
    return x + OFFSET
'''
SUITE = '''
"""Hidden suite of chapter `tiny`."""
import numpy as np
from autograder.suites.kit import at_most, close, hidden, raises

@hidden("double", weight=1, seconds=1, hint="Add it to itself.")
def test_double_of_positive(student, rng):
    """Doubles positive numbers."""
    x = rng.uniform(1, 2, size=5)
    close(student.double(x), 2 * x, what="the double")

@hidden("double", weight=1, seconds=1, hint="Add it to itself.")
def test_double_of_negative(student, rng):
    """Doubles negative numbers."""
    x = -rng.uniform(1, 2, size=5)
    close(student.double(x), 2 * x, what="the double")

@hidden("double", kind="property", weight=1, seconds=1)
def test_double_keeps_float32(student, rng):
    """Keeps the dtype."""
    x = rng.uniform(1, 2, size=5).astype(np.float32)
    close(student.double(x), 2 * x, what="the double in float32")

@hidden("double", kind="edge", weight=1, seconds=1)
def test_double_of_nothing(student, rng):
    """Refuses an empty vector."""
    raises(ValueError, student, "double", np.zeros(0))

@hidden("double", kind="cost", weight=2, seconds=1)
def test_double_does_not_loop(student, rng):
    """Runs no loop over the numbers."""
    at_most(student.trace("double", rng.normal(size=1000)).steps, 50, what="Python steps")

@hidden("both", weight=1, seconds=1)
def test_both_once(student, rng):
    """Doubles and shifts."""
    x = rng.normal(size=3)
    close(student.both(x), 2 * x + 3, what="the sum")

@hidden("both", weight=1, seconds=1)
def test_both_twice(student, rng):
    """Doubles and shifts again."""
    x = rng.normal(size=3)
    close(student.both(x), 2 * x + 3, what="the sum")

@hidden("both", weight=1, seconds=1)
def test_both_thrice(student, rng):
    """Doubles and shifts once more."""
    x = rng.normal(size=3)
    close(student.both(x), 2 * x + 3, what="the sum")

@hidden("both", kind="property", weight=1, seconds=1)
def test_both_of_a_matrix(student, rng):
    """Takes a matrix."""
    x = rng.normal(size=(3, 2))
    close(student.both(x), 2 * x + 3, what="the sum of a matrix")

@hidden("shift", weight=1, seconds=1)
def test_shift(student, rng):
    """Moves by the offset."""
    x = rng.normal(size=3)
    close(student.shift(x), x + 3, what="the shifted vector")

@hidden("shift", kind="property", weight=1, seconds=1)
def test_shift_of_a_matrix(student, rng):
    """Takes a matrix."""
    x = rng.normal(size=(3, 2))
    close(student.shift(x), x + 3, what="the shifted matrix")
'''
ANSWERS = """
from autograder.answers import alternative, edit, mistake

edit("double", "triples", replace="x + x", by="x + x + x", says="You triple.", hint="Once too often.")
edit("double", "squares", replace="x + x", by="x * x", says="You square.", hint="Which sign?")
edit("double", "forgets_the_dtype", replace="x + x", by="(x + x).astype(float)", says="You widen.", hint="Which dtype?")
edit("double", "accepts_nothing", replace="x.size == 0", by="False", says="You accept all.", hint="Read on.")
edit("shift", "shifts_twice", replace="x + OFFSET", by="x + OFFSET + OFFSET", says="You shift twice.", hint="Once.")
edit("shift", "shifts_by_six", replace="x + OFFSET", by="x + 2 * OFFSET", says="You shift by six.", hint="By three.")
edit("shift", "shifts_back", replace="x + OFFSET", by="x - OFFSET", says="You shift back.", hint="Which way?")

@mistake("double", says="You loop.", hint="NumPy adds whole vectors.")
def loops(x):
    if x.size == 0:
        raise ValueError("nothing to double")
    result = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        result[index] = 2 * x[index]
    return result
"""
USES = {"double": "[]", "both": '["double"]', "shift": "[]"}
FORBIDS = {"double": '["numpy.ldexp", "torch", ".repeat"]', "both": "[]", "shift": "[]"}


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    """The chapter `tiny`, which everything that looks for chapters finds while these tests run."""
    root = tmp_path_factory.mktemp("tiny")
    for folder in ("chapters/tiny", "solutions", "suites", "answers"):
        (root / folder).mkdir(parents=True)
    points = {"double": 6, "both": 4, "shift": 2}
    sheet = SHEET.lstrip() + "".join(
        EXERCISE.format(name=name, points=worth, forbids=FORBIDS[name], uses=USES[name])
        for name, worth in points.items()
    )
    (root / "chapters/tiny/exercises.md").write_text(sheet)
    (root / "solutions/tiny.py").write_text(SOLUTION.lstrip())
    (root / "suites/test_tiny.py").write_text(SUITE.lstrip())
    (root / "answers/tiny.py").write_text(ANSWERS.lstrip())
    shutil.copy(suite_module.SUITES / "conftest.py", root / "suites/conftest.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course, "CHAPTERS", root / "chapters")
        patch.setattr(course, "SOLUTIONS", root / "solutions")
        patch.setattr(suite_module, "SUITES", root / "suites")
        patch.setattr(solutions, "__path__", [*solutions.__path__, str(root / "solutions")])
        patch.setattr(autograder.answers, "__path__", [*autograder.answers.__path__, str(root / "answers")])
        importlib.invalidate_caches()
        yield
    for name in ("solutions.tiny", "autograder.answers.tiny"):
        sys.modules.pop(name, None)


RIGHT = {
    "double": "def double(x):\n    if x.size == 0:\n        raise ValueError('empty')\n    return 2 * x",
    "both": "def both(x):\n    return double(x) + OFFSET",
    "shift": "def shift(x):\n    return x + OFFSET",
}
GIVEN = "import numpy as np\n\nOFFSET = 3.0"


def code(source, grade_id=None):
    metadata = {"nbgrader": {"grade_id": grade_id}} if grade_id else {}
    source = textwrap.dedent(source).strip("\n")
    return {"cell_type": "code", "metadata": metadata, "source": source, "outputs": [], "execution_count": None}


def notebook(cells):
    return json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}).encode()


def hand_in(*extra, given=GIVEN, **answers):
    """Grades a notebook: right answers but for those given, None for one that is left out, extra cells at the end."""
    cells = [code(given, "tiny-given")] if given is not None else []
    for name, source in {**RIGHT, **answers}.items():
        if source is not None:
            cells.append(code(source, f"tiny-{name}"))
        cells.append(code(f"assert {name} is not None", f"tiny-{name}-tests"))
    return judge(notebook([*cells, *map(code, extra)]))


def judge(data, student="s001"):
    result = judge_notebook(data, "tiny", student, secret=SECRET)
    assert (result.status, result.outcome) == ("graded", "ok"), result.message
    return result


def of(result, name):
    return next(exercise for exercise in result.exercises if exercise.id == f"tiny-{name}")


def scores(result):
    return {exercise.id.removeprefix("tiny-"): exercise.score for exercise in result.exercises}


def outcomes(result, name):
    return [test.outcome for test in of(result, name).tests]


def doubled(body, before=""):
    """A cell that defines `double` with this body."""
    lines = textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    return f"{textwrap.dedent(before)}\ndef double(x):\n{lines}\n"


FULL = {"double": 6.0, "both": 4.0, "shift": 2.0}

# ------------------------------------------------------------------------------------------------------- scoring


def test_right_answers_earn_everything():
    result = hand_in()
    assert scores(result) == FULL
    assert result.score == result.max_score == 12.0
    assert {exercise.outcome for exercise in result.exercises} == {"passed"}
    assert not any(test.message or test.hint for exercise in result.exercises for test in exercise.tests)


def test_without_right_values_nothing_else_earns():
    result = hand_in(double=doubled("if x.size == 0:\n    raise ValueError\nreturn 2 * abs(x)"))
    assert outcomes(result, "double") == ["passed", "failed", "passed", "passed", "passed"]
    assert [test.points for test in of(result, "double").tests] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert of(result, "double").outcome == "failed"
    assert of(result, "double").score == 1.0
    assert "once the values are right" in of(result, "double").tests[2].message


@pytest.mark.parametrize(
    ("body", "lost"),
    [
        ("if x.size == 0:\n    raise ValueError\nreturn 2.0 * x.astype(float)", "test_double_keeps_float32"),
        ("return 2 * x", "test_double_of_nothing"),
        ("if not len(x):\n    raise ValueError\nreturn np.array([v + v for v in x])", "test_double_does_not_loop"),
    ],
)
def test_a_gate_behind_right_values_costs_only_itself(body, lost):
    exercise = of(hand_in(double=doubled(body)), "double")
    assert {test.name for test in exercise.tests if test.outcome != "passed"} == {lost}
    assert exercise.score == 6.0 - next(test.max_points for test in exercise.tests if test.name == lost)


@pytest.mark.parametrize(
    "body",
    [
        "return np.full_like(x, np.nan)",
        "y = 2 * x\ny[:1] = np.nan\nreturn y",
        "return None",
        "return x",
        "return 0 * x",
        "return str(2 * x)",
        "return (2 * x).tolist()",
        "return (2 * x).astype(object)",
        "return (2 * x)[None]",
        "return double",
        "return 2 * x + 0j",
    ],
)
def test_nothing_but_the_values_earns(body):
    result = hand_in(double=doubled(body), both=None, shift=None)
    assert of(result, "double").score == 0.0
    assert of(result, "double").outcome in ("failed", "crashed")


def test_what_is_missing_or_untouched_is_not_attempted():
    result = hand_in(double="def double(x):\n    raise NotImplementedError", both=None)
    assert of(result, "double").outcome == of(result, "both").outcome == "not_attempted"
    assert set(outcomes(result, "double")) == {"not_attempted"}
    assert scores(result) == {"double": 0.0, "both": 0.0, "shift": 2.0}


def test_an_exercise_that_uses_a_broken_one_says_what_to_mend():
    result = hand_in(double=doubled("return 3 * x"))
    assert "`double`" in of(result, "both").message
    assert of(result, "both").mistake is None
    assert of(result, "shift").message == ""


# -------------------------------------------------------------------------------------- what goes wrong, and where


def test_after_a_timeout_the_rest_of_the_exercise_is_not_run():
    result = hand_in(double=doubled("while x[0] < 0:\n    pass\nreturn 2 * x"), both=None)
    assert outcomes(result, "double") == ["passed", "timeout", "timeout", "timeout", "timeout"]
    assert of(result, "double").outcome == "timeout"
    assert scores(result) == {"double": 1.0, "both": 0.0, "shift": 2.0}
    assert "not run" in of(result, "double").tests[-1].message


def test_an_exception_is_told_without_its_words():
    result = hand_in(double=doubled("raise KeyError(f'the hidden input was {x}')"), both=None)
    exercise = of(result, "double")
    assert exercise.outcome == "crashed"
    assert exercise.score == 0.0
    assert "KeyError" in exercise.tests[0].message
    assert "line 2" in exercise.tests[0].message
    assert "hidden input" not in json.dumps(result.as_json())


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("import os\nos._exit(0)", "crashed"),
        ("return np.lib.stride_tricks.as_strided(x, (1 << 50,), (8,))[1 << 45]", "crashed"),
        ("kept = []\nwhile True:\n    kept.append(np.zeros(1 << 27))", "memory"),
        ("import sys\nsys.exit(0)", "crashed"),
        ("return double(x)", "crashed"),
    ],
    ids=["exit", "segfault", "memory", "sys.exit", "recursion"],
)
def test_what_a_function_does_to_its_process_costs_that_function(body, outcome):
    result = hand_in(double=doubled(body), both=None)
    assert of(result, "double").outcome == outcome
    assert scores(result) == {"double": 0.0, "both": 0.0, "shift": 2.0}


def test_a_function_that_dies_costs_those_that_call_it_and_no_others():
    result = hand_in(double=doubled("import os\nos._exit(0)"))
    assert of(result, "both").outcome == "crashed"
    assert scores(result) == {"double": 0.0, "both": 0.0, "shift": 2.0}


@pytest.mark.parametrize(
    ("cell", "outcome"),
    [
        ("def double(x:\n    return 2 * x", "not_attempted"),
        ("print(undefined)\ndef double(x):\n    return 2 * x", "not_attempted"),
        ("1 / 0\ndef double(x):\n    return 2 * x", "not_attempted"),
        ("import sys\nsys.exit(3)\ndef double(x):\n    return 2 * x", "not_attempted"),
        ("import os\nos._exit(0)\ndef double(x):\n    return 2 * x", "not_attempted"),
        ("while True:\n    pass\ndef double(x):\n    return 2 * x", "timeout"),
    ],
    ids=["syntax", "name", "exception", "sys.exit", "os._exit", "endless"],
)
def test_a_bad_cell_costs_its_own_exercise(cell, outcome, monkeypatch):
    monkeypatch.setattr(session_module, "CELL_SECONDS", 0.5)
    result = hand_in(double=cell, both=None)
    assert of(result, "double").outcome == outcome
    assert of(result, "double").message.startswith("The cell that defines it did not run to its end")
    assert scores(result) == {"double": 0.0, "both": 0.0, "shift": 2.0}


def test_what_stands_before_the_fault_of_a_cell_counts():
    result = hand_in(double=RIGHT["double"] + "\n\nprint(double(np.ones(2)))\nimport sys\nsys.exit()\n")
    assert scores(result) == FULL


def test_a_later_definition_is_the_one_that_counts():
    assert scores(hand_in(RIGHT["double"], double=doubled("return 3 * x"))) == FULL


# -------------------------------------------------------------------------------------------- the notebook's cells


def test_locked_cells_count_as_released():
    assert scores(hand_in(given="import numpy as np\nOFFSET = 100.0")) == FULL
    assert scores(hand_in(given=None)) == FULL


def test_visible_checks_decide_nothing():
    cells = [code(GIVEN, "tiny-given"), *(code(source, f"tiny-{name}") for name, source in RIGHT.items())]
    cells += [code("import os\nos._exit(0)", "tiny-double-tests"), code("OFFSET = 7.0", "tiny-shift-tests")]
    assert scores(judge(notebook(cells))) == FULL


def test_cells_may_be_split_moved_and_stripped_of_metadata():
    cells = [
        code(RIGHT["both"]),
        code("def helper(a, b):\n    return a + b"),
        code(GIVEN),
        {"cell_type": "markdown", "metadata": {}, "source": "my notes"},
        code("def shift(x):\n    return helper(x, OFFSET)"),
        code("%matplotlib inline"),
        code("%%time\n" + RIGHT["double"]),
        code("double?"),
    ]
    assert scores(judge(notebook(cells))) == FULL


def test_noise_never_costs():
    noise = """
    print("doubling", x, flush=True)
    print("to stderr", file=sys.stderr)
    os.write(1, b"x" * 100_000)
    os.write(2, b"y" * 100_000)
    warnings.warn("really?")
    logging.warning("hm")
    if x.size == 0:
        raise ValueError
    return 2 * x
    """
    result = hand_in(double=doubled(noise, before="import logging\nimport os\nimport sys\nimport warnings\n"))
    # The cost test counts the lines that `warnings` and `logging` run in Python, so it alone is left out here.
    assert outcomes(result, "double")[:4] == ["passed"] * 4
    assert "doubling" not in json.dumps(result.as_json())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"%PDF-1.4\n", "not JSON"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"[1, 2]", "nbformat"),
        (b'{"cells": []}', "nbformat"),
        (b'{"nbformat": 9, "cells": []}', "nbformat 9"),
        (b'{"nbformat": 4}', "structure"),
        (b'{"nbformat": 4, "cells": [3]}', "cells"),
        (b'{"nbformat": 4, "cells": 3}', "cells"),
        (b"[" * 100_000, "not JSON"),
        (json.dumps({"nbformat": 4, "cells": [{"cell_type": "code", "source": 5}]}).encode(), "source"),
    ],
)
def test_what_is_no_notebook_is_told_why(data, words):
    with pytest.raises(InvalidNotebook, match=words):
        read_notebook(data, "tiny", {})
    result = judge_notebook(data, "tiny", "s001", secret=SECRET)
    assert (result.status, result.outcome, result.score, result.max_score) == ("graded", "invalid_notebook", 0.0, 12.0)
    assert {exercise.outcome for exercise in result.exercises} == {"invalid_notebook"}


def test_line_ends_and_a_byte_order_mark_change_nothing():
    plain = notebook([code("def f():\n    return 1\n")])
    windows = b"\xef\xbb\xbf" + notebook([code("def f():\r\n    return 1")]).replace(b", ", b",\r\n")
    assert read_notebook(windows, "tiny").cells == read_notebook(plain, "tiny").cells


# -------------------------------------------------------------------------------------------------- named mistakes


@pytest.mark.parametrize(
    ("body", "mistake"),
    [
        ("if len(x) < 1:\n    raise ValueError\nreturn x * 3", "triples"),
        ("if len(x) < 1:\n    raise ValueError\nreturn np.square(x)", "squares"),
        ("if len(x) < 1:\n    raise ValueError\nreturn np.add(x, x, dtype=float)", "forgets_the_dtype"),
        ("return np.multiply(x, 2)", "accepts_nothing"),
        ("if x.size == 0:\n    raise ValueError\nreturn np.array([v + v for v in x])", "loops"),
        ("return x * 3", None),  # triples, but accepts nothing too: neither of the two says it all
        ("if len(x) < 1:\n    raise ValueError\nreturn 5 * x", None),
    ],
)
def test_a_mistake_is_named_by_what_it_does(body, mistake):
    exercise = of(hand_in(double=doubled(body), both=None, shift=None), "double")
    assert exercise.outcome == "failed"
    assert exercise.mistake == mistake
    assert (exercise.says is None) == (mistake is None)


def test_two_mistakes_that_look_the_same_have_no_name():
    assert of(hand_in(shift="def shift(x):\n    return x + 6.0"), "shift").mistake is None
    assert of(hand_in(shift="def shift(x):\n    return x - 3.0"), "shift").mistake == "shifts_back"


def test_hidden_numbers_depend_on_the_student_and_on_nothing_else():
    data = notebook([code(GIVEN, "tiny-given"), code(doubled("return x * 3.5"))])
    again = notebook([code(GIVEN + "\n\n", "tiny-given"), code(doubled("return x * 3.5") + "\n\n  \n")])
    messages = [judge(data), judge(again), judge(data, student="s002")]
    first, second, other = ([test.message for test in of(result, "double").tests] for result in messages)
    assert first == second
    assert first != other


# ------------------------------------------------------------------------------------------------- forbidden calls

CAUGHT = {
    "plain": "import torch\ndef f(x):\n    return torch.softmax(x, 0)",
    "import as": "import torch as t\ndef f(x):\n    return t.softmax(x, 0)",
    "from import": "from torch import softmax\ndef f(x):\n    return softmax(x, 0)",
    "from import as": "from torch import softmax as s\ndef f(x):\n    return s(x, 0)",
    "import inside": "def f(x):\n    import torch\n    return torch.softmax(x, 0)",
    "from import inside": "def f(x):\n    from torch import softmax as s\n    return s(x, 0)",
    "functional": "import torch.nn.functional as F\ndef f(x):\n    return F.softmax(x, 0)",
    "from nn": "from torch.nn import functional\ndef f(x):\n    return functional.softmax(x, 0)",
    "nn of torch": "import torch\nfrom torch import nn\ndef f(x):\n    return nn.functional.softmax(x, 0)",
    "getattr": "import torch\ndef f(x):\n    return getattr(torch, 'softmax')(x, 0)",
    "assigned inside": "import torch\ndef f(x):\n    s = torch.softmax\n    return s(x, 0)",
    "assigned outside": "import torch\ns = torch.softmax\ndef f(x):\n    return s(x, 0)",
    "module assigned inside": "import torch\ndef f(x):\n    t = torch\n    return t.softmax(x, 0)",
    "helper": "import torch\ndef h(x):\n    return torch.softmax(x, 0)\ndef f(x):\n    return h(x)",
    "helper of a helper": "import torch\ndef g(x):\n    return torch.softmax(x, 0)\nh = g\ndef f(x):\n    return h(x)",
    "lambda": "import torch\nh = lambda x: torch.softmax(x, 0)\ndef f(x):\n    return h(x)",
    "table": "import torch\nT = {'s': torch.softmax}\ndef f(x):\n    return T['s'](x, 0)",
    "default": "import torch\ndef f(x, s=torch.softmax):\n    return s(x, 0)",
    "class": "import torch\nclass H:\n    def g(self, x):\n        return torch.softmax(x)\ndef f(x):\n    H().g",
    "replaced later": "import torch\ndef f(x):\n    return x\nf = torch.softmax",
    "method": "import torch\ndef f(x):\n    return torch.from_numpy(x).softmax(0)",
    "method of a name": "def f(x):\n    return x.softmax(0)",
    "eval": "def f(x):\n    return eval('x')",
    "exec": "def f(x):\n    exec('y = x')\n    return x",
    "import by string": "def f(x):\n    return __import__('torch').sum(x)",
    "importlib": "import importlib\ndef f(x):\n    return importlib.import_module('torch').sum(x)",
    "from importlib": "from importlib import import_module as im\ndef f(x):\n    return im('torch').sum(x)",
    "ctypes": "import ctypes\ndef f(x):\n    return ctypes.string_at(id(x), 8)",
    "builtins": "import builtins\ndef f(x):\n    return builtins.eval('x')",
    "after a magic": "%matplotlib inline\nimport torch\ndef f(x):\n    return torch.softmax(x, 0)",
    "under a cell magic": "%%time\nimport torch\ndef f(x):\n    return torch.softmax(x, 0)",
}
SLIPS_THROUGH = {
    "module assigned outside": "import torch\nt = torch.special\ndef f(x):\n    return t.log_softmax(x, 0)",
    "star": "from torch.special import *\ndef f(x):\n    return log_softmax(x, 0)",
    "magic inside": "import torch\ndef f(x):\n    %time y = torch.softmax(x, 0)\n    return y",
    "help beside": "import torch\ndef f(x):\n    return torch.softmax(x, 0)\nf?",
    "import that is bound again": "def f(x):\n    import torch as t\n"
    "    y = t.special.log_softmax(x, 0)\n    t = 3\n    return y",
    "import under a loop variable": "def f(x):\n    import torch as t\n    y = t.special.log_softmax(x, 0)\n"
    "    for t in x:\n        pass\n    return y",
    "import under a nested function": "import torch\ndef f(x):\n    from torch import special as s\n"
    "    y = s.log_softmax(x, 0)\n    def s():\n        pass\n    return y",
    "out of a list": "import torch as t\ndef f(x):\n    return [t][0].special.log_softmax(x, 0)",
    "out of a table": "import torch as t\nm = {'a': t.special}['a']\ndef f(x):\n    return m.log_softmax(x, 0)",
    "loop variable": "import torch as t\ndef f(x):\n    for m in (t.special,):\n        return m.log_softmax(x, 0)",
    "variable of a comprehension": "import torch as t\ndef f(x):\n    return [m.log_softmax(x) for m in [t.special]]",
    "comprehension under the own name": "import torch as t\n"
    "def f(x):\n    return [torch.special.log_softmax(x) for torch in [t]]",
    "first loop of a comprehension": "import torch as t\nm = t.special\n"
    "def f(x):\n    return [m for m in m.log_softmax(x, 0)]",
    "unpacked": "import torch as t\ndef f(x):\n    m, y = t.special, x\n    return m.log_softmax(y, 0)",
    "through a function": "import torch as t\n"
    "def f(x):\n    m = max(t.special, key=id)\n    return m.log_softmax(x, 0)",
    "hung on a module": "import torch\nimport numpy as np\nnp.s = torch.softmax\ndef f(x):\n    return np.s(x, 0)",
}
_T = "import torch\n"
_HANDED = _T + "def f(x):\n    return {}.softmax(x, 0)"
SLIPS_THROUGH |= {
    "a module from a lambda": _HANDED.format("(lambda: torch.nn.functional)()"),
    "a module as an attribute": _T + "class f:\n    def __init__(self):\n        self.lib = torch.nn.functional",
    "a module imported into a class": "class f:\n    import torch.nn.functional as lib",
    "a module as an argument": _T + "def g(lib, x):\n    return lib.softly(x)\ndef f(x):\n    return g(torch, x)",
    "a private name": "import torch as _f__t\nclass f:\n    def g(self):\n        return __t.special.log_softmax",
    "a global name under a local one": _T + "def f(x):\n    torch = None\n"
    "    def g():\n        global torch\n        return torch.special\n    return g()",
    "a name in the target of a loop": _T + "def f(x, d):\n    return [torch.softmax(x, 0) for d[torch] in [0]]",
    "a star over an own name": "def softmax(x):\n    return x\ndef f(x):\n    return softmax(x)\nfrom torch import *",
    "getattr handed on": _T + "from functools import reduce\ndef f(x):\n    return reduce(getattr, ['a'], torch)(x)",
    "a computed attribute": _T + "def f(x):\n    return getattr(torch, 'soft' + 'max')(x, 0)",
    "a computed attribute with a default": _T + "def f(x):\n    return getattr(torch, 'soft' + 'max', 'x')(x, 0)",
    "the second of two getters": "import operator\ndef f(x):\n    return operator.attrgetter('T', 'softmax')(x)",
    "a computed getter": "import operator\ndef f(x):\n    return operator.attrgetter('soft' + 'max')(x)(0)",
    "a class pattern": _T + "def f(x):\n    match torch:\n        case object(softmax=s):\n            return s(x, 0)",
    "modules by way of another": "import os\ndef f(x):\n    return os.sys.modules['torch'].tanh(x)",
    "the same by another path": _T + "def f(x):\n    return torch.nn.functional.torch.softmax(x, 0)",
    "another package": "import pyclbr\ndef f(x):\n    return pyclbr.importlib.import_module('torch').tanh(x)",
    "a private name of a library": "import typing\ndef f(x):\n    return typing._eval_type(x, {}, {})",
    "text in a shape": "import numpy as np\nfrom jaxtyping import Float\n"
    "def f(x):\n    return isinstance(x, Float[np.ndarray, 'n n+len(x)'])",
    "a call among types": _T + "def f(x, box):\n    return isinstance(x, box.append(torch.softmax))",
    "a relative": _T + "def f(x):\n    return torch.nn.Softmax(0)(x)",
}
FORBIDDEN = (
    "torch.softmax",
    "torch.nn.functional.softmax",
    "torch.special.log_softmax",
    ".softmax",
)


@pytest.mark.parametrize("cell", CAUGHT.values(), ids=CAUGHT)
def test_a_forbidden_call_is_found(cell):
    assert forbidden_calls(read([cell]), "f", FORBIDDEN)


@pytest.mark.parametrize("cell", SLIPS_THROUGH.values(), ids=SLIPS_THROUGH)
def test_a_forbidden_call_is_found_in_disguise(cell):
    assert forbidden_calls(read([cell]), "f", FORBIDDEN)


def test_forbidden_calls_are_found_across_cells():
    cells = ["import torch as t", "def h(x):\n    return t.softmax(x, 0)", "no python", "def f(x):\n    return h(x)"]
    assert [(found.name, found.line) for found in forbidden_calls(read(cells), "f", FORBIDDEN)] == [
        ("torch.softmax", 2)
    ]


ALLOWED = {
    "own function of that name": "def softmax(x):\n    return x\ndef f(x):\n    return softmax(x)",
    "another exercise": "import torch\ndef g(x):\n    return torch.softmax(x, 0)\ndef f(x):\n    return x",
    "scratch": "import torch\ndef f(x):\n    return x\nprint(torch.softmax(torch.ones(2), 0))",
    "unused import": "from torch import softmax\ndef f(x):\n    return x",
    "only words": "def f(x):\n    # torch.softmax would do it\n    return x, 'torch.softmax'",
    "another call of that library": "import torch\ndef f(x):\n    return torch.exp(x)",
    "eval of a module": "def f(x):\n    return x.eval()",
    "a longer name": "import torch\ndef f(x):\n    return torch.softmax_of_mine(x)",
    "replaced by an own one": "import torch\ndef f(x):\n    return torch.softmax(x, 0)\ndef f(x):\n    return x",
}
WRONGLY_FOUND = {
    "a variable that hides an import": "from torch import softmax as s\ndef f(x):\n    s = x.sum()\n    return x / s",
    "a scratch variable with a parameter's name": "import torch\nx = torch.softmax(y, 0)\ndef f(x):\n    return x",
    "a scratch variable with a comprehension's name": "import torch\ns = torch.softmax(y, 0)\n"
    "def f(x):\n    return [s + t for s in x for t in range(3)]",
    "a scratch comprehension's variable": "import torch\nz = [g for g in torch.softmax(y, 0)]\n"
    "def f(x):\n    return g(x)",
    "a dtype handed on": "import torch\ndef f(x):\n    y = torch.zeros(3, dtype=torch.float64)\n    return y.softer(x)",
    "a function of that name inside": "def f(x):\n    def code(y):\n        return y\n    return code(x)",
    "a parameter called eval": "def f(x, eval=False):\n    return x if eval else -x",
    "a function with a module's name": "def profile(x):\n    return x\ndef f(x):\n    return profile(x)",
    "attributes by written names": "import numpy as np\ndef f(x):\n"
    "    for i, op in enumerate(('exp', 'log')):\n        x = getattr(np, op)(x)\n    return x",
    "an attribute of oneself": "class f:\n    def g(self, name):\n        return getattr(self, name), self.__dict__",
    "a second name for a module": "import torch\nF = torch.nn.functional\ndef f(x):\n    return F.relu(x)",
    "a type that is asked for": "import torch\ndef f(x: torch.softmax):\n    return isinstance(x, torch.softmax)",
}


@pytest.mark.parametrize("cell", ALLOWED.values(), ids=ALLOWED)
def test_what_is_allowed_is_not_found(cell):
    assert not forbidden_calls(read([cell]), "f", FORBIDDEN)


@pytest.mark.parametrize("cell", WRONGLY_FOUND.values(), ids=WRONGLY_FOUND)
def test_what_only_looks_forbidden_is_not_found(cell):
    assert not forbidden_calls(read([cell]), "f", FORBIDDEN)


def test_a_forbidden_call_costs_its_exercise_and_is_named():
    result = hand_in(double=doubled("return torch.from_numpy(x).mul(2).numpy()", before="import torch\n"))
    exercise = of(result, "double")
    assert (exercise.outcome, exercise.score) == ("forbidden", 0.0)
    assert "`torch`" in exercise.message
    assert scores(result) == {"double": 0.0, "both": 4.0, "shift": 2.0}


def test_a_definition_that_never_ran_hides_no_forbidden_call():
    library = doubled("return torch.from_numpy(x).mul(2).numpy()", before="import torch\n")
    worth_by_itself = ((doubled("return x"), "failed"), (RIGHT["double"], "passed"))
    for own, outcome in worth_by_itself:
        assert of(hand_in("1 / 0\n" + own, double=library), "double").outcome == outcome


def test_the_library_may_be_imported_and_used_elsewhere():
    result = hand_in("import torch\nprint(torch.ones(3).softmax(0))", "np.ldexp(1.0, 2)")
    assert scores(result) == FULL
