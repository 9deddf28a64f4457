"""What ``nbgrader autograde`` runs on this course in place of executing the student's notebook unprotected.

``nbgrader_config.py`` names these classes. nbgrader stays in charge of its own steps (folders, sanitising, the
gradebook); the grade comes from the same judge as ``attn grade``, on the same bytes, so both give the same score.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from nbconvert.exporters import NotebookExporter
from nbformat import NotebookNode
from nbgrader.api import Gradebook
from nbgrader.converters.base import NbGraderException
from nbgrader.preprocessors import NbGraderPreprocessor
from nbgrader.preprocessors import SaveAutoGrades as NbGraderSaveAutoGrades
from traitlets import Unicode
from traitlets.utils.importstring import import_item

from autograder.grading.record import (
    NOTEBOOK,
    RecordError,
    one_writer,
    released_assignment,
    write_feedback,
    write_result,
)
from autograder.grading.result import SubmissionResult
from autograder.reporting.feedback import exercise_comment, inert
from autograder.reporting.graded import Unreadable, annotate, readable, restore

_RESULT = "attention_in_depth"


class UngradedError(Exception):
    """The grader could not grade; nbgrader reports it, and no grade is written."""


class AnyNotebookExporter(NotebookExporter):
    """Reads whatever was handed in: a file that is no notebook stands as the exercises as released.

    While a notebook is converted, which is also when its grades are saved, nobody else writes to the gradebook.
    """

    parent: Any

    def __init__(self, **kw: Any) -> None:
        """Made once for each run of nbgrader, before it writes anything.

        Args:
            **kw: nbconvert's.

        Raises:
            NbGraderException: somebody else writes grades.
        """
        super().__init__(**kw)  # type: ignore[no-untyped-call]
        try:
            with self._one_writer():
                pass
        except RecordError as error:
            self.log.error("%s", error)
            raise NbGraderException(str(error)) from error

    def _one_writer(self) -> AbstractContextManager[None]:
        course = self.parent.coursedir
        return one_writer(Path(course.root), course.db_url)

    def from_filename(self, filename: str, resources: Any = None, **kw: Any) -> tuple[Any, Any]:
        """Converts one notebook.

        Args:
            filename: where it lies.
            resources: nbgrader's: whose it is, and which assignment.
            **kw: passed on.

        Raises:
            RecordError: somebody else has begun to write grades.
        """
        with self._one_writer():
            converted: tuple[Any, Any] = super().from_filename(filename, resources, **kw)
        return converted

    def from_file(self, file_stream: Any, resources: Any = None, **kw: Any) -> tuple[Any, Any]:
        """Repairs the notebook before nbgrader looks at it.

        Args:
            file_stream: the opened notebook.
            resources: nbgrader's: whose it is, and which assignment.
            **kw: passed on.
        """
        course = Path(self.parent.coursedir.root)
        slug = resources["nbgrader"]["assignment"]
        place = Path(file_stream.name)
        try:
            notebook: NotebookNode | None = readable(place.read_bytes())
        except Unreadable as error:
            self.log.warning("%s cannot be read as a notebook: %s", place, error)
            notebook = None
        repaired = restore(notebook, released_assignment(course, slug, self.config))
        converted: tuple[Any, Any] = self.from_notebook_node(repaired, resources=resources, **kw)  # type: ignore[no-untyped-call]
        return converted


class GradeInJail(NbGraderPreprocessor):
    """Grades the submitted file with the course's judge, and writes score and feedback below each check cell."""

    judge = Unicode(
        "autograder.grading.judge.judge_notebook",
        help="Dotted name of the function (data, slug, student) -> SubmissionResult that grades.",
    ).tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: dict[str, Any]) -> tuple[NotebookNode, dict[str, Any]]:
        """Grades the notebook that the resources name.

        Raises:
            UngradedError: the grader is at fault; the submission stays ungraded.
        """
        names = resources["nbgrader"]
        course = self.parent.parent.coursedir
        folder = Path(course.format_path(course.submitted_directory, names["student"], names["assignment"]))
        data = (folder / f"{NOTEBOOK}.ipynb").read_bytes()
        result: SubmissionResult = import_item(self.judge)(data, names["assignment"], names["student"])
        write_result(Path(course.root), result)
        if result.status != "graded":
            raise UngradedError(f"{names['student']}/{names['assignment']} is not graded: {result.message}")
        names[_RESULT] = result
        repaired = restore(nb, released_assignment(Path(course.root), names["assignment"], self.config))
        return annotate(repaired, result), resources


class SaveGrades(NbGraderSaveAutoGrades):
    """nbgrader's step that saves scores, with the course's words as the comments on the answers."""

    def preprocess(self, nb: NotebookNode, resources: dict[str, Any]) -> tuple[NotebookNode, dict[str, Any]]:
        """Saves all cells of one notebook."""
        result: SubmissionResult = resources["nbgrader"][_RESULT]
        self._words = {exercise.id: exercise_comment(exercise) for exercise in result.exercises}
        self._fallback = inert(result.message) if result.outcome == "invalid_notebook" else None
        saved: tuple[NotebookNode, dict[str, Any]] = super().preprocess(nb, resources)
        return saved

    def _add_comment(self, cell: NotebookNode, resources: dict[str, Any]) -> None:
        comment = self.gradebook.find_comment(
            cell.metadata["nbgrader"]["grade_id"], self.notebook_id, self.assignment_id, self.student_id
        )
        comment.auto_comment = self._words.get(cell.metadata["nbgrader"]["grade_id"], self._fallback)
        self.gradebook.db.commit()


class WriteFeedback(NbGraderPreprocessor):
    """Writes the course's own feedback page beside the one that nbgrader makes later."""

    def preprocess(self, nb: NotebookNode, resources: dict[str, Any]) -> tuple[NotebookNode, dict[str, Any]]:
        """Comes after the late penalty is known."""
        names = resources["nbgrader"]
        result: SubmissionResult = names[_RESULT]
        with Gradebook(names["db_url"]) as gradebook:
            graded = gradebook.find_submission_notebook(names["notebook"], names["assignment"], names["student"])
            penalty = graded.late_submission_penalty or 0.0
        write_feedback(Path(self.parent.parent.coursedir.root), result, penalty=penalty)
        return nb, resources
