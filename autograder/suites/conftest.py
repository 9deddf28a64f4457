"""Fixtures of the hidden suites under plain pytest: `student`, the submission, and `rng`, the numbers a test draws.

The grader collects the suites with pytest and calls their tests with arguments of its own. By hand:
`pytest autograder/suites` judges the references, `pytest autograder/suites --submission FILE.ipynb` judges a notebook.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from autograder.sandbox.student import Direct, Student

torch.set_num_threads(1)  # as the grader does: a second thread that waits is counted as CPU time


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--submission``."""
    parser.addoption("--submission", metavar="FILE.ipynb", help="the notebook to judge (default: the references)")


def _slug(request: pytest.FixtureRequest) -> str:
    return request.path.stem.removeprefix("test_")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """The numbers a test draws, from the test's name; the grader has a seed of its own for each student."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture
def student(request: pytest.FixtureRequest) -> Iterator[Student]:
    """The submission: the notebook named on the command line, or the reference."""
    notebook = request.config.getoption("--submission", default=None)
    if notebook is None:
        yield Student(Direct(vars(importlib.import_module(f"solutions.{_slug(request)}"))))
        return
    from autograder.grading.intake import read_notebook
    from autograder.sandbox.session import Session

    cells = read_notebook(Path(notebook).read_bytes(), _slug(request)).cells
    with Session(cells) as session:
        yield Student(session)
