"""An exercise that the rest of its notebook could change is judged by itself; honest work loses nothing by that."""

import nbformat
import pytest

from autograder import course
from autograder.authoring.build import instructor_notebook
from autograder.grading import judge
from autograder.grading.alone import Notebook
from autograder.grading.forbidden import read
from autograder.grading.intake import read_notebook

SLUG = "additive"
RIGHT = course.solution(SLUG).definitions["softmax"].source
WRONG = "def softmax(scores, axis=-1):\n    return np.exp(scores)"
F = "def f(x):\n    return h(x)"


def doubts(*cells, given=()):
    """What could have changed the exercise `f`."""
    return [doubt.what for doubt in Notebook(read(cells), given).doubts("f")]


def hand_in(*cells):
    """The result of `softmax` in a notebook of these cells."""
    made = [nbformat.v4.new_code_cell(cell) for cell in cells]
    data = nbformat.writes(nbformat.v4.new_notebook(cells=made)).encode()
    return judge.judge_notebook(data, SLUG, "s001", secret=b"x" * 32).exercises[0]


DOUBTFUL = {
    "text that is run": ("exec('h = 1')", "exec"),
    "the name of the shell": ("get_ipython().push({'h': 1})", "get_ipython"),
    "a line magic": ("%time h = 1", "get_ipython"),
    "a cell magic": ("%%html\n<p>", "%%html"),
    "names as a dictionary": ("globals()['h'] = 1", "globals"),
    "the code of a function": ("f.__code__ = g.__code__", "__code__"),
    "the code of a function by text": ("setattr(g, '__code__', 1)", "setattr"),
    "the modules": ("import sys\nsys.modules['__main__'].f = 1", "sys.modules"),
    "the modules by way of another": ("import os\nos.sys.modules['__main__'].f = 1", "sys.modules"),
    "a computed attribute": ("getattr(g, 'a' + 'b')()", "an attribute by a computed name"),
    "getattr handed on": ("list(map(getattr, [g], ['a']))", "an attribute by a computed name"),
    "a computed getter": ("import operator\noperator.attrgetter('a' + 'b')(g)", "an attribute by a computed name"),
    "a global name": ("def g():\n    global k\n    k = 1", "global"),
    "a global name that the exercise uses": ("def g(x):\n    global h\n    h = x\ng(print)", "g"),
    "a library that is handed on": ("import numpy as np\ng(np)", "numpy as a value"),
    "a part of a library that is handed on": ("import numpy as np\ng(np.linalg)", "numpy.linalg as a value"),
    "an attribute of a library": ("import numpy as np\nnp.h = 1", "an attribute set on np"),
    "an attribute of a parameter": ("def g(x):\n    x.h = 1", "an attribute set on x"),
    "an attribute of nothing with a name": ("g().h = 1", "an attribute set on a value"),
    "a file of the notebook's own": ("import mine", "import mine"),
    "a file of the notebook's own, inside": ("def g():\n    from mine import h", "from mine import h"),
    "code that cannot be read": ("x = " + "+".join(["1"] * 20_000), "code that cannot be read"),
    "an earlier meaning": ("def h(x):\n    return x\nk = h\ndef h(x):\n    return 2 * x", "an earlier h"),
    "a container that is filled": ("h = []\ng(h)\nh.append(1)", "h"),
    "a default that is filled": ("def h(x, seen=[]):\n    return seen\nh(1)", "h"),
    "a class that is filled": ("class h:\n    seen = {}\nh.seen['a'] = 1\nprint(h)", "h"),
}


@pytest.mark.parametrize(("cell", "what"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_what_could_change_an_exercise_unseen_is_seen(cell, what):
    assert what in doubts(cell, F)
    assert not doubts(cell, F, given=(cell, F))  # what students are given is beyond doubt


INNOCENT = {
    "a test of one's own": "print(f(3), h(2))",
    "a plot": "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot(f([1, 2]))",
    "an installation": "!pip install numpy\n%pip install numpy",
    "a time": "%%time\nprint(f(3))",
    "an import": "import inspect, numpy as np, torch.nn.functional as F\nfrom torch import nn",
    "a class": "class G:\n    def __init__(self, x):\n        self.x = x\n        self.y = getattr(self, f'{x}')",
    "a function of autograd": "class G:\n    def forward(ctx, x):\n        ctx.kept = x",
    "a constant": "EPS = 1e-6\ndef g(x):\n    return x + EPS",
    "a weight": "import torch\nlayer = torch.nn.Linear(2, 2)\nlayer.weight = None",
    "a name like a module's": "profile = 3\nprint(profile)",
    "a library's name as text": "print('exec', 'torch._C')",
    "a right answer twice": "def g(x):\n    return x\ndef g(x):\n    return x + 1",
}


@pytest.mark.parametrize("cell", INNOCENT.values(), ids=INNOCENT)
def test_what_is_innocent_raises_no_doubt(cell):
    assert not doubts("def h(x):\n    return x", F, cell)


@pytest.mark.parametrize("slug", course.slugs())
def test_right_answers_raise_no_doubt(slug):
    given = course.given_cells(slug)
    handed_in = nbformat.writes(instructor_notebook(slug)).encode()
    notebook = Notebook(read(read_notebook(handed_in, slug, given).cells), given.values())
    assert {exercise.name: notebook.doubts(exercise.name) for exercise in course.sheet(slug).exercises} == {
        exercise.name: [] for exercise in course.sheet(slug).exercises
    }


def test_alone_stay_imports_what_the_exercise_needs_and_what_is_given():
    cells = (
        "A = 1; print(A)\nimport os, mine\nimport math",
        "@print\ndef h(x):\n    return x + A\nexec('')",
        F + "\nf(1)",
        "given(exec)",
    )
    alone = Notebook(read(cells), ["given(exec)"]).alone("f", ())
    assert alone == ("A = 1\nimport math", "@print\ndef h(x):\n    return x + A", F, "given(exec)")


def test_what_a_name_meant_before_stays_if_it_may_be_used():
    cells = ("import torch", "def h(x):\n    return {}", "k = h", "def h(x):\n    return k(x)", F)
    for body, stays in (("x", True), ("torch.softmax(x)", False)):
        written = [cell.format(body) for cell in cells]
        alone = Notebook(read(written), ()).alone("f", ("torch.softmax",))
        assert alone == (written[0], written[1] if stays else "", *written[2:])


def test_scratch_work_costs_nothing(monkeypatch):
    scratch = (
        "import inspect, sys, torch\nx = np.ones((2, 3))\n"
        "print(np.allclose(softmax(x), torch.softmax(torch.from_numpy(x), -1)), list(globals()), sys.modules.keys())",
        "%timeit softmax(x)",
        "def count():\n    global calls\n    calls = 1\ncount()",
    )
    looks = []
    look = judge.judge_exercises
    monkeypatch.setattr(judge, "judge_exercises", lambda *given: (looks.append(given[1]), look(*given))[1])
    assert (hand_in(RIGHT, *scratch).outcome, len(looks)) == ("passed", 2)
    assert not any("globals" in cell for cell in looks[1])
    assert (hand_in(RIGHT, "print(softmax(np.ones((2, 3))))").outcome, len(looks)) == ("passed", 3)


def test_what_an_exercise_owes_to_unseen_code_is_not_paid_and_the_student_reads_why():
    library = "import torch\ndef lib(s, axis=-1):\n    return torch.softmax(torch.from_numpy(s), axis).numpy()"
    found = hand_in(WRONG, library, "exec('softmax = lib')")
    assert (found.outcome, found.score) == ("failed", 0)
    place = f"code cell {len(course.given_cells(SLUG)) + 3}"  # given cells that are missing are put in front
    assert found.message.startswith(f"Your notebook holds `exec` ({place}), which can change other code")
