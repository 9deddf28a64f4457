"""Kernels on a real GPU: are they right there, and how fast beside what PyTorch has for the same thing?

A GPU cannot be reached from the jail, so a submission that runs natively runs outside of it, with the rights of whoever
grades. That is never done unasked: ``ATTN_NATIVE=1`` asks for it. What is found goes into the notes of a result and
never into its points, which come from the interpreter on every machine.

Covered are all exercises of the chapter flash_gpu that have a kernel, in float16; what is kept in float32, as an lse,
is compared too, and lengths are no multiples of a tile. Where PyTorch has nothing of the kind (linear attention), a
plain formulation in PyTorch is timed instead.

One process for each exercise of a submission, timed from outside. A measurement is the difference between a long and a
short chain of calls, each of which feeds the next; the clock stops at a digest of the last outputs, and they are
compared before the time counts. So a call that is left out, a result from memory, or a missing synchronisation changes
the value, or is in the time.

That holds only if a chain neither comes to rest, so that one call more or less is all the same, nor makes float16's
errors larger. Attention to random keys does come to rest: its outputs are means, and so small that the next query sees
all keys alike. Therefore every other group of heads *walks*: the value of a key is the query that finds the key some
steps before it, and each call goes one step on. The other groups stay random, and see all keys at once.
"""

from __future__ import annotations

import functools
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from autograder.sandbox.native_worker import COLUMNS, chain, digest
from autograder.sandbox.protocol import Closed, ProtocolError, decode, encode, receive, send

VARIABLE = "ATTN_NATIVE"
STARTING, TUNING, ANSWERING = 120.0, 300.0, 60.0  # seconds; the first launch of a kernel compiles and tunes it
ROUNDS, SHORT, LONG = 3, 2, 12
LIMIT = 2e-2  # relative to the size of a row: float16, twelve times over
DIM = 64


class NativeError(Exception):
    """A submission gave no right answer natively; the message says how."""


# ---------------------------------------------------------------------------------------------------------------------
# Inputs: float16, on the CPU
# ---------------------------------------------------------------------------------------------------------------------


def _vector(seq: int) -> list[Any]:
    return [torch.randn(seq * seq // 32 + 1, DIM).half(), -1.25]


def _rows(seq: int) -> list[Any]:
    x = torch.randn(2, seq, seq)
    x[1, :, :COLUMNS] = 2 * x[1, :, :COLUMNS] + 6  # half of the rows have their weight where columns change
    return [x.half()]


def _square(seq: int) -> list[Any]:
    """Keys whose product turns a query, so that it can be the next one."""
    k = torch.linalg.qr(torch.randn(8, 2 * DIM, 2 * DIM)).Q * (2 * DIM) ** 0.5
    return [torch.randn(8, 4 * seq - 3, 2 * DIM).half(), k.half()]


def _walk(heads: tuple[int, int], seqs: tuple[int, int], step: int, sharp: float = 2.25) -> list[Any]:
    """q, k and v. In every second group the value of a key is the query for the key ``step`` before it.

    The first ``step`` keys send forward, so that nobody stands still; keys are equally long, so that all can be found.
    """
    (heads_q, heads_k), (seq_q, seq_k) = heads, seqs
    k = DIM**0.5 * F.normalize(torch.randn(1, heads_k, seq_k, DIM), dim=-1)
    at = torch.arange(seq_k)
    v = sharp * k[:, :, torch.where(at >= step, at - step, (at + step).clamp(max=seq_k - 1))]
    q = v[:, :, seq_k - seq_q :].repeat_interleave(heads_q // heads_k, 1)
    for x in (q.unflatten(1, (heads_k, -1)), v):
        x[:, ::2] = torch.randn_like(x[:, ::2])
    return [x.half() for x in (q, k, v)]


def _causal(kv_heads: int) -> Callable[[int], list[Any]]:
    return lambda seq: [*_walk((8, kv_heads), (seq, seq), max(seq // 16, 1)), True]


def _windowed(seq: int) -> list[Any]:
    window = max(seq // 8, 24)
    return [*_walk((8, 8), (seq, seq), window // 16), window]


def _backward(seq: int) -> list[Any]:
    """A walk that is only as sharp as all other keys together: where one key has all the weight, gradients vanish."""
    q, k, v = _walk((8, 8), (seq, seq), max(seq // 16, 1), sharp=math.log(seq) / DIM**0.5)
    v, d_out = torch.randn_like(v) / 4, torch.randn_like(v)  # small values, lest gradients grow where keys are few
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out, lse = (x.cpu() for x in _flash_forward(q.to(device), k.to(device), v.to(device), True))
    return [q, k, v, out, lse, d_out, True]


def _cache(seq: int) -> list[Any]:
    return _walk((32, 8), (1, 8 * seq - 3), max(seq // 2, 1))


def _features(seq: int) -> list[Any]:
    """Positive features. In every second head a key has one feature, its value the next: each call turns the query."""
    q, k, v = (torch.rand(1, 8, seq, DIM) + 0.1 for _ in range(3))
    kind = F.one_hot(torch.arange(seq) % DIM, DIM).float()
    k[:, 1::2] = kind + 0.01 * k[:, 1::2]
    v[:, 1::2] = DIM * kind.roll(1, -1)
    return [q.half(), k.half(), v.half()]


def _blocks(seq: int) -> list[Any]:
    """Every second block up to its own: a quarter of all."""
    block = max(16, min(64, seq // 8))
    row = torch.arange(-(-seq // block))
    gap = row[:, None] - row
    return [*_walk((8, 8), (seq, seq), 2 * block), (gap >= 0) & (gap % 2 == 0), block]


# ---------------------------------------------------------------------------------------------------------------------
# What is right: plain formulas in float32, rounded where a kernel rounds
# ---------------------------------------------------------------------------------------------------------------------


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, ...]:
    q, k, v = q.float(), *(x.float().repeat_interleave(q.shape[-3] // k.shape[-3], -3) for x in (k, v))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~seen, -float("inf"))
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp() @ v, lse


def _band(q: torch.Tensor, window: int) -> torch.Tensor:
    at = torch.arange(q.shape[-2], device=q.device)
    return (at[:, None] >= at) & (at[:, None] - at < window)


def _flash_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> tuple[torch.Tensor, ...]:
    return _flash_forward_window(q, k, v, q.shape[-2])


def _flash_forward_window(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> tuple[torch.Tensor, ...]:
    out, lse = _attention(q, k, v, _band(q, window))
    return out.half(), lse


def _flash_backward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    d_out: torch.Tensor,
    causal: bool,
) -> tuple[torch.Tensor, ...]:
    q, k, v = (x.float().requires_grad_() for x in (q, k, v))
    exact = _attention(q, k, v, _band(q, q.shape[-2]))[0]
    return tuple(x.half() for x in torch.autograd.grad(exact, (q, k, v), d_out.float()))


def _flash_decode(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    out, lse = _attention(q, k, v, torch.ones((), dtype=torch.bool, device=q.device))
    return out.half(), lse


def _linear_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor]:
    weights = (q.float() @ k.float().mT).tril()
    return ((weights @ v.float() / weights.sum(-1, keepdim=True)).half(),)


def _block_sparse(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: torch.Tensor, block: int
) -> tuple[torch.Tensor]:
    seen = layout.repeat_interleave(block, 0).repeat_interleave(block, 1)[: q.shape[-2], : k.shape[-2]]
    return (_attention(q, k, v, seen)[0].half(),)


# ---------------------------------------------------------------------------------------------------------------------
# The exercises
# ---------------------------------------------------------------------------------------------------------------------

BASELINES = """
import functools
import torch
import torch.nn.functional as F

def vector_scale(x, factor):
    return x * factor

def row_softmax(x):
    return x.softmax(-1)

def scores_kernel(q, k):
    return torch.baddbmm(q.new_zeros(1, 1, 1), q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5)

def flash_forward(q, k, v, causal):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)

def flash_forward_gqa(q, k, v, causal):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

@functools.cache
def band(seq, window, device):
    return torch.ones(seq, seq, dtype=torch.bool, device=device).tril().triu(1 - window)

def flash_forward_window(q, k, v, window):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=band(q.shape[-2], window, q.device))

forward = {}

def flash_backward(q, k, v, out, lse, d_out, causal):
    if forward.get("q") is not q:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        forward.update(q=q, leaves=leaves, out=F.scaled_dot_product_attention(*leaves, is_causal=True))
    return torch.autograd.grad(forward["out"], forward["leaves"], d_out, retain_graph=True)

def flash_decode(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

def linear_attention_chunk_kernel(q, k, v):
    weights = (q @ k.mT).tril()
    return (weights / weights.sum(-1, keepdim=True)) @ v

listed = {}

def block_sparse_kernel(q, k, v, layout, block):
    if listed.get("layout") is not layout:
        mask = layout.repeat_interleave(block, 0).repeat_interleave(block, 1)[:q.shape[-2], :k.shape[-2]]
        listed.update(layout=layout, mask=mask.contiguous())
    return F.scaled_dot_product_attention(q, k, v, attn_mask=listed["mask"])
"""


@dataclass(frozen=True)
class Case:
    """One exercise: its inputs, what is right, the name of its baseline, and the rule by which a call feeds the next.

    ``inputs`` takes a length and gives the arguments; ``exact`` takes these and gives all outputs. ``end`` is what is
    compared of them after a chain.
    """

    inputs: Callable[[int], list[Any]]
    exact: Callable[..., Sequence[torch.Tensor]]
    beside: str
    rule: str = "first"
    end: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]] = tuple

    def expected(self, inputs: Sequence[Any], times: int, device: str = "cpu") -> list[torch.Tensor]:
        """The end of the chain, computed on that device; the inputs stay as they are."""
        copies = [x.to(device, copy=True) if isinstance(x, torch.Tensor) else x for x in inputs]
        return [x.cpu() for x in chain(self.exact, self.rule, copies, times)]

    def require(self, outputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], times: int) -> None:
        """Compare what came after so many calls with what is right.

        Raises:
            NativeError: it is something else.
        """
        if len(outputs) != len(expected):
            raise NativeError(f"it returned {len(outputs)} tensors instead of {len(expected)}")
        if any(x.shape != y.shape or x.dtype != y.dtype for x, y in zip(outputs, expected, strict=True)):
            raise NativeError("its output has the wrong shape or dtype")
        if times > 1:
            outputs, expected = self.end(outputs), self.end(expected)
        for output, right in zip(outputs, expected, strict=True):
            error = difference(output, right)
            if not error <= LIMIT:
                raise NativeError(f"after {times} calls its output is off by {error:.2g}, where {LIMIT:g} is allowed")


CASES = {
    "vector_scale": Case(_vector, lambda x, factor: [(x.float() * factor).half()], "PyTorch's product"),
    "row_softmax": Case(_rows, lambda x: [x.float().softmax(-1).half()], "PyTorch's softmax", "exchange"),
    "scores_kernel": Case(
        _square, lambda q, k: [(q.float() @ k.float().mT * q.shape[-1] ** -0.5).half()], "PyTorch's batched product"
    ),
    "flash_forward": Case(_causal(8), _flash_forward, "PyTorch's causal attention"),
    "flash_forward_gqa": Case(_causal(2), _flash_forward, "PyTorch's causal attention with grouped heads"),
    "flash_forward_window": Case(_windowed, _flash_forward_window, "PyTorch's attention with a mask"),
    # After many calls, single gradients are small differences of large numbers; their sum, which is fed, is not.
    "flash_backward": Case(
        _backward,
        _flash_backward,
        "the backward of PyTorch's causal attention",
        "gradient",
        lambda gradients: [gradients[0] + gradients[1] + gradients[2]],
    ),
    "flash_decode": Case(_cache, _flash_decode, "PyTorch's attention with grouped heads"),
    "linear_attention_chunk_kernel": Case(
        _features, _linear_attention, "a plain formulation in PyTorch, all weights at once,"
    ),
    "block_sparse_kernel": Case(_blocks, _block_sparse, "PyTorch's attention with a mask"),
}


class Worker:
    """One submission in a process of its own, outside of the jail."""

    def __init__(self, source: str, device: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="attn-native-")
        Path(self._folder.name, "submission.py").write_text(source, encoding="utf-8")
        self._connection, theirs = socket.socketpair()
        kept = ("PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
        environment = {name: os.environ[name] for name in kept if name in os.environ}
        environment |= {
            "HOME": self._folder.name,
            "PYTHONDONTWRITEBYTECODE": "1",
            "TRITON_INTERPRET": "1" if device == "cpu" else "0",
        }
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-W",
                    "ignore",
                    "-m",
                    "autograder.sandbox.native_worker",
                    str(theirs.fileno()),
                    device,
                ],
                pass_fds=[theirs.fileno()],
                cwd=self._folder.name,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._folder.cleanup()

    def start(self) -> None:
        """Wait until the submission is loaded."""
        self._ask(None, STARTING)

    def put(self, values: Sequence[Any]) -> None:
        """Give it inputs, which move to the device now and cost no time later."""
        self._ask({"op": "inputs", "values": encode(list(values))}, ANSWERING)

    def chain(self, name: str, rule: str, times: int, *, poison: bool = False) -> tuple[list[Any], list[Any], float]:
        """All outputs at the end of a chain of calls, their digest, and the seconds until that had arrived here.

        With poison, new memory is filled with NaN: so runs the first call, which also compiles and tunes.
        """
        request = {"op": "chain", "name": name, "rule": rule, "times": times, "poison": poison}
        begin = time.perf_counter()
        reply = self._ask(request, TUNING if poison else ANSWERING)
        seconds = time.perf_counter() - begin
        return _tensors(self._ask({"op": "outputs"}, ANSWERING)), _tensors(reply), seconds

    def _ask(self, message: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        self._connection.settimeout(seconds)
        try:
            if message is not None:
                send(self._connection, message)
            return receive(self._connection)
        except TimeoutError:
            raise NativeError(f"no answer came within {seconds:g} s") from None
        except (OSError, Closed, ProtocolError):
            raise NativeError("its process ended") from None


def gpu() -> str:
    """The name of the GPU, or nothing."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""


def asked_for() -> bool:
    """Whether native checks shall run where they can."""
    return os.environ.get(VARIABLE) == "1"


def notes(cells: Sequence[str], exercises: Sequence[str]) -> Iterator[str]:
    """What native checks found, one sentence for each exercise; or that, and why, they were not run."""
    wanted = [name for name in exercises if name in CASES]
    if not wanted:
        return
    if not gpu():
        yield "Native checks were not run: there is no GPU here. Kernels were judged in Triton's interpreter."
    elif not asked_for():
        yield f"Native checks were not run: they need {VARIABLE}=1, because they run outside of the jail."
    else:
        for name in wanted:
            yield f"{name} on {gpu()}: {found(cells, name)}"


def found(cells: Sequence[str], name: str, device: str = "cuda", seq: int = 4000) -> str:
    """What happened to one exercise, in words."""
    try:
        ours = milliseconds("\n\n".join(cells), name, device, seq)
        return f"right, {ours:.3g} ms a call; {CASES[name].beside} {beside(name, device, seq)}"
    except NativeError as error:
        return f"not right, {error}"
    except torch.OutOfMemoryError:
        return "not checked, there is too little memory on it"
    finally:
        torch.cuda.empty_cache()


@functools.cache
def beside(name: str, device: str, seq: int) -> str:
    """How long the baseline takes, in words; measured once."""
    try:
        return f"takes {milliseconds(BASELINES, name, device, seq, partial=True):.3g} ms"
    except NativeError as error:
        return f"could not be timed: {error}"


def milliseconds(source: str, name: str, device: str, seq: int, *, partial: bool = False) -> float:
    """Time of one call, right before the clock runs and on the very inputs that were timed; no input is seen twice.

    Args:
        partial: further outputs than the first may be missing; PyTorch's attention keeps its lse.

    Raises:
        NativeError: it was wrong, before or while it was timed.
    """
    case = CASES[name]
    with Worker(source, device) as worker:
        worker.start()

        def seconds(times: int, *, poison: bool = False) -> float:
            inputs = case.inputs(seq)
            worker.put(inputs)
            outputs, told, took = worker.chain(name, case.rule, times, poison=poison)
            expected = case.expected(inputs, times, device)
            case.require(outputs, expected[: len(outputs)] if partial else expected, times)
            if not _close(told, digest(outputs)):
                raise NativeError("its output was not there yet when the clock stopped")
            return took

        seconds(1, poison=True)
        rounds = [(-seconds(SHORT) + seconds(LONG)) / (LONG - SHORT) for _ in range(ROUNDS)]
    return 1e3 * max(statistics.median(rounds), 0.0)


def difference(output: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference: of an lse (float32) as it is, else of a row, relative to its size and the usual one."""
    if right.dtype == torch.float32:
        return (output - right).abs().max().item()
    size = right.float().norm(dim=-1)
    usual = size.square().mean(-1, keepdim=True).sqrt()
    return ((output.float() - right.float()).norm(dim=-1) / (size + usual)).max().item()


def _close(told: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> bool:
    """Whether two digests are of the same outputs, added up in different order."""
    return len(told) == len(found) and all(
        one.shape == other.shape and bool((one - other).abs().max() <= 1e-4 * (1 + other.abs().max()))
        for one, other in zip(told, found, strict=True)
    )


def _tensors(reply: dict[str, Any]) -> list[Any]:
    try:
        values = decode(reply["value"])
    except (ProtocolError, KeyError, TypeError):
        values = None
    if not isinstance(values, list) or not values or not all(isinstance(x, torch.Tensor) for x in values):
        raise NativeError("it returned something else than tensors")
    return values
