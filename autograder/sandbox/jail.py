"""The jail: what a submission's process goes through before the first line of student code runs.

Three processes, each with less power than the one before::

    watchman   what the grader started; waits, and takes the keeper with it when it dies
      keeper   the warm fork server: pid 1 of its own pid namespace, powerful only in its own user namespace
        child  one submission: pid 1 of a second pid namespace, nobody, in a root of its own

A pid namespace dies with its pid 1, so killing the child kills all that it forked, and killing the keeper or the
watchman kills every child. The keeper calls ``become_keeper`` once, before it imports anything large, and
``fork_jailed`` for each submission. Every wall is built or ``JailError`` names it: there is no half-built jail.

``autograder.sandbox.cold`` has bubblewrap do the privileged half of this, and calls ``confine`` for the other.

What this cannot hide is memory that the child inherits. The keeper must be started with ``ENVIRONMENT`` and nothing
else in its environment, and must never have loaded a suite, a reference or a secret.
"""

import ctypes
import functools
import math
import os
import re
import resource
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from autograder.sandbox import seccomp

# What the keeper is started with. One thread, because only the thread that forks lives on in the child; no home,
# because a child must not find one and a keeper must not read start-up files from one.
ENVIRONMENT: Final = {
    "PATH": f"{sys.prefix}/bin:/usr/bin:/bin",
    "HOME": "/nonexistent",
    "USER": "student",
    "LOGNAME": "student",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
NOBODY: Final = 65534  # who a child of root becomes: root is exempt from the limit on processes
STUDENT: Final = 1000  # the number by which the child knows itself
COURSE: Final = Path(__file__).resolve().parents[2]  # what no jail may hold
ROOT: Final = "/proc"  # where a new root grows: every machine has it, and nothing that we bind lies below it
DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/urandom")
OLDEST_KERNEL: Final = (5, 14)  # counts processes by user namespace, and makes a whole mount tree read-only at once

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
NAMESPACES = _NEWNS | _NEWNET | _NEWIPC | _NEWUTS | _NEWCGROUP  # of the child, besides its user and pid namespaces

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
_READ_ONLY, _AT_FDCWD, _AT_RECURSIVE, _MNT_DETACH = 0x1, -100, 0x8000, 0x2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT = 23, 24, 47
_CAP_AMBIENT_CLEAR_ALL, _CAPABILITY_VERSION = 4, 0x20080522
_SYS_CLOSE_RANGE, _SYS_MOUNT_SETATTR = 436, 442  # no wrapper in older C libraries; one number on all architectures

Run = Callable[[], object]


@dataclass(frozen=True)
class Limits:
    """What one submission may use.

    The kernel holds each process to the CPU time and the memory; the grader, which reads them from outside, holds all
    processes of a submission together to the same numbers.
    """

    cpu_seconds: float = 60  # from the moment at which the walls stand
    address_space: int = 6 << 30  # growth over the size at entry: torch alone maps a size that differs by machine
    processes: int = 32  # threads count
    open_files: int = 64
    file_bytes: int = 16 << 20
    tmp_bytes: int = 64 << 20


class JailError(RuntimeError):
    """A wall that could not be built, and why."""

    def __init__(self, wall: str, why: str) -> None:
        super().__init__(f"{wall}: {why}")
        self.wall, self.why = wall, why


# The keeper


def become_keeper(also: Collection[str] = ()) -> None:
    """Return in a new process that may fork jails; the calling one stays behind as the watchman.

    Call it first, while the process is small and has one thread. An ordinary user gets a user namespace that knows only
    that user; root gets one that knows every user, because the interpreter may lie where only root can enter.

    Args:
        also: variables besides ENVIRONMENT that the caller vouches for. Others are refused rather than erased: the
            block of memory that they arrived in would pass on to every child.
    """
    _require_kernel()
    if strangers := set(os.environ) - set(ENVIRONMENT) - set(also) - {"LC_CTYPE"}:
        raise JailError("environment", f"start the keeper with jail.ENVIRONMENT alone, without {sorted(strangers)}")
    with _wall("user namespace"):
        if os.geteuid() == 0:
            _enter_namespace_of_all_users()
        else:
            uid, gid = os.geteuid(), os.getegid()
            _libc("unshare", _NEWUSER)
            map_ids(open_proc(), f"{uid} {uid} 1", f"{gid} {gid} 1")
    with _wall("pid namespace"):
        _libc("unshare", _NEWPID)  # for the next fork: the keeper
        alive, watchman = os.pipe()
        pid = os.fork()
    if pid:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the keeper's to answer
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    os.close(watchman)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([alive], [], [], 0)[0]:  # end of file: the watchman died before the line above
        os._exit(1)
    os.close(alive)
    _prctl(_PR_SET_DUMPABLE, 0)  # no child may read this process, even were it the same user


def fork_jailed(limits: Limits, keep_fds: Iterable[int], readable: Sequence[Path], run: Run) -> int:
    """Fork a jailed child that calls ``run`` and exits; return its pid once all walls stand.

    When ``waitpid`` returns that pid, everything the child started is dead. It exits 0 after ``run``, 1 when ``run``
    raised, and dies of SIGKILL at its limit of CPU time: what it was is in the status and usage of ``os.wait4``.
    """
    keep = _checked(keep_fds)
    layout(tuple(readable))  # worked out here, once, rather than in every child
    reader, writer = os.pipe()
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    pid = -1
    try:
        with _wall("pid namespace"):
            # Children are born into a fresh namespace until we ask for our own again: no second fork is needed.
            _libc("unshare", _NEWPID)
            try:
                pid = os.fork()
            finally:
                if pid:
                    _libc("setns", own, _NEWPID)
        if pid == 0:
            _live(limits, keep, readable, run, writer)
        os.close(writer)
        writer = -1
        verdict = os.read(reader, 4096)
    finally:
        for descriptor in (own, reader, writer):
            if descriptor >= 0:
                os.close(descriptor)
    if verdict != b"ok":
        os.waitpid(pid, 0)
        wall, _, why = verdict.decode().partition(": ")
        raise JailError(wall or "child", why or "died before its walls stood")
    return pid


def _live(limits: Limits, keep: list[int], readable: Sequence[Path], run: Run, writer: int) -> NoReturn:
    try:
        try:
            enter(limits, [*keep, writer], readable)
        except BaseException as error:
            said = str(error) if isinstance(error, JailError) else f"child: {error!r}"
            os.write(writer, said.encode()[:4096])
            raise
        os.write(writer, b"ok")
        os.close(writer)
        run()
        os._exit(0)
    finally:  # whatever was raised, the keeper's own code must not run on in the child
        os._exit(1)


# The child


def enter(limits: Limits, keep_fds: Iterable[int], readable: Sequence[Path]) -> None:
    """Jail this process: the first of a fresh pid namespace, forked by a keeper. ``fork_jailed`` is the way to call it.

    The order is forced: mounting needs the keeper's capabilities, becoming nobody gives them up, and the filter
    comes last because it refuses the calls that the other walls are built with.
    """
    proc = open_proc()
    size = int(os.read(os.open("statm", os.O_RDONLY, dir_fd=proc), 100).split()[0]) * resource.getpagesize()
    with _wall("namespaces"):
        os.setsid()  # no controlling terminal to push input into
        _libc("unshare", NAMESPACES)
    _change_root(readable, limits.tmp_bytes)
    _become_nobody(proc)
    confine(limits, keep_fds, readable, size)


def confine(limits: Limits, keep_fds: Iterable[int], readable: Sequence[Path], size: int) -> None:
    """Build the walls that need no privilege, in a process that is nobody in a root and namespaces of its own.

    Args:
        limits: what it may use from now on.
        keep_fds: the descriptors that stay open.
        readable: what its root holds.
        size: bytes that it has mapped by now.
    """
    _close_all_but(list(keep_fds))
    _check_readable(readable)
    _set_limits(limits, size)
    drop_capabilities()
    with _wall("system-call filter"):
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        seccomp.install()
    os.environ["HOME"] = os.environ["TMPDIR"] = "/tmp"


@functools.cache
def libraries() -> tuple[Path, ...]:
    """Return what a jail's root must hold, read-only: the interpreter, its environment, and the system's libraries."""
    system = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/etc/alternatives")
    python = (sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix)
    written = [Path(path) for path in (*python, *system)]
    wanted = {path for named in written for path in (named, named.resolve()) if path.exists()}
    return tuple(sorted(path for path in wanted if not any(parent in wanted for parent in path.parents)))


@functools.cache
def layout(readable: tuple[Path, ...]) -> tuple[list[str], list[str], list[tuple[bytes, bytes]]]:
    """Return the directories and empty files that a root needs, and what is bound onto which of them.

    Raises:
        JailError: one of them would show the course.
    """
    sources = {path: path.resolve() for path in readable}
    for path, source in sources.items():
        inside = source.is_relative_to(COURSE) and not source.is_relative_to(Path(sys.prefix).resolve())
        if inside or COURSE.is_relative_to(source):
            raise JailError("private root", f"{path} would show the course: keep them apart, and install it editable")
    files = [*(path for path, source in sources.items() if not source.is_dir()), *map(Path, DEVICES)]
    directories = {Path("/dev"), Path("/proc"), Path("/tmp"), *(sources.keys() - files)}
    directories |= {parent for path in (*directories, *files) for parent in path.parents}
    return (
        sorted(f"{ROOT}{path}" for path in directories - {Path("/")}),  # parents come first
        [f"{ROOT}{path}" for path in files],
        [(os.fsencode(source), os.fsencode(f"{ROOT}{path}")) for path, source in sources.items()],
    )


def _change_root(readable: Sequence[Path], tmp_bytes: int) -> None:
    """Move into a root that holds only libraries, three devices and an empty /tmp; let go of the old one.

    /proc stays an empty directory. Were it mounted, /proc/self/exe would lead around the read-only mounts to the
    interpreter's file, which an ordinary user who grades may own; and some containers allow no such mount, so a
    submission could behave differently there.
    """
    directories, files, binds = layout(tuple(readable))
    with _wall("private root"):
        _mount(None, b"/", None, _MS_REC | _MS_PRIVATE)  # nothing done here is seen outside
        _mount(b"tmpfs", ROOT.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=755,size=1m,nr_inodes=1k")
        os.umask(0o022)
        for directory in directories:
            os.mkdir(directory)
        for file in files:
            os.mknod(file)
        os.symlink("/tmp", f"{ROOT}/dev/shm")  # so that shared memory counts as /tmp
        in_tmp = [(source, target) for source, target in binds if target.startswith(f"{ROOT}/tmp/".encode())]
        for source, target in binds:
            _mount(source, target, None, _MS_BIND | _MS_REC)
        _make_read_only(ROOT)
        for device in DEVICES:  # after the tree was made read-only and "no devices"
            _mount(device.encode(), f"{ROOT}{device}".encode(), None, _MS_BIND)
        writable = b"mode=1777,size=%d,nr_inodes=4k" % tmp_bytes
        _mount(b"tmpfs", f"{ROOT}/tmp".encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, writable)
        for source, target in in_tmp:  # libraries of a course that lies below /tmp itself come back to their place
            os.makedirs(target)
            _mount(source, target, None, _MS_BIND | _MS_REC)
            _make_read_only(target.decode())
        os.chdir(ROOT)
        # The old root comes to lie upon the new one, under the same name; then it is taken off.
        _libc("pivot_root", b".", b".")
        _libc("umount2", b".", _MNT_DETACH)
        os.chdir("/tmp")
        os.umask(0o077)


def _become_nobody(proc: int) -> None:
    """Leave the keeper's user for one without any right, in a namespace that owns nothing but itself."""
    with _wall("unprivileged user"):
        if os.geteuid() == 0:
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        uid, gid = os.geteuid(), os.getegid()
        _libc("unshare", _NEWUSER)
        _prctl(_PR_SET_DUMPABLE, 1)  # else the files below belong to root
        map_ids(proc, f"{STUDENT} {uid} 1", f"{STUDENT} {gid} 1")
        write(proc, "oom_score_adj", "1000")  # when the machine runs out of memory, a submission goes first


def enter_user_namespace() -> None:
    """Move into a user namespace of its own, in which nobody exists until somebody outside says so."""
    with _wall("user namespace"):
        _libc("unshare", _NEWUSER)


def _close_all_but(keep: list[int]) -> None:
    with _wall("open files"):
        null = os.open(os.devnull, os.O_RDWR)
        for standard in {0, 1, 2}.difference(keep):
            os.dup2(null, standard)
        held = sorted({0, 1, 2, *keep})
        for below, above in zip(held, [*held[1:], 1 << 31], strict=True):
            if below + 1 < above:
                _libc("syscall", _SYS_CLOSE_RANGE, below + 1, above - 1, 0)


def _set_limits(limits: Limits, size: int) -> None:
    """Set hard limits, which nobody inside can raise. The soft ones are the same: a pid 1 ignores the soft signal."""
    with _wall("limits"):
        for kind, amount in (
            (resource.RLIMIT_CPU, math.ceil(time.process_time() + limits.cpu_seconds)),
            (resource.RLIMIT_AS, size + limits.address_space),
            (resource.RLIMIT_NPROC, limits.processes),
            (resource.RLIMIT_NOFILE, limits.open_files),
            (resource.RLIMIT_FSIZE, limits.file_bytes),
            (resource.RLIMIT_CORE, 0),
        ):
            ceiling = resource.getrlimit(kind)[1]
            allowed = amount if ceiling == resource.RLIM_INFINITY else min(amount, ceiling)
            resource.setrlimit(kind, (allowed, allowed))
    _prove_limit_on_processes()


def _prove_limit_on_processes() -> None:
    """Refuse a user who is root outside, under whatever number in here: the kernel exempts that one without a word."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
    try:
        pid = os.fork()
    except BlockingIOError:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
        return
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    raise JailError("limits", "the number of processes is not limited for this user, who is root outside")


def drop_capabilities() -> None:
    """Give up every capability, and the bounding set that could bring one back."""
    with _wall("capabilities"):
        drop_bounding_set()
        _prctl(_PR_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL)
        none = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, in two words each
        _libc("capset", (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), none)


def drop_bounding_set() -> None:
    """Empty the set of capabilities that a program could bring back."""
    capability = 0
    while (held := _C.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0)) >= 0:  # negative: this kernel knows no more
        if held:
            _prctl(_PR_CAPBSET_DROP, capability)
        capability += 1


# Small tools


def _require_kernel() -> None:
    release = os.uname().release
    version = re.match(r"(\d+)\.(\d+)", release)
    if sys.platform != "linux" or version is None or tuple(map(int, version.groups())) < OLDEST_KERNEL:
        raise JailError("kernel", f"needs Linux {'.'.join(map(str, OLDEST_KERNEL))} or newer, this is {release}")


def _checked(descriptors: Iterable[int]) -> list[int]:
    """Return the descriptors, each proven to lead nowhere: a pipe, or a unix socket that only knows its peer."""
    kept = list(descriptors)
    for descriptor in kept:
        kind = os.fstat(descriptor).st_mode
        good = stat.S_ISFIFO(kind)
        if stat.S_ISSOCK(kind):
            with socket.socket(fileno=os.dup(descriptor)) as held:
                good = held.family == socket.AF_UNIX and held.type in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)
        if not good:
            raise JailError("open files", f"descriptor {descriptor} is neither a pipe nor a connected unix socket")
    return kept


def _check_readable(readable: Sequence[Path]) -> None:
    for path in readable:
        if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
            raise JailError("private root", f"{path} is closed to ordinary users, so imports would fail inside")


def _enter_namespace_of_all_users() -> None:
    """Keep every user known so far, under the same number; a helper left outside is the one allowed to say so."""
    maps = []
    for kind in ("uid", "gid"):
        rows = [[*map(int, line.split())] for line in Path(f"/proc/self/{kind}_map").read_text().splitlines()]
        maps.append("".join(f"{first} {first} {count}\n" for first, _, count in rows))
        if not any(first <= NOBODY < first + count for first, _, count in rows):
            raise JailError(
                "unprivileged user", f"root of this container cannot become {kind} {NOBODY}, which it lacks"
            )
    os.setgroups([])  # supplementary groups would outlive the change of user
    keeper = open_proc(str(os.getpid()))
    inside, go = os.pipe()
    helper = os.fork()
    if helper == 0:
        try:
            os.close(go)
            if os.read(inside, 1):
                map_ids(keeper, *maps)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
        finally:
            os._exit(1)
    try:
        _libc("unshare", _NEWUSER)
        os.write(go, b"!")
    finally:
        for descriptor in (inside, go, keeper):
            os.close(descriptor)
        failure = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
    if failure:
        raise OSError(failure, os.strerror(failure))


def open_proc(process: str = "self") -> int:
    """Return a handle on a process's directory in /proc, which stays good when /proc itself goes out of reach."""
    return os.open(f"/proc/{process}", os.O_PATH | os.O_DIRECTORY)


def write(proc: int, name: str, text: str) -> None:
    """Write a setting of the process whose directory in /proc this is."""
    descriptor = os.open(name, os.O_WRONLY, dir_fd=proc)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def map_ids(proc: int, users: str, groups: str) -> None:
    """Say which users and groups exist in a process's new user namespace, in the kernel's own form."""
    write(proc, "setgroups", "deny")  # the kernel asks for this before an ordinary user may map groups
    write(proc, "uid_map", users)
    write(proc, "gid_map", groups)


def _mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, options: bytes | None = None) -> None:
    _libc("mount", source, target, kind, ctypes.c_ulong(flags), options)


def _make_read_only(root: str) -> None:
    """Make the whole tree of mounts read-only at once, with what was already mounted below the bound directories."""
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY | _MS_NOSUID | _MS_NODEV)  # the other three fields are not needed
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _libc("syscall", _SYS_MOUNT_SETATTR, _AT_FDCWD, root.encode(), _AT_RECURSIVE, attributes, size)


_C = ctypes.CDLL(None, use_errno=True)
_C.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)


def _prctl(option: int, argument: int) -> None:
    _libc("prctl", option, argument, 0, 0, 0)


def _libc(name: str, *arguments: object) -> None:
    if getattr(_C, name)(*arguments) == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


_SWITCHES = {
    "/proc/sys/user/max_user_namespaces": "0",
    "/proc/sys/kernel/unprivileged_userns_clone": "0",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
}


@contextmanager
def _wall(name: str) -> Iterator[None]:
    """Turn a refusal of the kernel into a JailError that names the wall, and the setting that may be the cause."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        for switch, off in _SWITCHES.items():
            with suppress(OSError):
                if Path(switch).read_text().strip() == off:
                    why += f" (this machine has {switch} = {off})"
        raise JailError(name, why) from error
