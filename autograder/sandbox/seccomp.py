"""A system-call filter for the jail: classic BPF, assembled by hand.

The kernel runs the program at every system call and obeys its verdict. Ours is a list of refusals: what a notebook
with NumPy and torch may call changes with every release, what it must never call does not. Two rules keep such a list
honest: a call newer than the list is refused as unknown, and a call of another architecture (the 32-bit door of an
x86-64 kernel) kills the process.
"""

import ctypes
import errno
import os
import struct

# Why refused: name x86-64 aarch64. A dash where the architecture has no such call.
_REFUSED = {
    "look into or steer another process": """
        ptrace 101 117  process_vm_readv 310 270  process_vm_writev 311 271  process_madvise 440 440
        pidfd_getfd 438 438  kcmp 312 272""",
    "change what is mounted, or reach files around the mounts": """
        mount 165 40  umount2 166 39  pivot_root 155 41  chroot 161 51  open_tree 428 428  move_mount 429 429
        fsopen 430 430  fsconfig 431 431  fsmount 432 432  fspick 433 433  mount_setattr 442 442
        open_by_handle_at 304 265  name_to_handle_at 303 264  mknod 133 -  mknodat 259 33  fanotify_init 300 262
        quotactl 179 60  quotactl_fd 443 443  swapon 167 224  swapoff 168 225  acct 163 89""",
    "enter or make a namespace, where capabilities would grow again": "unshare 272 97  setns 308 268",
    "run a program: the only one needed here is already running": "execve 59 221  execveat 322 281",
    "open a network, or rebind the one socket that is held": """
        socket 41 198  connect 42 203  bind 49 200  listen 50 201  accept 43 202  accept4 288 242
        setsockopt 54 208""",
    "keep secrets or memory in the kernel, where no limit counts them": """
        memfd_create 319 279  keyctl 250 219  add_key 248 217  request_key 249 218  memfd_secret 447 447
        shmget 29 194  shmat 30 196  shmctl 31 195  semget 64 190  semctl 66 191  msgget 68 186  msgctl 71 187
        mq_open 240 180""",
    "use the parts of the kernel that most escapes went through": """
        bpf 321 280  perf_event_open 298 241  userfaultfd 323 282  seccomp 317 277  lookup_dcookie 212 18
        io_uring_setup 425 425  io_uring_enter 426 426  io_uring_register 427 427  vmsplice 278 75
        modify_ldt 154 -  personality 135 92  move_pages 279 239  migrate_pages 256 238""",
    "administer the machine": """
        kexec_load 246 104  kexec_file_load 320 294  init_module 175 105  finit_module 313 273  delete_module 176 106
        reboot 169 142  iopl 172 -  ioperm 173 -  syslog 103 116  settimeofday 164 170  clock_settime 227 112
        clock_adjtime 305 266  adjtimex 159 171  sethostname 170 161  setdomainname 171 162  vhangup 153 58
        nfsservctl 180 42  uselib 134 -  ustat 136 -  sysfs 139 -""",
}
LAST_KNOWN = 450  # the list above is complete up to this number; glibc takes the older way where a call is unknown
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # as the kernel names them to the filter
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435  # its flags lie in memory, where a filter cannot look: unknown, so that glibc falls back to clone
_SOCKETPAIR = {"x86_64": 53, "aarch64": 199}
_NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag
_AF_UNIX = 1

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets into the kernel's struct seccomp_data
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_REFUSE, _UNKNOWN = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS

_PR_SET_SECCOMP, _FILTER = 22, 2


def refused(machine: str) -> dict[str, int]:
    """Return the number of each refused system call on this kind of machine."""
    column = 1 + list(_ARCHITECTURES).index(machine)
    words = " ".join(_REFUSED.values()).split()
    rows = zip(words[0::3], words[1::3], words[2::3], strict=True)
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def program(machine: str) -> bytes:
    """Return the filter for this kind of machine: blocks in reading order, each of which decides or falls through."""

    def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    def when(code: int, value: int, verdict: int) -> bytes:
        return step(code, value, otherwise=1) + step(_RETURN, verdict)

    def on_first_argument(number: int, code: int, value: int, then: int, otherwise: int) -> bytes:
        return (
            step(_EQUAL, number, otherwise=4)
            + step(_LOAD, _FIRST_ARGUMENT)
            + step(code, value, otherwise=1)
            + step(_RETURN, then)
            + step(_RETURN, otherwise)
        )

    return b"".join(
        [
            step(_LOAD, _ARCHITECTURE),
            step(_EQUAL, _ARCHITECTURES[machine], then=1),
            step(_RETURN, _KILL),
            step(_LOAD, _NUMBER),
            when(_AT_LEAST, LAST_KNOWN + 1, _UNKNOWN),  # x32 calls too: they are numbered from 2**30
            when(_EQUAL, _CLONE3, _UNKNOWN),
            on_first_argument(_CLONE[machine], _ANY_BIT, _NEW_NAMESPACES, _REFUSE, _ALLOW),
            on_first_argument(_SOCKETPAIR[machine], _EQUAL, _AF_UNIX, _ALLOW, _REFUSE),
            *(when(_EQUAL, number, _REFUSE) for number in refused(machine).values()),
            step(_RETURN, _ALLOW),
        ]
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


_MACHINE = os.uname().machine
_STEPS = program(_MACHINE) if _MACHINE in _ARCHITECTURES else b""  # made once, not in every child
_PROGRAM = _Program(len(_STEPS) // 8, _STEPS)
_libc = ctypes.CDLL(None, use_errno=True)


def install() -> None:
    """Put this process, and all that it will ever fork, under the filter; it cannot be taken off again.

    Needs no_new_privs. Raises OSError where the kernel has no seccomp or the architecture is none of ours.
    """
    if not _STEPS:
        raise OSError(errno.ENOSYS, f"no system-call filter is written for {_MACHINE}")
    if _libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(_PROGRAM)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
