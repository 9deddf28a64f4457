"""Every attack of the corpus is graded in the real jail, among honest submissions, and changes nothing in the world."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from corpus import ADDITIVE, RIGHT_MASK, SCALED, Archive, Attack, load, notebook
from corpus.wire import SERVE, WIRE
from measuring import SECRET, Measured, Watch, limits, measure, measure_archive, undoubted, watching
from record import TABLE, recorded, rows, text
from yard import lacking

from autograder import course
from autograder.grading.intake import read_notebook
from autograder.grading.judge import judge_notebook

ATTACKS, ARCHIVES = load()
RAIDS = [attack for attack in ATTACKS if attack.raids]
OUTCOMES = recorded()
YARD = Path(__file__).parent / "yard.py"


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    with watching() as watch:
        yield watch


def test_honest_work_has_full_marks_before_the_attacks(watch: Watch) -> None:
    for slug, result in watch.grades.items():
        assert result.score == result.max_score == course.sheet(slug).points


def as_recorded(name: str, measured: Measured) -> None:
    """The outcome is the one that the book shows; the table is written anew by `python tests/attacks/record.py`."""
    assert measured.outcome == OUTCOMES.get(name), measured.complaints


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.theme}: {attack.name}")
def test_attack(attack: Attack, watch: Watch) -> None:
    as_recorded(attack.name, measure(attack, watch))


@pytest.mark.parametrize("hostile", ARCHIVES, ids=lambda hostile: f"{hostile.theme}: {hostile.name}")
def test_archive(hostile: Archive, watch: Watch) -> None:
    as_recorded(hostile.name, measure_archive(hostile))


def test_honest_grades_and_the_world_are_as_before(watch: Watch) -> None:
    watch.honest_grades(SCALED, ADDITIVE)
    watch.world()


def test_the_book_shows_every_attack() -> None:
    assert TABLE.read_text(encoding="utf-8") == text(rows(OUTCOMES))


# The positive control: what fails in the jail succeeds without it


@pytest.fixture(scope="module")
def spoils(watch: Watch) -> dict[str, dict]:
    """What every raid brings home where no wall stands, by its name."""
    if why := lacking():
        pytest.skip(f"NOT RUN: {why}")
    assert not watch.bait.visited()

    def cells(attack: Attack) -> list[str]:
        return list(read_notebook(watch.bait.fill(attack.data), attack.slug, course.given_cells(attack.slug)).cells)

    before = {attack.name: cells(attack) for attack in ATTACKS if attack.name in {raid.after for raid in RAIDS}}
    orders = [
        {"name": raid.name, "runs": [*([before[raid.after]] if raid.after else []), cells(raid)]} for raid in RAIDS
    ]
    visited: set[str] = set()
    done = threading.Event()

    def serve() -> None:
        while not done.wait(0.01):
            visited.update(watch.bait.visited())

    server = threading.Thread(target=serve)
    server.start()
    try:
        program = subprocess.run(
            [sys.executable, str(YARD)],
            input=json.dumps({"raids": orders, "reachable": [watch.bait.folder.name]}),
            env={**os.environ, "ATTN_SECRET_FILE": "/nowhere/secret"},
            capture_output=True,
            text=True,
            timeout=240,
        )
    finally:
        done.set()
        server.join()
    visited |= watch.bait.visited()
    assert program.returncode == 0, program.stderr
    found = {one["name"]: one for one in map(json.loads, program.stdout.splitlines())}
    return {**found, "visited": {"kinds": sorted(visited)}}


@pytest.mark.parametrize("raid", RAIDS, ids=lambda raid: f"{raid.theme}: {raid.name}")
def test_without_walls_every_attempt_of_a_raid_succeeds(raid: Attack, spoils: dict[str, dict]) -> None:
    assert spoils[raid.name]["missed"] == []
    assert len(spoils[raid.name]["tried"]) > 0


def test_without_walls_every_service_is_reached(spoils: dict[str, dict]) -> None:
    assert spoils["visited"]["kinds"] == ["abstract", "path", "tcp", "udp"]


def test_right_values_on_the_wire_earn_their_points(watch: Watch) -> None:
    """So that what the attacks on the wire say is heard: only its being wrong costs them the points."""
    answers = """
_right = causal_mask
def causal_mask(q_seq, kv_seq):
    say(form({"value": coded(_right(q_seq, kv_seq))}))
    serve(lambda asked: {"value": coded(_right(*decoded(asked["arguments"])[0]))})
"""
    data = notebook((WIRE, SERVE, RIGHT_MASK, answers))
    with undoubted("wire"):
        result = judge_notebook(data, SCALED, "s900", secret=SECRET, limits=limits(ATTACKS[0]))
    assert [(one.id, one.outcome) for one in result.exercises if one.score] == [(f"{SCALED}-causal_mask", "passed")]
