"""The search for the mistake behind a failure: calls repeated alone tell what whole tests tell, and replays end."""

import json
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from autograder import course
from autograder.answers import Answer, shelf
from autograder.grading import diagnose
from autograder.grading import signatures as module
from autograder.grading.judge import outcome_of
from autograder.grading.secret import own_seed, seed_of
from autograder.grading.signatures import signatures
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
def test_signatures_spare_replays_and_change_no_name(name, monkeypatch):
    exercise = exercise_of(name)
    replays = []
    behaves_so = diagnose._behaves_so
    monkeypatch.setattr(diagnose, "_behaves_so", lambda *given: replays.append(given) or behaves_so(*given))
    assert signatures(exercise)
    for submitted in shelf("additive").mistakes[name]:
        verdicts = verdicts_of(exercise, submitted)
        named = diagnose.name_mistake(exercise, verdicts, SEEDS)
        with_signatures = len(replays)
        monkeypatch.setattr(diagnose, "signatures", lambda exercise: {})
        assert named is submitted is diagnose.name_mistake(exercise, verdicts, SEEDS)
        monkeypatch.setattr(diagnose, "signatures", signatures)
        failures = sum(verdict.outcome != "passed" for verdict in verdicts)
        assert failures <= with_signatures < len(replays) / 2
        replays.clear()


def test_a_mistake_that_ends_a_test_otherwise_is_not_named():
    exercise = exercise_of("softmax")
    submitted = next(a for a in shelf("additive").mistakes["softmax"] if a.name == "no_max_subtraction")
    verdicts = verdicts_of(exercise, submitted)
    assert diagnose.name_mistake(exercise, verdicts, SEEDS) is submitted
    last = verdicts[-1]
    assert last.outcome == "passed"
    verdicts[-1] = replace(last, outcome="failed")
    assert diagnose.name_mistake(exercise, verdicts, SEEDS) is None


def test_values_of_passed_tests_are_the_submissions_own_affair():
    """What passes is right, however it was come by: here, parameters drawn in another order."""
    exercise = exercise_of("AdditiveAttention")
    submitted = next(a for a in shelf("additive").mistakes["AdditiveAttention"] if a.name == "averages_the_keys")
    drawn = submitted.source.replace("super().__init__()", "super().__init__()\n        torch.rand(3)")
    assert drawn != submitted.source
    verdicts = verdicts_of(exercise, Answer(exercise.name, "drawn", drawn))
    assert diagnose.name_mistake(exercise, verdicts, SEEDS) is submitted


def test_signatures_of_another_state_of_the_suite_do_not_count(monkeypatch, tmp_path):
    exercise = exercise_of("softmax")
    kept = json.loads((module.FOLDER / "additive.json").read_text())
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    for damage, counts in ((None, True), ("another basis", False), ("no list", False), ("no json", False)):
        entry = kept["exercises"]["softmax"]
        entry |= {"basis": "0" * 16} if damage == "another basis" else {}
        entry |= {"mistakes": 3, "basis": module._basis(exercise)} if damage == "no list" else {}
        (tmp_path / "additive.json").write_text("{" if damage == "no json" else json.dumps(kept))
        signatures.cache_clear()
        assert bool(signatures(exercise)) == counts, damage
    monkeypatch.undo()
    signatures.cache_clear()
    assert signatures(exercise)


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
def test_a_signature_says_only_what_is_sure(outcomes, ratios, letter):
    test = suite("additive").tests["softmax"][0]
    run = Run(None, tuple(Gauge("a number", ratio) for ratio in ratios))
    runs = [[Verdict(test, outcome, "", run, Journal())] for outcome in outcomes]
    assert module.over_seeds(runs) == {test.name: letter}
    assert module.over_seeds([*runs, [Verdict(test, outcomes[0], "", None, Journal())]]) == {test.name: "?"}
