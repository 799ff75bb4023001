"""One function for all attention: packed segments, causal at the bottom right, or whole.

A segment is a run of query rows and the keys it may look at; the last query sees all its keys, the
one before all but the last, and so on (the alignment of flash-attn since 2.1):

    3 queries, 3 keys      2 queries, 5 keys (the rectangular case: 3 keys heard before)
      1 . .                  1 1 1 1 .
      1 1 .                  1 1 1 1 1
      1 1 1

Without `causal` every query sees all keys of its segment (cross-attention). Three back-ends compute
it: `flash_attn` (the package), `torch` (`torch.nn.attention.varlen`, CUDA) and `sdpa` (any device;
pads segments of like shape together, so it costs up to about twice the exact work).

Notation: T queries and S keys of all segments, G segments, N heads, K kv heads, H head dim.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paltrain.errors import ModelError, unknown_name
from paltrain.log import get_logger

log = get_logger(__name__)

HALF_DTYPES = (torch.float16, torch.bfloat16)
AMPERE = (8, 0)
SHAPE_RATIO = 1.5  # segments of one padded group differ in length by at most this factor


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    scale: float | None = None,
    causal: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Attention of packed segments. Causal: bottom-right aligned, and every segment has S_g >= T_g
    keys; otherwise at least one.

    Args:
        q: (T, N, H). k, v: (S, K, H) with K dividing N (grouped-query attention).
        cu_seqlens_q, cu_seqlens_k: (G + 1,) int32 running totals of segment lengths, on q's device.
        max_seqlen_q, max_seqlen_k: the longest segment.
        scale: of the scores; default H ** -0.5.
        causal: whether the n-th last query sees all but the last n - 1 keys, or all.
        backend: `auto`, `flash_attn`, `torch` or `sdpa`.

    Returns:
        (T, N, H), the dtype of q.

    Raises:
        ModelError: the back-end that was asked for by name is missing or cannot serve device or
        dtype.
    """
    run = BACKENDS[resolve_backend(backend, q.device.type, q.dtype)].run
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return run(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale, causal)


@lru_cache(maxsize=64)
def resolve_backend(backend: str, device_type: str, dtype: torch.dtype) -> str:
    """The back-end that will run: the one asked for, or for `auto` the first that works (logged
    once)."""
    if backend != "auto":
        if backend not in BACKENDS:
            raise ModelError(unknown_name("attention backend", backend, ["auto", *BACKENDS]))
        if obstacle := BACKENDS[backend].obstacle(device_type, dtype):
            raise ModelError(f"attention backend '{backend}' cannot run: {obstacle}")
        return backend
    for name, candidate in BACKENDS.items():
        if not candidate.obstacle(device_type, dtype):
            log.info("attention backend: %s (%s, %s)", name, device_type, dtype)
            return name
    raise AssertionError("sdpa runs everywhere")


def _needs_half_on_cuda(device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cuda":
        return f"it needs a CUDA device, the tensors are on '{device_type}': use sdpa"
    if dtype not in HALF_DTYPES:
        return f"it needs bfloat16 or float16, the tensors are {dtype}: set model.dtype or use sdpa"
    if torch.version.cuda and (has := torch.cuda.get_device_capability()) < AMPERE:
        return f"it needs compute capability 8.0 (Ampere), this GPU has {has[0]}.{has[1]}: use sdpa"
    return None


# ---- flash_attn ----------------------------------------------------------------------------------


def _flash_attn_obstacle(device_type: str, dtype: torch.dtype) -> str | None:
    try:
        from flash_attn import flash_attn_varlen_func  # noqa: F401 (flash-attn 4 has none)
    except ImportError:
        return (
            "the package flash-attn 2 is not installed: "
            "`pip install flash-attn --no-build-isolation` (needs CUDA), or use torch or sdpa"
        )
    return _needs_half_on_cuda(device_type, dtype)


def _flash_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool,
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    out: Tensor = flash_attn_varlen_func(
        *(q, k, v, cu_q, cu_k, max_q, max_k),
        softmax_scale=scale,
        causal=causal,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return out


# ---- torch ---------------------------------------------------------------------------------------


def _torch_obstacle(device_type: str, dtype: torch.dtype) -> str | None:
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen: torch >= 2.10 has"
    return _needs_half_on_cuda(device_type, dtype)


@lru_cache(maxsize=1)
def _torch_varlen_parameters() -> frozenset[str]:
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool,
) -> Tensor:
    """`varlen_attn`, whose signature moved: `is_causal` became `window_size`, `scale` and
    `enable_gqa` came."""
    from torch.nn.attention.varlen import varlen_attn

    accepted = _torch_varlen_parameters()
    options: dict[str, Any] = {"window_size": (-1, 0 if causal else -1)}
    if "window_size" not in accepted:
        options = {"is_causal": causal}
    if "scale" in accepted:
        options["scale"] = scale
    else:
        q = q * (scale * q.shape[-1] ** 0.5)
    if "enable_gqa" in accepted:
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    else:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    run: Any = varlen_attn
    out: Tensor = run(q, k, v, cu_q, cu_k, max_q, max_k, **options)
    return out


# ---- sdpa ----------------------------------------------------------------------------------------


def _sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    causal: bool,
) -> Tensor:
    """Pads segments of like shape together, one `scaled_dot_product_attention` a group."""
    plan = _padding_plan(
        tuple(cu_q.tolist()), tuple(cu_k.tolist()), q.shape[1] // k.shape[1], causal, q.device
    )
    n_heads, n_kv, head_dim = q.shape[1], k.shape[1], q.shape[2]
    outs = []
    for group in plan.groups:
        # (B, Tg, K, R, H): the R query heads of a kv head become R times as many queries
        q_g = _rows(q, group.query_index).unflatten(2, (n_kv, n_heads // n_kv))
        q_g = q_g.permute(0, 2, 3, 1, 4).flatten(2, 3)
        k_g, v_g = (_rows(x, group.key_index).transpose(1, 2) for x in (k, v))
        out = F.scaled_dot_product_attention(q_g, k_g, v_g, attn_mask=group.mask, scale=scale)
        out = out.unflatten(2, (n_heads // n_kv, -1)).permute(0, 3, 1, 2, 4)
        outs.append(out.reshape(-1, n_heads, head_dim))
    return torch.cat(outs).index_select(0, plan.output_index)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index] for rows of x; its backward adds, where that of x[index] sorts first."""
    rows: Tensor = x.index_select(0, index.flatten()).unflatten(0, index.shape)
    return rows


@dataclass(frozen=True)
class _Group:
    """B segments padded to one shape. query_index (B, Tg), key_index (B, Sg): rows of q and k;
    mask (B, 1, R * Tg, Sg) bool, True where a query may look."""

    query_index: Tensor
    key_index: Tensor
    mask: Tensor


@dataclass(frozen=True)
class _PaddingPlan:
    """groups, and output_index (T,): where each query's output lies in the groups' outputs end
    to end."""

    groups: Sequence[_Group]
    output_index: Tensor


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # plans outlive the mode in which they are made: autograd saves them
def _padding_plan(
    cu_q: tuple[int, ...],
    cu_k: tuple[int, ...],
    n_repeats: int,
    causal: bool,
    device: torch.device,
) -> _PaddingPlan:
    starts_q, starts_k = torch.tensor(cu_q), torch.tensor(cu_k)
    len_q, len_k = starts_q.diff(), starts_k.diff()
    members: dict[tuple[int, int], list[int]] = {}
    for segment, shape in enumerate(zip(len_q.tolist(), len_k.tolist(), strict=True)):
        if shape[0]:
            members.setdefault((_size_class(shape[0]), _size_class(shape[1])), []).append(segment)
    output_index = torch.zeros(cu_q[-1], dtype=torch.int64)
    groups, offset = [], 0
    for segments in members.values():
        of = torch.tensor(segments)
        group, is_query = _pad_group(
            starts_q[of], len_q[of], starts_k[of], len_k[of], n_repeats, causal=causal
        )
        output_index[group.query_index[is_query]] = offset + is_query.flatten().nonzero()[:, 0]
        offset += is_query.numel()
        groups.append(
            _Group(group.query_index.to(device), group.key_index.to(device), group.mask.to(device))
        )
    return _PaddingPlan(groups, output_index.to(device))


def _size_class(length: int) -> int:
    """Lengths of one class differ by at most SHAPE_RATIO."""
    size, bound = 0, 4.0
    while bound < length:
        size, bound = size + 1, bound * SHAPE_RATIO
    return size


def _pad_group(
    starts_q: Tensor,
    len_q: Tensor,
    starts_k: Tensor,
    len_k: Tensor,
    n_repeats: int,
    *,
    causal: bool,
) -> tuple[_Group, Tensor]:
    """The padded indices and mask of some segments, and which padded queries (B, Tg) are real."""
    t, s = torch.arange(int(len_q.max())), torch.arange(int(len_k.max()))
    is_query, is_key = t < len_q[:, None], s < len_k[:, None]
    query_index = torch.where(is_query, starts_q[:, None] + t, 0)
    key_index = torch.where(is_key, starts_k[:, None] + s, 0)
    # the furthest key that query t may look at
    last_key = t + (len_k - len_q)[:, None] if causal else (len_k[:, None] - 1).expand(-1, len(t))
    mask = (s <= last_key[:, :, None]) & is_key[:, None, :]
    mask[..., 0] |= ~is_query  # a padded query looks somewhere, or its softmax would be 0 / 0
    return _Group(query_index, key_index, mask.repeat(1, n_repeats, 1)[:, None]), is_query


# ---- the table of back-ends, in order of preference ----------------------------------------------


@dataclass(frozen=True)
class _Backend:
    """run: the computation. obstacle: why it cannot serve a device and dtype, None if it can."""

    run: Callable[..., Tensor]
    obstacle: Callable[[str, torch.dtype], str | None]


BACKENDS: dict[str, _Backend] = {
    "flash_attn": _Backend(_flash_attn, _flash_attn_obstacle),
    "torch": _Backend(_torch, _torch_obstacle),
    "sdpa": _Backend(_sdpa, lambda device_type, dtype: None),
}
