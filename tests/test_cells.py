"""A cell becomes the same Python as IPython makes of it, and what is Python already is not searched."""

import pytest
from IPython.core import inputtransformer2
from IPython.core.inputtransformer2 import TransformerManager

from autograder.sandbox.cells import Transformer

PYTHON = [
    "x = 5 % 3\nprint('50%', f'{x!r}', 'what?')  # really?!",
    "def f(x):\n    return x\n\n\nf(1)",
    "text = '''\n%not a magic\n!nor this\n'''",
    "total = (1\n    % 2)\nvalue = 1 \\\n    % 2",
    "\n\nx = 1 % 2",
    "answer = await f('?')",
    "a != b",
    "",
]
OTHERS = [
    "%time x\ny = 1",
    "%%time\nx = 1",
    "!ls\nx = 1",
    "files = !ls",
    "value = %time x",
    "print?",
    "a = 1\n?print",
    "if x:\n    %pdb\n    y = '?'",
    ",f a b",
    "/f 1",
    ">>> x = '!'\n>>> x",
    "In [1]: x = 1 % 2",
    "  x = 1 % 2\n  y = '?'",
    "def f(:\n    '%'",
    "def f():\n    return 1\n%time f()",
    "x = 1  # a comment\u2028%time x",
    "s = 'a\x0c%time b'",
]


@pytest.mark.filterwarnings("ignore:`make_tokens_by_line` received")  # IPython is surprised by its own lines
@pytest.mark.parametrize("cell", PYTHON + OTHERS)
def test_a_cell_becomes_what_ipython_makes_of_it(cell):
    assert Transformer().transform_cell(cell) == TransformerManager().transform_cell(cell)


@pytest.mark.parametrize("cell", PYTHON)
def test_python_is_not_searched(cell, monkeypatch):
    monkeypatch.setattr(inputtransformer2, "make_tokens_by_line", lambda lines: pytest.fail("it was searched"))
    Transformer().transform_cell(cell)


def test_a_transformer_of_the_notebooks_own_is_asked():
    class Shout(inputtransformer2.TokenTransformBase):
        @classmethod
        def find(cls, tokens_by_line):
            first = tokens_by_line[0][0]
            return cls(first.start) if first.string == "quiet" else None

        def transform(self, lines):
            return [lines[0].replace("quiet", "loud"), *lines[1:]]

    transformer = Transformer()
    transformer.token_transformers.append(Shout)
    assert transformer.transform_cell("quiet = 1") == "loud = 1\n"
