"""Whole runs: a local pool, an existing Dask cluster, a killed run that is finished by the next."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autograder import course
from autograder.authoring.build import instructor_notebook
from autograder.grading.run import grade

SLUG = "scaled_dot_product"


@pytest.fixture(scope="module")
def class_of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three students hand in the references, the released notebook, and nothing readable."""
    import nbformat

    root = tmp_path_factory.mktemp("class")
    texts = {
        "s001": nbformat.writes(instructor_notebook(SLUG)),
        "s002": (course.CHAPTERS / SLUG / "exercises.ipynb").read_text(encoding="utf-8"),
        "s003": "this is no notebook",
    }
    for student, text in texts.items():
        folder = root / student / SLUG
        folder.mkdir(parents=True)
        (folder / "exercises.ipynb").write_text(text, encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def secret(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path_factory.getbasetemp() / "secret"
    path.write_text("ab" * 32)
    monkeypatch.setenv("ATTN_SECRET_FILE", str(path))


def _without_seconds(results: list) -> list[dict]:
    return [{**result.as_json(), "seconds": None} for result in results]


def test_a_dask_cluster_gives_the_grades_of_a_local_pool(class_of_three: Path, tmp_path: Path) -> None:
    local = grade([class_of_three], root=tmp_path / "local", workers=2)
    program = (
        "from distributed import LocalCluster\n"
        "if __name__ == '__main__':\n"
        "    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:\n"
        "        print(cluster.scheduler_address, flush=True)\n"
        "        input()\n"
    )
    script = tmp_path / "cluster.py"
    script.write_text(program)
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    ) as cluster:
        assert cluster.stdout is not None and cluster.stdin is not None
        address = cluster.stdout.readline().strip()
        remote = grade([class_of_three], root=tmp_path / "remote", scheduler=address)
        cluster.stdin.write("\n")
        cluster.stdin.close()
    assert [result.score for result in local.results] == [course.sheet(SLUG).points, 0.0, 0.0]
    assert [result.outcome for result in local.results] == ["ok", "ok", "invalid_notebook"]
    assert _without_seconds(remote.results) == _without_seconds(local.results)


def test_nothing_is_judged_twice_and_force_judges_again(class_of_three: Path, tmp_path: Path) -> None:
    first = grade([class_of_three], root=tmp_path, workers=1)
    second = grade([class_of_three], root=tmp_path, workers=1)
    third = grade([class_of_three / "s001"], root=tmp_path, workers=1, force=True)
    assert (first.judged, first.reused) == (3, 0)
    assert (second.judged, second.reused) == (0, 3)
    assert (third.judged, third.reused) == (1, 0)
    assert _without_seconds(second.results) == _without_seconds(first.results)
    assert _without_seconds(third.results) == _without_seconds(first.results[:1])
    assert not third.changed


def test_a_killed_run_is_finished_by_the_next(class_of_three: Path, tmp_path: Path) -> None:
    root = tmp_path / "course"
    program = (
        "import sys\nfrom pathlib import Path\nfrom autograder.grading.run import grade\n"
        "if __name__ == '__main__':\n"
        "    grade([Path(sys.argv[1])], root=Path(sys.argv[2]), workers=1)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(program)
    process = subprocess.Popen([sys.executable, str(script), str(class_of_three), str(root)], env=os.environ.copy())
    deadline = time.monotonic() + 120
    while not list(root.glob("results/*/*.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = grade([class_of_three], root=root, workers=1)
    whole = grade([class_of_three], root=tmp_path / "whole", workers=1)
    assert _without_seconds(run.results) == _without_seconds(whole.results)
    stored = sorted(root.glob("results/*/*.json"))
    assert [json.loads(path.read_text())["score"] for path in stored] == [result.score for result in whole.results]
    shutil.rmtree(root)
