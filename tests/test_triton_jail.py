"""Triton kernels in the jail: what the interpreter leaves open is closed, what it hides is said, counts are true."""

import time
from dataclasses import replace

import nbformat
import pytest
import torch

from autograder import course
from autograder.authoring.build import instructor_notebook, marked
from autograder.course import definitions
from autograder.grading.forbidden import forbidden_calls
from autograder.grading.judge import judge_notebook
from autograder.grading.reading import read
from autograder.sandbox.errors import NotAttempted, Raised
from autograder.sandbox.session import LIMITS, Session
from autograder.sandbox.student import Direct, Student

SLUG = "flash_gpu"
CELL = '''import torch
import triton
import triton.language as tl

@triton.jit
def _copy(x, out, n, BLOCK: tl.constexpr, READS: tl.constexpr, WRITES: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tile = tl.load(x + at, mask=at < n + READS)
    tl.store(out + at, tile, mask=at < n + WRITES)

def copy(x, reads=0, writes=0):
    out = torch.empty_like(x)
    _copy[(triton.cdiv(x.numel(), 64),)](x, out, x.numel(), BLOCK=64, READS=reads, WRITES=writes)
    return out

@triton.jit
def _times(a, b):
    return tl.dot(a, b)

@triton.jit
def _square(x, out):
    at = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tile = tl.load(x + at)
    tl.store(out + at, _times(tile, tile).to(out.dtype.element_ty))

def square(x):
    out = torch.empty_like(x)
    _square[(1,)](x, out)
    return out

@triton.jit
def _nothing(x):
    """To be written."""
    raise NotImplementedError

def unwritten(x):
    _nothing[(1,)](x)
    return x

@triton.jit
def _wrong(x):
    at = tl.arange(0, 16)
    return tl.load(x + at).no_such_thing

@triton.jit
def _calls_wrong(x):
    _wrong(x)

def wrong(x):
    _calls_wrong[(1,)](x)
    return x

def untouched(x):
    return torch.empty_like(x)

def copy_and_more(x):
    copy(x)
    return len(bytes(2**20))
'''


@pytest.fixture(scope="module")
def jailed():
    with Session([CELL]) as session:
        assert not session.faults
        yield Student(session)


@pytest.fixture(scope="module", params=["jail", "direct"])
def either(request, jailed, tmp_path_factory):
    """The same in the jail and in this process, where named mistakes are replayed."""
    if request.param == "jail":
        return jailed
    place = tmp_path_factory.mktemp("kernels") / "cell.py"
    place.write_text(CELL)
    namespace = {}
    exec(compile(CELL, str(place), "exec"), namespace)
    return Student(Direct(namespace))


# ------------------------------------------------------------------------------------------------ what a kernel does


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_kernel_runs(either, dtype):
    x = torch.randn(100, dtype=dtype)
    assert torch.equal(either.copy(x), x)


@pytest.mark.parametrize(("reads", "writes", "says"), [(1, 0, "reads outside"), (0, 1, "writes outside")])
def test_no_kernel_leaves_its_tensors(either, reads, writes, says):
    with pytest.raises(Raised, match=f"IndexError.*{says} of its tensors"):
        either.copy(torch.randn(100), reads, writes)
    x = torch.randn(70)
    assert torch.equal(either.copy(x), x), "the process lives on, unharmed"


def test_what_nobody_wrote_is_nan(either):
    assert torch.isnan(either.copy(torch.randn(100), 0, -30)[70:]).all()
    assert torch.isnan(either.untouched(torch.ones(5))).all()


def test_memory_is_as_it_was_elsewhere():
    """Notebooks without kernels keep torch's own memory, and its own algorithms."""
    with Session(["import torch\ndef mode():\n    return torch.are_deterministic_algorithms_enabled()\n"]) as session:
        assert Student(session).mode() is False


def test_bfloat16_is_refused(either):
    assert torch.allclose(either.square(torch.eye(16)), torch.eye(16))
    assert torch.allclose(either.square(2 * torch.eye(16).half()), 4 * torch.eye(16).half())
    with pytest.raises(Raised, match=r"TypeError.*multiplies bfloat16 wrongly"):
        either.square(torch.eye(16, dtype=torch.bfloat16))


def test_an_error_is_the_kernels_own(jailed):
    """Not the interpreter's, and with the line of the cell, also through a device function."""
    with pytest.raises(Raised) as raised:
        jailed.wrong(torch.ones(16))
    assert raised.value.bases[0] == "AttributeError"
    line = raised.value.line
    assert "no_such_thing" in CELL.splitlines()[line - 1]


def test_an_unwritten_kernel_is_not_attempted(either):
    with pytest.raises(NotAttempted):
        either.unwritten(torch.ones(3))


def test_counts(either):
    trace = either.trace("copy", torch.randn(150))
    assert (trace.launches, trace.programs, trace.multiplications) == (1, 3, 0)
    trace = either.trace("square", torch.eye(16))
    assert (trace.launches, trace.programs, trace.multiplications) == (1, 1, 16**3)
    assert trace.largest <= 256, "the interpreter's own arrays are not the submission's"
    assert either.trace("untouched", torch.ones(3)).launches == 0


def test_memory_is_traced_again_after_a_launch(either):
    """The interpreter's arrays are not counted, what the submission makes is."""
    assert 0.9 * 2**20 < either.trace("copy_and_more", torch.ones(3)).peak_bytes < 1.1 * 2**20


def test_kernels_find_each_other_in_later_cells():
    later = CELL.replace("def _times(a, b):\n    return tl.dot(a, b)", "def _times(a, b):\n    return tl.dot(a, b) * 0")
    with Session([CELL, later[later.index("@triton.jit\ndef _times") : later.index("@triton.jit\ndef _square")]]) as s:
        assert (Student(s).square(torch.eye(16)) == 0).all()


# ------------------------------------------------------------------------------------------------- what is ruled out


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("return x @ x", "@"),
        ("x @= x\n    return x", "@"),
        ("return x * x", None),
        ("import triton.runtime.interpreter as t\n    return t", "triton.runtime"),
        ("return triton.runtime.driver", "triton.runtime"),
        ("with torch._C._DisableTorchDispatch():\n        return x", "torch._C"),
        ("return torch.utils._python_dispatch", "torch.utils._python_dispatch"),
    ],
)
def test_ways_around_the_kernel_are_seen_in_the_source(body, found):
    cell = f"import torch, triton\ndef f(x):\n    {body}\n"
    assert {finding.name for finding in forbidden_calls(read([cell]), "f", ["@"])} == ({found} if found else set())


@pytest.mark.parametrize(
    ("exercise", "replace", "by", "found"),
    [
        ("row_softmax", "weights = tl.exp(row", "weights = tl.softmax(row", ".softmax"),
        ("flash_forward", "return _forward(q, k, v,", "return _forward(q, k, v.nan_to_num(),", ".nan_to_num"),
        ("flash_forward", "return _forward(q, k, v,", "return (q @ k.mT).amax(), (q, k, v,", "@"),
        (
            "flash_forward_gqa",
            "return _forward(q, k, v,",
            "return _forward(*(F.softmax(q), k, v),",
            ".softmax",
        ),
        ("flash_backward", "_check(q, k, v, out, d_out)", "torch.einsum('ij->ij', q)", "torch.einsum"),
        ("block_sparse_kernel", "q_tile = q.load", "q.matmul(k); q_tile = q.load", ".matmul"),
    ],
)
def test_shortcuts_of_the_chapter_are_ruled_out(exercise, replace, by, found):
    """In the function that launches, and in the kernels themselves; the reference needs none of them."""
    sheet = next(e for e in course.sheet(SLUG).exercises if e.name == exercise)
    text = course.solution(SLUG).text
    assert not forbidden_calls(read([text]), exercise, sheet.forbids)
    shortcut = text.replace(replace, by)
    assert shortcut != text
    assert found in {finding.name for finding in forbidden_calls(read([shortcut]), exercise, sheet.forbids)}


# ------------------------------------------------------------------------------------------- kernels in the sources


def test_a_kernel_belongs_to_the_function_below():
    text = (
        "@triton.jit\ndef _shared(x):\n    return x\n\n\ndef helper():\n    pass\n\n\n"
        "@triton.jit\ndef _one(x):\n    return x\n\n\n@tuned\n@triton.jit\ndef _two(x):\n    return x\n\n\n"
        'def launch(x):\n    """Both."""\n    return _one, _two\n\n\ndef plain():\n    return 1\n'
    )
    cut = definitions(text)
    assert cut["launch"].kernels == ("_one", "_two") and cut["launch"].source.startswith("@triton.jit\ndef _one")
    assert cut["helper"].kernels == ("_shared",), "given with it, where it is no exercise"
    assert cut["plain"].kernels == ()
    stub = marked(cut["launch"])
    assert stub.count("### BEGIN SOLUTION") == 2 and "return _one, _two" in stub.split("### END SOLUTION")[-1]


def test_every_kernel_is_the_students_or_given():
    """None is lost on the way to the notebook, and none is in two cells."""
    text = course.solution(SLUG).text
    cells = [cell.source for cell in instructor_notebook(SLUG).cells]
    for name in definitions(text):
        assert sum(f"def {name}(" in source for source in cells) == 1, name


# ------------------------------------------------------------------------------------------------ a whole submission


def test_the_reference_is_graded_in_seconds():
    """All points, and little of the CPU time that a submission may use."""
    notebook = nbformat.writes(instructor_notebook(SLUG)).encode()
    begin = time.process_time()
    result = judge_notebook(notebook, SLUG, "s001", secret=b"0" * 32, limits=replace(LIMITS, cpu_seconds=30))
    assert result.score == result.max_score, [e for e in result.exercises if e.outcome != "passed"]
    assert time.process_time() - begin < 10, "the grader's own share"
