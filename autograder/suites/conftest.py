"""Fixtures of the hidden suites: `student`, the submission, and `rng`, the numbers a test draws.

Plain pytest works too: `pytest autograder/suites` judges the references,
`pytest autograder/suites --submission FILE.ipynb` judges a notebook.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autograder.sandbox.student import Direct, Student


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--submission``."""
    parser.addoption("--submission", metavar="FILE.ipynb", help="the notebook to judge (default: the references)")


def _slug(request: pytest.FixtureRequest) -> str:
    return request.path.stem.removeprefix("test_")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """The numbers a test draws: from the grader's seed, or from the test's name in a plain run."""
    seat: Any = request.config.pluginmanager.get_plugin("attn-seat")
    if seat is not None:
        assert seat.rng is not None
        return seat.rng
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture
def student(request: pytest.FixtureRequest) -> Iterator[Student]:
    """The submission: the grader's, the notebook named on the command line, or the reference."""
    seat: Any = request.config.pluginmanager.get_plugin("attn-seat")
    if seat is not None:
        assert seat.student is not None
        yield seat.student
        return
    notebook = request.config.getoption("--submission", default=None)
    if notebook is None:
        yield Student(Direct(vars(importlib.import_module(f"solutions.{_slug(request)}"))))
        return
    from autograder.grading.intake import read_notebook
    from autograder.sandbox.session import Session

    cells = read_notebook(Path(notebook).read_bytes(), _slug(request)).cells
    with Session(cells) as session:
        yield Student(session)
