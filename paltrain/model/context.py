"""What one forward pass of the decoder tells its layers, as the keyword argument `pal`.

`PackedContext` (training, prefill) knows the packed rows of a batch, `DecodeContext` (generation
behind a prefill) the cache. Both answer a layer's attention (`attend`: own keys and LAL's) and the
hook before a layer (`before_layer`: cross-attention).

Notation: R rows, B conversations, N heads, K kv heads, H head dim, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from paltrain.model.cache import ConversationCache
from paltrain.model.families import KeysAndValues
from paltrain.model.lal import AudioStates
from paltrain.model.segments import DevicePlan, Segments
from paltrain.model.xattn import CrossAudio, GatedCrossAttention, heard_from_cache

BlocksAt = Mapping[int, Mapping[str, GatedCrossAttention]]  # by layer and stream


@dataclass(frozen=True)
class PackedContext:
    """Training and prefill: the packed rows of a batch.

    streams_at: by layer, the names of the LAL streams that are present, in config order. plans: by
    such a tuple. layers: the decoder's, and keys_and_values how its family makes them of audio.
    blocks: by layer and stream, the blocks of cross-attention before it; cross: by stream, their
    audio. cache: filled on the way, where generation follows.
    """

    streams_at: tuple[tuple[str, ...], ...]
    plans: Mapping[tuple[str, ...], DevicePlan]
    audio: Mapping[str, AudioStates]
    layers: nn.ModuleList
    keys_and_values: KeysAndValues
    span: int
    backend: str
    blocks: BlocksAt = field(default_factory=dict)
    cross: Mapping[str, CrossAudio] = field(default_factory=dict)
    cache: ConversationCache | None = None

    def longest_span(self) -> int:
        return self.span

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """q: (1, N, R, H); k, v: (1, K, R, H), rotated. Returns (1, R, N, H)."""
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))
        names = self.streams_at[module.layer_idx]
        plan = self.plans[names]
        if names:
            layer = self.layers[module.layer_idx]
            audio = [
                self.keys_and_values(layer, each.at_layer(module.layer_idx), each.rope)
                for each in (self.audio[name] for name in names)
            ]
            k = torch.cat([k, *(audio_k for audio_k, _ in audio)])
            v = torch.cat([v, *(audio_v for _, audio_v in audio)])
        if self.cache is not None:
            self.cache.fill(module.layer_idx, *plan.of_paths(k, v))
        if plan.key_index is not None:
            k, v = (x.index_select(0, plan.key_index) for x in (k, v))
        out = plan.segments.attend(q, k, v, scale=scale, backend=self.backend)
        return out[None]

    def before_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """hidden: (1, R, D)."""
        rows = hidden[0]
        for stream, block in self.blocks[layer].items():
            cache_as = None if self.cache is None else (self.cache, block_name(stream, layer))
            rows = self.cross[stream].heard_by(
                rows,
                block,
                backend=self.backend,
                cache_as=cache_as,
            )
        return rows[None]


@dataclass(frozen=True)
class DecodeContext:
    """One more token for each of B conversations whose keys and values are in the cache."""

    cache: ConversationCache
    backend: str
    blocks: BlocksAt = field(default_factory=dict)

    def longest_span(self) -> int:
        return int(self.cache.next_positions.max()) + 1

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        """q: (B, N, 1, H); k, v: (B, K, longest, H), the cache's rows. Returns (B, 1, N, H)."""
        layer = self.cache.layers[module.layer_idx]
        k, v, cu_seqlens_k = layer.packed()
        segments = Segments.one_query_each(cu_seqlens_k, layer.longest)
        out = segments.attend(q[:, :, 0], k, v, scale=scale, backend=self.backend)
        return out[:, None]

    def before_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """hidden: (B, 1, D)."""
        rows = hidden[:, 0]
        for stream, block in self.blocks[layer].items():
            rows = heard_from_cache(
                rows, block, self.cache, block_name(stream, layer), backend=self.backend
            )
        return rows[:, None]


def block_name(stream: str, layer: int) -> str:
    """What a cache calls the audio of the block of `stream` before `layer`."""
    return f"{stream}.{layer}"
