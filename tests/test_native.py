"""Native checks, as far as they can be tested without a GPU: the same process, chain and comparison on a CPU.

Triton interprets there, so times mean nothing; that a wrong or dishonest submission is found out does.
"""

import importlib.util

import pytest
import torch

from autograder import course
from autograder.sandbox import native, native_cases
from autograder.sandbox.native_worker import chain, digest

SEQ = 48
NAMES = list(native_cases.CASES)
HONEST = """
import torch
def flash_forward(q, k, v, causal):
    scores = (q.float() @ k.float().mT / q.shape[-1] ** 0.5)
    scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -float("inf"))
    return (scores.softmax(-1) @ v.float()).to(q.dtype), scores.logsumexp(-1)
"""
MEMORY = """
exact, calls = {name}, []
def {name}(*inputs):
    calls.append(exact(*inputs) if len(calls) < 2 else calls[-1])
    return calls[-1]
"""
LEFT_OUT = """
exact, calls = {name}, []
def {name}(*inputs):
    calls.append(calls[-1] if len(calls) == 8 else exact(*inputs))
    return calls[-1]
"""
WRONG = {
    "answers from memory": (HONEST + MEMORY.format(name="flash_forward"), "off by"),
    "leaves a late call out": (HONEST + LEFT_OUT.format(name="flash_forward"), "after 12 calls"),
    "leaves its output unwritten": (
        "import torch\ndef flash_forward(q, k, v, causal):\n    return torch.empty_like(q), None\n",
        "something else than tensors",
    ),
    "leaves its last row unwritten": (
        HONEST + "exact = flash_forward\ndef flash_forward(q, *inputs):\n    out, lse = exact(q, *inputs)\n"
        "    room = torch.empty_like(q)\n    room[..., :-1, :] = out[..., :-1, :]\n    return room, lse\n",
        "off by nan",
    ),
    "is not causal": (HONEST.replace(".triu(1)", ".triu(99)"), "off by"),
    "leaves a few keys out": (HONEST.replace(".triu(1)", ".triu(1).index_fill(-1, torch.arange(3), True)"), "off by"),
    "returns another dtype": (HONEST.replace(".to(q.dtype)", ""), "wrong shape or dtype"),
    "returns no lse": (HONEST.replace(", scores.logsumexp(-1)", ""), "1 tensors instead of 2"),
    "returns a wrong lse": (HONEST.replace("logsumexp(-1)", "amax(-1)"), "off by"),
    "raises": ("def flash_forward(*a):\n    raise ValueError\n", "its process ended"),
    "does not load": ("raise ValueError\n", "its process ended"),
    "ends its process": ("import os\ndef flash_forward(*a):\n    os._exit(0)\n", "its process ended"),
    "ends between two requests": (
        "import os, threading\n" + HONEST + "exact = flash_forward\ndef flash_forward(*inputs):\n"
        "    threading.Timer(0.01, os._exit, [0]).start()\n    return exact(*inputs)\n",
        "its process ended",
    ),
    "returns no tensor": ("def flash_forward(*a):\n    return 3\n", "something else than tensors"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    monkeypatch.setattr(native, "ROUNDS", 1)


def _moved(inputs, device):
    return [x.to(device, copy=True) if isinstance(x, torch.Tensor) else x for x in inputs]


def test_every_kernel_exercise_has_a_case():
    assert {*NAMES, "autotune_space"} == {exercise.name for exercise in course.sheet("flash_gpu").exercises}


def test_an_honest_submission_is_right_and_timed():
    assert native.milliseconds(HONEST, "flash_forward", "cpu", SEQ) >= 0


@pytest.fixture(scope="module")
def baselines():
    space = {}
    exec(native_cases.BASELINES, space)
    return space


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", course.SOLUTIONS / "flash_gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _noisy(function):
    """Float16's rounding twice over, in every output."""

    def rounded(*inputs):
        return [
            x if x.dtype == torch.float32 else (x.float() * (1 + 5e-4 * torch.randn(x.shape))).half()
            for x in function(*inputs)
        ]

    return rounded


@pytest.mark.parametrize("name", NAMES)
def test_a_chain_forgives_rounding_and_nothing_else(name):
    """Neither does it make errors larger, nor does it come to rest, where a call more or less would be all the same."""
    torch.manual_seed(0)
    case = native_cases.CASES[name]
    inputs = case.inputs(SEQ)
    ends = {times: case.expected(inputs, times) for times in (1, 2, 3, 11, 12)}
    assert all(x.isfinite().all() for end in ends.values() for x in end)
    for times in (1, 12):
        found = chain(_noisy(case.exact), case.rule, _moved(inputs, "cpu"), times)
        case.require(found, ends[times], times)
        for one, other in zip(case.end(found), case.end(ends[times]), strict=True):
            assert native_cases.difference(one, other) < native_cases.LIMIT / 2, "float16 comes too near to the limit"
    for one, other in ((1, 2), (2, 3), (11, 12)):
        gap = native_cases.difference(case.end(ends[one])[0], case.end(ends[other])[0])
        assert gap > 3 * native_cases.LIMIT, f"{one} or {other} calls: only {gap:.2g} apart"


@pytest.mark.parametrize("name", NAMES)
def test_the_baselines_are_right(name, baselines):
    torch.manual_seed(0)
    case = native_cases.CASES[name]
    inputs = case.inputs(SEQ)
    for times in (1, 4):
        found = chain(baselines[name], case.rule, _moved(inputs, "cpu"), times)
        case.require(found, case.expected(inputs, times)[: len(found)], times)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton was imported to compile")
def test_the_references_are_right(name, reference):
    torch.manual_seed(0)
    case = native_cases.CASES[name]
    inputs = case.inputs(SEQ)
    found = chain(getattr(reference, name), case.rule, _moved(inputs, "cpu"), 2)
    case.require(found, case.expected(inputs, 2), 2)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_stays_on_the_cpu(name, baselines):
    """Tensors that nobody moves: on `meta` as on a GPU, they cannot meet those that lie there."""
    case = native_cases.CASES[name]
    for function in (case.exact, baselines[name]):
        outputs = chain(function, case.rule, _moved(case.inputs(SEQ), "meta"), 2)
        assert all(x.device.type == "meta" for x in outputs)


def test_a_digest_knows_of_every_part():
    outputs = [torch.randn(2, 3, 5).half(), torch.randn(2, 3)]
    changed = [outputs[0].clone(), outputs[1]]
    changed[0][1, 2, 3] += 1
    assert native._close(digest(outputs), digest(outputs))
    assert not native._close(digest(changed), digest(outputs)) and not native._close([], digest(outputs))


def test_the_reference_and_the_baseline_run_in_their_processes(monkeypatch):
    monkeypatch.setattr(native, "LONG", 3)
    said = native.found([course.solution("flash_gpu").text], "flash_forward_window", "cpu", SEQ)
    assert said.startswith("right, ") and "PyTorch's attention with a mask takes" in said


@pytest.mark.parametrize("how", WRONG)
def test_others_are_found_out(how):
    source, says = WRONG[how]
    said = native.found([source], "flash_forward", "cpu", SEQ)
    assert said.startswith("not right, ") and says in said, said


@pytest.mark.parametrize("cheat", [MEMORY, LEFT_OUT])
@pytest.mark.parametrize("name", ["row_softmax", "flash_backward"])
def test_other_rules_find_them_out_too(name, cheat):
    """What a call feeds to the next is an exchange of weights, or a gradient."""
    said = native.found([native_cases.BASELINES + cheat.format(name=name)], name, "cpu", SEQ)
    assert said.startswith(f"not right, after {12 if cheat is LEFT_OUT else 2} calls its output is off by"), said


def test_a_late_output_is_found_out(monkeypatch):
    """The clock stops at a digest; what is handed in afterwards has to be the same."""
    monkeypatch.setattr(native, "digest", lambda outputs: [x + 1 for x in digest(outputs)])
    assert "not there yet" in native.found([HONEST], "flash_forward", "cpu", SEQ)


def test_who_does_not_answer_is_ended(monkeypatch):
    monkeypatch.setattr(native, "TUNING", 0.5)
    said = native.found(["import time\ndef flash_forward(*a):\n    time.sleep(60)\n"], "flash_forward", "cpu", SEQ)
    assert "no answer came" in said


def test_a_submission_sees_no_secret(monkeypatch):
    """Its environment is a few variables, and its folder is its own."""
    monkeypatch.setenv("ATTN_SECRET_FILE", "somewhere")
    source = (
        "import os\nassert 'ATTN_SECRET_FILE' not in os.environ and os.listdir('.') == ['submission.py']\n" + HONEST
    )
    assert native.milliseconds(source, "flash_forward", "cpu", SEQ) >= 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a GPU")
def test_without_a_gpu_nothing_counts_as_checked(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "1")
    (said,) = native.notes(["pass"], ["autotune_space", "vector_scale", "flash_forward"])
    assert "not run" in said and "no GPU" in said
    assert list(native.notes(["pass"], ["softmax"])) == [], "nothing to say of chapters without native checks"


def test_with_a_gpu_nobody_leaves_the_jail_unasked(monkeypatch):
    monkeypatch.setattr(native, "gpu", lambda: "a GPU")
    monkeypatch.delenv(native.VARIABLE, raising=False)
    (said,) = native.notes(["pass"], ["flash_forward"])
    assert "not run" in said and native.VARIABLE in said


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: native kernels are not checked")
@pytest.mark.parametrize("name", NAMES)
def test_the_reference_runs_natively(name, monkeypatch):
    monkeypatch.setattr(native, "ROUNDS", 3)
    said = native.found([course.solution("flash_gpu").text], name)
    assert said.startswith("right, ") and " takes " in said, said
