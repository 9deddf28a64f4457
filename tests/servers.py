"""Real servers for tests: a Dask cluster in network namespaces, a PostgreSQL server, and a coordinator to be killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

# ---------------------------------------------------------------------------------------------------------- Dask


@dataclass
class Cluster:
    """A scheduler and workers without a nanny, each a process of its own."""

    address: str = ""
    folder: Path = Path()
    namespaces: list[str] = field(default_factory=list)
    """One network namespace a worker, or none where the machine allows none."""
    scheduler: subprocess.Popen | None = None
    workers: list[subprocess.Popen] = field(default_factory=list)

    def add_worker(self, threads: int = 1) -> subprocess.Popen:
        place = len(self.workers)
        enter = ["ip", "netns", "exec", self.namespaces[place]] if place < len(self.namespaces) else []
        command = [*enter, sys.executable, "-m", "distributed.cli.dask_worker", self.address]
        command += ["--nthreads", str(threads), "--no-nanny", "--no-dashboard", "--name", f"w{place}"]
        command += ["--local-directory", str(self.folder), "--memory-limit", "0", "--death-timeout", "120"]
        self.workers.append(_start(command, self.folder / f"worker-{place}.log"))
        return self.workers[-1]

    def wait_for_workers(self, count: int) -> None:
        from distributed import Client

        with Client(self.address, timeout=60) as client:
            client.wait_for_workers(count, timeout=120)


def _start(command: list[str], log: Path) -> subprocess.Popen:
    with log.open("wb") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, cwd=log.parent, start_new_session=True)


def _ip(*words: str) -> bool:
    try:
        return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@contextmanager
def _network(count: int) -> Iterator[tuple[str, list[str]]]:
    """A bridge with namespaces behind it, for root on a machine that allows it: the bridge's address, their names."""
    mark = f"a{os.getpid() % 100_000}"
    net = f"10.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}"
    names = [f"{mark}n{number}" for number in range(count)]
    try:
        made = _ip("link", "add", f"{mark}br", "type", "bridge") and _ip(
            "addr", "add", f"{net}.1/24", "dev", f"{mark}br"
        )
        made = made and _ip("link", "set", f"{mark}br", "up")
        for number, name in enumerate(names):
            outside, inside = f"{mark}o{number}", f"{mark}i{number}"
            made = (
                made
                and _ip("netns", "add", name)
                and _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
                and _ip("link", "set", outside, "master", f"{mark}br", "up")
                and _ip("-n", name, "addr", "add", f"{net}.{number + 2}/24", "dev", inside)
                and _ip("-n", name, "link", "set", inside, "up")
                and _ip("-n", name, "link", "set", "lo", "up")
            )
        yield (f"{net}.1", names) if made else ("127.0.0.1", [])
    finally:
        for name in names:
            _ip("netns", "del", name)
        _ip("link", "del", f"{mark}br")


@contextmanager
def dask_cluster(folder: Path, count: int = 2) -> Iterator[Cluster]:
    """A real scheduler and so many workers."""
    folder.mkdir(parents=True, exist_ok=True)
    with _network(count) as (host, namespaces):
        cluster = Cluster(folder=folder, namespaces=namespaces)
        try:
            file = folder / "scheduler.json"
            command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", host, "--port", "0"]
            command += ["--no-dashboard", "--scheduler-file", str(file)]
            cluster.scheduler = _start(command, folder / "scheduler.log")
            deadline = time.monotonic() + 60
            while not file.exists() or not file.read_text().strip():
                assert cluster.scheduler.poll() is None, (folder / "scheduler.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            cluster.address = json.loads(file.read_text())["address"]
            for _ in range(count):
                cluster.add_worker()
            cluster.wait_for_workers(count)
            yield cluster
        finally:
            for process in [*cluster.workers, cluster.scheduler]:
                if process is not None:
                    end_group(process.pid)
                    process.wait()


def end_group(pid: int) -> None:
    """SIGKILL to a process that leads a session, and to all that it started there."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


# ---------------------------------------------------------------------------------------------------- PostgreSQL


def postgres_programs() -> tuple[str | None, str | None]:
    """Where initdb and pg_ctl lie: where Debian keeps them, or on the path."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = os.pathsep.join([*map(str, places), os.environ.get("PATH", "")])
    return shutil.which("initdb", path=path), shutil.which("pg_ctl", path=path)


@contextmanager
def postgres_server(initdb: str, pg_ctl: str) -> Iterator[str]:
    """A PostgreSQL server of our own on a socket in a new folder; its URL."""
    root = Path(tempfile.mkdtemp(prefix="attn-pg-"))
    user = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(root, "postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}

    def call(*arguments: object) -> None:
        subprocess.run([*map(str, arguments)], check=True, stdout=subprocess.DEVNULL, cwd="/", **user)

    call(initdb, "-D", root / "data", "-A", "trust", "-U", "postgres", "--no-sync")
    options = f"-k {root} -c listen_addresses= -c fsync=off"
    call(pg_ctl, "-D", root / "data", "-l", root / "log", "-w", "-o", options, "start")
    try:
        yield f"postgresql+psycopg://postgres@/postgres?host={root}"
    finally:
        call(pg_ctl, "-D", root / "data", "-m", "immediate", "stop")
        shutil.rmtree(root)


# --------------------------------------------------------------------------------------------------- coordinators

_PROGRAM = """
import json, os, sys, traceback
import distributed, nbgrader.api, nbgrader.preprocessors, sqlalchemy.dialects.sqlite, typer
from pathlib import Path
from autograder import cli, course
from autograder.grading import cache, run
for slug in course.slugs():
    cache.basis(slug)
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        continue
    os.setsid()
    out = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1), os.dup2(out, 2)
    code = 1
    try:
        cli.console, cli.errors = cli.Console(width=500), cli.Console(stderr=True, width=500)
        cli._grade([Path(p) for p in job["paths"]], Path(job["json"]), root=Path(job["root"]), **job["options"])
        code = 0
    except typer.Exit as ended:
        code = ended.exit_code
    except BaseException:
        traceback.print_exc()
        code = 99
    os._exit(code)
"""


class Coordinators:
    """Makes coordinators without delay: a warm process that forks one for each run of `attn grade`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def start(self, paths: list[Path], root: Path, **options: object) -> int:
        """Start one; its process id, which is also its group's."""
        assert self._process.stdin is not None
        self.log, self.json = self._folder / "log", self._folder / "out.json"
        self.json.unlink(missing_ok=True)
        job = {"paths": [*map(str, paths)], "root": str(root), "log": str(self.log), "json": str(self.json)}
        self._process.stdin.write(json.dumps(job | {"options": options}) + "\n")
        self._process.stdin.flush()
        return int(self._read())

    def finish(self) -> int:
        """Wait until it has ended: its exit code, negative for a signal."""
        return int(self._read())

    def run(self, paths: list[Path], root: Path, **options: object) -> int:
        """Start one and wait."""
        self.start(paths, root, **options)
        return self.finish()

    @property
    def said(self) -> str:
        """What the latest one printed."""
        return self.log.read_text()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=120)
        self._process.stdout.close()
