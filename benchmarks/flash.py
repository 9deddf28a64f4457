"""The Triton kernels of `solutions/flash_gpu.py` against everything PyTorch offers for the same attention.

    python benchmarks/flash.py --json FILE           on a GPU, within 8 minutes
    python benchmarks/flash.py --tiny --json FILE    on any CPU: tiny sizes, Triton's interpreter (times mean nothing)

Every kernel is compared with float64 before it is timed; a wrong one is reported and never timed. The sides of a
comparison take turns, several rounds each, and the median counts. FILE is rewritten after every row, so a run that is
stopped keeps what it has measured.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path

TINY = "--tiny" in sys.argv
if TINY:
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from provenance import provenance  # noqa: E402

from solutions import flash_gpu  # noqa: E402

DEVICE = "cpu" if TINY else "cuda"
HIDDEN, TOKENS = (32, 64) if TINY else (2048, 16384)
ROUNDS = 1 if TINY else 3
LENGTHS = [32, 64] if TINY else [512, 1024, 2048, 4096, 8192, 16384]
HEAD_DIMS = [16, 32] if TINY else [64, 128]
DTYPES = [torch.float32, torch.float16] if TINY else [torch.bfloat16, torch.float16]
# Relative error (Frobenius) against float64 that rounding of inputs to weights and gradients explains.
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
NAIVE_UP_TO = 64 if TINY else 8192
FLEX_LENGTHS = [] if TINY else [4096, 16384]
GOAL_FROM = LENGTHS[-1] if TINY else 4096
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
if TINY:
    BACKENDS = {"math": SDPBackend.MATH}


class Report:
    """What has been measured so far, on screen and in the file."""

    def __init__(self, path):
        self.path, self.start = path, time.time()
        self.data = {"schema": 1, "complete": False, "provenance": provenance(), "tiny": TINY, "tokens": TOKENS,
                     "hidden": HIDDEN, "rounds": ROUNDS, "correctness": [], "speed": [], "memory": [], "window": [],
                     "block_sparse": [], "linear": [], "linear_crossover": {}, "decode": [], "goals": [],
                     "not_run": []}  # fmt: skip

    def add(self, section, **row):
        """One measured row."""
        self.data[section].append(row)
        self.save()

    def save(self):
        """The file as a whole, never half of it."""
        self.data["seconds"] = round(time.time() - self.start, 1)
        if self.path:
            part = self.path.with_name(self.path.name + ".part")
            part.write_text(json.dumps(self.data, indent=1) + "\n")
            part.replace(self.path)

    def say(self, text):
        """A line on screen, with the time since the start."""
        print(f"[{time.time() - self.start:6.1f} s] {text}", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def once(fn, milliseconds):
    """Median time of one call, in ms, over about `milliseconds` of calls with a cold cache."""
    if TINY:
        begin = time.perf_counter()
        fn()
        return 1e3 * (time.perf_counter() - begin)
    from triton.testing import do_bench

    return do_bench(fn, warmup=2, rep=milliseconds, return_mode="median")


def replay(fn, milliseconds):
    """As `once`, from a captured graph: without the host's share, but with a warm cache."""
    if TINY:
        return once(fn, milliseconds)
    from triton.testing import do_bench_cudagraph

    return do_bench_cudagraph(fn, rep=milliseconds, return_mode="median")


def compare(report, sides, milliseconds=12, timer=once):
    """{side: {"ms", "ms_min", "ms_max"}}; sides take turns, one that cannot run is noted and left out."""
    times, ready = {}, {}
    for name, fn in sides.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fn()
            ready[name] = fn
        except (RuntimeError, NotImplementedError) as error:
            report.data["not_run"].append(f"{name}: {str(error).strip().splitlines()[0][:160]}")
            if not TINY:
                torch.cuda.empty_cache()
    for _ in range(ROUNDS):
        for name, fn in ready.items():
            times.setdefault(name, []).append(timer(fn, milliseconds))
    return {n: {"ms": statistics.median(t), "ms_min": min(t), "ms_max": max(t)} for n, t in times.items()}


def distance(actual, expected):
    """‖actual − expected‖ / ‖expected‖, in float64; infinite where something is not finite."""
    actual, expected = actual.double(), expected.double()
    value = ((actual - expected).norm() / expected.norm().clamp_min(1e-30)).item()
    return value if math.isfinite(value) else math.inf


def inputs(batch, heads, q_seq, kv_seq, head_dim, dtype, count=4, kv_heads=None):
    """Fresh q, k, v and gradient of the output."""
    shapes = [(heads, q_seq), (kv_heads or heads, kv_seq), (kv_heads or heads, kv_seq), (heads, q_seq)]
    return [torch.randn(batch, *shape, head_dim, device=DEVICE, dtype=dtype) for shape in shapes[:count]]


def visible(q_seq, kv_seq, causal=False, window=None):
    """(q_seq, kv_seq) mask, True = may attend."""
    gap = torch.arange(q_seq, device=DEVICE)[:, None] + kv_seq - q_seq - torch.arange(kv_seq, device=DEVICE)
    mask = torch.ones_like(gap, dtype=torch.bool)
    if causal:
        mask &= gap >= 0
    if window:
        mask &= (gap < window) if causal else (gap.abs() <= window // 2)
    return mask


def reference(q, k, v, mask, d_out=None):
    """Float64 attention of one head: out, lse and, given d_out, the gradients by the textbook formulas."""
    q, k, v = q.double(), k.double(), v.double()
    scale = q.shape[-1] ** -0.5
    scores = (q @ k.mT).mul_(scale).masked_fill_(~mask, -math.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp_().nan_to_num_(0.0)
    out = weights @ v
    if d_out is None:
        return {"out": out, "lse": lse}
    d_out = d_out.double()
    d_scores = weights * (d_out @ v.mT - (out * d_out).sum(-1, keepdim=True)) * scale
    return {"out": out, "lse": lse, "d_q": d_scores @ k, "d_k": d_scores.mT @ q, "d_v": weights.mT @ d_out}


def check_flash(report, q, k, v, d_out, causal):
    """Errors of our forward and backward on one head drawn at random; False where a limit is passed."""
    out, lse = flash_gpu.flash_forward(q, k, v, causal)
    grads = flash_gpu.flash_backward(q, k, v, out, lse, d_out, causal)
    b, h = (int(torch.randint(n, ())) for n in q.shape[:2])
    ours = dict(zip(("out", "lse", "d_q", "d_k", "d_v"), (x[b, h] for x in (out, lse, *grads)), strict=True))
    expected = reference(q[b, h], k[b, h], v[b, h], visible(q.shape[2], k.shape[2], causal), d_out[b, h])
    seen = torch.isfinite(expected["lse"])
    errors = {"lse": distance(ours["lse"][seen], expected["lse"][seen])}
    errors |= {n: distance(ours[n], expected[n]) for n in ("out", "d_q", "d_k", "d_v")}
    right = max(errors.values()) <= LIMITS[q.dtype] and torch.equal(torch.isfinite(ours["lse"]), seen)
    report.add("correctness", kernel="flash", dtype=name_of(q.dtype), head_dim=q.shape[-1], causal=causal,
               q_seq=q.shape[2], kv_seq=k.shape[2], right=right, errors=errors)  # fmt: skip
    if not right:
        report.say(f"WRONG, not timed: {q.dtype} head_dim {q.shape[-1]} causal {causal} {tuple(q.shape)} {errors}")
    return right


def check(report, kernel, actual, expected, dtype, **what):
    """Whether an output is within the limit of its dtype; noted either way."""
    error = distance(actual, expected)
    right = error <= LIMITS[dtype]
    report.add("correctness", kernel=kernel, dtype=name_of(dtype), right=right, errors={"out": error}, **what)
    if not right:
        report.say(f"WRONG, not timed: {kernel} {what} error {error:.2e}")
    return right


def name_of(dtype):
    """torch.float16 → float16."""
    return str(dtype).removeprefix("torch.")


def flops(batch, heads, q_seq, kv_seq, head_dim, causal, backward=False):
    """Operations of the two products of the forward, or of the five of the backward."""
    return 4 * batch * heads * q_seq * kv_seq * head_dim * (0.5 if causal else 1.0) * (2.5 if backward else 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# The sides
# ---------------------------------------------------------------------------------------------------------------------


def naive(seq):
    """Attention that writes its score matrix."""
    hidden = ~visible(seq, seq, True)

    def run(q, k, v, causal):
        scores = q @ k.mT * q.shape[-1] ** -0.5
        return (scores.masked_fill(hidden, -math.inf) if causal else scores).softmax(-1) @ v

    return run


def sdpa(backend, **options):
    """scaled_dot_product_attention held to one backend."""

    def run(q, k, v, causal):
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, **options)

    return run


def flex(seq, causal):
    """FlexAttention, compiled."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # A fresh, complete compilation for every shape: past its limit of recompilations torch falls back to eager unasked.
    torch.compiler.reset()
    compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, seq, seq, device=DEVICE) if causal else None
    return lambda q, k, v, causal: compiled(q, k, v, block_mask=mask)


def library_sides(seq, causal, dtype):
    """What ours is compared with at this setting."""
    sides = {name: sdpa(backend) for name, backend in BACKENDS.items()}
    if seq in FLEX_LENGTHS and dtype == torch.bfloat16:
        sides["flex"] = flex(seq, causal)
    if seq <= NAIVE_UP_TO and dtype == DTYPES[0]:
        sides["naive"] = naive(seq)
    return sides


# ---------------------------------------------------------------------------------------------------------------------
# Sections
# ---------------------------------------------------------------------------------------------------------------------


def correctness(report):
    """Shapes that separate axes, before anything is timed; the first also settle the autotuner at a middle length."""
    middle = LENGTHS[len(LENGTHS) // 2]
    shapes = [(TOKENS // middle, None, middle, middle), (2, 3, 1000, 1000), (1, 2, 333, 1537), (1, 2, 700, 129)]
    if TINY:
        shapes = [(1, 1, 50, 50), (1, 1, 33, 70)]
    right = {}
    for head_dim in HEAD_DIMS:
        for causal in (False, True):
            for dtype in [*DTYPES, *([] if TINY else [torch.float32])]:
                for batch, heads, q_seq, kv_seq in shapes:
                    if dtype == torch.float32 and q_seq * kv_seq > 2e6:
                        continue
                    data = inputs(batch, heads or HIDDEN // head_dim, q_seq, kv_seq, head_dim, dtype)
                    kind = head_dim, causal, dtype
                    right[kind] = check_flash(report, *data, causal) and right.get(kind, True)
            report.say(f"compared with float64: head_dim {head_dim}, {'causal' if causal else 'full'}")
    for head_dim in (40, 80) if not TINY else ():
        check_flash(report, *inputs(1, 2, 300, 411, head_dim, torch.float16), True)
    return right


def speed(report, right):
    """Forward and backward at every length; `right` says which kinds passed their comparison."""
    report.say("TFLOP/s (4 · batch · heads · seq² · head_dim, half of it when causal, 2.5 times that for the backward)")
    sides = ["ours", *BACKENDS, "flex", "naive"]
    report.say(f"{'':34}" + "".join(f"{s:>10}" for s in sides) + "   ours / " + next(iter(BACKENDS)))
    for dtype in DTYPES:
        for head_dim in HEAD_DIMS:
            for causal in (False, True):
                for seq in LENGTHS if dtype == DTYPES[0] else LENGTHS[1::2]:
                    if right[head_dim, causal, dtype]:
                        speed_at(report, dtype, head_dim, causal, seq, sides)


def speed_at(report, dtype, head_dim, causal, seq, sides):
    """One length: checked once more on the very inputs that are timed."""
    batch, heads = max(1, TOKENS // seq), HIDDEN // head_dim
    q, k, v, d_out = inputs(batch, heads, seq, seq, head_dim, dtype)
    if not check_flash(report, q, k, v, d_out, causal):
        return
    library = library_sides(seq, causal, dtype)
    forward = {"ours": lambda: flash_gpu.flash_forward(q, k, v, causal)}
    forward |= {name: partial(fn, q, k, v, causal) for name, fn in library.items()}
    show(report, "forward", dtype, head_dim, causal, seq, batch, heads, compare(report, forward), sides)

    out, lse = flash_gpu.flash_forward(q, k, v, causal)
    backward = {"ours": lambda: flash_gpu.flash_backward(q, k, v, out, lse, d_out, causal)}
    for name, fn in library.items():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        try:
            result = fn(*leaves, causal)
        except (RuntimeError, NotImplementedError) as error:
            report.data["not_run"].append(f"{name} with gradients: {str(error).strip().splitlines()[0][:160]}")
            continue
        backward[name] = partial(torch.autograd.grad, result, leaves, d_out, retain_graph=True)
    show(report, "backward", dtype, head_dim, causal, seq, batch, heads, compare(report, backward), sides)


def show(report, which, dtype, head_dim, causal, seq, batch, heads, times, sides):
    """One line of the table, one row a side in the file."""
    work = flops(batch, heads, seq, seq, head_dim, causal, which == "backward")
    for side, t in times.items():
        report.add("speed", **{"pass": which}, dtype=name_of(dtype), head_dim=head_dim, causal=causal, seq=seq,
                   batch=batch, heads=heads, side=side, tflops=work / t["ms"] / 1e9, **t)  # fmt: skip
    cells = "".join(f"{work / times[s]['ms'] / 1e9:10.4g}" if s in times else f"{'–':>10}" for s in sides)
    base = next(iter(BACKENDS))
    ratio = f"{times[base]['ms'] / times['ours']['ms']:8.2f}" if base in times else ""
    report.say(
        f"{which:8} {name_of(dtype):8} d{head_dim:<3} {'causal' if causal else 'full':6} {seq:6}" + cells + ratio
    )


def memory(report):
    """Peak bytes beyond inputs, by length: forward and backward, batch 1."""
    if TINY:
        report.data["not_run"].append("memory: counted by the GPU's allocator only")
        return
    head_dim, heads = 128, 16

    def ours(q, k, v, d_out):
        out, lse = flash_gpu.flash_forward(q, k, v, True)
        return flash_gpu.flash_backward(q, k, v, out, lse, d_out, True)

    def library(fn):
        def run(q, k, v, d_out):
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            return torch.autograd.grad(fn(*leaves, True), leaves, d_out)

        return run

    runs = {"ours": ours, "flash": library(sdpa(SDPBackend.FLASH_ATTENTION)), "naive": None}
    for seq in (1024, 2048, 4096, 8192, 16384, 32768, 65536):
        data = inputs(1, heads, seq, seq, head_dim, torch.bfloat16)
        row = {}
        for side, run in runs.items():
            if side == "naive":
                if seq > 16384:
                    continue
                run = library(naive(seq))
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            try:
                run(*data)
            except torch.OutOfMemoryError:
                report.data["not_run"].append(f"memory: {side} at {seq}: out of memory")
                continue
            row[side] = torch.cuda.max_memory_allocated() - before
        report.add("memory", seq=seq, heads=heads, head_dim=head_dim, causal=True, bytes=row)
        report.say(f"extra peak memory at {seq:6}: " + ", ".join(f"{s} {b / 2**20:.1f} MiB" for s, b in row.items()))
    torch.cuda.empty_cache()


def window(report):
    """Sliding window against dense causal attention, and against the ratio of visible pairs."""
    seq, width = (128, 16) if TINY else (32768, 1024)
    pairs = width * (width + 1) / 2 + (seq - width) * width
    ideal = pairs / (seq * (seq + 1) / 2)
    for head_dim in HEAD_DIMS:
        dtype, heads = DTYPES[0], HIDDEN // head_dim
        q, k, v = inputs(1, heads, seq, seq, head_dim, dtype, 3)
        # The first rows of a causal window do not depend on what follows: they can be checked alone, at less expense.
        first = min(seq, 4096)
        ours = flash_gpu.flash_forward_window(q, k, v, width)[0]
        head = (x[0, -1, :first] for x in (q, k, v))
        expected = reference(*head, visible(first, first, True, width))["out"]
        if not check(report, "window", ours[0, -1, :first], expected, dtype, head_dim=head_dim, window=width):
            continue
        times = compare(report, {"window": partial(flash_gpu.flash_forward_window, q, k, v, width),
                                 "dense": partial(flash_gpu.flash_forward, q, k, v, True)})  # fmt: skip
        ratio = times["window"]["ms"] / times["dense"]["ms"]
        report.add("window", seq=seq, window=width, head_dim=head_dim, heads=heads, dtype=name_of(dtype),
                   ideal_ratio=ideal, ratio=ratio, times_ideal=ratio / ideal,
                   ms={n: t["ms"] for n, t in times.items()})  # fmt: skip
        report.say(f"window {width} of {seq}, d{head_dim}: {ratio:.4f} of dense, {ratio / ideal:.2f} × the ideal")


def block_sparse(report):
    """Neighbours, two global and about three random blocks a row, against dense attention."""
    seq = 128 if TINY else 16384
    for block in (16, 32) if TINY else (64, 128):
        for head_dim in HEAD_DIMS:
            dtype, heads, blocks = DTYPES[0], HIDDEN // head_dim, seq // block
            q, k, v = inputs(1, heads, seq, seq, head_dim, dtype, 3)
            near = torch.arange(blocks, device=DEVICE)
            layout = (near[:, None] - near).abs() <= 1
            layout |= (near < 2) | (near[:, None] < 2) | (torch.rand(blocks, blocks, device=DEVICE) < 3 / blocks)
            density = layout.float().mean().item()
            mask = layout.repeat_interleave(block, 0).repeat_interleave(block, 1)
            ours = flash_gpu.block_sparse_kernel(q[:, :1], k[:, :1], v[:, :1], layout, block)
            expected = reference(q[0, 0], k[0, 0], v[0, 0], mask)["out"]
            if not check(report, "block_sparse", ours[0, 0], expected, dtype, head_dim=head_dim, block=block):
                continue
            times = compare(report, {"sparse": partial(flash_gpu.block_sparse_kernel, q, k, v, layout, block),
                                     "dense": partial(flash_gpu.flash_forward, q, k, v)})  # fmt: skip
            ratio = times["sparse"]["ms"] / times["dense"]["ms"]
            report.add("block_sparse", seq=seq, block=block, head_dim=head_dim, heads=heads, dtype=name_of(dtype),
                       density=density, ratio=ratio, times_ideal=ratio / density,
                       ms={n: t["ms"] for n, t in times.items()})  # fmt: skip
            report.say(
                f"block-sparse {seq}, block {block}, d{head_dim}: density {density:.4f}, time {ratio:.4f} of dense"
            )


def linear(report):
    """Chunked linear attention against causal flash, and the length from which it is faster."""
    lengths = LENGTHS if TINY else [256, *LENGTHS, 32768, 65536]
    for head_dim in HEAD_DIMS:
        dtype, heads, crossover = DTYPES[0], HIDDEN // head_dim, None
        for seq in lengths:
            q, k, v = inputs(max(1, TOKENS // seq), heads, seq, seq, head_dim, dtype, 3)
            q, k = F.elu(q) + 1, F.elu(k) + 1
            chunk = 16 if TINY else 64
            if seq <= 4096:
                products = (q[0, 0].double() @ k[0, 0].double().mT).tril()
                expected = products @ v[0, 0].double() / products.sum(-1, keepdim=True)
                ours = flash_gpu.linear_attention_chunk_kernel(q[:1, :1], k[:1, :1], v[:1, :1], chunk)
                if not check(report, "linear", ours[0, 0], expected, dtype, head_dim=head_dim, seq=seq):
                    break
            times = compare(report, {"linear": partial(flash_gpu.linear_attention_chunk_kernel, q, k, v, chunk),
                                     "flash": partial(flash_gpu.flash_forward, q, k, v, True)})  # fmt: skip
            gain = times["flash"]["ms"] / times["linear"]["ms"]
            crossover = None if gain <= 1 else crossover or seq
            report.add("linear", seq=seq, batch=len(q), heads=heads, head_dim=head_dim, chunk=chunk,
                       dtype=name_of(dtype), gain=gain, ms={n: t["ms"] for n, t in times.items()})  # fmt: skip
            report.say(
                f"chunked linear, d{head_dim}, {seq:6}: " + ", ".join(f"{n} {t['ms']:.3f} ms" for n, t in times.items())
            )
        report.data["linear_crossover"][str(head_dim)] = crossover
        report.say(f"chunked linear is faster than flash from {crossover} tokens on (d{head_dim})")


def decode(report):
    """One query a head against a long cache."""
    sizes = ((1, 8192), (1, 131072), (16, 8192), (64, 8192))
    cases = [(2, 4, 2, 96)] if TINY else [(b, 32, kv_heads, n) for kv_heads in (8, 32) for b, n in sizes]
    head_dim, dtype = (32 if TINY else 128), DTYPES[0]
    for batch, heads, kv_heads, kv_seq in cases:
        q, k, v = inputs(batch, heads, 1, kv_seq, head_dim, dtype, 3, kv_heads)
        out, _ = flash_gpu.flash_decode(q, k, v)
        mask = visible(1, kv_seq)
        expected = reference(q[-1, -1], k[-1, -1], v[-1, -1], mask)["out"]
        if not check(
            report, "decode", out[-1, -1], expected, dtype, head_dim=head_dim, kv_seq=kv_seq, kv_heads=kv_heads
        ):
            continue
        shared = {"enable_gqa": True} if kv_heads != heads else {}
        default = partial(F.scaled_dot_product_attention, q, k, v, **shared)
        sides = {"ours": partial(flash_gpu.flash_decode, q, k, v), "sdpa": default}
        sides |= {n: partial(sdpa(b, **shared), q, k, v, False) for n, b in BACKENDS.items()}
        times, replayed = compare(report, sides), compare(report, sides, timer=replay)
        size = (k.numel() + v.numel()) * k.element_size()
        report.add("decode", batch=batch, heads=heads, kv_heads=kv_heads, kv_seq=kv_seq, head_dim=head_dim,
                   dtype=name_of(dtype), cache_bytes=size, ms={n: t["ms"] for n, t in times.items()},
                   replay_ms={n: t["ms"] for n, t in replayed.items()},
                   gbytes_per_s={n: size / t["ms"] / 1e6 for n, t in times.items()})  # fmt: skip
        report.say(f"decode batch {batch}, {heads}/{kv_heads} heads, cache {kv_seq}: "
                   + ", ".join(f"{n} {t['ms']:.3f} ms ({size / t['ms'] / 1e6:.0f} GB/s)" for n, t in times.items())
                   + "; replayed: " + ", ".join(f"{n} {t['ms']:.3f}" for n, t in replayed.items()))  # fmt: skip


def goals(report):
    """The yardstick, from the rows just measured: the least favourable setting of each kind decides."""
    if TINY:
        return
    rows = {}
    for r in report.data["speed"]:
        rows.setdefault((r["pass"], r["dtype"], r["head_dim"], r["causal"], r["seq"]), {})[r["side"]] = r["ms"]

    def least(which, side):
        ratios = [(ms[side] / ms["ours"], key) for key, ms in rows.items()
                  if key[0] == which and key[-1] >= GOAL_FROM and side in ms and "ours" in ms]  # fmt: skip
        return min(ratios) if ratios else (None, None)

    limits = {
        ("forward", "flash"): 1.1,
        ("backward", "flash"): 1.0,
        ("forward", "cudnn"): 0.7,
        ("backward", "cudnn"): 0.7,
    }
    for (which, side), limit in limits.items():
        value, where = least(which, side)
        report.add("goals", goal=f"{which}: speed over {side}, from {GOAL_FROM} tokens", limit=f">= {limit}",
                   value=value, where=where and list(where), met=value is not None and value >= limit)  # fmt: skip
    worst = max((r["times_ideal"] for r in report.data["window"]), default=None)
    report.add("goals", goal="sliding window: ratio to dense over the ideal ratio", limit="<= 1.5", value=worst,
               met=worst is not None and worst <= 1.5)  # fmt: skip
    used = [(r["seq"], r["bytes"]["ours"]) for r in report.data["memory"] if "ours" in r["bytes"]]
    growth = max((b / a / (n / m) for (m, a), (n, b) in pairwise(used)), default=None)
    report.add("goals", goal="memory: growth over growth of length", limit="<= 1.1", value=growth,
               met=growth is not None and growth <= 1.1)  # fmt: skip
    wrong = sum(not r["right"] for r in report.data["correctness"])
    report.add("goals", goal="comparisons with float64 that fail", limit="== 0", value=wrong, met=wrong == 0)
    for g in report.data["goals"]:
        value = "not measured" if g["value"] is None else f"{g['value']:.3f}"
        report.say(f"{'met   ' if g['met'] else 'MISSED'} {g['goal']}: {value} (goal {g['limit']})")


def main():
    """Exit status: 0, or 1 where a kernel is wrong or there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on a CPU, through Triton's interpreter")
    arguments = parser.parse_args()
    if not TINY and not torch.cuda.is_available():
        print("No GPU here, so nothing was measured. --tiny runs the same comparisons on a CPU.", file=sys.stderr)
        return 1
    torch.manual_seed(int(time.time()))
    report = Report(arguments.json)
    report.save()
    report.say(
        report.data["provenance"]["machine"] + f", torch {torch.__version__}, triton {flash_gpu.triton.__version__}"
    )
    with torch.no_grad():
        right = correctness(report)
    speed(report, right)
    with torch.no_grad():
        for section in (window, block_sparse, linear, decode):
            section(report)
    memory(report)
    goals(report)
    report.data["complete"] = True
    report.save()
    report.say("done")
    return 0 if all(r["right"] for r in report.data["correctness"]) else 1


if __name__ == "__main__":
    sys.exit(main())
