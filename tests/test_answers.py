"""How right alternatives and named mistakes are declared, and what a declaration that contradicts itself says."""

import importlib
import sys
import textwrap

import pytest

import autograder.answers as answers
import solutions
from autograder.answers import AnswerError, reference_source, shelf

SOLUTIONS = '''
import functools


def keep(function):
    return functools.wraps(function)(lambda *args: function(*args))


@keep
def half(x):
    """x / 2."""
    # comment + comment
    return x / 2


class Counter:
    """Counts."""

    def __init__(self, start=0):
        self.count = start + start

    def again(self):
        return Counter(self.count + 1)
'''

HEAD = """
import functools

from autograder.answers import alternative, edit, mistake


def loud(function):
    @functools.wraps(function)
    def wrapped(*args):
        return function(*args)
    return wrapped

"""


@pytest.fixture
def declare(tmp_path, monkeypatch):
    """Declares answers to a small chapter and returns its shelf."""
    for package, folder in ((answers, tmp_path / "answers"), (solutions, tmp_path / "solutions")):
        folder.mkdir()
        monkeypatch.setattr(package, "__path__", [str(folder), *package.__path__])
    (tmp_path / "solutions" / "tiny.py").write_text(SOLUTIONS)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text):
        (tmp_path / "answers" / "tiny.py").write_text(HEAD + textwrap.dedent(text))
        importlib.invalidate_caches()
        return shelf("tiny")

    yield write
    for name in ("autograder.answers.tiny", "solutions.tiny"):
        sys.modules.pop(name, None)
    answers.shelf.cache_clear()
    answers._reference.cache_clear()
    answers._shelves.pop("tiny", None)


def run(source, name):
    namespace = {"loud": lambda function: function, "keep": lambda function: function}
    exec(source, namespace)
    return namespace[name]


def test_an_edit_is_the_reference_with_one_change(declare):
    (mistake,) = declare(
        'edit("half", "doubles", replace="x / 2", by="x * 2", says="You double.", hint="Half.", count=2)'
    ).mistakes["half"]
    assert (mistake.exercise, mistake.name, mistake.says, mistake.hint) == ("half", "doubles", "You double.", "Half.")
    assert mistake.source == reference_source("tiny", "half").replace("x / 2", "x * 2")
    assert mistake.source.startswith("@keep\ndef half(x):")
    assert run(mistake.source, "half")(3) == 6


@pytest.mark.parametrize(
    ("replace", "count", "found"),
    [("x // 2", 1, 0), ("x / 2", 1, 2), ("x  / 2", 1, 0), ("comment", 3, 2), ("return x / 2", 0, 1)],
)
def test_an_edit_must_match_exactly(declare, replace, count, found):
    with pytest.raises(AnswerError) as error:
        declare(f'edit("half", "wrong", replace={replace!r}, by="", says="", hint="", count={count})')
    assert f"answers/tiny.py, half, wrong: the text to replace stands {found} times" in str(error.value)


def test_an_edit_of_what_the_reference_lacks_is_refused(declare):
    with pytest.raises(AnswerError, match=r"solutions/tiny\.py defines no third"):
        declare('edit("third", "wrong", replace="x", by="y", says="", hint="")')


def test_an_edit_may_be_made_in_a_helper(declare):
    """The helper comes along, edited, and the exercise as it is."""
    (mistake,) = declare(
        'edit("half", "counts_by_two", helpers=["Counter"], replace="count + 1", by="count + 2", says="", hint="")'
    ).mistakes["half"]
    edited = reference_source("tiny", "Counter").replace("count + 1", "count + 2")
    assert mistake.source == f"{edited}\n\n{reference_source('tiny', 'half')}"
    assert run(mistake.source, "Counter")(2).again().count == 12


def test_kernels_come_with_the_function_that_launches_them():
    """Those of the reference, or an answer's own."""
    found = shelf("flash_gpu")
    (own,) = found.alternatives["vector_scale"]
    impostor = next(m for m in found.mistakes["vector_scale"] if m.name == "torch_multiplies")
    assert "def _scale_by_rows(" in own.source and "def _vector_scale_kernel(" not in own.source
    assert "def _vector_scale_kernel(" in impostor.source and impostor.source.count("def ") == 2


def test_a_function_takes_the_exercises_name_and_keeps_its_own_decorators(declare):
    (mistake,) = declare("""
        @mistake("half", says="You call yourself.", hint="Stop.")
        @loud
        def endless(x, depth=3):
            return x if depth == 0 else endless(x, depth - 1) + len("endless")
        """).mistakes["half"]
    assert mistake.name == "endless"
    assert mistake.source.startswith("@loud\ndef half(x, depth=3):")
    assert "mistake(" not in mistake.source
    assert run(mistake.source, "half")(1) == 1 + 3 * len("endless")  # text is no name


def test_a_class_takes_the_exercises_name_inside_its_methods_too(declare):
    (answer,) = declare("""
        @alternative("Counter", name="by_tens")
        class Tens:
            def __init__(self, start=0):
                super(Tens, self).__init__()
                self.count = start

            def again(self):
                return Tens(self.count + 10)
        """).alternatives["Counter"]
    assert answer.name == "by_tens"
    assert "Tens" not in answer.source
    made = run(answer.source, "Counter")(1).again().again()
    assert (type(made).__name__, made.count) == ("Counter", 21)


def test_a_declared_definition_still_works_where_it_stands(declare):
    declare("""
        @alternative("half")
        def shift(x):
            return x * 0.5

        @alternative("half", name="through_the_other")
        def other(x):
            return 0.5 * x

        assert shift(4) == other(4) == 2
        """)
    assert [answer.name for answer in shelf("tiny").alternatives["half"]] == ["shift", "through_the_other"]


@pytest.mark.parametrize("kind", ["mistake", "alternative"])
def test_a_name_stands_once_among_its_kind(declare, kind):
    words = ', says="", hint=""' if kind == "mistake" else ""
    with pytest.raises(AnswerError, match=f"half has two {kind}s called same"):
        declare(f"""
            @{kind}("half"{words})
            def same(x):
                return x

            @{kind}("half", name="same"{words})
            def another(x):
                return x
            """)


def test_one_name_may_serve_two_exercises(declare):
    filled = declare("""
        edit("half", "same", replace="return x", by="return 3 * x", says="", hint="")
        edit("Counter", "same", replace="start + start", by="start", says="", hint="")
        """)
    assert {name: [a.name for a in found] for name, found in filled.mistakes.items()} == {
        "half": ["same"],
        "Counter": ["same"],
    }
