"""`varlen_attention` against attention written out, segment by segment, in float64."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

from paltrain.errors import ModelError
from paltrain.model.attention import resolve_backend, varlen_attention

SEGMENTS = [(3, 3), (2, 9), (1, 1), (5, 40), (1, 17), (30, 31), (4, 4)]  # (queries, keys)


def written_out(q: Tensor, k: Tensor, v: Tensor, segments: list[tuple[int, int]]) -> Tensor:
    """The last query of a segment sees all its keys, the one before all but the last, ..."""
    outs, at_q, at_k = [], 0, 0
    group = q.shape[1] // k.shape[1]
    for n_q, n_k in segments:
        for t in range(n_q):
            seen = slice(at_k, at_k + n_k - n_q + t + 1)
            heads = [
                torch.softmax(k[seen, h // group] @ q[at_q + t, h] / math.sqrt(q.shape[2]), 0)
                @ v[seen, h // group]
                for h in range(q.shape[1])
            ]
            outs.append(torch.stack(heads))
        at_q, at_k = at_q + n_q, at_k + n_k
    return torch.stack(outs)


def packed(
    segments: list[tuple[int, int]], *, n_heads: int, n_kv: int, head_dim: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    n_q, n_k = (sum(column) for column in zip(*segments, strict=True))
    shapes = [(n_q, n_heads, head_dim), (n_k, n_kv, head_dim), (n_k, n_kv, head_dim)]
    return tuple(torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)


def lengths(
    segments: list[tuple[int, int]], device: str = "cpu"
) -> tuple[Tensor, Tensor, int, int]:
    columns = [
        torch.tensor([0, *column], dtype=torch.int32) for column in zip(*segments, strict=True)
    ]
    cu_q, cu_k = (column.cumsum(0, dtype=torch.int32).to(device) for column in columns)
    return cu_q, cu_k, max(s[0] for s in segments), max(s[1] for s in segments)


@pytest.mark.parametrize(("n_heads", "n_kv"), [(4, 4), (4, 2), (6, 1)])
def test_sdpa_equals_attention_written_out_forward_and_backward(n_heads: int, n_kv: int) -> None:
    inputs = packed(SEGMENTS, n_heads=n_heads, n_kv=n_kv, head_dim=8)
    ours = [x.clone().requires_grad_() for x in inputs]
    theirs = [x.clone().requires_grad_() for x in inputs]
    out = varlen_attention(*ours, *lengths(SEGMENTS), backend="sdpa")
    expected = written_out(*theirs, SEGMENTS)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)


def test_what_inference_mode_has_seen_can_still_be_trained_on() -> None:
    segments = [(3, 6), (7, 7)]  # of no other test: plans are kept by their lengths
    q, k, v = packed(segments, n_heads=2, n_kv=1, head_dim=4)
    with torch.inference_mode():
        seen = varlen_attention(q, k, v, *lengths(segments), backend="sdpa")
    out = varlen_attention(q.requires_grad_(), k, v, *lengths(segments), backend="sdpa")
    out.sum().backward()
    assert torch.equal(out, seen)
    assert q.grad is not None


def test_without_causality_every_query_sees_its_whole_segment() -> None:
    """More queries than keys, too: text is longer than a clip."""
    segments = [(3, 3), (7, 2), (1, 9), (5, 40)]
    q, k, v = packed(segments, n_heads=4, n_kv=2, head_dim=8)
    out = varlen_attention(q, k, v, *lengths(segments), causal=False, backend="sdpa")
    each = zip(
        *(x.split([s[i] for s in segments]) for x, i in ((q, 0), (k, 1), (v, 1))), strict=True
    )
    expected = [
        torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1) for x in (a, b, c)), enable_gqa=True
        ).transpose(0, 1)
        for a, b, c in each
    ]
    torch.testing.assert_close(out, torch.cat(expected), rtol=1e-10, atol=1e-10)


def test_segments_do_not_see_each_other() -> None:
    q, k, v = packed(SEGMENTS, n_heads=2, n_kv=2, head_dim=4)
    out = varlen_attention(q, k, v, *lengths(SEGMENTS), backend="sdpa")
    v[13:53] += 1.0  # the fourth segment's values
    changed = varlen_attention(q, k, v, *lengths(SEGMENTS), backend="sdpa") != out
    assert changed.flatten(1).any(1).nonzero()[:, 0].tolist() == [6, 7, 8, 9, 10]


def test_a_scale_replaces_the_default() -> None:
    q, k, v = packed([(4, 9)], n_heads=2, n_kv=1, head_dim=4)
    sizes = lengths([(4, 9)])
    out = varlen_attention(q * 3, k, v, *sizes, scale=0.5, backend="sdpa")
    torch.testing.assert_close(out, varlen_attention(q * 3, k, v, *sizes, backend="sdpa"))
    other = varlen_attention(q * 3, k, v, *sizes, scale=1.5, backend="sdpa")
    assert (out - other).abs().max() > 1e-3


def test_auto_takes_the_first_that_works_and_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    resolve_backend.cache_clear()
    with caplog.at_level(logging.INFO, logger="paltrain"):
        assert resolve_backend("auto", "cpu", torch.float32) == "sdpa"
    assert "attention backend: sdpa" in caplog.text


@pytest.mark.parametrize("backend", ["torch", "flash_attn"])
def test_a_backend_asked_for_by_name_and_not_usable_says_why(backend: str) -> None:
    q, k, v = packed([(2, 3)], n_heads=1, n_kv=1, head_dim=4)
    with pytest.raises(ModelError, match=f"'{backend}' cannot run: .*(CUDA device|not installed)"):
        varlen_attention(q, k, v, *lengths([(2, 3)]), backend=backend)


def test_an_unknown_backend_lists_those_that_exist() -> None:
    with pytest.raises(ModelError, match=r"'flash' \(did you mean 'flash_attn'\?\); valid: auto, "):
        resolve_backend("flash", "cpu", torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flash_attn", "torch", "sdpa"])
@pytest.mark.parametrize(("n_heads", "n_kv", "head_dim"), [(4, 4, 64), (32, 8, 64), (16, 8, 128)])
def test_bf16_on_cuda_equals_the_float32_reference(
    backend: str, n_heads: int, n_kv: int, head_dim: int
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    try:
        resolve_backend(backend, "cuda", torch.bfloat16)
    except ModelError as error:
        pytest.skip(str(error))
    segments = [(108, 620), (40, 40), (7, 300), (1, 512), (128, 129)]
    inputs = [
        x.to("cuda", torch.bfloat16)
        for x in packed(segments, n_heads=n_heads, n_kv=n_kv, head_dim=head_dim)
    ]
    ours = [x.clone().requires_grad_() for x in inputs]
    reference = [x.float().requires_grad_() for x in inputs]
    out = varlen_attention(*ours, *lengths(segments, "cuda"), backend=backend)
    expected = varlen_attention(*reference, *lengths(segments, "cuda"), backend="sdpa")
    weight = torch.randn_like(expected)
    (out.float() * weight).sum().backward()
    (expected * weight).sum().backward()
    assert _relative_error(out, expected) < 1e-2
    for a, b in zip(ours, reference, strict=True):
        assert _relative_error(a.grad, b.grad) < 1e-2


def _relative_error(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b).norm() / b.norm())
