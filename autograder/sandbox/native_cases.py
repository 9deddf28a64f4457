"""What native checks run of each exercise: inputs, what is right, and PyTorch's own way to compare the time with.

A call feeds the next one. Such a chain proves something only if it neither comes to rest, so that one call more or
less is all the same, nor makes float16's errors larger. Attention to random keys does come to rest: its outputs are
means, and so small that the next query sees all keys alike. Therefore every other group of heads *walks*: the value of
a key is the query that finds the key some steps before it, and each call goes one step on. The other groups stay
random, and see all keys at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from autograder.sandbox.native_worker import COLUMNS, chain

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


def difference(output: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference: of an lse (float32) as it is, else of a row, relative to its size and the usual one."""
    if right.dtype == torch.float32:
        return (output - right).abs().max().item()
    size = right.float().norm(dim=-1)
    usual = size.square().mean(-1, keepdim=True).sqrt()
    return ((output.float() - right.float()).norm(dim=-1) / (size + usual)).max().item()
