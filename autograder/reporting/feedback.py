"""What a student reads: which claims hold, which mistake it looks like, and what to do first.

Nothing here names a hidden test or shows one of its inputs: the words are a test's claim, message and hint, the
sentence of a named mistake, and points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from autograder.grading.result import ExerciseResult, SubmissionResult
from autograder.reporting.words import chapter, number, outcome, render

STEPS = 3
"""A list of everything at once helps nobody: this many next steps are spelled out."""


@dataclass(frozen=True)
class Step:
    """One thing to do next."""

    id: str
    title: str
    advice: str


def feedback_page(result: SubmissionResult, *, name: str | None = None, penalty: float = 0.0) -> str:
    """The feedback of one submission as one HTML file that needs nothing else: no request, no script.

    Args:
        result: what the grader found.
        name: how to call the student; the student id where it is not known.
        penalty: points taken off for lateness.
    """
    final = max(0.0, result.score - penalty)
    steps = next_steps(result)
    open_exercises = sum(exercise.outcome != "passed" for exercise in result.exercises)
    return render(
        "feedback.html.j2",
        result=result,
        who=name or result.student,
        final=final,
        penalty=penalty,
        share=min(1.0, final / result.max_score) if result.max_score else 0.0,
        summary=_summary(result),
        steps=steps,
        more=open_exercises - len(steps),
    )


@lru_cache(maxsize=256)  # whoever passed an exercise reads the same
def exercise_html(exercise: ExerciseResult) -> str:
    """One exercise's feedback as a piece of HTML, for the output below its check cell."""
    return render("exercise.html.j2", exercise=exercise)


@lru_cache(maxsize=256)
def exercise_text(exercise: ExerciseResult) -> str:
    """The same in plain text."""
    state = outcome(exercise.outcome)
    points = f"{number(exercise.score)} of {number(exercise.max_score)} points"
    lines = [f"{state.mark} {exercise.title}: {state.word}, {points}"]
    lines += [text for text in (exercise.says, exercise.mistake_hint, exercise.message) if text]
    for test in exercise.tests:
        lines.append(f"  {outcome(test.outcome).mark} {test.claim}")
        if test.outcome != "passed":
            lines += [f"      {text}" for text in (test.message, test.hint and f"Hint: {test.hint}") if text]
    return "\n".join(lines)


def exercise_comment(exercise: ExerciseResult) -> str | None:
    """What nbgrader shows as the comment on the student's cell; None where there is nothing to say.

    nbgrader renders comments as Markdown with raw HTML, so whatever means something in either is taken out.
    """
    if exercise.outcome == "passed":
        return None
    if exercise.outcome == "not_attempted":
        return "No response."
    failing = next((test for test in exercise.tests if test.outcome != "passed"), None)
    texts = [exercise.says, exercise.mistake_hint] if exercise.says else [exercise.message]
    if not any(texts) and failing is not None:
        texts = [failing.claim, failing.message, failing.hint]
    return inert(" ".join(text for text in texts if text) or outcome(exercise.outcome).meaning)


def next_steps(result: SubmissionResult) -> list[Step]:
    """What to do first: the open exercises in the notebook's order, since later ones build on earlier ones."""
    unfinished = [exercise for exercise in result.exercises if exercise.outcome != "passed"]
    return [Step(exercise.id, exercise.title, _advice(exercise)) for exercise in unfinished[:STEPS]]


def _advice(exercise: ExerciseResult) -> str:
    failing = next((test for test in exercise.tests if test.outcome not in ("passed", "not_attempted")), None)
    words = [exercise.says, exercise.mistake_hint] if exercise.says else [failing.hint if failing else ""]
    return " ".join(text for text in words if text) or outcome(exercise.outcome).advice


def _summary(result: SubmissionResult) -> str:
    total = len(result.exercises)
    passed = sum(exercise.outcome == "passed" for exercise in result.exercises)
    if total == 0:
        return f"No exercise of {chapter(result.assignment)} could be graded."
    if passed == total:
        return "Every claim about every exercise holds. Well done."
    if passed == 0:
        return f"None of the {total} exercises passes yet; below is where to start."
    return f"{passed} of {total} exercises pass."


_MARKUP = str.maketrans({char: f"&#{ord(char)};" for char in "&<>\"'\\`*_{}[]()#+!|~$"})


def inert(text: str) -> str:
    """Text without control characters, and with everything escaped that Markdown or HTML would take for its own."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    return "".join(char for char in text if char.isprintable()).translate(_MARKUP)
