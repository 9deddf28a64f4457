"""The search for the mistake behind a failure: calls repeated alone tell what whole tests tell, and replays end."""

import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from autograder import course
from autograder.answers import Answer, shelf
from autograder.grading import diagnose
from autograder.grading.judge import outcome_of
from autograder.grading.secret import own_seed, seed_of
from autograder.grading.suite import Verdict, suite
from autograder.sandbox.student import Direct, Student

SEEDS = partial(seed_of, b"replays", "additive", "s001")


def bench(answer):
    return Direct(diagnose.namespace_with("additive", answer))


def verdicts_of(exercise, answer):
    """What the exercise's tests see of one of our own answers."""
    verdicts = []
    for test in suite("additive").tests[exercise.name]:
        student = Student(bench(answer), own_seed(SEEDS(test.name)))
        run = suite("additive").run(test, student, np.random.default_rng(SEEDS(test.name)))
        verdicts.append(Verdict(test, *outcome_of(run), run, student.journal))
    return verdicts


def exercise_of(name):
    return next(exercise for exercise in course.sheet("additive").exercises if exercise.name == name)


@pytest.mark.parametrize("name", ["softmax", "attend", "AdditiveAttention"])
def test_repeated_calls_tell_what_whole_tests_tell(name):
    exercise, answers = exercise_of(name), shelf("additive").mistakes[name]
    told = []
    for submitted in answers[:4]:
        for verdict in verdicts_of(exercise, submitted):
            for answer in answers:
                alike = diagnose._answers_so(bench(answer), verdict)
                if alike is not None:
                    whole = diagnose._ends_so(bench(answer), exercise, verdict, SEEDS)
                    assert alike == whole, (submitted.name, answer.name)
                    told.append(alike)
    assert {True, False} <= set(told)


def test_a_cost_is_told_by_the_whole_test_alone():
    exercise = exercise_of("additive_scores")
    answer = shelf("additive").mistakes["additive_scores"][0]
    costs = [v for v in verdicts_of(exercise, answer) if v.test.mark.kind == "cost" and v.journal.entries]
    assert costs
    for verdict in costs:
        assert diagnose._answers_so(bench(answer), verdict) is None


def test_a_replay_that_does_not_end_is_ended():
    exercise = exercise_of("softmax")
    source = "def softmax(scores, axis=-1):\n    while True:\n        pass\n"
    verdict = verdicts_of(exercise, shelf("additive").mistakes["softmax"][0])[0]
    test = verdict.test
    verdict = replace(verdict, test=replace(test, mark=replace(test.mark, seconds=0.3)))
    before = time.process_time()
    assert not diagnose._behaves_so(exercise, Answer("softmax", "never", source), verdict, SEEDS)
    assert time.process_time() - before < 3


def test_a_replay_that_catches_its_end_is_ended_all_the_same():
    exercise = exercise_of("steps_to_connect")
    source = (
        "def steps_to_connect(distance, layer, kernel_size=3, dilation=1):\n"
        "    try:\n        while True:\n            pass\n    except BaseException:\n        raise ValueError\n"
    )
    (verdict,) = (
        verdict
        for verdict in verdicts_of(exercise, shelf("additive").mistakes["steps_to_connect"][0])
        if verdict.test.name == "test_steps_refuse_what_cannot_be"
    )
    for outcome in ("passed", "failed"):
        test = replace(verdict.test, mark=replace(verdict.test.mark, seconds=0.3))
        before = time.process_time()
        submitted = replace(verdict, test=test, outcome=outcome)
        assert not diagnose._behaves_so(exercise, Answer("steps_to_connect", "never", source), submitted, SEEDS)
        assert time.process_time() - before < 3
