"""nbgrader on this course: where things lie, and who grades.

With it, `nbgrader generate_assignment`, `autograde`, `generate_feedback`, `export`, `validate` and `formgrader` work
from the repository's root. `autograde` hands each notebook to the same grader as `attn grade`, so both give the same
scores; `attn grade` only does it faster. Set `ATTN_DB` to keep the gradebook elsewhere, in PostgreSQL say.
"""

import os

c = get_config()  # provided by nbgrader, which reads this file

root = os.environ.get("ATTN_ROOT") or os.path.dirname(os.path.abspath(__file__))

c.CourseDirectory.root = os.path.join(root, "course")
c.CourseDirectory.course_id = "attention-in-depth"
# Every assignment is one notebook. Naming it keeps nbgrader from clearing a folder that also holds files of ours.
c.CourseDirectory.notebook_id = "exercises"
if os.environ.get("ATTN_DB"):
    c.CourseDirectory.db_url = os.environ["ATTN_DB"]

c.ClearSolutions.code_stub = {"python": "raise NotImplementedError"}

# A file that is no notebook is graded 0 and said so, instead of stopping nbgrader.
c.Autograde.exporter_class = "autograder.grading.nbgrader_hook.AnyNotebookExporter"
c.Autograde.autograde_preprocessors = [
    "autograder.grading.nbgrader_hook.GradeInJail",  # in place of Execute, which runs student code unprotected
    "nbgrader.preprocessors.LimitOutput",
    "autograder.grading.nbgrader_hook.SaveGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "autograder.grading.nbgrader_hook.WriteFeedback",
    "nbgrader.preprocessors.CheckCellMetadata",
]

# Late submissions cost nothing unless you say so: 'zero', or a plugin of your own (see nbgrader's documentation).
c.LateSubmissionPlugin.penalty_method = "none"
