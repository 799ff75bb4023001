"""Segments on the device: what `varlen_attention` takes, and the indices that gather for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paltrain.batch import IntArray
from paltrain.model.attention import varlen_attention
from paltrain.model.layout import AttentionPlan


@dataclass(frozen=True)
class Segments:
    """Runs of queries and of their keys. cu_seqlens_q, cu_seqlens_k: (G + 1,) int32."""

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int

    @classmethod
    def one_query_each(cls, cu_seqlens_k: Tensor, max_seqlen_k: int) -> Segments:
        """G segments of one query."""
        ends = torch.arange(len(cu_seqlens_k), dtype=torch.int32, device=cu_seqlens_k.device)
        return cls(ends, cu_seqlens_k, 1, max_seqlen_k)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, backend: str, scale: float, causal: bool = True
    ) -> Tensor:
        """`varlen_attention` of these segments: q (T, N, H), k and v (S, K, H) -> (T, N, H)."""
        return varlen_attention(
            q.contiguous(),
            k.contiguous(),
            v.contiguous(),
            self.cu_seqlens_q,
            self.cu_seqlens_k,
            self.max_seqlen_q,
            self.max_seqlen_k,
            scale=scale,
            causal=causal,
            backend=backend,
        )


@dataclass(frozen=True)
class DevicePlan:
    """An `AttentionPlan` whose indices are on the device. path_lengths: (B,) keys of every whole
    conversation, on the host. What only a cache asks for, these and path_index, is None without
    one."""

    segments: Segments
    key_index: Tensor | None
    row_index: Tensor | None
    path_index: Tensor | None
    path_lengths: IntArray | None

    @classmethod
    def of(
        cls, plan: AttentionPlan, device: torch.device, *, for_cache: bool = False
    ) -> DevicePlan:
        def put(array: Any) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        segments = Segments(
            put(plan.cu_seqlens_q), put(plan.cu_seqlens_k), plan.max_seqlen_q, plan.max_seqlen_k
        )
        return cls(
            segments,
            key_index=None if plan.key_index is None else put(plan.key_index),
            row_index=None if plan.row_index is None else put(plan.row_index),
            path_index=put(plan.path_index) if for_cache else None,
            path_lengths=np.diff(plan.cu_path).astype(np.int64) if for_cache else None,
        )

    def of_paths(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, IntArray]:
        """What a cache takes: the keys and values of every whole conversation, and how many."""
        assert self.path_index is not None
        assert self.path_lengths is not None
        return k[self.path_index], v[self.path_index], self.path_lengths
