"""The positive control: runs raids of the corpus without a jail, where every attempt of theirs must bring something.

A raid that fails in the jail proves nothing if it fails everywhere, for a slip in its code or for want of anything to
take. So this program does what a careless grader does: it holds tests, references and secret in its own memory, starts
each submission as root in a process of its own, and leaves course, gradebook, other processes and the network within
reach. What a raid can spoil lies in a yard: a root of its own, in which the libraries are copies that are thrown away
(overlays in memory), with namespaces of its own for processes and mounts, and limits on time and memory.

Reads ``[{"runs": [[cell, …], …], "name": …}, …]`` as JSON from standard input, and for each writes a line
``{"name", "tried": [what, …], "missed": [[what, why], …]}``. Needs root, and a kernel that has overlays.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy  # noqa: F401
import torch  # noqa: F401
from IPython.core.interactiveshell import InteractiveShell

from autograder import course
from autograder.grading import judge
from autograder.grading.judge import judge_notebook  # noqa: F401  # as a grader has it, for raids to find
from autograder.grading.suite import suite
from autograder.sandbox import jail

SECONDS = 60
ROOT = Path("/proc")  # every machine has it, and nothing of ours lies below
NEW = 0x00020000 | 0x20000000 | 0x08000000 | 0x04000000  # mounts, processes, IPC, host name
BIND, REC, PRIVATE, DETACH = 0x1000, 0x4000, 0x40000, 2
HOME = "/root"  # of whoever grades, in the yard
BAIT = {
    "/etc/passwd": "root:x:0:0::/root:/bin/sh\n",
    "/etc/shadow": "root:*:1::::::\n",
    f"{HOME}/grades": "s001 12\n",
    "/home/notes": "",
    "/var/mail": "",
    "/mnt/list": "",
    "/srv/list": "",
    "/opt/list": "",
}

POWERS = sum(1 << number for number in (1, 2, 5, 6, 7, 13, 18, 19, 21, 23, 27))  # capabilities that the yard needs

libc = ctypes.CDLL(None, use_errno=True)


def lacking() -> str:
    """Why no yard can be laid out here; empty where one can."""
    held = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "CapEff" in line)
    whole = Path("/proc/self/uid_map").read_text().split()[:2] == ["0", "0"]
    if os.geteuid() == 0 and whole and int(held, 16) & POWERS == POWERS:
        return ""
    return "raids run without walls only where root has all its power"


def call(name: str, *arguments: object) -> None:
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), f"{name} {arguments}: {os.strerror(ctypes.get_errno())}")


def mount(source: str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    target.mkdir(parents=True, exist_ok=True)
    call("mount", source.encode(), bytes(target), kind.encode(), ctypes.c_ulong(flags), options.encode())


def lay_out(reachable: list[str]) -> None:
    """Move into a root that holds what the machine of a careless grader would, and nothing that can be spoiled.

    Args:
        reachable: folders outside that stay in reach.
    """
    call("mount", None, b"/", None, ctypes.c_ulong(REC | PRIVATE), None)
    mount("tmpfs", ROOT, "tmpfs", options="mode=755,size=1g")
    mount("tmpfs", ROOT / "tmp", "tmpfs", options="mode=1777,size=1g")
    programs = [path for name in ("/bin", "/usr/bin") for path in (Path(name), Path(name).resolve())]
    ours = [course.ROOT / name for name in ("autograder", "solutions")]
    for number, path in enumerate(dict.fromkeys([*jail.libraries(), *programs, *ours])):
        inside = ROOT / path.relative_to("/")
        if path.is_file():
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.write_bytes(path.read_bytes())
            continue
        above, work = ROOT / f".over/{number}", ROOT / f".work/{number}"
        above.mkdir(parents=True)
        work.mkdir(parents=True)
        mount("overlay", inside, "overlay", options=f"lowerdir={path.resolve()},upperdir={above},workdir={work}")
    for folder in reachable:
        mount(folder, ROOT / folder[1:], flags=BIND)
    packages = next(Path(place) for place in sys.path if place.endswith("site-packages"))
    kept = course.ROOT / "course"
    for name in (packages / "course", kept, Path("/dev/shm"), Path("/var/tmp"), Path("/sys/kernel")):
        (ROOT / str(name)[1:]).mkdir(parents=True, exist_ok=True)
    for name, text in {**BAIT, str(kept / "secret"): "5a" * 32, str(kept / "gradebook.db"): "grades"}.items():
        place = ROOT / name[1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    (ROOT / "etc/hosts").write_text("127.0.0.1 localhost grades.example\n")
    for device in jail.DEVICES:
        (ROOT / device[1:]).touch()
        call("mount", device.encode(), bytes(ROOT / device[1:]), None, ctypes.c_ulong(BIND), None)
    (ROOT / "old").mkdir()
    os.chdir(ROOT)
    call("pivot_root", b".", b"old")
    os.chdir(kept)
    mount("proc", Path("/proc"), "proc")
    call("umount2", b"/old", DETACH)


def run(cells: list[str], shell: InteractiveShell) -> None:
    for cell in cells:
        shell.run_cell(cell, store_history=False, silent=True)


def submission(runs: list[list[str]], out: int) -> None:
    """Run the cells as a careless grader would, and report on the attempts of the last run."""
    for kind, amount in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 1024)):
        resource.setrlimit(kind, (amount, resource.getrlimit(kind)[1]))  # the soft one: a raid may try to raise it
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + (2 << 30),) * 2)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    shell = InteractiveShell.instance()
    shell.system = shell.system_raw  # the other way needs a terminal
    course_secret = os.environ["ATTN_SECRET_FILE"]  # noqa: F841  # in reach of who looks through the frames
    compared = [Path(judge.__file__).read_bytes() + b"causal_by_loops" * size for size in range(0, 40_000, 1_000)]  # noqa: F841
    for cells in runs:
        run(cells, shell)
    space = shell.user_ns
    tried, looted, refused = (space.get(name, []) for name in ("TRIED", "LOOT", "REFUSED"))
    why = dict(refused)
    missed = [(what, why.get(at, "brought nothing")) for at, what in enumerate(tried) if at not in looted]
    os.write(out, json.dumps({"tried": tried, "missed": missed}).encode())


def guarded(order: dict, reachable: list[str]) -> dict:
    """One raid in a yard of its own; when its first process ends, all of it does."""
    inside, out = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        try:
            os.close(inside)
            call("unshare", NEW)
            first = os.fork()
            if first == 0:
                be_first(order["runs"], out, reachable)
            signal.alarm(SECONDS)  # its children go with process 1, which goes with this process
            os.waitpid(first, 0)
        finally:
            os._exit(0)
    os.close(out)
    with os.fdopen(inside, "rb") as pipe:
        data = pipe.read()
    os.waitpid(keeper, 0)
    return {"name": order["name"], **(json.loads(data) if data else {"tried": [], "missed": [["all", "no report"]]})}


def be_first(runs: list[list[str]], out: int, reachable: list[str]) -> None:
    """Process 1 of a yard: lays it out, starts a neighbour and the submission, and waits for that."""
    try:
        call("prctl", 1, signal.SIGKILL, 0, 0, 0)  # dies with the keeper
        lay_out(reachable)
        if out == 3:
            out = os.dup(out)
        os.dup2(os.open("/etc/shadow", os.O_RDONLY), 3)  # an open file worth stealing
        if os.fork() == 0:
            os.close(out)
            time.sleep(SECONDS)
            os._exit(0)
        child = os.fork()
        if child == 0:
            submission(runs, out)
            os._exit(0)
        os.waitpid(child, 0)
    except BaseException as error:
        os.write(out, json.dumps({"tried": [], "missed": [["the yard", repr(error)]]}).encode())
    finally:
        os._exit(0)


def main() -> None:
    if why := lacking():
        sys.exit(why)
    orders = json.load(sys.stdin)
    suite(course.slugs()[0])
    for order in orders["raids"]:
        print(json.dumps(guarded(order, orders["reachable"])), flush=True)


if __name__ == "__main__":
    main()
