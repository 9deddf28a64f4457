"""What can happen to a call into a submission, seen from outside.

StudentError
  Raised            the code raised an exception
  NotAttempted      the name is missing, or still raises NotImplementedError
  Crashed           its process died, or answered nonsense
  TimedOut          the time limit of a test, or of the submission, was reached
  OutOfMemory       the memory limit was reached
SandboxUnavailable  the grader cannot build the jail: nobody's grade
"""

from __future__ import annotations

from collections.abc import Sequence

from autograder import CourseError


class StudentError(Exception):
    """A call into the submission brought no value back."""

    outcome = "crashed"


class Raised(StudentError):
    """The student's code raised; ``bases`` are the built-in exception types it is an instance of.

    ``says`` is what the grader itself has to say of it; the words of the exception stay inside.
    """

    def __init__(
        self, type_name: str, bases: Sequence[str], cell: int | None, line: int | None, says: str = ""
    ) -> None:
        self.type_name, self.bases, self.cell, self.line, self.says = type_name, tuple(bases), cell, line, says
        place = f" at line {line} of its cell" if line is not None else ""
        because = f": {says}" if says else ""
        super().__init__(f"it raised {bases[0] if bases else 'an exception of its own'}{place}{because}")


class NotAttempted(StudentError):
    """The name is missing, or still raises ``NotImplementedError``."""

    outcome = "not_attempted"


class Crashed(StudentError):
    """The process died, or sent something that is not an answer."""


class TimedOut(StudentError):
    """A limit on time was reached."""

    outcome = "timeout"


class OutOfMemory(StudentError):
    """The limit on memory was reached."""

    outcome = "memory"


class SandboxUnavailable(CourseError):
    """The jail cannot be built here, so nothing is graded."""
