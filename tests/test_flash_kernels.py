"""The Triton kernels of `solutions/flash_gpu.py` against float64.

Triton chooses between compiler and interpreter when it is imported, so the interpreted cases run in a process of their
own. Where a GPU exists the same cases also run natively; where none does, those are reported as skipped.
"""

import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

LIMITS = {"float32": 3e-6, "float16": 2e-3, "bfloat16": 1e-2}


@pytest.fixture(scope="module", params=["interpreted", "native"])
def run(request):
    """Runs a case in the wanted mode and returns what it returns."""
    if request.param == "native" and not torch.cuda.is_available():
        pytest.skip("no GPU here: the native kernels are not checked")
    device = "cpu" if request.param == "interpreted" else "cuda"
    # One thread: the interpreter multiplies small tiles, and waiting threads would only fight over the cores.
    env = {"TRITON_INTERPRET": "1" if device == "cpu" else "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            pool.submit(os.getpid).result()
        yield lambda case, *args: pool.submit(case, device, *args).result(timeout=300)


def close(errors, dtype="float32"):
    wrong = {name: error for name, error in errors.items() if not error <= LIMITS[dtype]}
    assert not wrong, f"relative errors above {LIMITS[dtype]}: {wrong}"


# ---------------------------------------------------------------------------------------------------------------------
# Cases: they run in the other process, and return plain numbers
# ---------------------------------------------------------------------------------------------------------------------


def draw(device, dtype, *shapes):
    torch.manual_seed(sum(sum(s) for s in shapes))
    return [torch.randn(s, device=device, dtype=getattr(torch, dtype)) for s in shapes]


def distance(actual, expected):
    """Relative error; infinite where the non-finite elements are not the same ones."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    finite = torch.isfinite(expected)
    if actual.shape != expected.shape or not torch.equal(actual[~finite], expected[~finite]):
        return math.inf
    error = (actual[finite] - expected[finite]).norm() / expected[finite].norm().clamp_min(1e-30)
    return error.item() if torch.isfinite(error) else math.inf


def band(q_seq, kv_seq, causal=False, window=None):
    gap = torch.arange(q_seq)[:, None] + kv_seq - q_seq - torch.arange(kv_seq)
    mask = torch.ones_like(gap, dtype=torch.bool)
    if causal:
        mask &= gap >= 0
    if window:
        mask &= gap < window if causal else gap.abs() <= window // 2
    return mask


def attention(q, k, v, mask, scale=None):
    """Float64 attention by its definition: (out, lse)."""
    scores = q.double() @ k.double().mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores.masked_fill(~mask.to(q.device), -math.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v.double(), scores.logsumexp(-1)


def forward_case(device, lead, q_seq, kv_seq, head_dim, v_dim, causal, dtype, size=1.0, scale=None):
    from solutions import flash_gpu

    q, k, v = draw(device, dtype, (*lead, q_seq, head_dim), (*lead, kv_seq, head_dim), (*lead, kv_seq, v_dim))
    q = q * size
    out, lse = flash_gpu.flash_forward(q, k, v, causal, scale)
    assert out.dtype == q.dtype and lse.dtype == torch.float32
    expected, expected_lse = attention(q, k, v, band(q_seq, kv_seq, causal), scale)
    return {"out": distance(out, expected), "lse": distance(lse, expected_lse)}


def backward_case(device, q_seq, kv_seq, head_dim, v_dim, causal, dtype):
    from solutions import flash_gpu

    q, k, v, d_out = draw(device, dtype, (2, 1, q_seq, head_dim), (2, 1, kv_seq, head_dim), (2, 1, kv_seq, v_dim),
                          (2, 1, q_seq, v_dim))  # fmt: skip
    out, lse = flash_gpu.flash_forward(q, k, v, causal)
    grads = flash_gpu.flash_backward(q, k, v, out, lse, d_out, causal)
    again = flash_gpu.flash_backward(q, k, v, out, lse, d_out, causal)
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    mask = band(q_seq, kv_seq, causal).to(device)
    scores = (leaves[0] @ leaves[1].mT * head_dim**-0.5).masked_fill(~mask, -1e300)
    weights = scores.softmax(-1) * mask.any(-1, keepdim=True)
    expected = torch.autograd.grad(weights @ leaves[2], leaves, d_out.double())
    errors = {n: distance(a, e) for n, a, e in zip(("d_q", "d_k", "d_v"), grads, expected, strict=True)}
    return errors | {
        "differs on a second run": float(any(not torch.equal(a, b) for a, b in zip(grads, again, strict=True)))
    }


def strided_case(device):
    from solutions import flash_gpu

    q, k, v, d_out = (x.transpose(1, 2) for x in draw(device, "float32", *[(1, 37, 2, 24)] * 4))
    d_out = d_out[..., :1].expand_as(q)
    out, lse = flash_gpu.flash_forward(q, k, v, True)
    grads = flash_gpu.flash_backward(q, k, v, out, lse, d_out, True)
    same = [x.contiguous() for x in (q, k, v, out, lse, d_out)]
    again = flash_gpu.flash_backward(*same, True)
    return {"out": distance(out, attention(q, k, v, band(37, 37, True))[0])} | {
        name: distance(a, b) for name, a, b in zip(("d_q", "d_k", "d_v"), grads, again, strict=True)
    }


def grouped_case(device, heads, kv_heads, causal):
    from solutions import flash_gpu

    q, k, v = draw(device, "float32", (2, heads, 29, 32), (2, kv_heads, 43, 32), (2, kv_heads, 43, 16))
    out, lse = flash_gpu.flash_forward_gqa(q, k, v, causal)
    k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
    expected, expected_lse = attention(q, k, v, band(29, 43, causal))
    return {"out": distance(out, expected), "lse": distance(lse, expected_lse)}


def window_case(device, q_seq, kv_seq, window, causal):
    from solutions import flash_gpu

    q, k, v = draw(device, "float32", (1, 2, q_seq, 16), (1, 2, kv_seq, 16), (1, 2, kv_seq, 24))
    out, lse = flash_gpu.flash_forward_window(q, k, v, window, causal)
    expected, expected_lse = attention(q, k, v, band(q_seq, kv_seq, causal, window))
    return {"out": distance(out, expected), "lse": distance(lse, expected_lse)}


def unread_case(device):
    """NaN outside the band must not reach the result: those tiles are skipped, not masked."""
    from solutions import flash_gpu

    q, k, v = draw(device, "float32", *[(1, 1, 512, 16)] * 3)
    expected, _ = attention(q, k, v, band(512, 512, True, 20))
    k[..., :128, :], v[..., :128, :] = math.nan, math.nan
    out, _ = flash_gpu.flash_forward_window(q, k, v, 20)
    return {"out": distance(out[..., 256:, :], expected[..., 256:, :])}


def decode_case(device, heads, kv_heads, kv_seq, v_dim, splits):
    from solutions import flash_gpu

    q, k, v = draw(device, "float32", (2, heads, 1, 32), (2, kv_heads, kv_seq, 32), (2, kv_heads, kv_seq, v_dim))
    out, lse = flash_gpu.flash_decode(q, k, v, splits)
    k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
    expected, expected_lse = attention(q, k, v, band(1, kv_seq))
    return {"out": distance(out, expected), "lse": distance(lse, expected_lse)}


def linear_case(device, seq, head_dim, v_dim, chunk, dtype):
    from solutions import flash_gpu

    q, k, v = draw(device, dtype, (2, seq, head_dim), (2, seq, head_dim), (2, seq, v_dim))
    q, k = q.abs() + 0.1, k.abs() + 0.1
    weights = (q.double() @ k.double().mT).tril()
    expected = weights @ v.double() / weights.sum(-1, keepdim=True)
    return {"out": distance(flash_gpu.linear_attention_chunk_kernel(q, k, v, chunk), expected)}


def block_sparse_case(device, q_seq, kv_seq, block, density):
    from solutions import flash_gpu

    q, k, v = draw(device, "float32", (1, 2, q_seq, 24), (1, 2, kv_seq, 24), (1, 2, kv_seq, 40))
    layout = torch.rand(-(-q_seq // block), -(-kv_seq // block)) < density
    layout[0], layout[1, -1] = False, True
    mask = layout.repeat_interleave(block, 0).repeat_interleave(block, 1)[:q_seq, :kv_seq]
    out = flash_gpu.block_sparse_kernel(q, k, v, layout, block)
    return {"out": distance(out, attention(q, k, v, mask)[0])}


def basics_case(device, rows, columns):
    from solutions import flash_gpu

    x, q, k = draw(device, "float32", (rows, columns), (2, rows, 24), (2, columns, 24))
    x[0] = -math.inf
    finite = x[1:].T
    softmax = x.double().softmax(-1).nan_to_num(0.0)
    return {
        "vector_scale": distance(flash_gpu.vector_scale(finite, -2.5), finite * -2.5),
        "row_softmax": distance(flash_gpu.row_softmax(x), softmax),
        "row_softmax of large values": distance(flash_gpu.row_softmax(x[1:] * 1e4), (x[1:].double() * 1e4).softmax(-1)),
        "scores_kernel": distance(flash_gpu.scores_kernel(q, k), q.double() @ k.double().mT * 24**-0.5),
    }


def empty_case(device):
    from solutions import flash_gpu

    q, k, d_out = draw(device, "float32", (2, 3, 16), (2, 0, 16), (2, 3, 16))
    out, lse = flash_gpu.flash_forward(q, k, k)
    d_q, d_k, _ = flash_gpu.flash_backward(q, k, k, out, lse, d_out)
    return out.abs().sum().item(), lse.isneginf().all().item(), d_q.abs().sum().item(), tuple(d_k.shape)


def refusal_case(device, function, dtype, scale):
    from solutions import flash_gpu

    q, k, v = draw(device, dtype, *[(1, 2, 20, 16)] * 3)
    try:
        getattr(flash_gpu, function)(q, k, v, scale=scale)
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


def space_case(device, head_dim, target, resident):
    from solutions import flash_gpu

    return [c.all_kwargs() for c in flash_gpu.autotune_space(head_dim, target, resident)]


# ---------------------------------------------------------------------------------------------------------------------
# Tests
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("lead", "q_seq", "kv_seq", "head_dim", "v_dim", "causal"),
    [
        ((2, 2), 64, 64, 16, 16, True),
        ((1, 2), 70, 45, 32, 24, True),
        ((1, 2), 33, 77, 40, 128, True),
        ((3,), 50, 61, 128, 16, False),
        ((2, 1, 2), 1, 19, 20, 33, True),
        ((), 17, 9, 64, 64, False),
    ],
)
def test_forward_equals_float64(run, lead, q_seq, kv_seq, head_dim, v_dim, causal, dtype):
    """Any lengths, any leading axes, v_dim apart from head_dim; rows that see nothing give 0 and -inf."""
    close(run(forward_case, lead, q_seq, kv_seq, head_dim, v_dim, causal, dtype), dtype)


def test_forward_survives_large_scores(run):
    """Scores in the thousands neither overflow nor lose the result."""
    errors = run(forward_case, (1, 2), 40, 56, 32, 32, True, "float32", 300.0)
    assert max(errors.values()) < 1e-3, errors


def test_forward_takes_a_scale(run):
    close(run(forward_case, (1, 2), 40, 56, 32, 32, False, "float32", 1.0, 0.37))


@pytest.mark.parametrize(
    ("q_seq", "kv_seq", "head_dim", "v_dim", "causal", "dtype"),
    [
        (64, 64, 32, 32, True, "float32"),
        (50, 83, 40, 24, True, "float32"),
        (90, 40, 16, 20, True, "float32"),
        (37, 66, 128, 64, False, "float32"),
        (70, 70, 64, 64, True, "float16"),
        (150, 21, 32, 48, False, "float16"),
    ],
)
def test_backward_equals_autograd_and_repeats_itself(run, q_seq, kv_seq, head_dim, v_dim, causal, dtype):
    close(run(backward_case, q_seq, kv_seq, head_dim, v_dim, causal, dtype), dtype)


def test_strides_do_not_matter(run):
    close(run(strided_case))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize("causal", [False, True])
def test_grouped_heads_equal_repeated_keys(run, heads, kv_heads, causal):
    close(run(grouped_case, heads, kv_heads, causal))


@pytest.mark.parametrize(
    ("q_seq", "kv_seq", "window", "causal"),
    [
        (95, 95, 9, True),
        (95, 120, 40, True),
        (60, 60, 1, True),
        (95, 95, 9, False),
        (40, 70, 50, False),
        (90, 30, 7, True),
    ],
)
def test_window_equals_masked_attention(run, q_seq, kv_seq, window, causal):
    close(run(window_case, q_seq, kv_seq, window, causal))


def test_window_never_reads_outside_its_band(run):
    close(run(unread_case))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "kv_seq", "v_dim", "splits"),
    [(6, 2, 133, 20, None), (6, 2, 133, 20, 1), (4, 1, 133, 24, 3), (2, 2, 64, 32, 50), (1, 1, 5, 33, 2)],
)
def test_decode_equals_attention_whatever_the_splits(run, heads, kv_heads, kv_seq, v_dim, splits):
    close(run(decode_case, heads, kv_heads, kv_seq, v_dim, splits))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("seq", "head_dim", "v_dim", "chunk"), [(77, 24, 40, 16), (64, 32, 16, 32), (9, 16, 70, 16)])
def test_chunked_linear_attention_equals_its_quadratic_form(run, seq, head_dim, v_dim, chunk, dtype):
    close(run(linear_case, seq, head_dim, v_dim, chunk, dtype), dtype)


@pytest.mark.parametrize(
    ("q_seq", "kv_seq", "block", "density"), [(77, 50, 16, 0.5), (64, 128, 32, 0.3), (70, 70, 16, 1.0)]
)
def test_block_sparse_equals_masked_attention(run, q_seq, kv_seq, block, density):
    close(run(block_sparse_case, q_seq, kv_seq, block, density))


@pytest.mark.parametrize(("rows", "columns"), [(7, 100), (33, 64), (3, 1)])
def test_basics(run, rows, columns):
    close(run(basics_case, rows, columns))


def test_no_keys_at_all(run):
    """Nothing to attend to: output 0, lse -inf, gradients 0."""
    assert run(empty_case) == (0.0, True, 0.0, (2, 0, 16))


def test_only_known_dtypes_and_positive_scales(run):
    assert "float64" in run(refusal_case, "flash_forward", "float64", None)
    assert "positive" in run(refusal_case, "flash_forward", "float32", -1.0)
    assert "positive" in run(refusal_case, "flash_forward", "float32", 0.0)


@pytest.mark.parametrize("run", ["interpreted"], indirect=True)
@pytest.mark.parametrize("function", ["flash_forward", "flash_forward_gqa", "flash_decode"])
def test_interpreter_refuses_bfloat16(run, function):
    """There tl.dot would return wrong numbers without a word."""
    assert "interpreter" in run(refusal_case, function, "bfloat16", None)


@pytest.mark.parametrize("run", ["interpreted"], indirect=True)
@pytest.mark.parametrize("resident", [1, 2])
@pytest.mark.parametrize("head_dim", [16, 40, 64, 128])
@pytest.mark.parametrize("shared_memory", [99 * 1024, 163 * 1024, 227 * 1024])
def test_autotune_space_fits_shared_memory(run, head_dim, shared_memory, resident):
    space = run(space_case, head_dim, shared_memory, resident)
    dim = 1 << (head_dim - 1).bit_length()
    used = [(resident * c["BLOCK"] + 2 * c["num_stages"] * c["STEP"]) * dim * 2 for c in space]
    assert space and max(used) <= shared_memory


@pytest.mark.parametrize("run", ["interpreted"], indirect=True)
def test_interpreter_gets_one_configuration(run):
    assert len(run(space_case, 64, "cpu", 1)) == 1
