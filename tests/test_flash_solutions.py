"""The reference solutions of the chapter `flash` against dense attention and against what their loops really move."""

import itertools
import math
from contextlib import contextmanager

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from solutions import flash

SHAPES = [(37, 37, 8, 16), (16, 16, 16, 16), (9, 30, 4, 7), (30, 9, 7, 4), (5, 5, 64, 64), (6, 13, 1, 1)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def draw(*shapes):
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def inputs_of(q_seq, kv_seq, *batch):
    return [x.requires_grad_() for x in draw((*batch, q_seq, 5), (*batch, kv_seq, 5), (*batch, kv_seq, 7))]


def dense(q, k, v, causal=False):
    """Attention with all scores at once: the pair (out, lse)."""
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool)
    mask = mask.tril(k.shape[-2] - q.shape[-2]) if causal else mask
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~mask, -1e300).softmax(-1) * mask
    return weights @ v, scores.detach().masked_fill(~mask, -torch.inf).logsumexp(-1)


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@contextmanager
def costs():
    with flash.LargestTensor() as largest, FlopCounterMode(display=False) as counter:
        yield largest, counter


@pytest.mark.parametrize("widths", [[4, 1, 9], [0, 3, 0], [1] * 5, [0]])
def test_online_softmax_is_softmax_in_any_chunks(widths):
    (scores,) = draw((2, 3, sum(widths)))
    scores = 500 * scores
    scores[0, 0] = -torch.inf
    for order in itertools.islice(itertools.permutations(scores.split(widths, dim=-1)), 6):
        maximum, total = flash.online_softmax(iter(order))
        same(maximum + total.log(), scores.logsumexp(-1))
        if sum(widths):
            same(maximum, scores.amax(-1))
    with pytest.raises(ValueError, match="chunk"):
        flash.online_softmax([])


def test_merged_partials_are_attention_over_the_union_in_any_order():
    q, k, v = (x.detach() for x in inputs_of(6, 20, 2, 3))
    k = 300 * k
    expected = dense(q, k, v)
    parts = [
        flash.blockwise_attention(q, *(x[..., a:b, :] for x in (k, v)), 4, 4) for a, b in ((0, 7), (7, 7), (7, 20))
    ]
    for a, b, c in itertools.permutations(parts):
        same(flash.merge_partials(*flash.merge_partials(*a, *b), *c), expected)
        same(flash.merge_partials(*a, *flash.merge_partials(*b, *c)), expected)
    out, lse = flash.merge_partials(*parts[1], *parts[1])
    assert (out == 0).all() and (lse == -torch.inf).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_seq", "kv_seq", "block_q", "block_k"), SHAPES)
@pytest.mark.parametrize("size", [1, 1e3])
def test_blockwise_attention_is_attention(q_seq, kv_seq, block_q, block_k, causal, size):
    q, k, v = (x.detach() for x in inputs_of(q_seq, kv_seq, 2, 3))
    same(flash.blockwise_attention(size * q, k, v, block_q, block_k, causal), dense(size * q, k, v, causal))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_seq", "kv_seq", "block_q", "block_k"), SHAPES)
def test_backward_is_autograd_s(q_seq, kv_seq, block_q, block_k, causal):
    inputs = inputs_of(q_seq, kv_seq, 2, 3)
    out, lse = dense(*inputs, causal)
    upstream = torch.randn_like(out)
    expected = torch.autograd.grad(out, inputs, upstream)
    with torch.no_grad():
        found = flash.flash_attention_backward(*inputs, out, lse, upstream, block_q, block_k, causal)
    same(found, expected)
    again = flash.FlashAttention.apply(*inputs, causal, block_q, block_k)
    same(again, out)
    same(torch.autograd.grad(again, inputs, upstream), expected)


@pytest.mark.parametrize("causal", [False, True])
def test_flash_attention_passes_gradcheck_and_saves_five_tensors(causal):
    inputs = inputs_of(7, 9)
    assert torch.autograd.gradcheck(lambda *x: flash.FlashAttention.apply(*x, causal, 3, 4), inputs)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out = flash.FlashAttention.apply(*inputs, causal)
    assert sorted(x.numel() for x in saved) == sorted(x.numel() for x in (*inputs, out, out[..., 0]))


@pytest.mark.parametrize(("q_seq", "kv_seq"), [(256, 256), (128, 256), (256, 128)])
def test_tiles_bound_memory_and_the_future_is_not_computed(q_seq, kv_seq):
    q, k, v, d_out = draw((q_seq, 4), (kv_seq, 4), (kv_seq, 4), (q_seq, 4))
    schedule = flash.causal_block_schedule(q_seq // 32, kv_seq // 64, 32, 64, kv_seq - q_seq)
    for causal in (False, True):
        tiles = (schedule > 0).sum().item() if causal else schedule.numel()
        with costs() as (largest, counter):
            out, lse = flash.blockwise_attention(q, k, v, 32, 64, causal)
        assert largest.numbers == 32 * 64
        assert counter.get_total_flops() == 2 * tiles * 2 * 32 * 64 * 4
        with costs() as (largest, counter):
            flash.flash_attention_backward(q, k, v, out, lse, d_out, 32, 64, causal)
        assert largest.numbers == 32 * 64
        assert counter.get_total_flops() == 5 * tiles * 2 * 32 * 64 * 4


SCHEDULES = [(4, 4, 3, 3, 0), (3, 8, 4, 2, 5), (6, 3, 2, 5, -4), (2, 3, 1, 1, 0), (3, 3, 4, 4, 1)]


@pytest.mark.parametrize(("q_blocks", "k_blocks", "block_q", "block_k", "shift"), SCHEDULES)
def test_schedule_says_what_the_mask_holds(q_blocks, k_blocks, block_q, block_k, shift):
    mask = torch.ones(q_blocks * block_q, k_blocks * block_k, dtype=torch.bool).tril(shift)
    tiles = mask.unflatten(1, (k_blocks, block_k)).unflatten(0, (q_blocks, block_q)).transpose(1, 2).flatten(2)
    found = flash.causal_block_schedule(q_blocks, k_blocks, block_q, block_k, shift)
    assert torch.equal(found, tiles.any(-1).long() + tiles.all(-1).long())


class SlowMemory:
    """Counts the elements that an algorithm reads from it and writes to it."""

    def __init__(self, **arrays):
        self.arrays, self.moved = arrays, 0

    def read(self, name, rows=slice(None)):
        self.moved += self.arrays[name][rows].numel()
        return self.arrays[name][rows].clone()

    def write(self, name, value, rows=slice(None)):
        if rows == slice(None):
            self.arrays[name] = torch.empty_like(value)
        self.moved += value.numel()
        self.arrays[name][rows] = value


def standard(memory, seq, head_dim, sram):
    memory.write("S", memory.read("Q") @ memory.read("K").mT / head_dim**0.5)
    memory.write("P", memory.read("S").softmax(-1))
    memory.write("O", memory.read("P") @ memory.read("V"))


def blocks(seq, size):
    return [slice(start, min(start + size, seq)) for start in range(0, seq, size)]


def flash_1(memory, seq, head_dim, sram):
    outer = math.ceil(sram / (4 * head_dim))
    memory.write("O", torch.zeros(seq, head_dim, dtype=torch.float64))
    memory.write("l", torch.zeros(seq, dtype=torch.float64))
    memory.write("m", torch.full((seq,), -torch.inf, dtype=torch.float64))
    for j in blocks(seq, outer):
        k, v = memory.read("K", j), memory.read("V", j)
        for i in blocks(seq, min(outer, head_dim)):
            q, out, total, m = (memory.read(name, i) for name in "QOlm")
            scores = q @ k.mT / head_dim**0.5
            new_m = torch.maximum(m, scores.amax(-1))
            weights, shrink = (scores - new_m[:, None]).exp(), (m - new_m).exp()
            new_total = shrink * total + weights.sum(-1)
            memory.write("O", ((total * shrink)[:, None] * out + weights @ v) / new_total[:, None], i)
            memory.write("l", new_total, i)
            memory.write("m", new_m, i)


def flash_2(memory, seq, head_dim, sram):
    outer = math.ceil(sram / (4 * head_dim))
    memory.arrays |= {"O": torch.empty(seq, head_dim).double(), "lse": torch.empty(seq).double()}  # room, not traffic
    for i in blocks(seq, outer):
        q = memory.read("Q", i)
        out, lse = torch.zeros_like(q), q.new_full(q.shape[:1], -torch.inf)
        for j in blocks(seq, min(outer, head_dim)):
            k, v = memory.read("K", j), memory.read("V", j)
            out, lse = flash.merge_partials(out, lse, *dense(q, k, v))
        memory.write("O", out, i)
        memory.write("lse", lse, i)


@pytest.mark.parametrize(("seq", "head_dim", "sram"), [(50, 4, 100), (64, 8, 256), (33, 3, 12), (20, 4, 10_000)])
def test_hbm_accesses_are_what_the_loops_move(seq, head_dim, sram):
    q, k, v = draw((seq, head_dim), (seq, head_dim), (seq, head_dim))
    for algorithm in (standard, flash_1, flash_2):
        memory = SlowMemory(Q=q, K=k, V=v)
        algorithm(memory, seq, head_dim, sram)
        same(memory.arrays["O"], dense(q, k, v)[0])
        assert memory.moved == flash.hbm_accesses(algorithm.__name__, seq, head_dim, sram)
    with pytest.raises(ValueError, match="algorithm"):
        flash.hbm_accesses("flash_3", seq, head_dim, sram)


def test_hbm_accesses_grow_as_theorem_2_says():
    def moved(algorithm, seq, sram):
        return flash.hbm_accesses(algorithm, seq, 64, sram)

    for algorithm in ("flash_1", "flash_2"):
        assert moved(algorithm, 2**17, 2**15) / moved(algorithm, 2**16, 2**15) == pytest.approx(4, rel=0.02)
        assert moved(algorithm, 2**17, 2**15) / moved(algorithm, 2**17, 2**16) == pytest.approx(2, rel=0.02)
    assert moved("standard", 2**17, 2**15) / 2**34 == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(("sram", "head_dim", "size"), [(100 * 1024, 64, 2), (48 * 1024, 128, 4), (227 * 1024, 128, 1)])
def test_chosen_blocks_are_the_best_that_fit(sram, head_dim, size):
    def held(block_q, block_k):
        return (block_q + 2 * block_k) * head_dim * size + 4 * block_q * (head_dim + block_k + 2)

    sizes = range(16, 2048, 16)
    best = max((block_q, block_k) for block_q in sizes for block_k in sizes if held(block_q, block_k) <= sram)
    assert flash.choose_blocks(sram, head_dim, size) == best
    smallest = held(16, 16)
    assert flash.choose_blocks(smallest, head_dim, size) == (16, 16)
    with pytest.raises(ValueError, match="16"):
        flash.choose_blocks(smallest - 1, head_dim, size)


@pytest.mark.parametrize(("kv_seq", "splits"), [(50, 1), (50, 7), (5, 5), (3, 8), (9, 4), (0, 3)])
def test_split_decode_is_attention_of_one_query(kv_seq, splits):
    q, k, v = (x.detach() for x in inputs_of(1, kv_seq, 2, 3))
    size = math.ceil(kv_seq / splits)
    out, partial_out, partial_lse = flash.split_kv_decode(100 * q, k, v, splits)
    same(out, dense(100 * q, k, v)[0])
    for n in range(splits):
        part = slice(n * size, (n + 1) * size)
        same(
            (partial_out[..., n : n + 1, :], partial_lse[..., n : n + 1]),
            dense(100 * q, k[..., part, :], v[..., part, :]),
        )


def test_mixed_precision_errs_by_its_accumulator():
    q, k, v = draw((16, 512), (64, 512), (64, 32))
    exact = dense(q, k, v)[0]
    errors = {}
    for compute, accumulate in itertools.product((torch.bfloat16, torch.float16, torch.float32), repeat=2):
        out = flash.mixed_precision_attention(q, k, v, compute, accumulate)
        assert out.dtype == accumulate
        errors[compute, accumulate] = (out.double() - exact).abs().mean().item()
    assert errors[torch.float32, torch.float32] < 1e-6
    assert errors[torch.bfloat16, torch.float32] < 0.1 * errors[torch.bfloat16, torch.bfloat16]
    assert errors[torch.float16, torch.float32] < 0.2 * errors[torch.bfloat16, torch.float32]
    same(flash.mixed_precision_attention(q, k, v, torch.float64, torch.float64), exact)


@pytest.mark.parametrize(("q_seq", "kv_seq", "chunk"), [(20, 33, 6), (9, 9, 9), (5, 3, 10), (4, 4, 1)])
def test_chunked_lazy_attention_is_attention(q_seq, kv_seq, chunk):
    inputs = inputs_of(q_seq, kv_seq, 2)
    q, k, v = inputs
    found, expected = flash.chunked_lazy_attention(q, 100 * k, v, chunk), dense(q, 100 * k, v)[0]
    same(found, expected)
    upstream = torch.randn_like(expected)
    for one, other in zip(*(torch.autograd.grad(x, inputs, upstream) for x in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


def test_chunked_lazy_attention_holds_no_more_than_a_tile():
    q, k, v = draw((256, 4), (256, 4), (256, 4))
    with costs() as (largest, _):
        flash.chunked_lazy_attention(q, k, v, 32)
    assert largest.numbers == 256 * 4
