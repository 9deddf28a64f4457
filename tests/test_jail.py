"""The jail holds; each of its probes can fail; and nothing outlives the process that was jailed."""

import ast
import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import pytest

from autograder.sandbox import jail, probes, seccomp

PLAIN_USER = 12345
SUFFIX = "\nfrom autograder.sandbox import probes; probes.main()"


# Who grades: root, and an ordinary user


@cache
def interpreter_for(user: int | None) -> str | None:
    """An interpreter that the user can start and that can read the course, or None."""
    if user is None or user == os.geteuid():
        return sys.executable
    if os.geteuid() != 0:
        return None
    for python in (sys.executable, "/usr/bin/python3"):
        program = "import sys; assert sys.version_info >= (3, 11); import autograder.sandbox.probes"
        options = {"user": user, "group": user, "extra_groups": [], "cwd": jail.COURSE, "env": jail.ENVIRONMENT}
        try:
            if subprocess.run([python, "-c", program], capture_output=True, **options).returncode == 0:
                return python
        except OSError:
            continue
    return None


@pytest.fixture(params=[None, PLAIN_USER], ids=["as whoever runs the tests", "as an ordinary user"])
def user(request):
    if interpreter_for(request.param) is None:
        pytest.skip(f"NOT RUN: user {request.param} can start no Python >= 3.11 here that can read the course")
    return request.param


def prove(names, user=None, sabotage="import autograder", kind="warm"):
    command = [interpreter_for(user), "-c", textwrap.dedent(sabotage) + SUFFIX]
    return {result.name: result for result in probes.prove(names, command, user, kind)}


@pytest.mark.parametrize("name", probes.PROBES)
def test_the_wall_holds(name, user):
    (result,) = probes.prove([name], [interpreter_for(user), "-m", "autograder.sandbox.probes"], user)
    assert result.held, result.detail
    assert result.name == name


def test_prove_runs_every_probe_by_itself():
    assert {result.name for result in probes.prove()} == set(probes.PROBES)


# Every wall that is left out is noticed. Where two walls stand behind each other, either one is enough.

NO_FILTER = "from autograder.sandbox import seccomp; seccomp.install = lambda: None"
NO_NETWORK_NAMESPACE = "from autograder.sandbox import jail; jail.NAMESPACES &= ~jail._NEWNET"
NO_ROOT = """
    from autograder.sandbox import jail
    jail._change_root = lambda readable, tmp_bytes: None
    jail._check_readable = lambda readable: None
"""
STAYS_KEEPER = """
from autograder.sandbox import jail
jail._become_nobody = lambda proc: None
jail.drop_capabilities = jail._prove_limit_on_processes = lambda: None
"""
NETWORK = ("tcp", "dns", "abstract socket")


@pytest.mark.parametrize("sabotage", [NO_FILTER, NO_NETWORK_NAMESPACE], ids=["no filter", "no network namespace"])
def test_one_wall_is_enough_against_the_network(sabotage, user):
    assert all(result.held for result in prove(NETWORK, user, sabotage).values())


def test_network_probes_fail_without_both_walls(user):
    results = prove(NETWORK, user, NO_FILTER + "\n" + NO_NETWORK_NAMESPACE)
    assert {name: result.held for name, result in results.items()} == dict.fromkeys(NETWORK, False)
    assert results["tcp"].detail == "a connection was made"


LEFT_OUT = {
    "root": (NO_ROOT, ["course files", "system files", "writing outside tmp", "a full disk", "other processes"]),
    "filter": (
        NO_FILTER,
        ["another program", "new namespaces", "keyrings", "debugging", "refused calls", "unknown calls", "raw socket"],
    ),
    "limits": (
        "from autograder.sandbox import jail; jail._set_limits = lambda limits, size: None",
        ["a fork bomb", "an endless loop", "memory", "a large file", "open files"],
    ),
    "size of tmp": (
        """
        from autograder.sandbox import jail
        build = jail._change_root
        jail._change_root = lambda readable, tmp_bytes: build(readable, 4 * tmp_bytes)
        """,
        ["a full disk"],
    ),
    "number of files in tmp": (
        """
        from autograder.sandbox import jail
        mount = jail._mount
        def without(source, target, kind, flags, options=None):
            mount(source, target, kind, flags, options and options.replace(b",nr_inodes=4k", b""))
        jail._mount = without
        """,
        ["many files"],
    ),
    "mounts that nobody may change": (
        NO_FILTER + "\n" + STAYS_KEEPER,
        ["mounting"],
    ),
    "files that the keeper has open": (
        "from autograder.sandbox import jail; jail._close_all_but = lambda keep: None",
        ["inherited files"],
    ),
    "capabilities": (
        "from autograder.sandbox import jail; jail.drop_capabilities = lambda: None",
        ["capabilities"],
    ),
    "pid namespace": (
        """
        from autograder.sandbox import jail
        become = jail.become_keeper
        def become_keeper():
            become()
            jail._NEWPID = 0
        jail.become_keeper = become_keeper
        """,
        ["other processes"],
    ),
    "environment": (
        """
        from autograder.sandbox import jail
        become, jail.become_keeper = jail.become_keeper, lambda: become(["TOKEN"])
        import os
        os.environ["TOKEN"] = "secret"
        """,
        ["environment"],
    ),
}


@pytest.mark.parametrize("wall", LEFT_OUT)
def test_probes_fail_without_their_wall(wall, user):
    sabotage, names = LEFT_OUT[wall]
    results = prove(names, user, sabotage)
    assert {name: result.held for name, result in results.items()} == dict.fromkeys(names, False), results


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="NOT RUN: no door but on x86-64")
def test_the_32_bit_door_opens_without_the_filter(user):
    (found,) = prove(["the 32 bit door"], user, NO_FILTER).values()
    if found.detail == "killed by SIGSEGV":
        pytest.skip("NOT RUN: this kernel is built without the door")
    assert (found.held, found.detail) == (False, "the kernel answered")


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT RUN: only root has the power to keep it")


@only_root
def test_root_outside_of_any_user_namespace_makes_devices():
    sabotage = f"{NO_FILTER}\n{STAYS_KEEPER}\njail._enter_namespace_of_all_users = lambda: None"
    (found,) = prove(["devices"], sabotage=sabotage).values()
    assert (found.held, found.detail) == (False, "a device was made")


# Each namespace by itself, and each limit by its number: one that is missing is named, and no other.

SHARED = {kind: f"jail.NAMESPACES &= ~jail._NEW{kind.upper()}" for kind in ("ipc", "uts", "cgroup", "net")}
SHARED |= {
    "mnt": textwrap.dedent(NO_ROOT) + "jail.NAMESPACES &= ~jail._NEWNS",
    "user": f"{STAYS_KEEPER}\njail._become_nobody = lambda proc: jail._prctl(jail._PR_SET_DUMPABLE, 1)",  # can be seen
    "pid": "become = jail.become_keeper\njail.become_keeper = lambda: (become(), setattr(jail, '_NEWPID', 0))",
}


@pytest.mark.parametrize("kind", probes.KINDS)
def test_a_namespace_that_is_shared_is_named(kind, user):
    sabotage = f"from autograder.sandbox import jail\n{SHARED[kind]}"
    (found,) = prove(["shared namespaces"], user, sabotage).values()
    assert (found.held, found.detail) == (False, f"shared with the keeper: {kind}")


@only_root
def test_root_that_stays_root_is_not_held_by_the_limit_on_processes_and_is_not_run():
    sabotage = "from autograder.sandbox import jail; jail._become_nobody = lambda proc: None"
    results = prove(["a fork bomb"], sabotage=sabotage)
    assert (results["jail"].held, results["jail"].detail.partition(":")[0]) == (False, "limits")
    sabotage += "; jail._prove_limit_on_processes = lambda: None"
    assert not prove(["a fork bomb"], sabotage=sabotage)["a fork bomb"].held


@only_root
def test_root_by_another_name_is_not_run_either():
    need_own_namespace()
    program = "jail.become_keeper(['PWD', 'OLDPWD']); jail.fork_jailed(jail.Limits(), [], jail.libraries(), print)"
    out, err = output_of(program, wrapper=("unshare", "--user", "--map-user=1000", "--map-group=1000"))
    assert "JailError: limits: " in err
    assert out == ""


def test_no_probe_is_without_a_test_that_makes_it_fail():
    elsewhere = {"the 32 bit door", "devices", "shared namespaces", *NETWORK}
    assert {name for _, names in LEFT_OUT.values() for name in names} | elsewhere == set(probes.PROBES)


# The cold jail: a sample of the probes for the walls that are its own

COLD = ["course files", "system files", "writing outside tmp", "a full disk", "inherited files", "other processes"]
COLD += ["a fork bomb", "an endless loop", "memory", "tcp", "capabilities", "refused calls", "environment"]
COLD += ["shared namespaces", "open files"]
needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="NOT RUN: bubblewrap is not installed (make system)"
)


@needs_bwrap
def test_the_cold_jails_walls_hold(user):
    results = prove(COLD, user, kind="cold")
    assert {name: result.held for name, result in results.items()} == dict.fromkeys(COLD, True), results


@needs_bwrap
def test_probes_fail_without_the_cold_jails_walls(user):
    sabotage = """
        from autograder.sandbox import cold, jail
        build = cold._bwrap
        def without(*arguments):
            words = [word for word in build(*arguments) if word not in ("--unshare-pid", "--as-pid-1")]
            at = words.index("--symlink")
            there = f"{jail.COURSE}/autograder"
            return [*words[:at], "--ro-bind", there, there, "--dir", "/sys/kernel", *words[at:]]
        cold._bwrap = without
    """
    names = ["course files", "system files", "other processes"]
    results = prove(names, user, sabotage, "cold")
    assert {name: result.held for name, result in results.items()} == dict.fromkeys(names, False), results


def test_the_cold_jail_is_refused_where_bubblewrap_is_missing():
    sabotage = "import os; os.environ['PATH'] = '/nonexistent'"
    results = prove(["tcp"], None, sabotage, "cold")
    assert (results["jail"].held, results["jail"].detail.partition(":")[0]) == (False, "bubblewrap")


# It fails closed, and says which wall and why


FORBID = (
    *("unshare", "--user", "--map-user=1000", "--keep-caps"),
    *("sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces; "$@"', "sh"),
)


@pytest.mark.parametrize("kind", ["warm", pytest.param("cold", marks=needs_bwrap)])
def test_where_the_kernel_refuses_nothing_is_graded(kind, tmp_path):
    need_own_namespace()
    program = """
        from autograder.grading.judge import judge_notebook
        data = b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": []}'
        result = judge_notebook(data, "scaled_dot_product", "s001", secret=bytes(32))
        print(result.status, result.outcome, result.score, {exercise.outcome for exercise in result.exercises})
        print(result.message)
    """
    environment = jail.ENVIRONMENT | {"ATTN_JAIL": kind, "XDG_CACHE_HOME": str(tmp_path)}
    out, err = output_of(program, wrapper=FORBID, environment=environment)
    assert out.startswith("ungraded infrastructure 0.0 {'infrastructure'}\n"), err
    assert {"warm": "user namespace", "cold": "bubblewrap: "}[kind] in out


def keeper(program, user=None, wrapper=(), environment=jail.ENVIRONMENT, **options):
    command = [
        *wrapper,
        interpreter_for(user),
        "-c",
        "from autograder.sandbox import jail\n" + textwrap.dedent(program),
    ]
    if user is not None:
        options |= {"user": user, "group": user, "extra_groups": []}
    return subprocess.Popen(
        command, env=environment, cwd=jail.COURSE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def output_of(program, user=None, **options):
    with keeper(program, user, **options) as process:
        out, err = process.communicate(timeout=60)
    return out, err


def test_a_root_that_would_show_the_course_is_refused(user):
    program = """
        from pathlib import Path
        jail.become_keeper()
        for path in (jail.COURSE, jail.COURSE.parent, jail.COURSE / "autograder", Path("/")):
            try:
                jail.fork_jailed(jail.Limits(), [], [*jail.libraries(), path], print)
            except jail.JailError as error:
                print(error.wall)
    """
    assert output_of(program, user)[0].split("\n") == ["private root"] * 4 + [""]


def test_an_open_file_or_a_network_socket_is_not_let_in(user):
    program = """
        import os, socket
        jail.become_keeper()
        doors = [os.open("/", os.O_RDONLY), os.open("/dev/null", os.O_RDWR), socket.socket().detach(),
                 socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()]
        for door in doors:
            try:
                jail.fork_jailed(jail.Limits(), [door], jail.libraries(), print)
            except jail.JailError as error:
                print(error.wall)
    """
    assert output_of(program, user)[0].split("\n") == ["open files"] * 4 + [""]


def test_a_keeper_with_a_secret_in_its_environment_is_refused(user):
    _, err = output_of("jail.become_keeper()", user, environment=jail.ENVIRONMENT | {"TOKEN": "x"})
    assert "JailError: environment: " in err
    assert "['TOKEN']" in err


def test_without_user_namespaces_it_says_which_setting_forbids_them():
    need_own_namespace()
    _, err = output_of('jail.become_keeper(["PWD"])', wrapper=FORBID)
    assert "JailError: user namespace: " in err
    assert "/proc/sys/user/max_user_namespaces = 0" in err


def test_where_nobody_does_not_exist_the_child_is_not_run_as_root():
    need_own_namespace()
    program = "jail.become_keeper(); jail.fork_jailed(jail.Limits(), [], jail.libraries(), print)"
    _, err = output_of(program, wrapper=("unshare", "--user", "--map-root-user"))
    assert "JailError: unprivileged user: " in err


def need_own_namespace():
    if subprocess.run(["unshare", "--user", "--map-root-user", "true"], capture_output=True).returncode != 0:
        pytest.skip("NOT RUN: unshare(1) cannot make a user namespace here")


def test_a_wall_that_falls_over_is_named_and_the_code_is_not_run(user):
    program = """
        def fall(*arguments): raise ZeroDivisionError
        jail._become_nobody = fall
        jail.become_keeper()
        try:
            jail.fork_jailed(jail.Limits(), [], jail.libraries(), lambda: print("ran"))
        except jail.JailError as error:
            print(error)
    """
    assert output_of(program, user)[0] == "child: ZeroDivisionError()\n"


def test_a_setting_is_limited_not_raised_where_the_keeper_has_less(user):
    program = """
        import os, resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        jail.become_keeper()
        reader, writer = os.pipe()
        jail.fork_jailed(jail.Limits(), [writer], jail.libraries(),
                         lambda: os.write(writer, str(resource.getrlimit(resource.RLIMIT_FSIZE)).encode()))
        print(os.read(reader, 100).decode())
    """
    assert output_of(program, user)[0] == "(1048576, 1048576)\n"


# Nothing outlives it

DAEMONS = """
    import os, signal, time

    def leave_daemons():
        for _ in range(5):
            if os.fork() == 0:
                os.setsid()
                if os.fork():
                    os._exit(0)
                signal.pause()
        os.write(writer, b"up")

    def stay():
        leave_daemons()
        signal.pause()

    jail.become_keeper()
    reader, writer = os.pipe()
"""


@pytest.mark.parametrize(
    "end",
    ["pid = jailed(leave_daemons)", "pid = jailed(stay); os.read(reader, 2); os.kill(pid, signal.SIGKILL)"],
    ids=["it returns", "it is killed"],
)
def test_what_a_submission_leaves_running_is_dead_when_it_is_reaped(end, user):
    program = f"""
        {DAEMONS}
        def jailed(run): return jail.fork_jailed(jail.Limits(), [writer], jail.libraries(), run)
        {end}
        os.waitpid(pid, 0)
        os.close(writer)
        os.set_blocking(reader, False)
        print(os.read(reader, 2), os.read(reader, 2))
    """.replace(DAEMONS, textwrap.indent(textwrap.dedent(DAEMONS), " " * 8))
    out, err = output_of(program, user)
    assert "b''" in out, err  # end of file: nobody is left who holds the pipe


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_watchman_dies_keeper_and_children_die_with_it(sign, user):
    reader, writer = os.pipe()
    daemons = textwrap.dedent(DAEMONS).replace("reader, writer = os.pipe()", f"writer = {writer}")
    program = f"{daemons}\njail.fork_jailed(jail.Limits(), [writer], jail.libraries(), stay)\nsignal.pause()"
    with keeper(program, user, pass_fds=[writer]) as process:
        os.close(writer)
        assert os.read(reader, 2) == b"up"
        process.send_signal(sign)
        assert os.read(reader, 2) == b""
        process.wait(timeout=10)
    os.close(reader)


def test_the_keeper_is_out_of_reach_and_goes_on_after_a_crash(user):
    program = """
        import ctypes, os
        jail.become_keeper()
        def crash(): ctypes.string_at(0)
        for run in (crash, crash, lambda: None, lambda: 1 / 0):
            pid = jail.fork_jailed(jail.Limits(), [], jail.libraries(), run)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    out, err = output_of(program, user)
    assert out.split() == [str(-signal.SIGSEGV)] * 2 + ["0", "1"], err


# Its core is read, too


def test_the_core_stays_small_enough_to_read_in_one_sitting():
    sources = [Path(module.__file__).read_text() for module in (jail, seccomp)]
    assert sum(len(source.splitlines()) for source in sources) <= 650
    imports = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    ours = [(node.module, *(name.name for name in node.names)) for node in imports if "autograder" in node.module]
    assert ours == [("autograder.sandbox", "seccomp")]  # and rests on nothing else of ours that would have to be read


# The filter, read rather than run. The probe "refused calls" runs it, and shares its table with the filter.


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_decides_as_its_table_says(machine):
    def verdict(number, argument=0, architecture=seccomp._ARCHITECTURES[machine]):
        return run_filter(seccomp.program(machine), {0: number, 4: architecture, 16: argument})

    refused, unknown, allow, kill = 0x00050001, 0x00050026, 0x7FFF0000, 0x80000000
    assert {verdict(number) for number in seccomp.refused(machine).values()} == {refused}
    assert verdict(0, architecture=0x40000003) == kill
    assert verdict(435) == verdict(seccomp.LAST_KNOWN + 1) == verdict(0x40000000) == unknown
    clone, socketpair = seccomp._CLONE[machine], seccomp._SOCKETPAIR[machine]
    assert verdict(clone, 0x01200011) == allow
    assert {verdict(clone, 1 << bit) for bit in (17, 25, 26, 27, 28, 29, 30)} == {refused}
    assert (verdict(socketpair, 1), verdict(socketpair, 2)) == (allow, refused)
    special = {435, clone, socketpair, *seccomp.refused(machine).values()}
    assert {verdict(number) for number in range(seccomp.LAST_KNOWN + 1) if number not in special} == {allow}


# What must be refused, whatever the table says: by name, and by number on x86-64 and aarch64.
MUST_BE_REFUSED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "mknodat": (259, 33),
    "unshare": (272, 97),
    "setns": (308, 268),
    "execve": (59, 221),
    "execveat": (322, 281),
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "seccomp": (317, 277),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "settimeofday": (164, 170),
}


@pytest.mark.parametrize("name", MUST_BE_REFUSED)
def test_no_call_that_must_be_refused_is_missing_from_the_filter(name):
    for machine, number in zip(("x86_64", "aarch64"), MUST_BE_REFUSED[name], strict=True):
        data = {0: number, 4: seccomp._ARCHITECTURES[machine], 16: 0}
        assert run_filter(seccomp.program(machine), data) == 0x00050000 | errno.EPERM
        assert seccomp.refused(machine)[name] == number  # so that the probe makes this call in a real jail


def run_filter(program, data):
    """A tiny machine for classic BPF, as far as the filter uses it."""
    steps = [
        (
            int.from_bytes(program[i : i + 2], "little"),
            program[i + 2],
            program[i + 3],
            int.from_bytes(program[i + 4 : i + 8], "little"),
        )
        for i in range(0, len(program), 8)
    ]
    at, word = 0, 0
    while True:
        code, then, otherwise, value = steps[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            word = data[value]
        else:
            yes = {0x15: word == value, 0x35: word >= value, 0x45: bool(word & value)}[code]
            at += then if yes else otherwise


def test_the_numbers_agree_with_the_kernel_headers_of_this_machine():
    headers = {
        "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        "aarch64": Path("/usr/include/asm-generic/unistd.h"),
    }
    if not any(path.exists() for path in headers.values()):
        pytest.skip("NOT RUN: no kernel headers are installed")
    for machine, path in headers.items():
        if path.exists():
            words = [line.split() for line in path.read_text().splitlines() if line.startswith("#define __NR")]
            numbers = {
                name.removeprefix("__NR_").removeprefix("__NR3264_"): int(number)
                for _, name, number, *_ in words
                if number.isdigit()
            }
            ours = seccomp.refused(machine)
            assert ours == {name: numbers[name] for name in ours}
