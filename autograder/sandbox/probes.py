"""The jail proven by attacking it: each probe runs inside a real jail and tries to get past one wall.

``prove()`` is what ``attn doctor`` and the tests call. It starts a small keeper of its own, which lays out things worth
reaching (a listening port, a process, an open file) and then jails one probe after the other. For the cold jail, which
has no keeper, that process has bubblewrap start each probe instead.
"""

import contextlib
import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autograder.sandbox import cold, jail, seccomp

NAME = "autograder.sandbox.probes"  # of this module, which may be running as __main__
LIMITS = jail.Limits(cpu_seconds=1, address_space=1 << 30, processes=24, open_files=48, tmp_bytes=24 << 20)
PATIENCE = 30.0  # seconds of wall time for one probe
KINDS = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")  # of namespaces; a jail has its own of each
ASK = b"which namespaces are also yours?"


@dataclass(frozen=True)
class ProbeResult:
    """Whether one wall held, and what happened in one sentence."""

    name: str
    held: bool
    detail: str


@dataclass(frozen=True)
class Outside:
    """What the keeper laid out to be reached; ``answer`` is the one descriptor that the probe may hold.

    ``course`` is the folder of the course as the keeper knows it, ``own`` what a jail holds besides the libraries.
    """

    pids: tuple[int, ...]
    tcp: tuple[str, int]
    udp: tuple[str, int]
    abstract: str
    course: str
    own: Sequence[str]
    answer: int


class Breach(Exception):
    """The attack got through; the message says how far."""


Probe = Callable[[Outside], str]
PROBES: dict[str, Probe] = {}
# What bubblewrap cannot limit: the number of empty files in /tmp. Each takes a kilobyte of the kernel's memory.
NOT_COLD = frozenset({"many files"})


def probe(function: Probe) -> Probe:
    """Enter a probe under its name. It returns a sentence when the wall held and raises Breach when not."""
    PROBES[function.__name__.replace("_", " ")] = function
    return function


def prove(
    names: Sequence[str] = (),
    command: Sequence[str] = (sys.executable, "-m", NAME),
    user: int | None = None,
    kind: str = "warm",
) -> list[ProbeResult]:
    """Run the named probes, or all of them, and return what they found; a jail that cannot be built is a failed probe.

    Args:
        names: keys of PROBES.
        command: how to start the keeper.
        user: run it as this user and group, which only root may ask for.
        kind: of jail, "warm" or "cold".
    """
    keeper = subprocess.run(
        [*command, kind, *names],
        env=jail.ENVIRONMENT,
        cwd=jail.COURSE,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE * (len(names or PROBES) + 1),
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )
    try:
        return [ProbeResult(**found) for found in json.loads(keeper.stdout)]
    except ValueError:
        why = keeper.stderr.strip().rpartition("\n")[2] or f"the keeper ended with status {keeper.returncode}"
        return [ProbeResult("keeper", False, why)]


def main() -> None:
    """Be the keeper: lay out the bait, jail each probe named on the command line, print the results as JSON."""
    kind, names = sys.argv[1], sys.argv[2:]
    try:
        if kind == "warm":
            jail.become_keeper()
            attempt, own = _attempt, list[str]()
        else:
            attempt, own = _attempt_cold, [str(cold.PLACE)]
            names = names or [name for name in PROBES if name not in NOT_COLD]
        with contextlib.ExitStack() as stack:
            tcp, udp, abstract = (stack.enter_context(listener) for listener in _listeners())
            stack.enter_context(tempfile.TemporaryFile())  # an open file that no probe may find
            bystander = os.fork()
            if bystander == 0:
                signal.pause()
            stack.callback(os.kill, bystander, signal.SIGKILL)
            outside = Outside(
                (os.getpid(), bystander),
                tcp.getsockname(),
                udp.getsockname(),
                abstract.getsockname().decode(),
                str(jail.COURSE),
                own,
                -1,
            )
            results = [attempt(name, outside) for name in names or PROBES]
    except jail.JailError as error:
        results = [ProbeResult("jail", False, str(error))]
    print(json.dumps([asdict(result) for result in results]))


def _listeners() -> Iterator[socket.socket]:
    places: list[tuple[int, int, tuple[str, int] | str]] = [
        (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
        (socket.AF_UNIX, socket.SOCK_STREAM, f"\0attn-probe-{os.urandom(8).hex()}"),
    ]
    for family, kind, address in places:
        listener = socket.socket(family, kind)
        listener.bind(address)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        yield listener


def _attempt(name: str, outside: Outside) -> ProbeResult:
    ours, theirs = socket.socketpair()
    pid = jail.fork_jailed(LIMITS, [theirs.fileno()], jail.libraries(), lambda: _probe(name, outside, theirs))
    theirs.close()
    answer = _answer(ours, _newest_child())
    os.kill(pid, signal.SIGKILL)
    return _result(name, answer, os.waitpid(pid, 0)[1])


def _attempt_cold(name: str, outside: Outside) -> ProbeResult:
    process = cold.Process(NAME, LIMITS, [name, asdict(outside)])
    answer = _answer(process.connection, process.pid)
    return _result(name, answer, process.end(kill=True))


def prepare_cold(order: object) -> None:
    """Nothing: a probe needs no library."""


def serve_cold(descriptor: int, order: tuple[str, dict[str, Any]]) -> None:
    """Run one probe in a cold jail."""
    name, outside = order
    _probe(name, Outside(**outside), socket.socket(fileno=descriptor))


def _probe(name: str, outside: Outside, line: socket.socket) -> None:
    try:
        held, detail = True, PROBES[name](replace(outside, answer=line.fileno()))
    except Breach as breach:
        held, detail = False, str(breach)
    except BaseException as error:
        held, detail = False, f"could not be tried: {error!r}"
    line.sendall(json.dumps([held, detail]).encode())


def _answer(line: socket.socket, number: int) -> bytes:
    """What the probe has found; should it ask for what cannot be seen from inside, it is told."""
    line.settimeout(PATIENCE)
    with line, contextlib.suppress(OSError):
        said = line.recv(1 << 16)
        if said == ASK:
            line.sendall(json.dumps(_shared(number)).encode())
            said = line.recv(1 << 16)
        return said
    return b""


def _newest_child() -> int:
    """The number that /proc has for the process that this one forked last; to its keeper it has another."""
    return int(Path("/proc/thread-self/children").read_text().split()[-1])


def _shared(number: int) -> list[str]:
    """The kinds of namespace that this process and that one have in common."""
    return [kind for kind in KINDS if os.path.samefile(f"/proc/{number}/ns/{kind}", f"/proc/self/ns/{kind}")]


def _result(name: str, answer: bytes, status: int) -> ProbeResult:
    if not answer:
        return ProbeResult(name, False, f"gave no answer (exit status {os.waitstatus_to_exitcode(status)})")
    return ProbeResult(name, *json.loads(answer))


# Files


@probe
def course_files(outside: Outside) -> str:
    """Read the grader's code, the suites and the references."""
    for name in ("autograder", "autograder/suites", "solutions", "chapters", "pyproject.toml", ".git"):
        _refused_with(FileNotFoundError, f"{name} of the course is there", os.stat, Path(outside.course, name))
    return "nothing of the course is there, except the way to its environment"


@probe
def system_files(outside: Outside) -> str:
    """Read password hashes, account names, and whatever else the root holds."""
    for path in ("/etc/shadow", "/etc/passwd", "/etc/hostname", "/sys/kernel", "/var/log"):
        _refused_with(FileNotFoundError, f"{path} is there", os.stat, path)
    os.chdir("/")
    for _ in range(20):
        os.chdir("..")
    if stranger := next(_strangers(Path(os.getcwd()), outside.own), None):
        raise Breach(f"{stranger} is there")
    return "the root holds libraries, three devices and an empty /tmp"


def _strangers(directory: Path, own: Sequence[str]) -> Iterator[Path]:
    """Yield what neither is a thing that the jail should hold nor leads to one."""
    wanted = [*jail.libraries(), *map(Path, jail.DEVICES), Path("/dev/shm"), Path("/tmp"), Path("/proc")]
    wanted += map(Path, own)
    for path in directory.iterdir():
        if path not in wanted:
            if any(good.is_relative_to(path) for good in wanted):
                yield from _strangers(path, own)
            else:
                yield path


@probe
def writing_outside_tmp(outside: Outside) -> str:
    """Create a file in, or change the mode of, every directory within two steps of the root and every library."""
    near = [path for pattern in ("*", "*/*") for path in Path("/").glob(pattern) if path.is_dir()]
    places = [Path("/"), *near, *jail.libraries(), Path(os.__file__).parent]
    for place in places:
        if not place.is_dir() or place.resolve() == Path("/tmp"):
            continue
        _refused(f"a file was created in {place}", os.open, place / f"attn-probe-{os.getpid()}", os.O_CREAT | os.O_RDWR)
        _refused(f"the mode of {place} was changed", os.chmod, place, 0o777)
    _refused("a library was opened for writing", os.open, os.__file__, os.O_WRONLY)
    return "every directory but /tmp refused a new file"


@probe
def a_full_disk(outside: Outside) -> str:
    """Fill /tmp with large files."""
    written = _fill(LIMITS.tmp_bytes + (8 << 20), b"x" * (1 << 20))
    if written > LIMITS.tmp_bytes:
        raise Breach(f"{written >> 20} MiB went into /tmp, more than {LIMITS.tmp_bytes >> 20}")
    return f"/tmp was full after {written >> 20} MiB"


@probe
def many_files(outside: Outside) -> str:
    """Fill /tmp with empty files."""
    try:
        for number in range(10_000):
            os.close(os.open(f"/tmp/empty-{number}", os.O_CREAT))
    except OSError:
        return f"/tmp was full after {number} empty files"
    raise Breach("ten thousand files went into /tmp")


def _fill(most: int, block: bytes) -> int:
    """Write blocks, sixteen to a file without a name, until refused or past ``most``; how many bytes went in."""
    written = 0
    with contextlib.ExitStack() as files, contextlib.suppress(OSError):
        while written <= most:
            file = files.enter_context(tempfile.TemporaryFile(dir="/tmp", buffering=0))
            for _ in range(16):
                written += file.write(block)
    return written


@probe
def a_large_file(outside: Outside) -> str:
    """Write one file past its limit."""
    with open("/tmp/large", "wb", buffering=0) as file:
        _refused("a file grew past the limit", os.ftruncate, file.fileno(), LIMITS.file_bytes + 1)
    return f"no file grows past {LIMITS.file_bytes >> 20} MiB"


@probe
def inherited_files(outside: Outside) -> str:
    """Look for open files that the keeper left behind."""
    null = os.stat(os.devnull).st_rdev
    for descriptor in {*range(4096)} - {outside.answer}:
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_rdev != null:
                raise Breach(f"descriptor {descriptor} is open")
    return "only the pipe for the answer is open"


@probe
def open_files(outside: Outside) -> str:
    """Open files without end."""
    try:
        while (last := os.open(os.devnull, os.O_RDONLY)) < LIMITS.open_files:
            pass
    except OSError as error:
        return f"refused after number {last}: {error.strerror}"
    raise Breach(f"file number {last} was opened, with room for {LIMITS.open_files}")


# Processes


@probe
def other_processes(outside: Outside) -> str:
    """Find and signal the keeper, its other children, and everything else that runs."""
    if os.getppid() != 0 or os.listdir("/proc"):
        raise Breach("the parent, or /proc, can be seen")
    for pid in (-1, *outside.pids):
        if pid != os.getpid():
            _refused_with(ProcessLookupError, f"process {pid} can be signalled", os.kill, pid, 0)
    return "it is alone: no parent, and nobody else to signal"


@probe
def a_fork_bomb(outside: Outside) -> str:
    """Fork until refused."""
    children: list[int] = []
    try:
        while len(children) < LIMITS.processes + 8:
            if (pid := os.fork()) == 0:
                signal.pause()
            children.append(pid)
    except OSError:
        return f"refused after {len(children)} processes"
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
    raise Breach(f"{len(children)} processes run, more than {LIMITS.processes}")


@probe
def an_endless_loop(outside: Outside) -> str:
    """Use CPU time past the limit."""

    def spin() -> None:
        while time.process_time() < LIMITS.cpu_seconds + 3:
            pass

    return _dies(spin, "ran past its limit of CPU time")


@probe
def memory(outside: Outside) -> str:
    """Map memory past the limit."""
    step = 64 << 20
    maps: list[mmap.mmap] = []
    try:
        while len(maps) * step <= LIMITS.address_space:
            maps.append(mmap.mmap(-1, step))
    except OSError:
        return f"refused after {len(maps) * step >> 20} MiB"
    raise Breach(f"{len(maps) * step >> 20} MiB were mapped")


@probe
def debugging(outside: Outside) -> str:
    """Trace a process, even one's own child."""
    child = os.fork()
    if child == 0:
        signal.pause()
    attach = 16
    return _errno_of("ptrace", attach, child, 0, 0)


@probe
def another_program(outside: Outside) -> str:
    """Start another program: the interpreter, which is surely there."""
    _refused("a second interpreter ran", subprocess.run, [sys.executable, "-c", "pass"], check=True)
    return "no program can be started"


# The network


@probe
def tcp(outside: Outside) -> str:
    """Connect to a server on this machine."""
    return _send(socket.AF_INET, socket.SOCK_STREAM, outside.tcp)


@probe
def dns(outside: Outside) -> str:
    """Send a name server's packet to this machine, then ask for a real name."""
    for family in (socket.AF_INET, socket.AF_UNSPEC):
        with contextlib.suppress(OSError):
            raise Breach(f"example.org is {socket.getaddrinfo('example.org', 53, family)[0][4][0]}")
    return _send(socket.AF_INET, socket.SOCK_DGRAM, outside.udp)


@probe
def abstract_socket(outside: Outside) -> str:
    """Connect to a unix socket that has a name but no file."""
    return _send(socket.AF_UNIX, socket.SOCK_STREAM, outside.abstract)


@probe
def raw_socket(outside: Outside) -> str:
    """Open sockets that see every packet."""
    for family in (socket.AF_PACKET, socket.AF_INET, socket.AF_NETLINK):
        _refused(f"a raw socket of {family.name} opened", socket.socket, family, socket.SOCK_RAW)
    return "no raw socket opens"


def _send(family: int, kind: int, address: tuple[str, int] | str) -> str:
    try:
        with socket.socket(family, kind) as line:
            line.settimeout(2)
            line.connect(address)
            line.send(b"found")
    except OSError as error:
        return f"refused: {error.strerror or error}"
    raise Breach("a connection was made")


# The kernel


@probe
def mounting(outside: Outside) -> str:
    """Mount a file system, and make the root writable again."""
    read_write_remount = 0x20 | 0x1000
    _errno_of("mount", None, b"/", None, ctypes.c_ulong(read_write_remount), None)
    return _errno_of("mount", b"tmpfs", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None)


@probe
def new_namespaces(outside: Outside) -> str:
    """Become root in a namespace of one's own: through unshare, clone and clone3."""
    new_user, sigchld = 0x10000000, signal.SIGCHLD
    _errno_of("unshare", new_user)
    clone = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    _errno_of("syscall", clone, ctypes.c_ulong(new_user | sigchld), None, None, None, None)
    arguments = (ctypes.c_uint64 * 8)(new_user, 0, 0, 0, sigchld)
    return _errno_of("syscall", 435, arguments, ctypes.c_size_t(64))


@probe
def shared_namespaces(outside: Outside) -> str:
    """Live in a namespace of the keeper's, which alone can tell: in here no process can be looked at."""
    with socket.socket(fileno=os.dup(outside.answer)) as line:
        line.sendall(ASK)
        shared = json.loads(line.recv(1 << 16))
    if shared:
        raise Breach(f"shared with the keeper: {', '.join(shared)}")
    return f"its own: {', '.join(KINDS)}"


@probe
def keyrings(outside: Outside) -> str:
    """Leave a key in the kernel for the next submission."""
    session_keyring = -3
    add_key = seccomp.refused(os.uname().machine)["add_key"]
    return _errno_of("syscall", add_key, b"user", b"attn-probe", b"x", ctypes.c_size_t(1), session_keyring)


@probe
def capabilities(outside: Outside) -> str:
    """Regain a capability, or become another user."""
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if _C.capget(header, nothing) != 0 or any(nothing):
        raise Breach(f"capabilities are held: {[hex(word) for word in nothing]}")
    _errno_of("capset", header, (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6))
    _refused("it became root", os.setuid, 0)
    _refused("it became another group", os.setgid, 0)
    capbset_read, get_no_new_privs = 23, 39
    if any(_C.prctl(capbset_read, number, 0, 0, 0) > 0 for number in range(64)):
        raise Breach("the bounding set holds a capability")
    if _C.prctl(get_no_new_privs, 0, 0, 0, 0) != 1:
        raise Breach("privileges could be gained by running a program")
    return "no capability is held, and none can be gained"


@probe
def devices(outside: Outside) -> str:
    """Make a device file, the disk's for one."""
    for kind in (0o060000, 0o020000):
        _refused("a device was made", os.mknod, "/tmp/device", kind | 0o600, os.makedev(8, 0))
    return "no device can be made"


@probe
def refused_calls(outside: Outside) -> str:
    """Make every system call on the list of refusals, with arguments that would do no harm."""
    calls = seccomp.refused(os.uname().machine)
    for name, number in calls.items():
        ctypes.set_errno(0)
        result = _C.syscall(number, *[ctypes.c_long(-1)] * 6)
        if (result, ctypes.get_errno()) != (-1, errno.EPERM):
            raise Breach(f"{name} was let through to the kernel")
    return f"all {len(calls)} are refused"


@probe
def unknown_calls(outside: Outside) -> str:
    """Make calls that are newer than the list, and calls of the x32 kind."""
    for number in (seccomp.LAST_KNOWN + 1, 469, 600, 0x40000000 + 101):
        ctypes.set_errno(0)
        if _C.syscall(number, *[ctypes.c_long(-1)] * 6) != -1 or ctypes.get_errno() != errno.ENOSYS:
            raise Breach(f"system call {number} was let through to the kernel")
    return "calls that the list does not know do not exist"


@probe
def the_32_bit_door(outside: Outside) -> str:
    """Call the kernel the way 32-bit programs do, where every number means something else."""
    if os.uname().machine != "x86_64":
        return "this architecture has no such door within a 64-bit process"
    getpid_by_int_80 = bytes.fromhex("b814000000 cd80 c3")

    def call() -> None:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(getpid_by_int_80)
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()

    return _dies(call, "the kernel answered")


@probe
def environment(outside: Outside) -> str:
    """Read tokens and passwords from the environment, as Python and as C know it."""
    block = ctypes.POINTER(ctypes.c_char_p).in_dll(_C, "environ")
    names = set(os.environ)
    for index in range(1000):
        entry = block[index]
        if entry is None:
            break
        names.add(entry.decode().partition("=")[0])
    if strangers := names - {*jail.ENVIRONMENT, "TMPDIR", "LC_CTYPE"}:
        raise Breach(f"{sorted(strangers)} can be read")
    return "it holds nothing but the jail's own few names"


# Small tools

_C = ctypes.CDLL(None, use_errno=True)


def _refused(harm: str, action: Callable[..., object], *arguments: object, **options: object) -> None:
    _refused_with(OSError, harm, action, *arguments, **options)


def _refused_with(
    expected: type[OSError], harm: str, action: Callable[..., object], *arguments: object, **options: object
) -> None:
    """Raise Breach with the harm done unless the action fails in the expected way."""
    try:
        action(*arguments, **options)
    except expected:
        return
    except OSError as error:
        raise Breach(f"{harm} ({error.strerror})") from error
    raise Breach(harm)


def _errno_of(function: str, *arguments: object) -> str:
    """Call a function of the C library, which must fail; say how it did."""
    ctypes.set_errno(0)
    if getattr(_C, function)(*arguments) == -1:
        return f"refused: {os.strerror(ctypes.get_errno())}"
    raise Breach(f"{function} was allowed")


def _dies(action: Callable[[], None], harm: str) -> str:
    """Run the action in a child, which must be killed by a signal."""
    pid = os.fork()
    if pid == 0:
        action()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    raise Breach(harm)


if __name__ == "__main__":
    main()
