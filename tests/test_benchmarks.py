"""The benchmark of whole grading runs: it runs, and what it records is complete and agrees with itself."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_very_small_class_gives_a_whole_and_consistent_record(tmp_path):
    place = tmp_path / "grading.json"
    command = [sys.executable, "benchmarks/grading.py", "--students", "3", "--nbgrader", "1", "--rounds", "1"]
    done = subprocess.run([*command, "--json", str(place)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(place.read_text())

    only = record["rounds"][0]
    one, two, theirs, bare = (only[side] for side in ("ours_one_worker", "ours_two_workers", "nbgrader", "bare_fork"))
    cpu = [side["cpu_s_per_submission"] for side in (one, two, theirs, bare)]
    # Of so few, start-up's own ups and downs can be more than all the grading: the sign of a difference is luck.
    for side in (one, two, *theirs["parts"].values()):
        short, long = side["short_run"], side["long_run"]
        more = long["submissions"] - short["submissions"]
        assert more > 0
        assert side["cpu_s_per_submission"] == pytest.approx((long["cpu_s"] - short["cpu_s"]) / more, abs=2e-3)
        assert min(short["cpu_s"], long["cpu_s"]) > 1, "libraries alone take longer"
    assert bare["cpu_s_per_submission"] > 0
    assert record["ratio_vs_nbgrader"] == pytest.approx(cpu[2] / cpu[0], abs=1e-3)
    assert record["ratio_vs_bare_fork"] == pytest.approx(cpu[0] / cpu[3], abs=1e-3)
    walls = one["wall_s_per_submission"] / two["wall_s_per_submission"]
    assert record["two_worker_speedup"] == pytest.approx(walls, abs=1e-3)
    assert {goal["goal"].split()[0]: goal["value"] for goal in record["goals"]} == {
        key: record[key] for key in ("ratio_vs_nbgrader", "ratio_vs_bare_fork", "two_worker_speedup")
    }

    assert record["the_class"]["graded"] == record["the_class"]["submissions"] == 5
    assert set(one["written"].values()) == set(two["written"].values()) == {5}, "everything is written for everybody"
    assert only["same_verdicts_as_bare_fork"] == 3, "both sides run the same tests and come to the same verdicts"
    assert only["bare_fork_repeats_itself"]
    assert theirs["mean_score"] > 0, "nbgrader's kernel ran the notebooks"

    parts = record["where_the_time_goes"]
    assert sum(part["cpu_s"] for part in parts["parts"]) == pytest.approx(parts["cpu_s_per_submission"], rel=0.01)
    named = {part["part"] for part in parts["parts"] if part["cpu_s"] > 0}
    assert {"cells, in the jail", "gradebook", "feedback page (HTML)"} <= named
    assert record["provenance"]["command"].startswith("python benchmarks/grading.py --students 3")
    assert str(ROOT) not in place.read_text()
