"""The benchmark of long sequences, run with tiny sizes: every mechanism is right, and its rows say what they should."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_tiny_run_checks_and_measures_every_mechanism(tmp_path):
    file = tmp_path / "long.json"
    command = [sys.executable, "-W", "error", ROOT / "benchmarks" / "long_sequences.py", "--tiny", "--device", "cpu"]
    done = subprocess.run([*command, "--json", file], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(file.read_text())
    assert data["schema"] == 1 and data["complete"] and data["device"] == "cpu"
    assert {"machine", "versions", "commit", "date", "command"} <= data["provenance"].keys()

    names = {row["mechanism"] for row in data["correctness"]}
    assert {"naive", "sdpa", "banded", "block_sparse", "lsh", "linear_chunked", "gated_delta"} <= names
    assert all(row["right"] and 0 < row["error"] < 1e-5 for row in data["correctness"])
    assert data["skipped"] == []
    points = {(row["mechanism"], row["seq"]): row for row in data["points"]}
    assert points.keys() == {(name, seq) for name in names for seq in (64, 128)}
    assert all(0 < row["ms_min"] <= row["ms"] <= row["ms_max"] and row["repeats"] >= 1 for row in points.values())
    assert {row["over"] for row in data["crossovers"]} == {"naive", "sdpa", "sdpa_causal"}


def test_what_is_not_measured_says_why(tmp_path):
    file = tmp_path / "long.json"
    command = [sys.executable, ROOT / "benchmarks" / "long_sequences.py", "--tiny", "--device", "cpu"]
    command += ["--lengths", "64,16384", "--budget", "0.001", "--json", file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(file.read_text())
    assert data["complete"] and data["points"] == []
    reasons = {(row["mechanism"], row["seq"]): row["reason"] for row in data["skipped"]}
    assert "budget" in reasons["banded", 64] and "budget" in reasons["banded", 16384]
    naive = next(row for row in data["skipped"] if row["mechanism"] == "naive" and row["seq"] == 16384)
    assert naive["computed_bytes"] == 2 * 2 * 16384**2 * 4
