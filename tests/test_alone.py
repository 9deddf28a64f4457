"""An exercise to which other cells could give what it may not use is judged without them; honest work loses nothing."""

import nbformat
import pytest

from autograder import course
from autograder.authoring.build import instructor_notebook
from autograder.grading import judge
from autograder.grading.alone import Surroundings
from autograder.grading.intake import read_notebook
from autograder.grading.reading import read

SLUG = "additive"
EXERCISE = course.sheet(SLUG).exercises[0]
RIGHT = course.solution(SLUG).definitions["softmax"].source
WRONG = "def softmax(scores, axis=-1):\n    return np.exp(scores)"
CALLS = "def softmax(scores, axis=-1):\n    return helper(scores, axis)"
LIB = "import torch\ndef lib(s, axis=-1):\n    return torch.softmax(torch.from_numpy(s), axis).numpy()"
FIRST = LIB.replace("def lib(s,", "def softmax(s,")
HELPER = LIB.replace("def lib(", "def helper(")
OWN_HELPER = RIGHT.replace("def softmax(", "def helper(")


def doubts(*cells):
    """What could have changed the exercise."""
    return [doubt.what for doubt in Surroundings(read(cells), SLUG).doubts(EXERCISE)]


def hand_in(*cells, slug=SLUG, name="softmax"):
    """The result of one exercise in a notebook of these cells."""
    made = [nbformat.v4.new_code_cell(cell) for cell in cells]
    data = nbformat.writes(nbformat.v4.new_notebook(cells=made)).encode()
    result = judge.judge_notebook(data, slug, "s001", secret=b"x" * 32)
    return next(exercise for exercise in result.exercises if exercise.id == f"{slug}-{name}")


DOUBTFUL = {
    "what the contract rules out": ("import torch\nx = torch.softmax(y, 0)", "torch"),
    "text that is run": ("exec('h = 1')", "exec"),
    "the name of the shell": ("get_ipython().push({'h': 1})", "get_ipython"),
    "a line magic": ("%time h = 1", "get_ipython"),
    "a magic that does nothing, with a command in it": ("%pip install {h()}", "get_ipython"),
    "a cell magic": ("%%html\n<p>", "code that cannot be read"),
    "a cell magic with words": ("%%time h = 1\nx = 2", "code that cannot be read"),
    "a cell that is no Python": ("time h = 1", "code that cannot be read"),
    "a cell with too deep a nest": ("x = " + "+".join(["1"] * 20_000), "code that cannot be read"),
    "the code of a function": ("f.__code__ = g.__code__", "__code__"),
    "the modules by way of another": ("import os\nos.sys.modules['__main__'].f = 1", "sys.modules"),
    "a computed attribute": ("import torch\ngetattr(torch, 'a' + 'b')()", "an attribute by a computed name"),
    "a library that is handed on": ("import torch\ng(torch.nn)", "a module handed on as a value"),
    "another package": ("import pyclbr\npyclbr.importlib.import_module('a')", "pyclbr"),
    "an import of the exercise's name": ("from mine import softmax", "mine"),
}


@pytest.mark.parametrize(("cell", "what"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_what_could_change_an_exercise_unseen_is_in_doubt(cell, what):
    assert what in doubts(cell, RIGHT)


INNOCENT = {
    "a test of one's own": "print(softmax(np.ones(3)))",
    "a line that does nothing": "%matplotlib inline\n%pip install numpy",
    "a time": "%%time\nprint(softmax(np.ones(3)))",
    "an import": "import inspect, torch.nn.functional as F\nfrom torch import nn, softmax as theirs",
    "a container that is filled": "BOX = []\ndef put(x):\n    global LAST\n    LAST = x\n    BOX.append(x)\nput(1)",
    "an attribute that is set": "class A:\n    pass\nA.x = 1\nsetattr(A, 'y', 2)",
    "a name like a module's": "profile = code = 3\nprint(profile, code)",
    "a library's name as text": "print('exec', 'torch._C')",
    "another exercise": "import torch\nclass AdditiveAttention(torch.nn.Module):\n    pass",
}


@pytest.mark.parametrize("cell", INNOCENT.values(), ids=INNOCENT)
def test_what_uses_nothing_that_is_ruled_out_is_not(cell):
    assert not doubts(cell, RIGHT)


def test_another_exercise_is_in_doubt_where_something_names_it():
    other = "import torch\nclass AdditiveAttention(torch.nn.Module):\n    pass"
    assert doubts(other, RIGHT, "keep = [AdditiveAttention]") == ["torch"]
    assert doubts(other + "\n    x = exec('1')", RIGHT) == ["exec"]


@pytest.mark.parametrize("slug", course.slugs())
def test_right_answers_raise_no_doubt(slug):
    handed_in = nbformat.writes(instructor_notebook(slug)).encode()
    around = Surroundings(read(read_notebook(handed_in, slug, course.given_cells(slug)).cells), slug)
    assert not [doubt for exercise in course.sheet(slug).exercises for doubt in around.doubts(exercise)]


def test_only_what_is_ruled_out_is_left_out():
    given = course.given_cells(SLUG)[f"{SLUG}-given"]
    cells = (
        given,
        "import torch; A = 1; print(A)\nB = torch.ones(2)\nA += 1\nprint(B)",
        CALLS,
        "def helper(s, a): return A",
    )
    alone = Surroundings(read(cells), SLUG).without(EXERCISE)
    kept = ("import torch", "A = 1", "print(A)", "A += 1", "print(B)")  # each by itself: what misses B costs no other
    assert alone == (given, *kept, CALLS, "def helper(s, a):\n    return A")


def test_many_statements_make_no_more_cells_than_a_notebook_may_have():
    cells = ("exec('1')\n" + "x = 1\n" * 3000, RIGHT)
    alone = Surroundings(read(cells), SLUG).without(EXERCISE)
    assert (len(alone), alone[0]) == (2, "\n".join(["x = 1"] * 3000))


def test_scratch_work_costs_nothing(monkeypatch):
    scratch = (
        "import inspect, sys, torch\nx = np.ones((2, 3))\n"
        "print(np.allclose(softmax(x), torch.softmax(torch.from_numpy(x), -1)), list(globals()), sys.modules.keys())",
        "%timeit softmax(x)",
        "TABLE = {}\nfor n in range(3):\n    TABLE[n] = 1.0",
    )
    answer = RIGHT.replace("def softmax(", "Kind = np.ndarray\ndef softmax(").replace("scores:", "scores: 'Kind' or")
    looks = []
    look = judge.judge_exercises
    monkeypatch.setattr(judge, "judge_exercises", lambda *given: (looks.append(given[1]), look(*given))[1])
    assert (hand_in(*scratch, answer).outcome, len(looks)) == ("passed", 2)
    assert not any("globals" in cell for cell in looks[1])
    assert (hand_in(RIGHT, "print(softmax(np.ones((2, 3))))").outcome, len(looks)) == ("passed", 3)


def test_a_first_try_with_the_library_costs_nothing():
    assert hand_in(FIRST, "x = softmax(np.ones((2, 3)))", RIGHT).outcome == "passed"


BROKEN_OFF = {
    "the answer first, then an error": ((FIRST, f"{RIGHT}\nassert False"), "passed"),
    "an error, then the answer": ((FIRST, f"1 / 0\n{RIGHT}"), "passed"),
    "a helper, first from the library": ((HELPER, f"{OWN_HELPER}\nassert False", CALLS), "passed"),
    "a wrong answer": ((FIRST, f"{WRONG}\nassert False"), "failed"),
    "the library last": ((RIGHT, f"{FIRST}\nassert False"), "forbidden"),
    "the library by another name": ((FIRST, f"{RIGHT}\nsoftmax = torch.softmax\nassert False"), "forbidden"),
    "a definition that fails": ((FIRST, f"@1\n{RIGHT}"), "forbidden"),
    "the first try under a second name": ((FIRST, "helper = softmax", f"{CALLS}\nassert False"), "crashed"),
    "a doubt besides": ((FIRST, "exec('def softmax(s, axis=-1): return s')", f"{RIGHT}\nassert False"), "passed"),
}


@pytest.mark.parametrize(("cells", "outcome"), BROKEN_OFF.values(), ids=BROKEN_OFF)
def test_of_two_definitions_the_one_that_holds_counts_also_where_its_cell_breaks_off(cells, outcome):
    assert hand_in(*cells).outcome == outcome


def test_the_cell_in_doubt_is_counted_as_the_student_counts_it():
    result = hand_in("x = 1\ny = 2", FIRST, "helper = softmax", f"{CALLS}\nassert False")
    assert result.score == 0
    number = len(course.given_cells(SLUG)) + 2  # given cells that are missing are put in front
    assert result.message.startswith(f"Code cell {number} of your notebook has what this exercise may not use")


UNSEEN = {
    "a walrus in a default": (WRONG, LIB, "def g(x=(softmax := lib)):\n    pass"),
    "a walrus in an annotation": (WRONG, LIB, "def g(x: (softmax := lib)):\n    pass"),
    "a magic without its sign": (WRONG, LIB, "time softmax = lib"),
    "a magic before a form feed": (WRONG, LIB, "%%time\x0csoftmax = lib\nprint(1)"),
    "the shell by another name": (WRONG, LIB, "quit._ip.push({'softmax': lib})"),
    "an update of attributes": (
        WRONG,
        LIB,
        "import functools\nfunctools.update_wrapper(softmax, lib, ('__code__',), ())",
    ),
    "a library's container": (LIB + "\nnp.typecodes['s'] = lib", CALLS.replace("helper", "np.typecodes['s']")),
    "a library's hook": (LIB + "\nnp.seterrcall(lib)", CALLS.replace("helper", "np.geterrcall()")),
    "a default of a lambda": (
        "helper = lambda s, a, box=[]: box.append(s) if callable(s) else box[0](s, a)",
        LIB + "\nhelper(lib, 0)",
        CALLS,
    ),
    "an earlier meaning": (LIB + "\ndef first(s, a):\n    return lib(s, a)\nhelper = first", CALLS),
}


@pytest.mark.parametrize("cells", UNSEEN.values(), ids=UNSEEN)
def test_what_an_exercise_owes_to_other_cells_is_not_paid(cells):
    assert hand_in(*cells).score == 0


def test_what_another_exercise_hides_is_not_paid():
    cells = [cell for name, cell in _answers("multi_head").items() if name not in ("KVCache", "decode_step")]
    theirs = "torch.nn.functional.scaled_dot_product_attention"
    cache = _answers("multi_head")["KVCache"] + f"\n    def serve(self, *given):\n        return {theirs}(*given)\n"
    honest = _answers("multi_head")["decode_step"]
    assert hand_in(*cells, _answers("multi_head")["KVCache"], honest, slug="multi_head", name="decode_step").score == 5
    assert hand_in(*cells, cache, honest, slug="multi_head", name="decode_step").score == 0


def _answers(slug):
    return {name: one.source for name, one in course.solution(slug).definitions.items()}


def test_the_student_reads_what_was_left_out():
    found = hand_in(WRONG, LIB, "exec('softmax = lib')")
    assert (found.outcome, found.score) == ("failed", 0)
    number = len(course.given_cells(SLUG)) + 2  # given cells that are missing are put in front
    assert found.message.startswith(f"Code cell {number} of your notebook has what this exercise may not use: torch. ")
