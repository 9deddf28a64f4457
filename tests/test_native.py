"""Native checks, as far as they can be tested without a GPU: the same process, chain and comparison on a CPU.

Triton interprets there, so times mean nothing; that a wrong or dishonest submission is found out does.
"""

import pytest
import torch

from autograder import course
from autograder.sandbox import native

SEQ = 48
HONEST = """
import torch
def flash_forward(q, k, v, causal):
    scores = (q.float() @ k.float().mT / q.shape[-1] ** 0.5)
    scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -float("inf"))
    return (scores.softmax(-1) @ v.float()).to(q.dtype), scores.logsumexp(-1)
"""
WRONG = {
    "answers from memory": (
        "calls = {}\n" + HONEST.replace("def flash_forward", "def exact")
        + "def flash_forward(q, k, v, causal):\n"
        "    if 'out' not in calls:\n        calls['out'] = exact(q, k, v, causal)\n    return calls['out']\n",
        "off by",
    ),
    "leaves its output unwritten": (
        "import torch\ndef flash_forward(q, k, v, causal):\n    return torch.empty_like(q), None\n",
        "off by nan",
    ),
    "is not causal": (HONEST.replace(".triu(1)", ".triu(99)"), "off by"),
    "returns another dtype": (HONEST.replace(".to(q.dtype)", ""), "wrong shape or dtype"),
    "raises": ("def flash_forward(*a):\n    raise ValueError\n", "its process ended"),
    "does not load": ("raise ValueError\n", "its process ended"),
    "ends its process": ("import os\ndef flash_forward(*a):\n    os._exit(0)\n", "its process ended"),
    "returns no tensor": ("def flash_forward(*a):\n    return 3\n", "its process ended"),
}  # fmt: skip


def test_an_honest_submission_is_right_and_timed():
    assert native.milliseconds(HONEST, "flash_forward", native.CASES["flash_forward"], "cpu", SEQ) >= 0


def test_the_reference_and_the_baseline_are_right():
    text = course.solution("flash_gpu").text
    said = native.found([text], "flash_forward_window", "cpu", SEQ)
    assert said.startswith("right, ") and "PyTorch's causal attention" in said


@pytest.mark.parametrize("how", WRONG)
def test_others_are_found_out(how):
    source, says = WRONG[how]
    said = native.found([source], "flash_forward", "cpu", SEQ)
    assert said.startswith("not right, ") and says in said


def test_who_does_not_answer_is_ended(monkeypatch):
    monkeypatch.setattr(native, "ANSWERING", 0.5)
    said = native.found(["import time\ndef flash_forward(*a):\n    time.sleep(60)\n"], "flash_forward", "cpu", SEQ)
    assert "no answer came" in said


def test_a_submission_sees_no_secret(monkeypatch):
    """Its environment is a few variables, and its folder is its own."""
    monkeypatch.setenv("ATTN_SECRET_FILE", "somewhere")
    source = (
        "import os\nassert 'ATTN_SECRET_FILE' not in os.environ and os.listdir('.') == ['submission.py']\n" + HONEST
    )
    assert native.milliseconds(source, "flash_forward", native.CASES["flash_forward"], "cpu", SEQ) >= 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said without a GPU")
def test_without_a_gpu_nothing_counts_as_checked(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "1")
    (said,) = native.notes(["pass"], ["vector_scale", "flash_forward"])
    assert "not run" in said and "no GPU" in said
    assert list(native.notes(["pass"], ["vector_scale"])) == [], "nothing to say of chapters without native checks"


def test_with_a_gpu_nobody_leaves_the_jail_unasked(monkeypatch):
    monkeypatch.setattr(native, "gpu", lambda: "a GPU")
    monkeypatch.delenv(native.VARIABLE, raising=False)
    (said,) = native.notes(["pass"], ["flash_forward"])
    assert "not run" in said and native.VARIABLE in said


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: native kernels are not checked")
def test_the_reference_runs_natively():
    for name in native.CASES:
        assert native.found([course.solution("flash_gpu").text], name).startswith("right, ")
