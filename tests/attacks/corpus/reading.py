"""Reading what is not meant for a submission: suites, answers, grades, other people's work, memory."""

from corpus import MARK, RIGHT_MASK, WITNESS, attack, raid


@attack(
    tries="Walks through every folder for suites, solutions, gradebooks, secrets and notebooks.",
    stopped="The jail's root holds libraries, three devices and an empty /tmp; the course is not in it.",
)
def searches_the_disk():
    return raid(
        """
import os, re, site, sys
WANTED = re.compile(r"test_(scaled|additive)|gradebook|^secret$|exercises[.](ipynb|md)|dot_product[.]py|judge[.]py")
LIBRARIES = {os.path.realpath(p) for p in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", sys.prefix, sys.base_prefix)}
def search():
    found = []
    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(folder, name)) not in LIBRARIES]
        found += [os.path.join(folder, name) for name in files if WANTED.search(name)]
    return found
attempt("walk", search)
PACKAGES = {name for place in site.getsitepackages() for name in os.listdir(place)}
attempt("packages", lambda: {"autograder", "solutions", "course"} & PACKAGES)
for path in ("/root", "/home", "/var", "/mnt", "/srv", "/opt", "/proc/1/cwd", "/etc/passwd", "/etc/shadow"):
    attempt(path, lambda: os.path.isfile(path) or [one for one in os.scandir(path) if one.is_file()])
""",
        count=11,
    )


@attack(
    tries="Imports, and reads as text, the hidden suites, the references, the answers and the code with the secret.",
    stopped="The process that forks submissions never loaded them, and their files are not in the jail.",
)
def imports_the_answers():
    return raid(
        """
import importlib.util, sys
for name in ("autograder.suites.test_scaled_dot_product", "solutions.scaled_dot_product", "autograder.course",
             "autograder.answers.scaled_dot_product", "autograder.grading.secret", "autograder.grading.judge"):
    attempt(name, lambda: importlib.import_module(name))
    attempt(name, lambda: open(importlib.util.find_spec(name).origin).read())
attempt("loaded", lambda: [n for n in sys.modules if n.startswith(("solutions", "autograder.suites",
        "autograder.answers", "autograder.grading", "autograder.course", "_pytest"))])
""",
        count=13,
    )


@attack(
    tries="Looks for tokens and paths in the environment, also in the block of memory that it arrived in.",
    stopped="The server is started with a fixed environment and refuses any other.",
)
def reads_the_environment():
    return raid(
        """
import os, ctypes
KNOWN = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_CTYPE", "PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS", "TMPDIR",
         "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MPLCONFIGDIR", "IPYTHONDIR", "MPLBACKEND", "PYDEVD_USE_FRAME_EVAL"}
def raw():
    block = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), "environ")
    names, index = [], 0
    while block[index]:
        names.append(block[index].split(b"=")[0].decode())
        index += 1
    return names
def stranger(name):
    return name not in KNOWN and not name.startswith(("TORCH", "KINETO", "TRITON", "KMP", "CUDA"))
attempt("environ", lambda: [name for name in os.environ if stranger(name)])
attempt("raw", lambda: [name for name in raw() if stranger(name)])
attempt("proc", lambda: open("/proc/self/environ").read())
attempt("key", lambda: os.environ["ATTN_SECRET_FILE"])
""",
        count=4,
    )


@attack(
    tries="Reads /proc: other processes, their command lines, open files and memory.",
    stopped="/proc is an empty folder in the jail, and a pid namespace hides all other processes.",
)
def reads_proc():
    return raid(
        """
import os
attempt("list", lambda: os.listdir("/proc"))
for path in ("/proc/1/mem", "/proc/1/maps", "/proc/self/exe", "/proc/self/fd", "/proc/1/root", "/proc/net/unix",
             "/proc/sys/kernel/hostname", "/sys/kernel"):
    attempt(path, lambda: os.stat(path))
attempt("pid", lambda: os.getpid() != 1 or os.getppid() != 0)
def alive(pid):
    try:
        return os.kill(pid, 0) is None
    except OSError:
        return False
attempt("others", lambda: [pid for pid in range(2, 400) if pid != os.getpid() and alive(pid)])
""",
        count=11,
    )


@attack(
    tries="Reads its parent's memory with process_vm_readv, ptrace and pidfd_getfd.",
    stopped="The system-call filter refuses all three, and the parent is in another pid namespace.",
)
def reads_the_parents_memory():
    return raid(
        """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
class Span(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
room = ctypes.create_string_buffer(64)
def peek(pid):
    here, there = Span(ctypes.addressof(room), 64), Span(id(object), 64)
    return libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) > 0
def hold(request, pid):
    if libc.ptrace(request, pid, 0, 0) != 0:
        return False
    libc.ptrace(0x4207, pid, 0, 0)
    os.waitpid(pid, 0x40000000)
    return libc.ptrace(17, pid, 0, 0) == 0
for pid in (1, 2):
    attempt("peek", lambda: peek(pid))
    attempt("attach", lambda: hold(16, pid))
    attempt("seize", lambda: hold(0x4206, pid))
    attempt("steal", lambda: libc.syscall(438, os.pidfd_open(pid), 3, 0) > 0)
""",
        count=8,
    )


@attack(
    tries="Goes through all live objects and all stack frames for tests, expected values and secrets.",
    stopped="The tests run in another process; what is inherited is the libraries and the workbench.",
)
def searches_objects_and_frames():
    return raid(
        """
import gc, sys, types
WORDS = ("course_secret", "attend_by_loops", "causal_by_loops", "judge_notebook", "HiddenTest", "seed_of", "Verdict")
def frames():
    frame, found = sys._getframe(), []
    while frame:
        found += [word for word in WORDS if word in frame.f_locals or word in frame.f_globals]
        frame = frame.f_back
    return found
def objects():
    names = (getattr(one, "__name__", "") for one in gc.get_objects() if isinstance(one, (type, types.FunctionType)))
    return [name for name in names if name in WORDS]
def modules():
    spaces = [getattr(module, "__dict__", ()) for module in list(sys.modules.values())]
    return [word for space in spaces for word in WORDS if word in space]
attempt("frames", frames)
attempt("objects", objects)
attempt("modules", modules)
gc.unfreeze()
attempt("frozen objects", objects)
""",
        count=4,
    )


@attack(
    tries="Reads its own memory around known objects for text that the grader may have left there.",
    stopped="The server that is forked never held a suite, a reference or a secret.",
)
def scans_its_own_memory():
    return raid(
        """
import ctypes, os, re
libc = ctypes.CDLL(None)
libc.write.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
WANTED = re.compile(rb"[H]idden suite of chapter|[R]eference solutions|[c]ausal_by_loops|[t]est_causal_mask_of")
def scan(start, size):
    inside, outside = os.pipe()
    os.set_blocking(outside, False)
    tail, found = b"", []
    for address in range(start, start + size, 4096):
        if libc.write(outside, address, 4096) == 4096:  # a page that is not there is an error, not a crash
            data = os.read(inside, 4096)
            found += WANTED.findall(tail + data)
            tail = data[-64:]
    return found
def around(*places):
    return sum((scan((place & ~4095) - (6 << 20), 12 << 20) for place in places), [])
attempt("around objects", lambda: around(id(object()), id({}), id("scan"), id(scan)))
attempt("around an array", lambda: around(np.zeros(100_000).ctypes.data))
""",
        count=2,
    )


@attack(
    tries="When called, takes arrays out of the callers' frames, hoping that the expected value is among them.",
    stopped="Only the inputs of a call cross into the jail.",
)
def takes_answers_from_the_callers_frames():
    return (
        """
import sys
def causal_mask(q_seq, kv_seq):
    frame, pool = sys._getframe(1), []
    while frame:
        pool += list(frame.f_locals.values())
        frame = frame.f_back
    while pool:
        one = pool.pop()
        if isinstance(one, np.ndarray) and one.shape == (q_seq, kv_seq):
            return one
        if isinstance(one, (dict, list, tuple)) and len(pool) < 10_000:
            pool += list(one.values() if isinstance(one, dict) else one)
    return np.ones((q_seq, kv_seq), dtype=bool)
""",
        WITNESS,
    )


@attack(
    tries="Leaves its right answers in /tmp, in shared memory and in the server's memory for a friend's submission.",
    stopped="Each submission has a /tmp, a memory and namespaces of its own, which die with it.",
    wrong=None,
    full="causal_mask padding_mask",
)
def leaves_a_note_for_a_friend():
    return (
        f"""
import builtins, mmap, os, sys
from multiprocessing import shared_memory
note = "causal = lambda q, k: np.arange(k) <= (np.arange(q) + k - q)[:, None]"
for folder in ("/tmp", "/dev/shm", "/var/tmp", sys.prefix, sys.prefix + "/lib", "/"):
    try:
        open(folder + "/{MARK}-note", "w").write(note)
    except OSError:
        pass
builtins.friend = sys.note_for_a_friend = note
import numpy, autograder.sandbox.child
numpy.note_for_a_friend = autograder.sandbox.child.note = note
""",
        RIGHT_MASK,
        WITNESS,
    )


@attack(
    tries="Looks for the note that the submission before it left.",
    stopped="Each submission has a /tmp, a memory and namespaces of its own, which die with it.",
)
def looks_for_a_friends_note():
    return raid(
        f"""
import builtins, os, sys, numpy, autograder.sandbox.child
attempt("files", lambda: [f for f in ("/tmp", "/dev/shm", "/var/tmp", sys.prefix, sys.prefix + "/lib", "/")
                          if os.path.exists(f + "/{MARK}-note")])
attempt("memory", lambda: hasattr(builtins, "friend") or hasattr(sys, "note_for_a_friend"))
attempt("modules", lambda: hasattr(numpy, "note_for_a_friend") or hasattr(autograder.sandbox.child, "note"))
attempt("leftovers", lambda: [f for f in os.listdir("/tmp") if not os.path.isdir("/tmp/" + f)])
""",
        count=4,
        after="leaves_a_note_for_a_friend",
    )
