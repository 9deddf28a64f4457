"""The search for the mistake behind a failure: calls repeated alone tell what whole tests tell, and replays end."""

import json
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from autograder import course
from autograder.answers import Answer, reference_source, shelf
from autograder.grading import cache, diagnose
from autograder.grading import endings as module
from autograder.grading.endings import endings
from autograder.grading.judge import outcome_of
from autograder.grading.secret import own_seed, seed_of
from autograder.grading.suite import Run, Verdict, suite
from autograder.sandbox.student import Direct, Journal, Student
from autograder.suites.kit import Gauge

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


@pytest.mark.parametrize("name", ["softmax", "bilinear_scores", "BahdanauDecoderStep"])
def test_endings_on_record_spare_replays_and_change_no_name(name, monkeypatch):
    exercise = exercise_of(name)
    replays = []
    behaves_so = diagnose._behaves_so
    monkeypatch.setattr(diagnose, "_behaves_so", lambda *given: replays.append(given) or behaves_so(*given))
    assert endings(exercise).numbers >= module.MANY
    for submitted in shelf("additive").mistakes[name]:
        verdicts = verdicts_of(exercise, submitted)
        named = diagnose.name_mistake(exercise, verdicts, SEEDS)
        with_endings = len(replays)
        monkeypatch.setattr(diagnose, "endings", lambda exercise: module.NOTHING)
        assert named is submitted is diagnose.name_mistake(exercise, verdicts, SEEDS)
        monkeypatch.setattr(diagnose, "endings", endings)
        failures = sum(verdict.outcome != "passed" for verdict in verdicts)
        assert failures <= with_endings < len(replays) / 2
        replays.clear()


def test_two_mistakes_at_once_have_no_name():
    exercise = exercise_of("softmax")
    source = (
        "def softmax(scores, axis=-1):\n"
        "    weights = np.exp(scores) / np.exp(scores).sum(axis=axis, keepdims=True)\n"
        "    {also}\n    return weights\n"
    )
    for also, name in (("pass", "no_max_subtraction"), ("scores += 1", None)):
        verdicts = verdicts_of(exercise, Answer("softmax", "submitted", source.format(also=also)))
        named = diagnose.name_mistake(exercise, verdicts, SEEDS)
        assert (named and named.name) == name


def test_values_of_passed_tests_are_the_submissions_own_affair():
    """What passes is right, however it was come by: here, parameters drawn in another order."""
    exercise = exercise_of("AdditiveAttention")
    submitted = next(a for a in shelf("additive").mistakes["AdditiveAttention"] if a.name == "averages_the_keys")
    drawn = submitted.source.replace("super().__init__()", "super().__init__()\n        torch.rand(3)")
    assert drawn != submitted.source
    verdicts = verdicts_of(exercise, Answer(exercise.name, "drawn", drawn))
    assert diagnose.name_mistake(exercise, verdicts, SEEDS) is submitted


def test_endings_of_another_state_of_the_suite_do_not_count(monkeypatch, tmp_path):
    exercise = exercise_of("softmax")
    kept = json.loads((cache.ENDINGS / "additive.json").read_text())

    def forget():
        cache.recorded_endings.cache_clear()
        endings.cache_clear()

    monkeypatch.setattr(cache, "ENDINGS", tmp_path)
    for damage, counts in ((None, True), ("another basis", False), ("no list", False), ("no json", False)):
        entry = kept["exercises"]["softmax"]
        entry |= {"basis": "0" * 16} if damage == "another basis" else {}
        entry |= {"mistakes": 3, "basis": module._basis(exercise)} if damage == "no list" else {}
        (tmp_path / "additive.json").write_text("{" if damage == "no json" else json.dumps(kept))
        forget()
        assert (endings(exercise) is not module.NOTHING) == counts, damage
    monkeypatch.undo()
    forget()
    assert endings(exercise) is not module.NOTHING


@pytest.mark.parametrize(
    ("outcomes", "ratios", "letter"),
    [
        (["passed", "passed"], [], "."),
        (["failed", "failed"], [], "F"),
        (["crashed"], [], "E"),
        (["passed", "failed"], [], "?"),
        (["timeout"], [], "?"),
        (["passed"], [0.4], "."),
        (["passed"], [0.6], "?"),
        (["failed"], [0.1, 1.9], "?"),
        (["failed"], [0.1, 2.1], "F"),
    ],
)
def test_a_record_says_only_what_is_sure(outcomes, ratios, letter):
    test = suite("additive").tests["softmax"][0]
    run = Run(None, tuple(Gauge("a number", ratio) for ratio in ratios))
    runs = [Verdict(test, outcome, "", run, Journal()) for outcome in outcomes]
    assert module.together(runs) == {test.name: letter}
    assert module.together([*runs, Verdict(test, outcomes[0], "", None, Journal())]) == {test.name: "?"}


def test_a_record_of_few_numbers_that_misleads_costs_time_and_no_name(monkeypatch):
    exercise = exercise_of("softmax")
    wrong = {name: dict.fromkeys(letters, "E") for name, letters in endings(exercise).letters.items()}
    for numbers in (2, module.MANY):
        misled = module.Endings(wrong, numbers)
        monkeypatch.setattr(diagnose, "endings", lambda exercise, misled=misled: misled)
        for submitted in shelf("additive").mistakes["softmax"][:3]:
            named = diagnose.name_mistake(exercise, verdicts_of(exercise, submitted), SEEDS)
            assert named is (submitted if misled.may_mislead else None)


def test_an_answer_of_ours_that_does_not_end_is_ended():
    exercise, test = exercise_of("softmax"), suite("additive").tests["softmax"][0]
    test = replace(test, mark=replace(test.mark, seconds=0.3))
    source = "def softmax(scores, axis=-1):\n    while True:\n        pass\n"
    assert diagnose.own_verdict(exercise, Answer("softmax", "never", source), test, 1).outcome == "timeout"
    right = Answer("softmax", "right", reference_source("additive", "softmax"))
    assert diagnose.own_verdict(exercise, right, test, 1).outcome == "passed"
