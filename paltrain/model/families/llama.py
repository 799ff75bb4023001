"""Llama, Mistral, Qwen2 and Qwen3: a norm before the attention; Qwen3 has one on each key, too."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from paltrain.model.families import rotated


def keys_and_values(
    layer: Any, states_AD: Tensor, rope: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """See `paltrain.model.families.KeysAndValues`."""
    attention = layer.self_attn
    states_AD = layer.input_layernorm(states_AD)
    k = attention.k_proj(states_AD).unflatten(-1, (-1, attention.head_dim))
    v: Tensor = attention.v_proj(states_AD).unflatten(-1, (-1, attention.head_dim))
    if hasattr(attention, "k_norm"):
        k = attention.k_norm(k)
    return rotated(layer, k, rope), v
