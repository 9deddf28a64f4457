"""The author's judge over whole chapters, and a record of which mistakes it caught and named; the book shows it.

    python benchmarks/check.py --json benchmarks/results/check.json           all chapters; ten minutes on two cores
    python benchmarks/check.py --json _build/check_additive.json additive     one

It runs `attn check`, so what that finds wrong is in the record too, and makes this end with exit code 1. With
`--record`, how each mistake ends each test is written down by the same run, as `attn check --record` does.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from provenance import provenance

ROOT = Path(__file__).resolve().parent.parent


def without_endings(exercise):
    """What was found about an exercise, less how mistakes end each test, which `autograder/answers/endings` keeps."""
    told = ("name", "caught", "named")
    return exercise | {"mistakes": [{word: mistake[word] for word in told} for mistake in exercise["mistakes"]]}


def main():
    """Run the judge and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="the record")
    parser.add_argument("--seeds", type=int, default=5, help="sets of hidden numbers that each answer meets")
    parser.add_argument("--record", action="store_true", help="write down how mistakes end, too")
    parser.add_argument("slugs", metavar="SLUG", nargs="*", help="chapters; all of them if none is named")
    arguments = parser.parse_args()
    origin, start = provenance(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "check.json")
        options = ["--seeds", str(arguments.seeds), "--json", str(report), *["--record"] * arguments.record]
        command = [sys.executable, "-m", "autograder.cli", "check", *arguments.slugs, *options]
        done = subprocess.run(command, cwd=ROOT)
        found = json.loads(report.read_text()) if report.exists() else {"exercises": []}
    if not found["exercises"]:
        sys.exit("the check did not finish, and nothing is recorded")
    record = found | {
        "exercises": [without_endings(exercise) for exercise in found["exercises"]],
        "seconds": round(time.monotonic() - start),
        "provenance": origin,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
