"""The words and comparisons that hidden suites are written with: what passes, what fails, and what is not told."""

import math
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from autograder import course
from autograder.sandbox.errors import Raised
from autograder.sandbox.protocol import Opaque
from autograder.sandbox.student import Direct, Student
from autograder.suites import kit
from autograder.suites.kit import (
    Mark,
    Wrong,
    at_least,
    at_most,
    at_most_seconds,
    close,
    each_raises,
    gauging,
    hidden,
    raises,
    require,
    strided,
    tensor,
)

ROOT = Path(__file__).resolve().parent.parent
SECRET = 0.8472619  # stands for an expected value: no message may show it


def message(actual, expected, **options):
    with pytest.raises(Wrong) as wrong:
        close(actual, expected, what="the output", **options)
    text = str(wrong.value)
    assert text.startswith("the output")
    assert "0.847" not in text
    return text


PAIRS = {
    "array": (np.array([1.0, SECRET]), np.array([1.0, SECRET])),
    "infinities and NaN where they belong": (np.array([np.inf, -np.inf, np.nan]), np.array([np.inf, -np.inf, np.nan])),
    "empty": (np.zeros((0, 3)), np.zeros((0, 3))),
    "tensor": (torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(2, 2, dtype=torch.bfloat16)),
    "tensor with a gradient": (torch.ones(2, requires_grad=True), torch.ones(2)),
    "truth values": (np.array([True, False]), np.array([True, False])),
    "tuple": ((np.ones(2), 3), (np.ones(2), 3)),
    "number": (0.1 + 0.2, 0.3),
    "number from NumPy": (np.float32(0.5), 0.5),
    "number as an array": (np.array(0.5), 0.5),
    "whole number": (np.int64(4), 4),
    "whole number as a float": (4.0, 4),
    "bool": (np.bool_(True), True),
    "text": ("dot", "dot"),
    "None": (None, None),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_right_answer_passes(name):
    close(*PAIRS[name], what="the output")


WRONG = {
    "NaN": (np.array([np.nan, 1.0]), np.array([SECRET, 1.0]), "1 of 2 values are NaN"),
    "infinity": (np.array([np.inf, 1.0]), np.array([SECRET, 1.0]), "infinite values stand in the wrong places"),
    "other infinity": (np.array([np.inf]), np.array([-np.inf]), "infinite values stand in the wrong places"),
    "finite for infinity": (np.array([1.0]), np.array([-np.inf]), "infinite values stand in the wrong places"),
    "number for NaN": (np.array([1.0]), np.array([np.nan]), "0 of 1 values are NaN"),
    "shape": (np.ones((2, 3)), np.full((3, 2), SECRET), "its shape is (2, 3), where (3, 2) was expected"),
    "broadcast": (np.full(1, SECRET), np.full(3, SECRET), "its shape is (1,), where (3,) was expected"),
    "dtype": (np.ones(2, "float32"), np.full(2, SECRET), "its dtype is float32, where float64 was expected"),
    "torch dtype": (torch.ones(2).half(), torch.full((2,), SECRET), "its dtype is float16, where float32 was expected"),
    "value": (np.array([1.0, 2.0]), np.array([1.0, SECRET]), "50% of the values are off"),
    "tensor for array": (torch.ones(2), np.full(2, SECRET), "a torch tensor, where a NumPy array was expected"),
    "array for tensor": (np.ones(2), torch.full((2,), SECRET), "a NumPy array, where a torch tensor was expected"),
    "None": (None, np.full(2, SECRET), "it is None"),
    "list": ([1.0, 2.0], np.full(2, SECRET), "a value of type list"),
    "opaque": (Opaque("coo"), np.full(2, SECRET), "where a NumPy array was expected"),
    "float for tensor": (0.5, torch.tensor(SECRET), "where a torch tensor was expected"),
    "tensor for float": (torch.tensor(0.5), SECRET, "a torch tensor"),
    "NaN for float": (math.nan, SECRET, "1 of 1 values are NaN"),
    "None for float": (None, SECRET, "None, where one number was expected"),
    "array for float": (np.full(2, SECRET), SECRET, "a NumPy array, where one number was expected"),
    "whole": (5, 4, "it is not the right number"),
    "half": (4.5, 4, "it is not the right number"),
    "NaN for a whole number": (math.nan, 4, "it is not the right number"),
    "infinity for a whole number": (math.inf, 4, "it is not the right number"),
    "text for a number": ("4", 4, "it is a value of type str"),
    "number for a bool": (1, True, "it is a value of type int"),
    "bool": (False, True, "it is not the right one"),
    "something for None": (3, None, "it is a value of type int, not None"),
    "no tuple": (np.ones(2), (np.ones(2), np.ones(2)), "a tuple of 2 was expected, not a NumPy array"),
    "short tuple": ((np.ones(2),), (np.ones(2), np.ones(2)), "1 values came back instead of 2"),
    "second of a tuple": ((1.0, 2.0), (1.0, SECRET), "value 2"),
    "whole numbers": (np.array([1, 2]), np.array([1, 3]), "1 of 2 values are wrong"),
    "truth values": (np.array([True, True]), np.array([True, False]), "1 of 2 values are wrong"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_fails_with_words_that_say_why(name):
    actual, expected, words = WRONG[name]
    assert words in message(actual, expected)


@pytest.mark.parametrize(
    ("dtype", "off"), [("float64", 1e-9), ("float32", 2e-5), ("float16", 4e-3), ("bfloat16", 2e-2)]
)
def test_the_default_tolerance_follows_the_dtype_and_the_largest_value(dtype, off):
    for scale in (1.0, 100.0):
        expected = torch.tensor([scale, 0.0], dtype=torch.float64)
        near, far = expected + torch.tensor([0, off * scale / 3]), expected + torch.tensor([0, 3 * off * scale])
        kind = getattr(torch, dtype)
        close(near.to(kind), expected.to(kind), what="x")
        with pytest.raises(Wrong):
            close(far.to(kind), expected.to(kind), what="x")


def test_tolerances_can_be_given():
    close(np.array([1.05]), np.array([1.0]), what="x", atol=0.1)
    close(np.array([1.05]), np.array([1.0]), what="x", rtol=0.1)
    close(np.array([1.0], "float32"), np.array([1.0]), what="x", dtype=False)
    with pytest.raises(Wrong):
        close(np.array([1.05]), np.array([1.0]), what="x", rtol=0.01)
    with pytest.raises(Wrong):  # an absolute tolerance stands alone
        close(np.array([1e6 + 0.2]), np.array([1e6]), what="x", atol=0.1)
    with pytest.raises(Wrong):  # 0 is 0
        close(np.array([1e-12]), np.array([0.0]), what="x")


def test_limits():
    require(True, "not said")
    with pytest.raises(Wrong, match=r"^said$"):
        require(False, "said")
    at_most(3, 3, what="steps")
    at_least(3, 3, what="steps")
    with pytest.raises(Wrong, match=r"^steps: 3,000, and at most 2 are allowed$"):
        at_most(3000, 2, what="steps")
    with pytest.raises(Wrong, match=r"^steps: 1, and at least 2 are asked for$"):
        at_least(1, 2, what="steps")
    # No more than two digits, and on the side of the limit on which it was.
    with pytest.raises(Wrong, match=r"^bytes: 1,300,000, and at most 1,048,576 are allowed$"):
        at_most(1_234_567, 2**20, what="bytes")
    with pytest.raises(Wrong, match=r"^share: 0\.39, and at least 0\.4 are asked for$"):
        at_least(0.399, 0.4, what="share")
    for nothing in (math.nan, -1.0, 0.0):
        with pytest.raises(Wrong):
            at_least(nothing, 2, what="steps")
    with pytest.raises(Wrong):
        at_most(math.nan, 2, what="steps")
    with pytest.raises(Wrong):
        at_most(1, 0, what="steps")


def call_taking(*seconds):
    left = iter(seconds)
    return lambda: next(left)


def test_cpu_time_is_the_least_of_three_calls(monkeypatch):
    monkeypatch.setattr(kit, "_slowness", lambda: 1.0)
    at_most_seconds(call_taking(0.1), 0.2, what="time")
    at_most_seconds(call_taking(0.9, 0.8, 0.2), 0.2, what="time")
    with pytest.raises(Wrong, match=r"^time: it takes as long as a loop in Python does$"):
        at_most_seconds(call_taking(0.9, 0.3, 0.8, 0.1), 0.2, what="time")


def test_cpu_time_that_is_not_clear_is_read_again_where_it_passed_too(monkeypatch):
    monkeypatch.setattr(kit, "_slowness", lambda: 1.0)
    with gauging() as gauges:
        at_most_seconds(call_taking(0.15, 0.04), 0.2, what="time")
    assert [round(gauge.ratio, 3) for gauge in gauges] == [0.2]


def test_a_slow_machine_has_more_time_and_a_fast_one_no_less(monkeypatch):
    monkeypatch.setattr(kit, "_slowness", lambda: 4.0)
    at_most_seconds(call_taking(0.7, 0.7, 0.7), 0.2, what="time")
    with pytest.raises(Wrong):
        at_most_seconds(call_taking(0.9, 0.9, 0.9), 0.2, what="time")
    monkeypatch.setattr(kit, "_slowness", lambda: 0.25)
    at_most_seconds(call_taking(0.15, 0.15, 0.15), 0.2, what="time")


def test_slowness_follows_the_machine(monkeypatch):
    here = min(kit._slowness() for _ in range(5))
    assert 0.05 < here < 20
    monkeypatch.setattr(kit, "_PASSES", 5 * kit._PASSES)  # what a machine five times as slow would show
    assert kit._slowness() > 2.5 * here


def test_gauges_say_how_near_a_limit_was():
    with gauging() as gauges:
        at_most(1, 4, what="a")
        at_least(8, 4, what="b")
        close(np.array([1.0 + 5e-10]), np.array([1.0]), what="c")
        close(np.array([1]), np.array([1]), what="whole numbers have no margin")
        with gauging() as inner:
            at_most(0, 0, what="d")
        with pytest.raises(Wrong):
            at_most(8, 4, what="e")
    assert [(gauge.what, round(gauge.ratio, 3)) for gauge in gauges] == [("a", 0.25), ("b", 0.5), ("c", 0.5), ("e", 2)]
    assert [(gauge.what, gauge.ratio) for gauge in inner] == [("d", 0.0)]
    at_most(1, 4, what="nobody listens")
    assert len(gauges) == 4


def test_an_exception_can_be_asked_for():
    def picky(x):
        if x == 1:
            raise KeyError(SECRET)
        if x == 2:
            raise type("Own", (Exception,), {})
        if x == 4:
            raise ValueError
        return SECRET

    student = Student(Direct({"picky": picky}))
    raises(KeyError, student, "picky", 1)
    raises(LookupError, student, "picky", x=1)
    for x, words in (
        (1, "should raise ValueError here, and raised KeyError"),
        (2, "and raised Exception"),
        (3, "and returned a value"),
    ):
        with pytest.raises(Wrong, match=words) as wrong:
            raises(ValueError, student, "picky", x)
        assert "0.847" not in str(wrong.value)
        with pytest.raises(Wrong, match=words):
            each_raises(ValueError, student, "picky", [(4,), (x,), (4,)])
    each_raises(ValueError, student, "picky", [(4,), (4,)])
    with pytest.raises(Raised):
        student.picky(1)


def test_a_hidden_test_carries_its_mark():
    @hidden("softmax", kind="edge", weight=2, seconds=3, hint="Look.")
    def test(student, rng):
        """A claim."""

    assert test.mark == Mark("softmax", "edge", 2, 3, "Look.")
    with pytest.raises(ValueError, match="kind 'speed'"):
        hidden("softmax", kind="speed")


def test_inputs_are_drawn_and_laid_out_to_separate():
    one, other = (tensor(np.random.default_rng(3), 2, 5, dtype=torch.float64) for _ in range(2))
    assert one.dtype == torch.float64
    assert torch.equal(one, other)
    array = np.arange(24.0).reshape(2, 3, 4)
    for value in (array, torch.from_numpy(array)):
        apart = strided(value)
        assert np.array_equal(np.asarray(apart), array)
        assert not (apart.flags.c_contiguous if value is array else apart.is_contiguous())


# The suites through plain pytest


def plain(*arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_plain_pytest_judges_the_references():
    done = plain("autograder/suites")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.fixture
def notebook(tmp_path):
    """The student notebook of a chapter with every exercise solved by its reference, but one by what is given."""

    def write(slug, **answers):
        made = nbformat.read(course.CHAPTERS / slug / "exercises.ipynb", as_version=4)
        definitions = course.solution(slug).definitions
        for cell in made.cells:
            name = cell.metadata.get("nbgrader", {}).get("grade_id", "").removeprefix(f"{slug}-")
            if name in definitions:
                cell.source = answers.get(name, definitions[name].source)
        path = tmp_path / "handed_in.ipynb"
        nbformat.write(made, path)
        return str(path)

    return write


def test_plain_pytest_judges_a_right_and_a_wrong_notebook(notebook):
    slug, name = "scaled_dot_product", "causal_mask"
    suite = f"autograder/suites/test_{slug}.py"
    done = plain(suite, "-k", name, "--submission", notebook(slug))
    assert done.returncode == 0, done.stdout[-3000:]
    wrong = "def causal_mask(q_seq, kv_seq):\n    return np.ones((q_seq, kv_seq), dtype=bool)\n"
    done = plain(suite, "-k", name, "--submission", notebook(slug, **{name: wrong}))
    assert done.returncode == 1, done.stdout[-3000:]
    assert "Wrong: " in done.stdout
    assert "infrastructure" not in done.stdout
