"""Using things up: time, memory, processes, disk, and the patience of the grader itself."""

from corpus import MARK, RIGHT_MASK, WITNESS, WRONG_MASK, Submission, attack, raid

_TIME = "CPU time is counted outside; wall time stands behind it. What reaches a limit is killed."
_MEMORY = "Each process has a limit on its address space."
_TOGETHER = "What all processes of a submission have mapped is added up outside, twenty times a second."
_SOURCE = "The text of a notebook is limited, and the source check takes time in proportion to it."
_CELL_LOST = {"causal_mask": ("not_attempted", "failed", "timeout")}


@attack(
    tries="A fork bomb in a cell.",
    stopped="A limit on processes; and what was forked dies with the submission.",
    cpu=5,
    full="",
    wrong=_CELL_LOST,
)
def forks_without_end():
    return WRONG_MASK, "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"


@attack(
    tries="Forks short-lived processes whose CPU time nobody adds up (SIGCHLD ignored), to compute without a limit.",
    stopped="A submission has a limit of wall time, whatever its processes claim to have used.",
    full="",
    outcome="timeout",
    cpu=2,
    seconds=45,
)
def burns_time_in_processes_that_nobody_waits_for():
    return """
import os, signal, time
def causal_mask(q_seq, kv_seq):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        try:
            if os.fork() == 0:
                until = time.process_time() + 0.2
                while time.process_time() < until:
                    pass
                os._exit(0)
        except OSError:
            pass
        time.sleep(0.15)
"""


@attack(tries="Takes memory until there is none, in a call.", stopped=_MEMORY, outcome=("memory", "crashed"), cpu=12)
def takes_all_memory():
    return (
        """
def causal_mask(q_seq, kv_seq):
    kept = []
    while True:
        kept.append(np.empty(64 << 20, dtype=np.uint8))
""",
        WITNESS,
    )


@attack(
    tries="Takes memory until there is none, in a cell.",
    stopped=_MEMORY,
    wrong=None,
    full="causal_mask padding_mask",
    cpu=12,
)
def takes_all_memory_in_a_cell():
    return RIGHT_MASK, "x = 'x' * (1 << 40)", "y = np.empty(1 << 44)", "z = [0] * (1 << 40)", WITNESS


_HOARDS = """
import mmap, os, signal
for _ in range(10):
    if os.fork() == 0:
        kept = mmap.mmap(-1, 3 << 29{flags})
        for at in range(0, 3 << 29, 4096):
            kept[at] = 1
        {then}
        signal.pause()
signal.pause()
{mask}
"""


@attack(
    tries="Forks ten processes that take 1.5 GiB each, every one of them within its own limit.",
    stopped=_TOGETHER,
    wrong={"causal_mask": "memory"},
    cpu=12,
)
def takes_all_memory_in_many_processes():
    return _HOARDS.format(flags=", flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS", then="pass", mask=RIGHT_MASK), WITNESS


@attack(
    tries="The same with shared memory that each process lets go of at once, so that it is resident in none.",
    stopped=_TOGETHER,
    wrong={"causal_mask": "memory"},
    cpu=12,
)
def hides_the_memory_that_many_processes_hold():
    return _HOARDS.format(flags="", then="kept.madvise(mmap.MADV_DONTNEED)", mask=RIGHT_MASK), WITNESS


@attack(
    tries="Keeps memory in files that have no name and are not mapped (memfd), and in pipes of one process and of ten.",
    stopped="The system-call filter refuses such files. Pipes are few, because open files are, and the kernel gives "
    "64 MiB to all that an ordinary user has.",
    cpu=12,
)
def keeps_memory_where_nobody_counts_it():
    return raid(
        """
import fcntl, os
def unnamed():
    return os.write(os.memfd_create("kept"), bytes(1 << 20))
def pipes(most):
    written = 0
    for _ in range(most):
        try:
            inside, outside = os.pipe()
            os.set_blocking(outside, False)
            fcntl.fcntl(outside, fcntl.F_SETPIPE_SZ, 1 << 20)
        except OSError:
            pass
        try:
            while True:
                written += os.write(outside, bytes(1 << 16))
        except BlockingIOError:
            pass
    return written >> 20
def pipes_of_many():
    children, written = [], 0
    (inside, outside), (wait, go) = os.pipe(), os.pipe()
    for _ in range(10):
        child = os.fork()
        if child == 0:
            os.close(go)
            os.write(outside, bytes([pipes(24)]))
            os.read(wait, 1)  # holds on to its pipes until all have been counted
            os._exit(0)
        children.append(child)
        written += os.read(inside, 1)[0]
    os.close(go)
    for child in children:
        os.waitpid(child, 0)
    return written
attempt("memfd", unnamed)
attempt("pipes of ten processes", lambda: pipes_of_many() > 80)
attempt("pipes of one", lambda: pipes(100) > 80)
""",
        count=3,
    )


@attack(
    tries="Fills the disk: large files, sparse files, ten thousand small ones.",
    stopped="/tmp is 64 MiB of memory for 4,000 files, a file has 16 MiB at most, and nothing else can be written.",
    cpu=12,
)
def fills_the_disk():
    return raid(
        f"""
import os
def large():
    with open("/tmp/{MARK}-large", "wb", buffering=0) as file:
        while file.tell() <= 16 << 20 and file.write(bytes(1 << 20)):
            pass
        return file.tell() > 16 << 20
def many_large():
    written = 0
    for number in range(12):
        try:
            with open(f"/tmp/{MARK}-{{number}}", "wb", buffering=0) as file:
                for _ in range(16):
                    written += file.write(bytes(1 << 20))
        except OSError:
            pass
    return written > 80 << 20
def small():
    made = 0
    for number in range(10_000):
        try:
            os.close(os.open(f"/tmp/{MARK}-small-{{number}}", os.O_CREAT | os.O_WRONLY))
            made += 1
        except OSError:
            break
    return made > 5000
attempt("large", large)
attempt("sparse", lambda: os.truncate(os.open("/tmp/{MARK}-sparse", os.O_CREAT | os.O_WRONLY), 1 << 30) is None)
attempt("many large", many_large)
attempt("small", small)  # last: no other file can be made after these
""",
        count=4,
    )


@attack(
    tries="Prints gigabytes to both streams, to their descriptors, and from a call.",
    stopped="What a submission prints goes to /dev/null.",
)
def floods_the_output():
    return (
        """
import os, sys
for _ in range(300):
    print("x" * 1_000_000)
    print("y" * 1_000_000, file=sys.stderr)
    os.write(1, b"z" * 1_000_000)
    os.write(2, b"z" * 1_000_000)
sys.stdout = open("/dev/stdout", "w") if os.path.exists("/dev/stdout") else sys.stdout
""",
        WRONG_MASK.replace("    return", "    print('hidden' * 1_000_000)\n    return"),
        WITNESS,
    )


@attack(
    tries="Loops for ever inside C, where no Python signal handler runs.",
    stopped=_TIME,
    outcome="timeout",
    cpu=2,
    full="",
)
def loops_in_c():
    return "import itertools\ndef causal_mask(q_seq, kv_seq):\n    return sum(itertools.repeat(1))\n"


@attack(tries="Loops for ever in a regular expression.", stopped=_TIME, outcome="timeout", cpu=2, full="")
def loops_in_a_regular_expression():
    return "import re\ndef causal_mask(q_seq, kv_seq):\n    re.match(r'(a+)+$', 'a' * 64 + 'b')\n"


def _slow(method: str, base: str, then: str) -> str:
    """A class with one method that never ends, and a mask that hands an object of it over."""
    return f"""
class Slow({base}):
    def {method}(self, *a, **k):
        while True: pass
def causal_mask(q_seq, kv_seq):
    {then}
"""


@attack(tries="Loops for ever in __str__ of what it raises.", stopped=_TIME, outcome="timeout", cpu=2, full="")
def loops_in_the_text_of_an_error():
    return _slow("__str__", "Exception", "raise Slow()")


@attack(
    tries="Loops for ever in __repr__ of what it returns and raises.",
    stopped="Nobody asks for it: a message shows names of types, never an object.",
    outcome=("failed", "crashed"),
    cpu=4,
)
def loops_in_what_an_object_looks_like():
    body = "if q_seq % 2: raise Slow()\n    return Slow()"
    return _slow("__repr__", "Exception", body), WITNESS


@attack(tries="Loops for ever in __del__ of what it drops.", stopped=_TIME, outcome="timeout", cpu=2, full="")
def loops_in_a_destructor():
    return _slow("__del__", "object", "Slow()\n    return np.ones((q_seq, kv_seq), dtype=bool)")


@attack(
    tries="Loops for ever in __iter__ and __len__ of the list that it returns.",
    stopped=_TIME,
    outcome="timeout",
    cpu=2,
    full="",
)
def loops_in_a_list_that_is_taken_apart():
    return _slow("__iter__", "list", "return Slow([1])").replace(
        "def causal", "Slow.__len__ = Slow.__iter__\ndef causal"
    )


@attack(tries="Loops for ever while a module is imported.", stopped=_TIME, cpu=3, full="", wrong=_CELL_LOST)
def loops_in_an_import():
    return (
        WRONG_MASK,
        f"""
import sys
open("/tmp/{MARK.replace("-", "_")}.py", "w").write("while True: pass")
sys.path.insert(0, "/tmp")
import {MARK.replace("-", "_")}
""",
    )


@attack(
    tries="Sleeps for ever in calls and in cells, which costs no CPU time.",
    stopped=_TIME,
    outcome="timeout",
    wrong="causal_mask effective_support softmax_jacobian",
    full="",
    cpu=2,
    seconds=60,
)
def sleeps_for_ever():
    return """
import time
def causal_mask(*a, **k):
    time.sleep(1e6)
effective_support = softmax_jacobian = causal_mask
"""


@attack(
    tries="Returns what has no end: a list that holds itself, an endless generator, a dictionary of a million parts.",
    stopped="Depth and number of parts are capped where a value is taken apart, and again where it is put together.",
    outcome=("failed", "crashed", "timeout"),
    wrong="causal_mask effective_support softmax_jacobian softmax_vjp",
)
def returns_what_has_no_end():
    return (
        """
import itertools
LOOP = []
LOOP.append(LOOP)
class Endless(list):
    def __iter__(self): return itertools.repeat(self)
def causal_mask(q_seq, kv_seq): return LOOP
def effective_support(weights): return itertools.count()
def softmax_jacobian(probs): return {str(n): n for n in range(300_000)}
def softmax_vjp(probs, upstream): return Endless([1])
""",
        WITNESS,
    )


@attack(
    tries="A notebook whose source keeps the source check busy: a hundred thousand aliases and assignments.",
    stopped=_SOURCE,
    full="",
    wrong={"causal_mask": ("failed", "forbidden", "timeout", "invalid_notebook", "not_attempted")},
    overall="ok",
    seconds=25,
    memory=1 << 30,
)
def keeps_the_source_check_busy():
    imports = "if 0:\n" + "".join(f"    import numpy as a{n}\n" for n in range(12_000))
    body = "".join(f"    b{n} = a{n % 12_000}\n" for n in range(12_000))
    return imports, "def causal_mask(q_seq, kv_seq):\n    return np.ones((q_seq, kv_seq), dtype=bool)\n" + body


@attack(
    tries="One statement binds thousands of names, so that a careless check reads it thousands of times.",
    stopped=_SOURCE,
    full="",
    wrong={"causal_mask": ("failed", "forbidden", "timeout", "invalid_notebook", "not_attempted")},
    seconds=25,
    memory=1 << 30,
)
def makes_the_source_check_read_one_statement_again_and_again():
    block = "if True:\n" + "".join(f"    n{k} = 0\n" for k in range(6_000))
    use = ", ".join(f"n{k}" for k in range(6_000))
    return (
        block,
        f"def causal_mask(q_seq, kv_seq):\n    return np.ones((q_seq, kv_seq), dtype=bool)\n    return {use}\n",
    )


@attack(
    tries="Tens of megabytes of source code, which take gigabytes as a syntax tree.",
    stopped="The code of a notebook is limited to what people write.",
    full="",
    wrong={"causal_mask": "invalid_notebook"},
    overall="invalid_notebook",
    seconds=40,
    memory=512 << 20,
)
def hands_in_megabytes_of_source():
    big = "x = [" + "0," * 900_000 + "]"
    return (*[big.replace("x", f"x{n}", 1) for n in range(4)], WRONG_MASK)


@attack(
    tries="JSON nested a hundred thousand deep, and one with more digits than any number.",
    stopped="A file that cannot be read as a notebook is graded 0 and says why.",
    wrong={"causal_mask": "invalid_notebook", "padding_mask": "invalid_notebook"},
    full="",
    overall="invalid_notebook",
)
def hands_in_json_without_end():
    return Submission(
        raw=b'{"nbformat": 4, "cells": ' + b"[" * 100_000 + b"]" * 100_000 + b', "x": ' + b"9" * 10_000 + b"}"
    )


@attack(
    tries="Opens and duplicates files until no descriptor is left.",
    stopped="A limit on open files; the socket of the grader is open already.",
)
def opens_every_file():
    return raid(
        """
import os
KEPT = []
def hoard(more):
    try:
        while len(KEPT) < 300:
            KEPT.append(more())
    except OSError:
        pass
    return len(KEPT) > 64
attempt("open", lambda: hoard(lambda: os.open("/dev/zero", 0)))
while len(KEPT) > 1:
    os.close(KEPT.pop())
attempt("duplicate", lambda: hoard(lambda: os.dup(KEPT[0])))
""",
        count=2,
    )
