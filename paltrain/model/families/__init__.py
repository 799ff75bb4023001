"""Families of decoders: how each makes keys and values of what its attention is given.

LAL hands audio to a layer's own projections, and all that differs between families is how these are
applied: a norm before them, one on the keys, positions. One function says it, in one file a family;
`FAMILIES` says which. CONTRIBUTING shows a further one.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, cast

from torch import Tensor

from paltrain.errors import ModelError

LLAMA = "paltrain.model.families.llama:keys_and_values"
FAMILIES = {"llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA}


class KeysAndValues(Protocol):
    """(A, K, H) keys, rotated, and values that a decoder layer makes of audio states (A, D).

    rope: cos and sin of the audio's positions, each (1, A, H).
    """

    def __call__(
        self, layer: Any, states_AD: Tensor, rope: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]: ...


def family_of(model_type: str) -> KeysAndValues:
    """The function of a decoder whose `transformers` configuration has this `model_type`.

    Raises:
        ModelError: the family is not supported.
    """
    if model_type not in FAMILIES:
        raise ModelError(
            f"LLM family '{model_type}' is not supported; supported: {', '.join(FAMILIES)}. "
            "It needs an attention that goes through transformers' AttentionInterface, RoPE by "
            "apply_rotary_pos_emb, and a function of its own in paltrain/model/families "
            "(CONTRIBUTING shows one)"
        )
    module, _, name = FAMILIES[model_type].partition(":")
    return cast("KeysAndValues", getattr(import_module(module), name))


def rotated(layer: Any, k_AKH: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Keys at their positions, by the function that the layer's own modelling file uses."""
    modelling = import_module(type(layer.self_attn).__module__)
    k_1KAH = k_AKH.transpose(0, 1)[None]
    queries = k_1KAH[:, :1]  # audio has none, and the function wants some
    out: Tensor = modelling.apply_rotary_pos_emb(queries, k_1KAH, *rope)[1]
    return out[0].transpose(0, 1)
