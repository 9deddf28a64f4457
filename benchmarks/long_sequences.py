"""Time and memory of every mechanism of the chapters `sparse` and `linear`, side by side from 256 to 32,768 tokens.

    python benchmarks/long_sequences.py --json FILE           on a GPU within 4 minutes, on two CPU cores within about 6
    python benchmarks/long_sequences.py --tiny --json FILE    a few seconds: tiny sizes (times mean nothing)

Beside them run naive attention, PyTorch's own `scaled_dot_product_attention` (dense, causal, and with a window as its
mask) and, on a GPU, the Triton kernels of the chapter `flash_gpu`. Every mechanism is first compared with its
definition in float64; a wrong one is reported and never timed. Then lengths grow: one call measures the peak of memory
above the inputs (with the mask or layout it needs, and the output), further calls the time. A point whose time,
predicted from shorter lengths, is over the limit is recorded as skipped, with the reason. FILE is rewritten after every
point, so a run that is stopped keeps what it has measured. Times are those a Python program sees, launches included.

On a CPU each point runs in a process of its own, forked before any tensor was made, and its memory is the growth of the
resident set's high-water mark: good to a few MiB. On a GPU it is what PyTorch's allocator handed out: exact.
"""

import argparse
import ctypes
import gc
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from provenance import provenance  # noqa: E402

from solutions import linear, sparse  # noqa: E402

NAIVE_UP_TO = 8192
# Relative error (Frobenius) against float64 that rounding of inputs, weights and states explains.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Sizes:
    """How large everything but the length is: about 256 keys a query for every sparse pattern."""

    heads: int = 8
    head_dim: int = 64
    window: int = 256
    block: int = 64  # of the block-sparse layout: 3 neighbours, 1 global, 1 random
    local_block: int = 128  # own block and the one before
    global_tokens: int = 16
    rounds: int = 2  # of hashing
    lsh_chunk: int = 64
    chunk: int = 64  # of the linear forms
    gated_chunk: int = 32  # where every channel decays by itself, work grows with the chunk
    features: int = 256
    rank: int = 256


FULL = Sizes()
SMALL = Sizes(
    heads=2,
    window=32,
    block=16,
    local_block=24,
    global_tokens=3,
    lsh_chunk=16,
    chunk=16,
    gated_chunk=8,
    features=64,
    rank=16,
)


class Setting:
    """The inputs of one point, drawn anew from a fixed seed."""

    def __init__(self, seq, sizes, device, dtype):
        """Queries, keys and values of one sequence, on the device."""
        torch.manual_seed(seq)
        self.seq, self.sizes, self.device, self.dtype = seq, sizes, device, dtype
        self.q, self.k, self.v = (self.draw(1, sizes.heads, seq, sizes.head_dim) for _ in range(3))

    def draw(self, *shape):
        """Standard normal numbers."""
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    @property
    def qkv(self):
        """All three."""
        return self.q, self.k, self.v

    def causal(self):
        """The causal mask."""
        return self.window(causal=True, window=self.seq)

    def window(self, causal, window=None):
        """The mask of a sliding window."""
        return sparse.sliding_window_mask(self.seq, self.seq, window or self.sizes.window, causal).to(self.device)

    def dense(self, mask=None, q=None, k=None):
        """Attention by its definition, in float64."""
        q, k, v = (x.double() for x in (self.q if q is None else q, self.k if k is None else k, self.v))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        return (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(-1).nan_to_num(0.0) @ v

    def weighted(self, q, k, causal):
        """Attention with the weights q·k, normalised, in float64."""
        weights = q.double() @ k.double().mT
        weights = weights.tril() if causal else weights
        return weights @ self.v.double() / weights.sum(-1, keepdim=True)


# ---------------------------------------------------------------------------------------------------------------------
# The mechanisms: each takes a setting and returns (call, definition); `call` is what is measured
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mechanism:
    """One row of the comparison."""

    name: str
    family: str
    causal: bool
    prepare: object = field(repr=False)
    dtypes: tuple = (torch.float32, torch.bfloat16)
    longest: float = math.inf


MECHANISMS = {}


def mechanism(family, causal=False, **options):
    """Add a function to the table under its own name."""

    def add(prepare):
        MECHANISMS[prepare.__name__] = Mechanism(prepare.__name__, family, causal, prepare, **options)
        return prepare

    return add


# What sorts, exponentiates, sums up token by token or solves in its own dtype loses too much in bfloat16.
FLOAT32 = {"dtypes": (torch.float32,)}


def _naive(q, k, v):
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


@mechanism("yardstick", longest=NAIVE_UP_TO)
def naive(s):
    """The whole matrix of scores, in plain PyTorch."""
    return partial(_naive, *s.qkv), s.dense


@mechanism("yardstick")
def sdpa(s):
    """PyTorch's own, every key."""
    return partial(F.scaled_dot_product_attention, *s.qkv), s.dense


@mechanism("yardstick", causal=True)
def sdpa_causal(s):
    """PyTorch's own, causal."""
    return partial(F.scaled_dot_product_attention, *s.qkv, is_causal=True), lambda: s.dense(s.causal())


@mechanism("yardstick", causal=True)
def sdpa_window_mask(s):
    """PyTorch's own with a window as its mask: the pattern without the saving."""
    mask = s.window(causal=True)
    return partial(F.scaled_dot_product_attention, *s.qkv, attn_mask=mask), lambda: s.dense(mask)


@mechanism("sparse", causal=True)
def banded(s):
    """A causal sliding window."""
    return partial(sparse.banded_attention, *s.qkv, s.sizes.window, True), lambda: s.dense(s.window(causal=True))


@mechanism("sparse", causal=True)
def block_local(s):
    """The own block and the one before, causal."""

    def definition():
        block = torch.arange(s.seq, device=s.device) // s.sizes.local_block
        return s.dense((block[:, None] - block <= 1) & s.causal())

    return partial(sparse.chunked_block_local_attention, *s.qkv, s.sizes.local_block, True), definition


@mechanism("sparse")
def longformer(s):
    """A symmetric window and a few global tokens, with projections of their own."""
    q_g, k_g, v_g = (s.draw(*s.q.shape) for _ in range(3))
    positions = torch.linspace(0, s.seq - 1, s.sizes.global_tokens, device=s.device).long()

    def expected():
        mask = s.window(causal=False)
        mask[:, positions] = True
        out = s.dense(mask)
        scores = q_g[..., positions, :].double() @ k_g.double().mT * s.sizes.head_dim**-0.5
        out[..., positions, :] = scores.softmax(-1) @ v_g.double()
        return out

    return partial(sparse.longformer_attention, *s.qkv, q_g, k_g, v_g, s.sizes.window, positions), expected


def _layout(s):
    blocks = -(-s.seq // s.sizes.block)
    return sparse.bigbird_layout(blocks, 3, 1, 1, np.random.default_rng(s.seq)).to(s.device)


def _pairs(s, layout):
    block = s.sizes.block
    return layout.repeat_interleave(block, 0)[: s.seq].repeat_interleave(block, 1)[:, : s.seq]


@mechanism("sparse")
def block_sparse(s):
    """BigBird's blocks: neighbours, one global, one random."""
    layout = _layout(s)
    call = partial(sparse.block_sparse_attention, *s.qkv, layout, s.sizes.block)
    return call, lambda: s.dense(_pairs(s, layout))


@mechanism("sparse", causal=True, **FLOAT32)
def lsh(s):
    """Reformer's hashing, two rounds; at most 128 buckets, so that hashing itself stays linear."""
    half = max(1, min(s.seq // s.sizes.lsh_chunk, 128) // 2)
    rotations, chunk = s.draw(s.sizes.rounds, s.sizes.head_dim, half), s.sizes.lsh_chunk

    def expected():
        bucket = sparse.lsh_buckets(s.q, rotations)
        order = bucket.argsort(dim=-1, stable=True)
        place = order.argsort(dim=-1) // chunk
        met = (bucket[..., :, None] == bucket[..., None, :]) & (place[..., :, None] - place[..., None, :] <= 1)
        mask = met.any(-3) & s.window(causal=True, window=s.seq).tril(-1)
        mask |= torch.eye(s.seq, dtype=torch.bool, device=s.device) & ~mask.any(-1, keepdim=True)
        return s.dense(mask, k=F.normalize(s.q, dim=-1))

    return partial(sparse.lsh_attention, s.q, s.v, rotations, chunk), expected


@mechanism("sparse", **FLOAT32)
def routing(s):
    """Clusters of 256 tokens: one centroid for each 256 tokens of the sequence."""
    clusters = max(1, s.seq // s.sizes.window)
    centroids = s.draw(s.sizes.heads, clusters, s.sizes.head_dim)

    def expected():
        q, k = (F.layer_norm(x, x.shape[-1:]) for x in (s.q, s.k))
        out, count = torch.zeros_like(s.v, dtype=torch.float64), torch.zeros_like(s.v[..., :1], dtype=torch.float64)
        for c in range(clusters):
            ours = (
                torch.zeros(x.shape[:-1], device=s.device).scatter(
                    -1, (x @ centroids[:, c, :, None])[..., 0].topk(min(s.sizes.window, s.seq)).indices, 1.0
                )
                for x in (q, k)
            )
            query, key = (x.bool()[..., None] for x in ours)
            out += s.dense(query & key.mT, q, k)
            count += query
        return out / count.clamp(min=1)

    def call():
        return sparse.routing_attention(*s.qkv, centroids, s.sizes.window)[0]

    return call, expected


@mechanism("linear")
def linear_attention(s):
    """elu + 1, every key."""

    def definition():
        return s.weighted(*(F.elu(x.double()) + 1 for x in (s.q, s.k)), causal=False)

    return partial(linear.linear_attention, *s.qkv), definition


def _mapped(s):
    return linear.elu_feature_map(s.q), linear.elu_feature_map(s.k)


@mechanism("linear", causal=True)
def linear_chunked(s):
    """elu + 1, causal, in chunks."""
    q, k = _mapped(s)
    return (
        lambda: linear.causal_linear_chunked(q, k, s.v, s.sizes.chunk)[0],
        lambda: s.weighted(q, k, causal=True),
    )


@mechanism("linear", causal=True, **FLOAT32)
def linear_recurrent(s):
    """elu + 1, causal, token by token."""
    q, k = _mapped(s)
    return lambda: linear.causal_linear_recurrent(q, k, s.v)[0], lambda: s.weighted(q, k, causal=True)


@mechanism("linear", **FLOAT32)
def performer(s):
    """Positive random features, every key."""
    generator = torch.Generator().manual_seed(s.seq)
    drawn = linear.orthogonal_random_features(s.sizes.head_dim, s.sizes.features, generator)
    projection = drawn.to(s.device, s.dtype)

    def expected():
        q, k = (x.double() * s.sizes.head_dim**-0.25 for x in (s.q, s.k))
        q, k = ((x @ projection.double().mT - x.square().sum(-1, keepdim=True) / 2).exp() for x in (q, k))
        return s.weighted(q, k, causal=False)

    return partial(linear.performer_attention, *s.qkv, projection), expected


@mechanism("linear")
def linformer(s):
    """Keys and values mixed down to 256 along the sequence."""
    e_proj, f_proj = (s.draw(s.sizes.rank, s.seq) * s.seq**-0.5 for _ in range(2))

    def expected():
        scores = s.q.double() @ (e_proj.double() @ s.k.double()).mT * s.sizes.head_dim**-0.5
        return scores.softmax(-1) @ (f_proj.double() @ s.v.double())

    return partial(linear.linformer_attention, *s.qkv, e_proj, f_proj), expected


def _recurrence(s, k, decay, beta=None):
    """The state space of the gated and of the delta rule, token by token, in float64."""
    q, k, v, decay = (x.double() for x in (s.q, k, s.v, decay))
    state, out = torch.zeros_like(k[..., 0, :, None] * v[..., 0, None, :]), []
    for t in range(s.seq):
        state = decay[..., t, :, None] * state
        write = v[..., t, :]
        if beta is not None:
            write = beta[..., t, None].double() * (write - (k[..., t, None, :] @ state)[..., 0, :])
        state = state + k[..., t, :, None] * write[..., None, :]
        out.append((q[..., t, None, :] @ state)[..., 0, :])
    return torch.stack(out, -2)


@mechanism("linear", causal=True, **FLOAT32)
def gated(s):
    """A decay for every key channel (GLA), in chunks."""
    decay = (s.draw(*s.k.shape) + 3).sigmoid()
    return (
        lambda: linear.gated_linear_attention(*s.qkv, decay, chunk=s.sizes.gated_chunk)[0],
        lambda: _recurrence(s, s.k, decay),
    )


@mechanism("linear", causal=True, **FLOAT32)
def gated_scalar(s):
    """One decay a token (Mamba-2), in chunks."""
    decay = (s.draw(*s.k.shape[:-1], 1) + 3).sigmoid()
    return (
        lambda: linear.gated_linear_attention(*s.qkv, decay, chunk=s.sizes.chunk)[0],
        lambda: _recurrence(s, s.k, decay),
    )


@mechanism("linear", causal=True, **FLOAT32)
def gated_delta(s):
    """The delta rule with one decay a token (Gated DeltaNet), in chunks."""
    decay, beta = (s.draw(*s.k.shape[:-1], 1) + 3).sigmoid(), s.draw(*s.k.shape[:-1]).sigmoid()
    k = F.normalize(s.k, dim=-1)
    return (
        lambda: linear.delta_rule(s.q, k, s.v, beta, decay, chunk=s.sizes.chunk)[0],
        lambda: _recurrence(s, k, decay, beta),
    )


def add_kernels():
    """The Triton kernels, where there is a GPU to run them."""
    from solutions import flash_gpu

    @mechanism("triton")
    def triton_flash(s):
        return lambda: flash_gpu.flash_forward(*s.qkv)[0], s.dense

    @mechanism("triton", causal=True)
    def triton_flash_causal(s):
        return lambda: flash_gpu.flash_forward(*s.qkv, True)[0], lambda: s.dense(s.causal())

    @mechanism("triton", causal=True)
    def triton_window(s):
        def call():
            return flash_gpu.flash_forward_window(*s.qkv, s.sizes.window)[0]

        return call, lambda: s.dense(s.window(causal=True))

    @mechanism("triton")
    def triton_block_sparse(s):
        layout = _layout(s)
        call = partial(flash_gpu.block_sparse_kernel, *s.qkv, layout, s.sizes.block)
        return call, lambda: s.dense(_pairs(s, layout))

    @mechanism("triton", causal=True)
    def triton_linear_chunked(s):
        q, k = _mapped(s)
        call = partial(flash_gpu.linear_attention_chunk_kernel, q, k, s.v, s.sizes.chunk)
        return call, lambda: s.weighted(q, k, causal=True)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def apart(function, *arguments):
    """The result of a call in a forked process: fresh memory, and nothing it holds stays behind."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(function(*arguments)))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        child.join()
        return {"not_run": f"the process ended with {child.exitcode}"}
    finally:
        child.join()


def here(function, *arguments):
    """The result of a call in this process, which holds the GPU; its memory is given back."""
    try:
        return function(*arguments)
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def guarded(function, *arguments):
    """The result of a call, or what it raised: one mechanism that cannot run stops no other."""
    try:
        with torch.no_grad():
            return function(*arguments)
    except Exception as error:
        return {"not_run": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error) else ''}"}


def _status(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}")


def _malloc(mmap_threshold, trim_threshold):
    """Set how glibc gives memory back (mallopt's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD), and give back what is free."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, mmap_threshold)
    libc.mallopt(-1, trim_threshold)
    libc.malloc_trim(0)


class Memory:
    """Bytes that a block of code needed at once, beyond what stood before it."""

    def __init__(self, device):
        """A reading of this device; CPU readings need Linux."""
        self.cuda = device == "cuda"

    def __enter__(self):
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            # What was freed goes back to the system: kept, it would hide or inflate what this block takes.
            _malloc(mmap_threshold=2**16, trim_threshold=2**17)
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _status("VmRSS")
        return self

    def __exit__(self, *exception):
        if self.cuda:
            torch.cuda.synchronize()
            self.bytes = torch.cuda.max_memory_allocated() - self.before
        else:
            self.bytes = max(0, _status("VmHWM") - self.before)
            # For speed freed memory is kept, up to the sizes that glibc's own adaptive thresholds arrive at.
            _malloc(mmap_threshold=2**25, trim_threshold=2**26)


def correct(name, seq, sizes, device, dtype):
    """Relative error of a mechanism against its definition in float64."""
    call, definition = MECHANISMS[name].prepare(Setting(seq, sizes, device, dtype))
    actual, expected = call().double(), definition()
    error = ((actual - expected).norm() / expected.norm()).item()
    return {"error": error if math.isfinite(error) else None, "right": error <= LIMITS[dtype]}


def measure(name, seq, sizes, device, dtype, patience):
    """Peak memory of one call, then the time of further ones: median, least and most of about `patience` seconds.

    `cpu_ms` is the processor time of all threads of this process: on a busy machine the steadier figure.
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    prepare = MECHANISMS[name].prepare

    def clock(call):
        wait()
        begin, work = time.perf_counter(), time.process_time()
        call()
        wait()
        return time.perf_counter() - begin, time.process_time() - work

    clock(prepare(Setting(2 * sizes.window, sizes, device, dtype))[0])  # loads libraries, starts threads
    setting = Setting(seq, sizes, device, dtype)
    with Memory(device) as memory:
        call, _ = prepare(setting)
        first = clock(call)
    times = [first]
    if first[0] < 10 * patience:
        second = clock(call)  # the first of its size may have set things up
        times = [second, *(clock(call) for _ in range(min(29, max(1, int(patience / second[0])))))]
    wall, work = ([1e3 * seconds for seconds in column] for column in zip(*times, strict=True))
    return {"ms": statistics.median(wall), "ms_min": min(wall), "ms_max": max(wall), "cpu_ms": statistics.median(work),
            "repeats": len(times), "peak_bytes": memory.bytes}  # fmt: skip


def predicted(points, key, seq):
    """What a figure will be at a length, from the two longest so far: growth between linear and quadratic."""
    if not points:
        return 0.0
    growth = 2.0
    if len(points) > 1:
        (n, a), (m, b) = ((p["seq"], max(p[key], 1e-9)) for p in points[-2:])
        growth = min(2.0, max(1.0, math.log(b / a) / math.log(m / n)))
    return points[-1][key] * (seq / points[-1]["seq"]) ** growth


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


class Report:
    """What has been measured so far, on screen and in the file."""

    def __init__(self, path, **facts):
        """An empty report."""
        self.path, self.start = path, time.monotonic()
        self.data = {"schema": 1, "complete": False, "provenance": provenance(), **facts, "correctness": [],
                     "points": [], "skipped": [], "growth": [], "crossovers": []}  # fmt: skip

    def add(self, section, **row):
        """One row."""
        self.data[section].append(row)
        self.save()

    def save(self):
        """The file as a whole, never half of it."""
        self.data["seconds"] = round(self.seconds(), 1)
        if self.path:
            part = self.path.with_name(self.path.name + ".part")
            part.write_text(json.dumps(self.data, indent=1) + "\n")
            part.replace(self.path)

    def seconds(self):
        """Since the start."""
        return time.monotonic() - self.start

    def say(self, text):
        """A line on screen, with the time since the start."""
        print(f"[{self.seconds():6.1f} s] {text}", flush=True)


def name_of(dtype):
    """float32, not torch.float32."""
    return str(dtype).removeprefix("torch.")


def check(report, device, dtypes, run):
    """Every mechanism against its definition, at a short length that is no multiple of anything."""
    right = []
    for mechanism in MECHANISMS.values():
        for dtype in mechanism.dtypes:
            if dtype in dtypes:
                row = run(guarded, correct, mechanism.name, 301, SMALL, device, dtype)
                report.add("correctness", mechanism=mechanism.name, dtype=name_of(dtype), seq=301, **row)
                if row.get("right"):
                    right.append((mechanism, dtype))
                else:
                    report.say(f"WRONG {mechanism.name} {name_of(dtype)}: {row}")
    report.say(f"{len(right)} of {len(report.data['correctness'])} comparisons with float64 hold")
    return right


def sweep(report, right, lengths, sizes, device, run, limits):
    """All points, short lengths first: what a budget cuts off are the longest."""
    done = {}
    for seq in lengths:
        for mechanism, dtype in right:
            facts = {"mechanism": mechanism.name, "family": mechanism.family, "causal": mechanism.causal,
                     "dtype": name_of(dtype), "seq": seq}  # fmt: skip
            points = done.setdefault((mechanism.name, dtype), [])
            milliseconds, size = (predicted(points, key, seq) for key in ("ms", "peak_bytes"))
            if seq > mechanism.longest:
                computed = 2 * sizes.heads * seq**2 * dtype.itemsize
                report.add("skipped", **facts, reason=f"naive attention stops at {NAIVE_UP_TO} tokens",
                           computed_bytes=computed)  # fmt: skip
                continue
            if milliseconds > 1e3 * limits["point_seconds"]:
                reason = (
                    f"predicted {milliseconds / 1e3:.0f} s, over the limit of {limits['point_seconds']:.0f} s a call"
                )
            elif size > limits["point_bytes"]:
                reason = f"predicted {size / 2**30:.0f} GiB, over the limit of {limits['point_bytes'] / 2**30:.0f} GiB"
            elif report.seconds() + milliseconds / 1e3 > limits["budget_seconds"]:
                reason = f"the budget of {limits['budget_seconds']:.0f} s is spent"
            elif len(points) < lengths.index(seq) and mechanism.longest == math.inf:
                reason = "a shorter length was not measured"
            else:
                row = run(guarded, measure, mechanism.name, seq, sizes, device, dtype, limits["patience_seconds"])
                if "not_run" not in row:
                    report.add("points", **facts, **row)
                    points.append(facts | row)
                    report.say(f"{seq:6} {mechanism.name:22} {name_of(dtype):9} {row['ms']:10.3f} ms "
                               f"{row['peak_bytes'] / 2**20:10.1f} MiB")  # fmt: skip
                    continue
                reason = row["not_run"]
            report.add("skipped", **facts, reason=reason)
            report.say(f"{seq:6} {mechanism.name:22} {name_of(dtype):9} skipped: {reason}")


def summary(report):
    """Growth between the two longest lengths, and from which length on each mechanism is faster than a yardstick.

    On a CPU both go by processor time, which other work on the machine disturbs least.
    """
    clock = report.data["clock"] = "cpu_ms" if report.data["device"] == "cpu" else "ms"
    rows = {}
    for point in report.data["points"]:
        rows.setdefault((point["mechanism"], point["dtype"]), []).append(point)
    for (name, dtype), points in rows.items():
        for a, b in list(pairwise(points))[-1:]:
            time_growth, memory_growth = (
                math.log(b[key] / a[key]) / math.log(b["seq"] / a["seq"]) if a[key] and b[key] else None
                for key in (clock, "peak_bytes")
            )
            report.add("growth", mechanism=name, dtype=dtype, seq=[a["seq"], b["seq"]], time_exponent=time_growth,
                       memory_exponent=memory_growth)  # fmt: skip
        for yardstick in ("naive", "sdpa", "sdpa_causal"):
            other = {p["seq"]: p[clock] for p in rows.get((yardstick, dtype), [])}
            faster = None
            for p in points:
                if p["seq"] in other:
                    faster = None if p[clock] >= other[p["seq"]] else faster or p["seq"]
            if name != yardstick and other:
                report.add("crossovers", mechanism=name, dtype=dtype, over=yardstick, faster_from=faster)


def main():
    """Exit status: 0, or 1 where a mechanism is wrong or could not be compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, a few seconds")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")], help="such as 256,1024")
    parser.add_argument("--budget", type=float, help="seconds for the whole run (220 on a GPU, 340 on a CPU)")
    arguments = parser.parse_args()

    gc.freeze()  # so that collecting between points does not walk through all of PyTorch
    device, tiny = arguments.device, arguments.tiny
    on_gpu = device == "cuda"
    sizes = SMALL if tiny else FULL
    lengths = sorted(arguments.lengths or ([64, 128] if tiny else [2**n for n in range(8, 16)]))
    memory = torch.cuda.mem_get_info()[0] if on_gpu else 1024 * int(_meminfo()["MemAvailable"])
    limits = {
        "budget_seconds": arguments.budget or (220 if on_gpu else 340),
        "point_seconds": 4 if on_gpu else 25,
        "patience_seconds": 0.01 if tiny else 0.1 if on_gpu else 0.5,
        "point_bytes": 0.7 * memory,
    }
    report = Report(
        arguments.json, device=device, tiny=tiny, threads=torch.get_num_threads(), batch=1, sizes=vars(sizes),
        lengths=lengths, limits=limits, load_average=os.getloadavg()[0],
        float32_matmul=torch.get_float32_matmul_precision(),
    )  # fmt: skip
    report.save()
    report.say(f"{report.data['provenance']['machine']}, torch {torch.__version__}, on {device}")
    run = here if on_gpu else apart
    dtypes = (torch.float32, torch.bfloat16) if on_gpu else (torch.float32,)
    if on_gpu:
        add_kernels()
        # The first call of a kernel chooses its tiles for the life of the process: let it be one of a long sequence.
        for mechanism in [m for m in MECHANISMS.values() if m.family == "triton"]:
            for dtype in dtypes:
                run(guarded, lambda m=mechanism, d=dtype: m.prepare(Setting(lengths[-1], sizes, device, d))[0]())
        report.say("kernels compiled and tuned")
    right = check(report, device, dtypes, run)
    sweep(report, right, lengths, sizes, device, run, limits)
    summary(report)
    report.data["complete"] = True
    report.save()
    report.say("done")
    return 0 if len(right) == len(report.data["correctness"]) else 1


def _meminfo():
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {key: rest.split()[0] for key, rest in (line.split(":") for line in lines)}


if __name__ == "__main__":
    sys.exit(main())
