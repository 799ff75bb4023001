"""Gated cross-attention: audio heard by new layers between the decoder's, Flamingo's way.

Before each chosen decoder layer stands a block of Flamingo (arXiv 2204.14198, section 3.1.2 and
figure 4); its gates start at zero, so that at first the LLM is what it was:

    x = x + tanh(a) * CrossAttention(LN(x), audio)
    x = x + tanh(b) * FFN(LN(x))

It comes in by a hook before the layer, for the layer itself stays unmodified. Where the paper is
silent or speaks of images:
- a text token hears every clip before it, whole, as by the other routes (Flamingo: the last image
  alone); tokens that have heard nothing pass a block unchanged, its FFN too, so that without audio
  the logits are the LLM's own;
- audio tokens are normalised and get sinusoidal positions in their clip, for cross-attention knows
  no order by itself (Flamingo: time embeddings within the resampler).

Notation: R rows, Q rows that hear, A audio tokens, N heads, H head dim, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paltrain.model.cache import ConversationCache
from paltrain.model.segments import DevicePlan, Segments

FFN_RATIO = 4  # of the FFN's width to the LLM's, as Flamingo's


class GatedCrossAttention(nn.Module):
    """One block; see the module's docstring. It has as many heads as the LLM's attention.

    gradient_checkpointing: computed again in the backward pass (`transformers` sets it by name).
    """

    gradient_checkpointing = False

    def __init__(self, width: int, *, n_heads: int, head_dim: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        inner = n_heads * head_dim
        self.norm_audio = nn.LayerNorm(width)
        self.norm_rows = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, inner, bias=False)
        self.k_proj = nn.Linear(width, inner, bias=False)
        self.v_proj = nn.Linear(width, inner, bias=False)
        self.o_proj = nn.Linear(inner, width, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.norm_ffn = nn.LayerNorm(width)
        self.up = nn.Linear(width, FFN_RATIO * width, bias=False)
        self.down = nn.Linear(FFN_RATIO * width, width, bias=False)
        self.ffn_gate = nn.Parameter(torch.zeros(1))

    def keys_and_values(self, audio_AD: Tensor, positions_AD: Tensor) -> tuple[Tensor, Tensor]:
        """(A, N, H) each. positions_AD: the sinusoids of each token's place in its clip."""
        states = self.norm_audio(audio_AD) + positions_AD
        k, v = (x(states).unflatten(-1, (self.n_heads, -1)) for x in (self.k_proj, self.v_proj))
        return k, v

    def forward(
        self, rows_QD: Tensor, k_SNH: Tensor, v_SNH: Tensor, segments: Segments, *, backend: str
    ) -> Tensor:
        """The rows (Q, D) after the block. segments: of the rows and of the keys."""
        q = self.q_proj(self.norm_rows(rows_QD)).unflatten(-1, (self.n_heads, -1))
        heard = segments.attend(
            q, k_SNH, v_SNH, scale=q.shape[-1] ** -0.5, causal=False, backend=backend
        )
        rows: Tensor = rows_QD + self.attention_gate.tanh() * self.o_proj(heard.flatten(1))
        hidden = nn.functional.gelu(self.up(self.norm_ffn(rows)))
        out: Tensor = rows + self.ffn_gate.tanh() * self.down(hidden)
        return out


@dataclass(frozen=True)
class CrossAudio:
    """One stream's audio of a packed batch, for its blocks.

    states, positions: (A, D). plan: of the rows that hear it, and of the audio tokens they hear.
    """

    states: Tensor
    positions: Tensor
    plan: DevicePlan

    def heard_by(
        self,
        rows_RD: Tensor,
        block: GatedCrossAttention,
        *,
        backend: str,
        cache_as: tuple[ConversationCache, str] | None = None,
    ) -> Tensor:
        """All rows (R, D) after the block. cache_as: a cache to fill, and the name to do it by.

        Where no row hears anything the block runs all the same and is added times zero: every rank
        of a sharded run runs the same modules.
        """

        def run(rows: Tensor, states: Tensor) -> Tensor:
            k, v = block.keys_and_values(states, self.positions)
            if cache_as is not None:
                cache, name = cache_as
                cache.fill_cross(name, *self.plan.of_paths(k, v))
            return self._hear(rows, block, k, v, backend=backend)

        if block.gradient_checkpointing and block.training:
            out: Tensor = checkpoint(run, rows_RD, self.states, use_reentrant=False)
            return out
        return run(rows_RD, self.states)

    def _hear(
        self, rows: Tensor, block: GatedCrossAttention, k: Tensor, v: Tensor, *, backend: str
    ) -> Tensor:
        hearing, keys = self.plan.row_index, self.plan.key_index
        assert hearing is not None
        assert keys is not None
        if not len(hearing):
            ends = torch.tensor([0, 1], dtype=torch.int32, device=rows.device)
            out = block(rows[:1], k[:1], v[:1], Segments(ends, ends, 1, 1), backend=backend)
            return torch.cat([rows[:1] + 0.0 * out, rows[1:]])
        k, v = (x.index_select(0, keys) for x in (k, v))
        heard = block(rows.index_select(0, hearing), k, v, self.plan.segments, backend=backend)
        return rows.index_copy(0, hearing, heard)


def heard_from_cache(
    rows_BD: Tensor,
    block: GatedCrossAttention,
    cache: ConversationCache,
    name: str,
    *,
    backend: str,
) -> Tensor:
    """One more token (B, D) of each cached conversation after the block."""
    layer = cache.cross[name]
    hearing = np.flatnonzero(layer.lengths)
    if not len(hearing):
        return rows_BD
    k, v, cu_seqlens_k = layer.packed(hearing)
    segments = Segments.one_query_each(cu_seqlens_k, layer.longest)
    index = torch.from_numpy(hearing).to(rows_BD.device)
    out = block(rows_BD.index_select(0, index), k, v, segments, backend=backend)
    return rows_BD.index_copy(0, index, out)


class CrossContext(Protocol):
    """What a forward pass tells the hook before a decoder layer."""

    def before_layer(self, layer: int, hidden: Tensor) -> Tensor: ...


def install(layers: Sequence[Any], chosen: Mapping[int, Any]) -> None:
    """Let the `chosen` decoder layers be preceded by what `pal` (a `CrossContext`) adds."""
    for number in chosen:
        layers[number].register_forward_pre_hook(_before_layer, with_kwargs=True)


def _before_layer(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    hidden = kwargs["pal"].before_layer(layer.self_attn.layer_idx, args[0])
    return (hidden, *args[1:]), kwargs
