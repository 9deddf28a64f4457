"""A submission in its real jail: what a cell, a call or a lie costs, and that it costs nobody else anything."""

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import msgpack
import nbformat
import numpy as np
import pytest
import torch

from autograder.authoring.build import instructor_notebook
from autograder.grading.judge import judge_notebook
from autograder.sandbox import client, outside, trial
from autograder.sandbox import session as sessions
from autograder.sandbox.errors import (
    Crashed,
    NotAttempted,
    OutOfMemory,
    Raised,
    SandboxUnavailable,
    StudentError,
    TimedOut,
)
from autograder.sandbox.jail import COURSE, Limits
from autograder.sandbox.protocol import encode
from autograder.sandbox.session import CORES, LIMITS, Session
from autograder.sandbox.student import Call, Direct, Module, Student

SMALL = Limits(cpu_seconds=60, address_space=1 << 30, processes=16)

CELLS = [
    """import os, sys, time
import numpy as np
import torch
from torch import nn
kept = []
""",
    """def double(x):
    return 2 * x

def echo(*args, **kwargs):
    return args, kwargs

def scale_in_place(x):
    x *= 3
    return None

def divide(a, b):
    return a / b

class Odd(LookupError):
    pass

def odd():
    raise Odd("with a message")

def unwritten():
    raise NotImplementedError

def leave():
    os._exit(3)

def crash():
    import ctypes
    ctypes.string_at(0)

def say_goodbye():
    raise SystemExit

def forever():
    while True:
        pass

def hoard():
    return np.ones(2**33)

def hoard_tensors():
    return torch.ones(2**33)

def recurse(n=0):
    return recurse(n + 1)

def no_value():
    return object(), {1, 2}

not_a_function = 3

def remember(x):
    kept.append(x)
    return len(kept)

def divide_and_remember(a, b):
    kept.append(a)
    return a / b
""",
    """def count_up(length):
    total = 0
    for _ in range(length):
        total += 1
    return total

class Counting:
    def __init__(self, way):
        self.way = {"loop": count_up, "once": int}[way]

    def __call__(self, length):
        return self.way(length)

class Layer(nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.project = nn.Linear(width, 3)
        self.drop = nn.Dropout(0.5)
        self.width = width

    def forward(self, x):
        return self.drop(self.project(x))

    def twice(self, x):
        return self(self(x)[..., : self.width])

def apply(layer, x=None, layers=()):
    return [layer(x), *(one(x) for one in layers)]

def draws():
    return torch.rand(2), np.random.rand(2)
""",
    """def square_sum(x, y, factor=1.0):
    return factor * (x * x).sum(), y * 2

def cut(x):
    return x.detach()

def by_loop(x):
    total = 0.0
    for row in x:
        for value in row:
            total += float(value)
    return total

def at_once(x):
    return x.sum()

def allocate(count):
    large = np.ones(count)
    return float(large[-1])

def pairs(x):
    return (x[:, None] + x[None, :]).sum(), x.expand(1000, -1).shape[0]

def at_places(x):
    out = torch.zeros(1000)
    out[torch.arange(3)] = x[:3]
    out[5:7] = x[0]
    out += 1
    return out

def product(a, b):
    return a @ b
""",
]


@pytest.fixture(scope="module")
def session():
    with Session(CELLS, SMALL) as opened:
        assert opened.faults == {}
        yield opened


@pytest.fixture
def student(session):
    session.allow(20)
    return Student(session)


@pytest.fixture(params=["direct", "jailed"])
def either(request):
    """One and the same student, in this process and behind the wall."""
    if request.param == "direct":
        namespace = {}
        for number, cell in enumerate(CELLS):
            exec(compile(cell, f"<cell {number}>", "exec"), namespace)
        return Student(Direct(namespace))
    session = request.getfixturevalue("session")
    session.allow(20)
    return Student(session)


# Calls


def test_values_go_in_and_come_out(either):
    assert np.array_equal(either.double(np.arange(3)), [0, 2, 4])
    came = either.echo(np.float32(1), [True, None], key={"a": (torch.int8, 2.5)})
    assert came == ((np.float32(1), [True, None]), {"key": {"a": (torch.int8, 2.5)}})
    assert either.call("double", 2) == 4


def test_what_cannot_travel_is_named(either):
    thing, numbers = either.no_value()
    assert isinstance(thing, Module)
    assert (thing.handle.type_name, numbers.handle.type_name) == ("object", "set")


def test_an_exception_is_told_by_its_builtin_bases_and_line(either):
    with pytest.raises(Raised) as raised:
        either.divide(1, 0)
    error = raised.value
    assert error.bases[:3] == ("ZeroDivisionError", "ArithmeticError", "Exception")
    assert (error.cell, error.line) == (1, CELLS[1].split("\n").index("    return a / b") + 1)
    with pytest.raises(Raised) as raised:
        either.odd()
    assert (raised.value.type_name, raised.value.bases[0]) == ("Odd", "LookupError")
    assert "message" not in str(raised.value)  # a message could carry the inputs out


@pytest.mark.parametrize(
    ("name", "base"), [("say_goodbye", "SystemExit"), ("recurse", "RecursionError"), ("not_a_function", "TypeError")]
)
def test_what_a_call_raises_ends_the_call_alone(either, name, base):
    with pytest.raises(Raised) as raised:
        either.call(name)
    assert raised.value.bases[0] == base
    assert either.double(1) == 2


@pytest.mark.parametrize("name", ["unwritten", "no_such_name"])
def test_missing_and_untouched_names_are_not_attempted(either, name):
    with pytest.raises(NotAttempted):
        either.call(name)


def test_wrong_arguments_are_a_type_error(either):
    with pytest.raises(Raised) as raised:
        either.double(1, 2, 3)
    assert raised.value.bases[0] == "TypeError"


def test_arguments_are_seen_as_they_are_afterwards(either):
    before = np.ones(3)
    result, (after,) = either.after("scale_in_place", before)
    assert result is None
    assert after.tolist() == [3, 3, 3]
    assert before.tolist() == [1, 1, 1]
    result, (after,) = either.after("double", torch.ones(2))
    assert (result.tolist(), after.tolist()) == ([2, 2], [1, 1])


def test_a_submission_keeps_its_state_between_calls(either):
    first = either.remember(1)
    assert either.remember(2) == first + 1


def test_the_journal_holds_every_call_and_what_came_back(either):
    either.double(2)
    with pytest.raises(Raised):
        either.odd()
    with pytest.raises(NotAttempted):
        either.unwritten()
    expected = [("value", 4), ("error", "crashed:LookupError"), ("error", "not_attempted:")]
    assert either.journal.entries == expected


def test_calls_that_travel_together_end_where_one_by_one_they_would(either):
    assert list(either.each("echo", [Call(1, key=3), (2, "b")])) == [((1,), {"key": 3}), ((2, "b"), {})]
    assert list(either.each("double", [])) == []
    first = either.remember(0)
    either.journal.entries.clear()
    answers = either.each("divide_and_remember", [(4, 2), (1, 0), (6, 3)])
    assert next(answers) == 2
    with pytest.raises(Raised) as raised:
        next(answers)
    assert raised.value.bases[0] == "ZeroDivisionError"
    assert next(answers, "none") == "none"
    assert [kind for kind, _ in either.journal.entries] == ["value", "error"]
    assert either.remember(0) == first + 3  # the call behind the one that raised was not made


def test_outcomes_go_past_errors(either):
    first = either.remember(0)
    halved, refused, once_more = either.outcomes("divide_and_remember", [(4, 2), (1, 0), (6, 3)])
    assert (halved, once_more) == (2, 2)
    assert isinstance(refused, Raised) and refused.bases[0] == "ZeroDivisionError"
    assert either.remember(0) == first + 4  # the call behind the one that raised was made too
    assert [kind for kind, _ in either.journal.entries[-4:]] == ["value", "error", "value", "value"]
    with pytest.raises(NotAttempted):
        either.outcomes("nothing_of_that_name", [()])


def test_what_is_made_later_is_made_once_and_before_it_is_used(either):
    layer = either.make("Layer", 2)
    other = either.make("Layer", 3)
    weights = {"project.weight": torch.arange(6.0).reshape(3, 2), "project.bias": torch.ones(3)}
    layer.load_state_dict(weights)
    layer.eval()
    x = torch.tensor([[1.0, 2.0]])
    values = list(layer.each([(x,), (2 * x,)]))
    expected = x @ weights["project.weight"].T + 1, 2 * x @ weights["project.weight"].T + 1
    assert all(torch.equal(one, two) for one, two in zip(values, expected, strict=True))
    assert torch.equal(layer(x), values[0])
    assert other.state_dict()["project.weight"].shape == (3, 3)
    nobody = either.make("Layer", "two")
    with pytest.raises(Raised):
        nobody.state_dict()


def test_steps_are_counted_call_by_call(either):
    loop, once = either.make("Counting", "loop"), either.make("Counting", "once")
    lengths = [(3,), (30,)]
    (_, few), (value, many) = loop.each_counted(lengths)
    assert value == 30
    assert many - few == 27 * 2  # two lines each time around
    assert [steps for _, steps in once.each_counted(lengths)] == [1, 1]
    assert [steps for _, steps in either.each_counted("count_up", lengths)] == [few - 1, many - 1]
    assert either.journal.exchanges is None  # counts cannot be repeated
    with pytest.raises(Raised):
        list(either.each_counted("count_up", [("three",)]))


def test_what_is_made_later_draws_after_the_seed(session):
    session.allow(20)
    at_once, later = (Student(session, 7) for _ in range(2))
    weights = [at_once.Layer(4).state_dict(), later.make("Layer", 4).state_dict()]
    assert torch.equal(*(state["project.weight"] for state in weights))


def test_the_first_of_several_calls_plants_the_seed(either):
    def numbers(student):
        return torch.cat([draw[0] for draw in student.each("draws", [(), ()])])

    again, other = (Student(either._transport, seed) for seed in (7, 8))
    found = numbers(Student(either._transport, 7))
    assert torch.equal(found, numbers(again))
    assert not torch.equal(found, numbers(other))
    assert len(found.unique()) == len(found)


def test_the_seed_makes_what_a_submission_draws_reproducible(session):
    session.allow(20)
    first, again, other = (Student(session, seed).draws() for seed in (7, 7, 8))
    assert torch.equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    modules = [Student(session, 7).Layer(4).state_dict()["project.weight"] for _ in range(2)]
    assert torch.equal(*modules)
    inside = Student(Direct({"Layer": lambda: torch.rand(2)}), 7).Layer()
    assert torch.equal(inside, first[0])  # and the same in a replay outside


# Modules, gradients, costs


def test_a_module_stays_inside_and_answers(either):
    layer = either.Layer(2)
    assert isinstance(layer, Module)
    weights = {"project.weight": torch.arange(6.0).reshape(3, 2), "project.bias": torch.ones(3)}
    layer.load_state_dict(weights)
    assert list(layer.state_dict()) == list(weights)
    assert torch.equal(layer.state_dict()["project.weight"], weights["project.weight"])
    layer.eval()
    x = torch.tensor([[1.0, 2.0]])
    wanted = x @ weights["project.weight"].T + 1
    assert torch.allclose(layer(x), wanted)
    assert torch.allclose(layer.call("twice", x), wanted[:, :2] @ weights["project.weight"].T + 1)
    assert layer.call("width") == 2  # an attribute comes back as it is
    assert layer.call("training") is False
    layer.train()
    assert layer.call("training") is True
    many = layer(torch.ones(400, 2))
    assert 0.3 < (many == 0).float().mean() < 0.7  # dropout is at work again
    layer.load_state_dict({"nothing": torch.ones(1)})  # travels with the next call
    with pytest.raises(Raised):
        layer(x)
    assert layer.call("width") == 2


def test_a_module_can_be_an_argument_wherever_it_stands(either):
    one, other = either.Layer(2), either.Layer(2)
    one.eval()
    other.eval()
    x = torch.ones(1, 2)
    results = either.call("apply", one, x=x, layers=[other, one])
    assert torch.equal(results[0], one(x))
    assert torch.equal(results[1], other(x))
    assert torch.equal(either.call("apply", layer=other, x=x)[0], other(x))


def test_products_with_the_jacobian(either):
    x, y = torch.tensor([1.0, 2.0, 3.0]), torch.ones(2)
    output, gradients = either.vjp(
        "square_sum", x, y, upstream=(torch.tensor(2.0), torch.ones(2)), wrt=(0, 1), factor=3.0
    )
    assert output[0] == 42
    assert torch.equal(gradients[0], 2.0 * 3.0 * 2 * x)
    assert torch.equal(gradients[1], torch.full((2,), 2.0))
    _, gradients = either.vjp("square_sum", x, y, upstream=torch.tensor(1.0), wrt=(0, 1))
    assert torch.equal(gradients[0], 2 * x)
    assert gradients[1] is None  # what the first output does not depend on
    with pytest.raises(Raised) as raised:
        either.vjp("cut", x, upstream=x)
    assert raised.value.bases[0] == "RuntimeError"


def test_gradients_of_a_modules_parameters(either):
    layer = either.Layer(2)
    layer.eval()
    x, upstream = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    output, (by_input,), by_parameter = layer.vjp(x, upstream=upstream)
    weight = layer.state_dict()["project.weight"]
    assert torch.allclose(output, layer(x))
    assert torch.allclose(by_input, upstream @ weight)
    assert torch.allclose(by_parameter["project.weight"], upstream.T @ x)
    assert torch.allclose(by_parameter["project.bias"], upstream.sum(0))


@pytest.mark.parametrize("op", ["pace", "trace"])
def test_steps_grow_with_a_loop_and_not_with_one_operation(either, op):
    measure, (small, large) = getattr(either, op), (np.ones((5, 5)), np.ones((400, 400)))
    loops = [measure("by_loop", x) for x in (small, large)]
    assert [found.result for found in loops] == [25.0, 160_000.0]
    assert loops[0].steps < 100 < 160_000 < loops[1].steps
    assert loops[1].outside_seconds > 1e-3
    at_once = [measure("at_once", x) for x in (small, large)]
    assert at_once[0].steps == at_once[1].steps < 10
    assert at_once[1].outside_seconds < loops[1].outside_seconds
    layer = either.Layer(4)
    layer.load_state_dict(layer.state_dict())
    assert getattr(layer, op)(torch.ones(6, 4)).result.shape == (6, 3)


def test_memory_operations_and_work_are_counted(either):
    trace = either.trace("allocate", 2**20)
    assert trace.peak_bytes == pytest.approx(2**23, rel=0.01)
    assert either.trace("allocate", 1).peak_bytes < 2**16
    trace = either.trace("pairs", torch.ones(64))
    assert trace.largest == 64 * 64  # a broadcast view is free
    assert {"add", "sum", "expand"} <= set(trace.calls)
    assert trace.elements == 64 * 64 + 1  # so are slices and broadcasts: nothing is written
    trace = either.trace("at_places", torch.ones(9))
    assert trace.elements == 1000 + 3 + 3 + 2 + 1000  # zeros, three places and their values, two places, the sum
    trace = either.trace("product", torch.ones(3, 5), torch.ones(5, 7))
    assert trace.flops == 2 * 3 * 5 * 7
    assert either.trace("double", torch.ones(3)).flops == 0
    layer = either.Layer(4)
    assert layer.trace(torch.ones(6, 4)).flops == 2 * 6 * 4 * 3


def test_memory_is_also_read_from_outside(student):
    size = 96 * 2**20
    assert student.trace("allocate", size // 8).outside_bytes == pytest.approx(size, rel=0.1)
    assert student.trace("allocate", 8).outside_bytes < 8 * 2**20


def test_the_first_call_of_a_process_does_not_pay_for_its_libraries():
    with Session(CELLS) as fresh:
        assert Student(fresh).trace("pairs", torch.ones(64)).outside_bytes < 4 * 2**20


def test_grader_and_submission_share_a_core_and_the_grader_is_free_again_afterwards():
    before = os.sched_getaffinity(0)
    with Session(CELLS) as fresh:
        assert os.sched_getaffinity(fresh._child.pid) == os.sched_getaffinity(0)
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == CORES >= before


_CLAIMING = """
import os
os.sched_setaffinity(0, {cores})
from autograder.sandbox import session
session.CLAIM = {name!r}
held = [session._claimed_core() for _ in {cores}]
print(*(core for core, claim in held if claim is not None))
"""


def test_no_two_pairs_share_a_core_while_one_is_free(monkeypatch):
    monkeypatch.setattr(sessions, "CLAIM", "\0a test's core {}")

    def claimed_elsewhere():
        code = _CLAIMING.format(cores=CORES, name=sessions.CLAIM)
        return set(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split())

    everywhere = {str(core).encode() for core in CORES}
    with Session(CELLS):
        (core,) = os.sched_getaffinity(0)
        assert claimed_elsewhere() == everywhere - {str(core).encode()}
    assert claimed_elsewhere() == everywhere  # what has ended has let go, here and there

    broken = Session(CELLS)

    def end_and_raise(kill, end=broken._end):
        end(kill)
        raise SandboxUnavailable

    monkeypatch.setattr(broken, "_end", end_and_raise)
    with pytest.raises(SandboxUnavailable), broken:
        pass
    assert (os.sched_getaffinity(0), claimed_elsewhere()) == (CORES, everywhere)


def test_cpu_time_is_also_read_from_outside(either):
    x = np.ones((1000, 300))
    loop, once = either.trace("by_loop", x), either.trace("at_once", x)
    assert loop.outside_seconds > 0.1 > 5 * once.outside_seconds


def test_a_journal_keeps_a_sample_of_what_is_large(either):
    either.double(np.arange(10**6))
    either.double(torch.ones(300, 1000))
    (_, (shape, sample)), (_, (other_shape, other_sample)) = either.journal.entries
    assert (shape, other_shape) == ((10**6,), (300, 1000))
    assert sample[:2].tolist() == [0, 2 * 16]
    assert len(other_sample) == 60_000


# What a call can do to its process, and nobody else's


@pytest.mark.parametrize(
    ("name", "error"),
    [("leave", Crashed), ("crash", Crashed), ("hoard", OutOfMemory), ("hoard_tensors", OutOfMemory)],
)
def test_a_call_that_ends_its_process_is_told_apart_and_the_next_one_works(name, error):
    with Session(CELLS[:2], SMALL) as session:
        session.allow(20)
        student = Student(session)
        with pytest.raises(error) as raised:
            student.call(name)
        assert raised.type is error
        assert student.double(4) == 8
        assert session.faults == {}


def test_an_endless_call_ends_at_its_limit_of_cpu_time():
    with Session(CELLS[:2], SMALL) as session:
        session.allow(0.5)
        before = session.cpu_seconds
        with pytest.raises(TimedOut, match=r"within 0\.5 s"):
            Student(session).forever()
        assert 0.4 < session.cpu_seconds - before < 3
        session.allow(5)
        assert Student(session).double(4) == 8


def test_a_submissions_whole_cpu_time_has_a_limit_too():
    with Session(CELLS[:2], Limits(cpu_seconds=2, address_space=1 << 30)) as session:
        for _ in range(2):
            session.allow(10)
            with pytest.raises(TimedOut, match="used up its 2 s"):
                Student(session).forever()


def test_a_process_that_dies_again_and_again_is_given_up(monkeypatch):
    monkeypatch.setattr(sessions, "MAX_RESPAWNS", 2)
    with Session(CELLS[:2], SMALL) as session:
        session.allow(20)
        for _ in range(3):
            with pytest.raises(Crashed, match="middle of a call"):
                Student(session).leave()
        with pytest.raises(Crashed, match="again and again"):
            Student(session).double(1)


# Cells


FAULTY = {
    "syntax": ("def broken(:", "crashed", "SyntaxError"),
    "exception": ("x = 1\n1 / 0", "crashed", "ZeroDivisionError"),
    "own exception": ("class Own(BaseException): pass\nraise Own", "crashed", "BaseException"),
    "exit": ("raise SystemExit", "crashed", "SystemExit"),
    "interrupt": ("raise KeyboardInterrupt", "crashed", "KeyboardInterrupt"),
    "input": ("input()", "crashed", "EOFError"),
    "memory": ("import numpy\nlarge = numpy.ones(2**33)", "memory", "MemoryError"),
    "endless": ("while True: pass", "timeout", "it did not finish within 1 s"),
    "leaves": ("import os\nos._exit(0)", "crashed", "its process ended in the middle of a call"),
    "hangs up": (
        "import os, time\nos.closerange(3, 200)\ntime.sleep(1000)",
        "crashed",
        "its process closed its connection to the grader",
    ),
}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(sessions, "CELL_SECONDS", 1.0)
    monkeypatch.setattr(sessions, "HANG_UP_SECONDS", 1.0)


def test_every_kind_of_fault_costs_its_own_cell_alone(impatient):
    cells = ["a = 1", *(source for source, _, _ in FAULTY.values()), "def f():\n    return a"]
    with Session(cells, SMALL) as session:
        faults = [(fault.outcome, fault.error) for _, fault in sorted(session.faults.items())]
        assert faults == [(outcome, error) for _, outcome, error in FAULTY.values()]
        assert sorted(session.faults) == list(range(1, len(cells) - 1))
        assert session.faults[2].line == 2
        session.allow(5)
        assert Student(session).f() == 1


def test_the_kernels_limit_of_cpu_time_is_a_timeout_and_not_a_lack_of_memory():
    with Session(["while True: pass"], Limits(cpu_seconds=1, address_space=1 << 30)) as session:
        assert session.faults[0].outcome == "timeout"


HOARD = """
import mmap, os, signal, threading
def hoard():
    if os.fork() == 0:
        kept = mmap.mmap(-1, 3 << 29{flags})
        for at in range(0, 3 << 29, 4096):
            kept[at] = 1
        {then}
        signal.pause()
for _ in range(10):
    {start}
signal.pause()
"""
PRIVATE = ", flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS"


@pytest.mark.parametrize(
    "cell",
    [
        HOARD.format(flags=PRIVATE, then="pass", start="hoard()"),
        HOARD.format(flags="", then="kept.madvise(mmap.MADV_DONTNEED)", start="hoard()"),
        HOARD.format(flags=PRIVATE, then="pass", start="threading.Thread(target=hoard).start()"),
    ],
    ids=["plainly", "shared and let go", "forked by threads"],
)
def test_memory_is_limited_for_all_processes_together(cell, student):
    with Session([cell, "def f(): return 7"], LIMITS) as session:
        assert (session.faults[0].outcome, session.faults[0].error) == (
            "memory",
            "its processes together took more memory than a submission may use",
        )
        session.allow(5)
        assert Student(session).f() == 7
    assert student.double(2) == 4  # another submission lives on


def test_processes_of_moderate_size_are_no_fault():
    pool = (
        "import multiprocessing, numpy as np\nlarge = np.ones(2**24)\ndef square(x):\n    return x * x\n"
        "with multiprocessing.Pool(4) as pool:\n    found = pool.map(square, range(8))\ndef f():\n    return found"
    )
    with Session([pool], LIMITS) as session:
        assert session.faults == {}
        session.allow(5)
        assert Student(session).f() == [x * x for x in range(8)]


def test_what_the_cells_left_running_is_gone_before_the_first_call():
    cell = """
import os, signal, threading, time
def stay():
    os.fork() or signal.pause()
    time.sleep(1000)
threading.Thread(target=stay, daemon=True).start()
os.fork() or signal.pause()
time.sleep(0.2)
"""
    with Session([cell], SMALL) as session:
        assert session.faults == {}
        assert outside.tree(session._child.pid)[1:] == [pid for pid in outside.tree(session._child.pid) if _zombie(pid)]


def _zombie(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_output_warnings_magics_and_threads_are_no_faults(impatient):
    cells = [
        "print('x' * 10**7)\nimport sys, warnings\nsys.stderr.write('y' * 10**6)\nwarnings.warn('no')",
        "%matplotlib inline\n%config InlineBackend.figure_format = 'svg'\n!ls /\n%pip install x\nz = 3",
        "%%time\nw = 4",
        "import matplotlib.pyplot as plt\n_ = plt.plot([1, 2])\nplt.show()",
        "import asyncio\nawait asyncio.sleep(0)",
        "import threading\nt = threading.Thread(target=lambda: None)\nt.start()\nt.join()",
        "def f(): return z + w",
    ]
    with Session(cells, LIMITS) as session:
        assert session.faults == {}
        session.allow(5)
        assert Student(session).f() == 7


# What a submission sees


SPY = """
import os, socket, sys

def environment():
    return dict(os.environ)

def files():
    found = []
    for root, folders, names in os.walk("/"):
        if root.startswith(("/proc", "/sys")):
            folders.clear()
        found += [os.path.join(root, name) for name in names]
    return [name for name in found if not name.startswith((sys.prefix, sys.base_prefix))]

def named(words):
    return [module for module in sys.modules if any(word in module for word in words)]

def reach(host, port):
    try:
        socket.create_connection((host, port), timeout=2).close()
        return "connected"
    except OSError as error:
        return type(error).__name__

def processes():
    alive = []
    for number in range(1, 300):
        try:
            os.kill(number, 0)
        except OSError:
            continue
        alive.append(number)
    return os.getpid(), os.getppid(), alive
"""


@pytest.fixture(scope="module")
def spy():
    with Session([SPY], SMALL) as session:
        session.allow(60)
        yield Student(session)


def test_no_file_of_the_course_is_in_sight(spy):
    root = str(Path(__file__).resolve().parent.parent)
    seen = spy.files()
    strangers = [name for name in seen if "/autograder/" not in name and name.startswith(root)]
    assert strangers == []
    assert not [name for name in seen if "/suites/" in name or "/answers/" in name or "/solutions/" in name]
    words = [
        "autograder.suites",
        "autograder.answers",
        "autograder.grading",
        "solutions",
        "autograder.course",
        "nbgrader",
    ]
    assert spy.named(words) == []


def test_nothing_of_our_environment_is_in_sight(spy, monkeypatch):
    monkeypatch.setenv("ATTN_SPY_SECRET", "x")
    with Session([SPY], SMALL) as session:
        session.allow(20)
        inside = Student(session).environment()
    assert inside == spy.environment()
    assert not any(name.startswith("ATTN") for name in inside)
    assert {"PATH", "HOME"} <= set(inside)


def test_no_network_and_no_process_but_its_own(spy):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert spy.reach("127.0.0.1", listener.getsockname()[1]) != "connected"
    assert spy.processes() == (1, 0, [1])


# Lies: what a submission writes on the grader's socket

LIAR = """
import os, struct, time
import msgpack

def lie(data, stay):
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, data)
        except OSError:
            pass
    if not stay:
        os._exit(0)

def honest():
    return 42
"""


def frame(message):
    payload = msgpack.packb(message)
    return struct.pack("<Q", len(payload)) + payload


LIES = {
    "bytes": b"\xff" * 64,
    "a length without an end": struct.pack("<Q", 2**40),
    "half a frame": struct.pack("<Q", 20) + b"1234",
    "no map": struct.pack("<Q", 1) + b"\x01",
    "an empty map": frame({}),
    "an error of text": frame({"error": "text"}),
    "an error of lists": frame({"error": {"bases": 3, "cell": "x", "line": [], "memory": []}}),
    "a value of text": frame({"value": "text"}),
    "a value of numbers": frame({"value": {"tree": {"k": "numpy"}, "numpy": 3, "torch": 4}}),
    "an endless cell": frame({"cell": math.inf}),
    "a cell before the first": frame({"cell": -1}),
    "a cell after the last": frame({"cell": 10**6}),
    "a fault of text": frame({"cell": 1, "error": "x"}),
    "bases of lists": frame({"cell": 1, "error": {"bases": [[1]], "line": {}}}),
    "ready": frame({"ready": True}),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("stay", [True, False], ids=["and goes on", "and dies"])
def test_a_lie_in_a_call_is_a_crash_of_that_call(lie, stay):
    with Session([LIAR, f"def f():\n    lie({LIES[lie]!r}, {stay})\n    return 1"], SMALL) as session:
        session.allow(20)
        with pytest.raises(StudentError) as raised:
            Student(session).f()
        assert raised.value.outcome == "crashed"
        with contextlib.suppress(Crashed):  # its own answers may come late; nobody else's do
            assert Student(session).honest() in (42, 1)
    with Session([LIAR], SMALL) as session:
        session.allow(20)
        assert Student(session).honest() == 42


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("stay", [True, False], ids=["and goes on", "and dies"])
def test_a_lie_in_a_cell_is_never_a_fault_of_the_grader(lie, stay):
    with Session([LIAR, f"lie({LIES[lie]!r}, {stay})", "def f():\n    return 7"], SMALL) as session:
        assert set(session.faults) <= {1}
        assert session.faults or stay or lie == "ready"
        session.allow(20)
        if lie == "ready":
            with pytest.raises(Crashed):
                Student(session).f()
        else:
            assert Student(session).f() == 7


@pytest.mark.parametrize("replies", [3, [], [3], [{"value": encode(1)}], [{"value": encode(1)}] * 3, {"0": 1}])
def test_replies_that_are_none_are_a_crash(replies):
    with Session([LIAR, f"def f(x):\n    lie({frame({'replies': replies})!r}, True)"], SMALL) as session:
        for ask in ("each", "outcomes"):
            session.allow(20)
            with pytest.raises(Crashed):
                list(getattr(Student(session), ask)("f", [(1,), (2,)]))
        assert Student(session).honest() == 42


@pytest.mark.parametrize("items", [[], [1] * 6, {"steps": math.inf}, {"steps": "many"}, 3])
def test_a_trace_that_is_none_is_a_crash(items):
    forged = frame({"value": encode(items)})
    for op in ("pace", "trace"):
        with Session([LIAR, f"def f():\n    lie({forged!r}, True)"], SMALL) as session:
            session.allow(20)
            with pytest.raises(Crashed):
                getattr(Student(session), op)("f")


def test_a_submission_that_patches_its_workbench_answers_nonsense_and_no_more():
    patch = """
import autograder.sandbox.workbench as workbench, autograder.sandbox.child as child
workbench.Workbench.answer = lambda self, request: {"value": {"tree": {"k": "numpy", "name": "0"}}}
"""
    with Session([patch, "def f():\n    return 7"], SMALL) as session:
        session.allow(20)
        with pytest.raises(Crashed):
            Student(session).f()


def test_a_process_that_no_longer_reads_is_killed(monkeypatch):
    monkeypatch.setattr(sessions, "DEAF_SECONDS", 1.0)
    monkeypatch.setattr(sessions, "HANG_UP_SECONDS", 0.5)
    deaf = "import time\nimport autograder.sandbox.child as child\nchild.receive = lambda connection: time.sleep(1000)"
    with Session([deaf, "def f(x):\n    return 7"], SMALL) as session:
        session.allow(20)
        with pytest.raises(Crashed, match="closed its connection"):
            Student(session).f(np.zeros(2**20))


def test_a_value_larger_than_any_frame_is_a_crash(monkeypatch):
    monkeypatch.setattr(sessions, "MAX_REPLY", 2**20)
    with Session(["import numpy as np\ndef f(n):\n    return np.zeros(n)"], SMALL) as session:
        session.allow(20)
        assert Student(session).f(2**10).shape == (2**10,)
        with pytest.raises(Crashed):
            Student(session).f(2**20)
        assert Student(session).f(1).shape == (1,)


# The other jail


needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="NOT RUN: bubblewrap is not installed (make system)"
)


@needs_bwrap
def test_a_submission_has_the_same_grade_in_the_cold_jail(monkeypatch):
    notebook = instructor_notebook("scaled_dot_product")
    wrong = "def causal_mask(q_seq, kv_seq):\n    return np.ones((q_seq, kv_seq), dtype=bool)"
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in (wrong, "import os\nos._exit(3)", "1 / 0")]
    results = []
    for kind in ("warm", "cold"):
        monkeypatch.setenv("ATTN_JAIL", kind)
        result = judge_notebook(nbformat.writes(notebook).encode(), "scaled_dot_product", "s001", secret=b"x" * 32)
        results.append({**result.as_json(), "seconds": None})
        assert 0 < result.score < result.max_score
    assert results[0] == results[1]
    assert not client.server()._running  # reaped, and with it all that it started


ALLOWED = """
import os, resource
tmp = os.statvfs("/tmp")
KINDS = ("CPU", "AS", "NPROC", "NOFILE", "FSIZE", "CORE")
found = {kind: resource.getrlimit(getattr(resource, f"RLIMIT_{kind}")) for kind in KINDS}

def limits():
    return found, tmp.f_blocks * tmp.f_frsize
"""


def test_a_submission_is_allowed_what_is_written_here_and_no_more():
    with Session([ALLOWED]) as session:
        session.allow(5)
        found, tmp = Student(session).limits()
    assert all(soft == hard for soft, hard in found.values())
    allowed = {kind: hard for kind, (_, hard) in found.items()}
    assert allowed.pop("CPU") <= 60 + 2  # what its process had used at birth, rounded up
    assert 3 << 30 < allowed.pop("AS") < (3 << 30) + (16 << 30)  # beyond what the libraries had mapped
    assert allowed == {"NPROC": 16, "NOFILE": 64, "FSIZE": 16 << 20, "CORE": 0}
    assert tmp == 64 << 20


@pytest.mark.parametrize("kind", ["warm", pytest.param("cold", marks=needs_bwrap)])
def test_cpu_time_of_a_process_that_is_gone_stays_counted(kind, monkeypatch):
    monkeypatch.setenv("ATTN_JAIL", kind)
    cell = """
import os, time
def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
    os._exit(0)
"""
    with Session([cell], SMALL) as session:
        session.allow(10)
        before = session.cpu_seconds
        with pytest.raises(Crashed):
            Student(session).burn(1.0)
        assert 0.8 < session.cpu_seconds - before < 1.5


def test_an_unknown_kind_of_jail_grades_nothing(monkeypatch):
    monkeypatch.setenv("ATTN_JAIL", "none")
    with pytest.raises(SandboxUnavailable, match="warm or cold"), Session([]):
        pass


# An ordinary user grades: another one than root, in whose place the interpreter may lie behind a door that is shut

OPEN_DOORS = """
set -e
for pair in $1; do  # what is needed, and the folder above it that others may not enter
    mount --bind "${pair%:*}" "$2"; mount -t tmpfs -o mode=755 none "${pair#*:}"
    mkdir -p "${pair%:*}"; mount --move "$2" "${pair%:*}"
done
shift 2
exec setpriv --reuid 12345 --regid 12345 --clear-groups "$@"
"""


@pytest.fixture(scope="module")
def ordinary_user():
    """Runs a program as an ordinary user in a home of its own; what it prints is JSON."""
    home = Path(tempfile.mkdtemp(prefix="attn-ordinary-"))
    (home / "door").mkdir()
    shutil.copytree(client._font_cache(), home / "attention-in-depth" / "matplotlib")  # half a minute to make anew
    wrapper = []
    if os.geteuid() == 0:
        needed = (Path(sys.base_prefix), Path(sys.prefix), COURSE)
        shut = {path: next((p for p in [*path.parents][::-1] if not p.stat().st_mode & 1), None) for path in needed}
        pairs = [f"{path}:{door}" for path, door in shut.items() if door is not None]
        wrapper = ["unshare", "--mount", "sh", "-c", OPEN_DOORS, "sh", " ".join(pairs), str(home / "door")]
        for path in [home, *home.rglob("*")]:
            os.chown(path, 12345, 12345)

    def run(program):
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(COURSE), "HOME": str(home)}
        environment |= {"XDG_CACHE_HOME": str(home), "OMP_WAIT_POLICY": "PASSIVE"}
        command = [*wrapper, sys.executable, "-W", "ignore", "-c", program]
        done = subprocess.run(command, env=environment, cwd=COURSE, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    try:
        if wrapper and subprocess.run([*wrapper, sys.executable, "-c", ""], capture_output=True).returncode != 0:
            pytest.skip("NOT RUN: root cannot become a user here who can start the course's Python")
        yield run
    finally:
        shutil.rmtree(home)


GRADING = """
import json, os
from pathlib import Path
from autograder.grading.judge import judge_notebook
assert os.geteuid() != 0
result = judge_notebook(Path({notebook!r}).read_bytes(), "scaled_dot_product", "s001", secret=b"x" * 32)
print(json.dumps(result.as_json()))
"""


def test_an_ordinary_user_gives_the_same_grade(ordinary_user):
    notebook = instructor_notebook("scaled_dot_product")
    wrong = "def causal_mask(q_seq, kv_seq):\n    return np.ones((q_seq, kv_seq), dtype=bool)"
    notebook.cells += [nbformat.v4.new_code_cell(wrong)]
    data = nbformat.writes(notebook).encode()
    with tempfile.NamedTemporaryFile(suffix=".ipynb") as file:
        file.write(data)
        file.flush()
        os.chmod(file.name, 0o644)
        theirs = ordinary_user(GRADING.format(notebook=file.name))
    outcomes = {exercise["id"]: exercise["outcome"] for exercise in theirs["exercises"]}
    assert outcomes.pop("scaled_dot_product-causal_mask") == "failed"
    assert set(outcomes.values()) == {"passed"}
    ours = judge_notebook(data, "scaled_dot_product", "s001", secret=b"x" * 32).as_json()
    assert {**theirs, "seconds": None} == json.loads(json.dumps({**ours, "seconds": None}))


HIDING = """
import json, os
from autograder.sandbox.errors import Crashed
from autograder.sandbox.session import Session
from autograder.sandbox.student import Student
assert os.geteuid() != 0
cell = '''
import ctypes, numpy as np
def allocate(count):
    return float(np.ones(count)[-1])
def hide(count):
    PR_SET_DUMPABLE = 4
    return allocate(count) + ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
'''
said = []
with Session([cell]) as session:
    session.allow(20)
    student = Student(session)
    said.append(student.trace("allocate", 8 << 20).outside_bytes)
    said.append(student.hide(32 << 20))
    try:
        said.append(student.trace("allocate", 8 << 20).outside_bytes)
    except Crashed as error:
        said.append(str(error))
    said.append(student.trace("allocate", 8 << 20).outside_bytes)
print(json.dumps(said))
"""


def test_memory_used_before_hides_none_from_an_ordinary_user(ordinary_user):
    before, used, hidden, after = ordinary_user(HIDING)
    assert before == pytest.approx(64 << 20, rel=0.1)
    assert used == 1
    assert hidden == "its process hid how much memory it uses"
    assert after == pytest.approx(64 << 20, rel=0.1)  # in the process that took its place


@pytest.mark.parametrize(
    ("who", "error", "words"),
    [("the submission's", Crashed, "hid how much"), ("anybody's", SandboxUnavailable, "clear_refs")],
)
def test_a_peak_that_is_not_reset_is_no_reading(who, error, words, monkeypatch):
    forget = outside.forget_peak

    def refuse(pid):
        if who == "anybody's" or pid != os.getpid():
            raise PermissionError
        forget(pid)

    with Session(CELLS, SMALL) as session:
        session.allow(20)
        monkeypatch.setattr(outside, "forget_peak", refuse)
        with pytest.raises(error, match=words):
            Student(session).trace("allocate", 8)


HEADLESS = """
import ctypes, mmap, os, threading, time
def live_on():
    time.sleep(0.1)
    kept = mmap.mmap(-1, {size}, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, {size}, 4096):
        kept[at] = 1
    print("up", flush=True)
    time.sleep({stay})
for _ in range({processes}):
    if os.fork() == 0:
        threading.Thread(target=live_on).start()
        exit_thread = {{"x86_64": 60, "aarch64": 93}}[os.uname().machine]
        ctypes.CDLL(None).syscall(exit_thread, 0)
time.sleep({stay})
"""


def test_a_process_without_its_first_thread_is_seen_and_ended():
    command = [sys.executable, "-c", HEADLESS.format(size=64 << 20, processes=1, stay=1000)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout.read(3) == b"up\n"
            (headless,) = outside.tree(process.pid)[1:]
            assert _zombie(headless)
            assert outside.address_space(headless) > 64 << 20
            assert not outside.ended(headless, 0)
            assert outside.leave_alone(process.pid)
            assert outside.ended(headless, 0)
            assert outside.address_space(headless) == 0
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_memory_is_limited_for_processes_without_their_first_thread_too():
    with Session([HEADLESS.format(size=1 << 30, processes=5, stay=3)], LIMITS) as session:
        assert {cell: fault.outcome for cell, fault in session.faults.items()} == {0: "memory"}


# A whole submission, as `attn doctor` tries it out


def trials():
    return {found.name: found for found in trial.try_out()}


def test_a_whole_submission_is_held():
    found = trials()
    assert list(found) == ["a call", "wall time", "a large answer", "memory readings"]
    assert all(result.held for result in found.values()), found


@pytest.mark.parametrize(
    ("name", "detail"),
    [
        ("a call", "another value"),
        ("wall time", "slept for 1 s"),
        ("a large answer", "was taken"),
        ("memory readings", "134217728 and 67108864 bytes were used"),
    ],
)
def test_each_trial_can_fail(name, detail, monkeypatch):
    if name == "a call":
        monkeypatch.setattr(trial, "CELL", trial.CELL.replace("42", "43"))
    elif name == "wall time":
        monkeypatch.setattr(trial, "SLEEP_SECONDS", 1.0)
        monkeypatch.setattr(Session, "_check", lambda self: None)
    elif name == "a large answer":
        monkeypatch.setattr(sessions, "MAX_REPLY", 2**30)
    else:
        monkeypatch.setattr(outside, "forget_peak", lambda pid: None)
    found = trials()
    assert {one for one, result in found.items() if not result.held} == {name}
    assert detail in found[name].detail


def test_a_submission_that_cannot_run_is_a_failed_trial(monkeypatch):
    monkeypatch.setenv("ATTN_JAIL", "none")
    ((name, result),) = trials().items()
    assert (name, result.held) == ("a call", False)
    assert "warm or cold" in result.detail


# The grader's own faults are not the submission's


def test_a_server_that_dies_is_nobodys_grade_and_the_next_submission_gets_a_new_one(monkeypatch):
    monkeypatch.setattr(client, "_servers", {})
    server = client.server()
    assert client.server() is server
    assert server.alive
    with pytest.raises(SandboxUnavailable), Session(["def f():\n    return 7"], SMALL) as session:
        server._process.kill()
        server._process.wait()
        for _ in range(100):  # its children go with it
            session.allow(20)
            with contextlib.suppress(StudentError):
                Student(session).f()
    assert not server.alive
    with Session(["def f():\n    return 7"], SMALL) as session:
        session.allow(20)
        assert Student(session).f() == 7
    client.server().close()
