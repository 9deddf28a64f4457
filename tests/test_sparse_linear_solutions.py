"""The reference solutions of the chapters `sparse` and `linear` against dense attention and plain loops, in float64."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from solutions import linear, sparse

LENGTHS = [(37, 37, 6), (16, 16, 1), (9, 30, 4), (30, 9, 5), (20, 20, 50), (5, 5, 2)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def draw(*shapes):
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def dense(q, k, v, mask):
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask, -1e300)
    return (scores.softmax(-1) * mask) @ v


def same(actual, expected, inputs=()):
    """Equal values, and equal gradients to the inputs."""
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)
    if inputs:
        upstream = torch.randn_like(expected)
        pairs = (torch.autograd.grad(out, inputs, upstream, retain_graph=True) for out in (actual, expected))
        for one, other in zip(*pairs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("q_seq", "kv_seq", "window"), LENGTHS)
def test_banded_attention_is_masked_attention(q_seq, kv_seq, window, causal):
    inputs = [x.requires_grad_() for x in draw((2, 3, q_seq, 5), (2, 3, kv_seq, 5), (2, 3, kv_seq, 7))]
    mask = sparse.sliding_window_mask(q_seq, kv_seq, window, causal)
    same(sparse.banded_attention(*inputs, window, causal), dense(*inputs, mask), inputs)


@pytest.mark.parametrize("causal", [False, True])
def test_banded_attention_costs_what_the_band_costs(causal):
    q, k, v = draw((1024, 16), (1024, 16), (1024, 16))
    for window in (8, 33, 256):
        with FlopCounterMode(display=False) as counter:
            sparse.banded_attention(q, k, v, window, causal)
        ideal = 4 * 16 * sparse.sliding_window_mask(1024, 1024, window, causal).sum().item()
        assert ideal <= counter.get_total_flops() <= 2 * ideal


@pytest.mark.parametrize("positions", [[], [0], [3, 0, 36]])
@pytest.mark.parametrize("window", [1, 6, 100])
def test_longformer_is_masked_attention(positions, window):
    inputs = [x.requires_grad_() for x in draw(*[(2, 37, 5), (2, 37, 5), (2, 37, 7)] * 2)]
    positions = torch.tensor(positions, dtype=torch.long)
    mask = sparse.sliding_window_mask(37, 37, window, causal=False)
    mask[:, positions] = True
    is_global = torch.zeros(37, 1, dtype=torch.bool)
    is_global[positions] = True
    expected = torch.where(is_global, dense(*inputs[3:], torch.ones_like(mask)), dense(*inputs[:3], mask))
    same(sparse.longformer_attention(*inputs, window, positions), expected, inputs if len(positions) else inputs[:3])


@pytest.mark.parametrize(("q_seq", "kv_seq", "block"), [(37, 50, 8), (16, 16, 16), (5, 9, 3)])
def test_block_sparse_attention_is_masked_attention_at_its_cost(q_seq, kv_seq, block):
    inputs = [x.requires_grad_() for x in draw((2, q_seq, 5), (2, kv_seq, 5), (2, kv_seq, 7))]
    layout = torch.rand(-(-q_seq // block), -(-kv_seq // block)) < 0.5
    layout[-1] = False
    mask = layout.repeat_interleave(block, 0)[:q_seq].repeat_interleave(block, 1)[:, :kv_seq]
    with FlopCounterMode(display=False) as counter:
        out = sparse.block_sparse_attention(*inputs, layout, block)
    assert counter.get_total_flops() == 2 * 2 * (5 + 7) * block**2 * layout.sum().item()
    same(out, dense(*inputs, mask), inputs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("seq", "block"), [(37, 8), (16, 8), (5, 8), (9, 1)])
def test_chunked_block_local_attention_is_masked_attention(seq, block, causal):
    inputs = [x.requires_grad_() for x in draw((2, seq, 5), (2, seq, 5), (2, seq, 7))]
    at = torch.arange(seq) // block
    mask = (at[:, None] - at).abs().le(1) & (at[:, None] >= at)
    mask &= torch.ones_like(mask).tril() if causal else True
    same(sparse.chunked_block_local_attention(*inputs, block, causal), dense(*inputs, mask), inputs)


@pytest.mark.parametrize(
    ("seq", "half", "rounds", "chunk"), [(37, 2, 1, 8), (40, 3, 3, 4), (12, 1, 2, 12), (9, 2, 2, 1)]
)
def test_lsh_attention_is_attention_to_the_keys_met_in_any_round(seq, half, rounds, chunk):
    inputs = [x.requires_grad_() for x in draw((2, seq, 5), (2, seq, 7))]
    (rotations,) = draw((rounds, 5, half))
    buckets = sparse.lsh_buckets(inputs[0], rotations)
    mask = torch.zeros(2, seq, seq, dtype=torch.bool)
    for b in range(2):
        for r in range(rounds):
            order = sorted(range(seq), key=lambda i: (buckets[b, r, i].item(), i))
            place = {i: n // chunk for n, i in enumerate(order)}
            for i in range(seq):
                for j in range(i):
                    mask[b, i, j] |= bool(buckets[b, r, i] == buckets[b, r, j]) and place[i] - place[j] in (0, 1)
    mask |= torch.eye(seq, dtype=torch.bool) & ~mask.any(-1, keepdim=True)
    qk, v = inputs
    same(sparse.lsh_attention(qk, v, rotations, chunk), dense(qk, F.normalize(qk, dim=-1), v, mask), inputs)


def test_routing_attention_follows_its_definition():
    q, k, v, centroids = draw((2, 3, 20, 4), (2, 3, 20, 4), (2, 3, 20, 6), (3, 5, 4))
    out, moved = sparse.routing_attention(q, k, v, centroids, window=7, decay=0.9)
    q, k = ((x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() for x in (q, k))
    expected, count, after = torch.zeros_like(v), torch.zeros_like(v[..., :1]), centroids.clone()
    for h in range(3):
        tokens = torch.cat([q[:, h], k[:, h]], 1).flatten(0, 1)
        nearest = (tokens @ centroids[h].T).argmax(-1)
        for c in range(5):
            if (nearest == c).any():
                after[h, c] = 0.9 * centroids[h, c] + 0.1 * tokens[nearest == c].mean(0)
            for b in range(2):
                rows, columns = ((x[b, h] @ centroids[h, c]).argsort(descending=True)[:7] for x in (q, k))
                everything = torch.ones(7, 7, dtype=torch.bool)
                expected[b, h, rows] += dense(q[b, h, rows], k[b, h, columns], v[b, h, columns], everything)
                count[b, h, rows] += 1
    assert (count == 0).any() and (count > 1).any()
    same(out, expected / count.clamp(min=1))
    same(moved, after)


def test_bigbird_layout_draws_distinct_blocks_beside_the_rest():
    rng = np.random.default_rng(0)
    drawn = torch.zeros(12, 12)
    for _ in range(200):
        layout = sparse.bigbird_layout(12, 3, 2, 3, rng)
        base = sparse.bigbird_layout(12, 3, 2, 0, rng)
        assert (layout & base == base).all() and (layout ^ base).sum(-1).tolist() == [0, 0] + [3] * 10
        drawn += layout ^ base
    assert drawn[5, [2, 3, 7, 8, 9, 10, 11]].min() > 50


def test_masks_and_their_costs():
    assert sparse.strided_mask(256, 16).double().mean() == pytest.approx(0.179 / 2, abs=0.01)
    assert torch.equal(sparse.reachability(sparse.strided_mask(256, 16), 2), torch.ones(256, 256).tril().bool())
    assert torch.equal(sparse.dilated_mask(9, 12, 3, True, 1), sparse.sliding_window_mask(9, 12, 3, True))
    for causal in (True, False):
        mask = sparse.dilated_mask(9, 12, 5, causal, 3)
        for i, j in np.ndindex(9, 12):
            gap = i + 3 - j
            assert mask[i, j] == (gap % 3 == 0 and (0 <= gap < 15 if causal else abs(gap) <= 6))
    assert sparse.mask_cost(sparse.sliding_window_mask(10, 10, 1, False), 4) == (0.1, 3 / 9)


FORMS = [1, 4, 16, 64]


@pytest.mark.parametrize("chunk", FORMS)
@pytest.mark.parametrize("start", [False, True])
def test_causal_linear_forms_agree_with_the_quadratic_one(chunk, start):
    inputs = [x.requires_grad_() for x in draw((2, 3, 37, 5), (2, 3, 37, 5), (2, 3, 37, 7))]
    q, k, v = inputs[0].exp(), inputs[1].exp(), inputs[2]
    products = (q @ k.mT).tril()
    expected = products @ v / products.sum(-1, keepdim=True)
    forms = (linear.causal_linear_recurrent, lambda *x: linear.causal_linear_chunked(*x[:3], chunk, *x[3:]))
    for form in forms:
        state = form(q[..., :11, :], k[..., :11, :], v[..., :11, :])[1] if start else None
        part = slice(11 if start else 0, None)
        out, (S, z) = form(*(x[..., part, :] for x in (q, k, v)), state)
        same(out, expected[..., part, :], inputs)
        same(S, k.mT @ v)
        same(z, k.sum(-2))


def test_linear_attention_and_features():
    q, k, v = draw((2, 9, 5), (2, 13, 5), (2, 13, 7))
    products = (F.elu(q) + 1) @ (F.elu(k) + 1).mT
    same(linear.linear_attention(q, k, v, 0.5), products @ v / (products.sum(-1, keepdim=True) + 0.5))
    x = torch.tensor([-1e4, -80.0, 1e4], requires_grad=True)
    linear.elu_feature_map(x).sum().backward()
    assert x.grad.isfinite().all() and linear.elu_feature_map(x)[1] > 0


def test_random_features_are_orthogonal_and_unbiased():
    generator = torch.Generator().manual_seed(1)
    w = linear.orthogonal_random_features(4, 400_000, generator).double()
    inner = w.unflatten(0, (-1, 4)) @ w.unflatten(0, (-1, 4)).mT
    assert (inner - inner.diagonal(dim1=-2, dim2=-1).diag_embed()).abs().max() < 1e-4
    torch.testing.assert_close(w.T @ w / len(w), torch.eye(4, dtype=torch.float64), rtol=0, atol=0.02)
    assert w.mean(0).abs().max() < 0.01
    q, k, v = draw((1, 4), (30, 4), (30, 3))
    same(linear.performer_attention(q, k, v, w), dense(q, k, v, torch.ones(1, 30).bool()) * 0 + _by_hand(q, k, v, w))
    error = linear.performer_attention(q, k, v, w) - dense(q, k, v, torch.ones(1, 30).bool())
    assert error.abs().max() < 0.02


def _by_hand(q, k, v, w):
    q, k = ((x / 4**0.25 @ w.T - (x / 4**0.25).square().sum(-1, keepdim=True) / 2).exp() for x in (q, k))
    return (q @ k.mT) @ v / (q @ k.mT).sum(-1, keepdim=True)


def test_linformer_and_spectrum():
    q, k, v, e, f = draw((2, 9, 5), (2, 13, 5), (2, 13, 7), (4, 13), (4, 13))
    same(linear.linformer_attention(q, k, v, e, f), (q @ (e @ k).mT / 5**0.5).softmax(-1) @ (f @ v))
    with pytest.raises(ValueError, match="made for"):
        linear.linformer_attention(q, k[:, 1:], v[:, 1:], e, f)
    u, w = draw((50, 3), (3, 40))
    assert linear.attention_spectrum(u @ w, 1.0) == 3
    assert linear.attention_spectrum(torch.zeros(4, 4), 1.0) == 0


@pytest.mark.parametrize("chunk", FORMS)
@pytest.mark.parametrize("width", [0, 1, 5])
def test_gated_and_delta_forms_agree_with_the_recurrence(chunk, width):
    inputs = [x.requires_grad_() for x in draw((2, 37, 5), (2, 37, 5), (2, 37, 7), (2, 37), (2, 37, max(width, 1)))]
    q, k, v, beta, decay = inputs
    k, beta = F.normalize(k, dim=-1), beta.sigmoid()
    decay = (decay * 3).sigmoid() if width else torch.full((1, 1), 0.9, dtype=torch.float64)
    factor = decay.expand(2, 37, 5)
    gated = delta = torch.zeros(2, 5, 7, dtype=torch.float64)
    gated_out, delta_out = [], []
    for t in range(37):
        gated = factor[:, t, :, None] * gated + k[:, t, :, None] * v[:, t, None]
        delta = factor[:, t, :, None] * delta
        wrong = v[:, t] - (delta.mT @ k[:, t, :, None])[..., 0]
        delta = delta + beta[:, t, None, None] * k[:, t, :, None] * wrong[:, None]
        gated_out.append((gated.mT @ q[:, t, :, None])[..., 0])
        delta_out.append((delta.mT @ q[:, t, :, None])[..., 0])
    used = inputs if width else inputs[:4]
    out, state = linear.gated_linear_attention(q, k, v, decay, chunk=chunk)
    same(out, torch.stack(gated_out, 1), used[:3] + used[4:])
    same(state, gated)
    out, state = linear.delta_rule(q, k, v, beta, decay, chunk=chunk)
    same(out, torch.stack(delta_out, 1), used)
    same(state, delta)
    if width:
        first, state = linear.delta_rule(*(x[:, :20] for x in (q, k, v, beta, decay)), chunk=chunk)
        rest, _ = linear.delta_rule(*(x[:, 20:] for x in (q, k, v, beta, decay)), state, chunk=chunk)
        same(torch.cat([first, rest], 1), out)


def test_decoding_state_of_known_models():
    # Llama 3 8B keeps 128 KiB a token; DeepSeek-V2 keeps 512 + 64 numbers a layer, 60 layers.
    assert linear.decoding_state_bytes("gqa", 1, layers=32, heads=32, head_dim=128, kv_heads=8) == 128 * 1024
    mla = linear.decoding_state_bytes("mla", 10, layers=60, heads=128, head_dim=128, latent_dim=512, rope_dim=64)
    assert mla == 10 * 60 * 576 * 2
    with pytest.raises(ValueError, match="kind"):
        linear.decoding_state_bytes("lstm", 1, 1, 1, 1)
