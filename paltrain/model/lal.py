"""LAL: audio as keys and values of the text's attention, inside an unmodified `transformers`
decoder.

One function is registered with `AttentionInterface` and chosen for the LLM. The decoder runs the
packed rows as one sequence; its layers call this function, which adds the layer's audio keys and
values and hands all to `varlen_attention`. Per layer l and LAL stream (PAL, arXiv 2506.10423,
the section on LAL):

    A_l  = P_l(z)                                 z: the connector's output
    k, v = W_K, W_V of layer l applied to input_layernorm_l(A_l), k_norm where the family has one
    k    = RoPE(k) at the audio's own positions

No audio row is ever a query, so o_proj and the FFN never see one. What the decoder needs to know
travels as one keyword argument, `pal`, through `transformers`' own keyword arguments: one of the
contexts of `paltrain.model.context`.

Notation: A audio tokens, N heads, K kv heads, H head dim, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from paltrain.errors import ModelError
from paltrain.model.families import KeysAndValues, family_of

ATTENTION_NAME = "paltrain_varlen"
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class AudioStates:
    """One LAL stream of a batch. states: (A, D). rope: cos and sin, each (1, A, H). projections:
    P_l by layer."""

    states: Tensor
    rope: tuple[Tensor, Tensor]
    projections: Mapping[str, nn.Module]

    def at_layer(self, layer: int) -> Tensor:
        """A_l = P_l(z), (A, D)."""
        name = str(layer)
        if name not in self.projections:
            return self.states
        projected: Tensor = self.projections[name](self.states)
        return projected


class AttentionContext(Protocol):
    """What one forward pass of the decoder tells every layer's attention."""

    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, scale: float
    ) -> Tensor: ...

    def longest_span(self) -> int:
        """Positions from the first key to the last query of the longest conversation."""
        ...


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    pal: AttentionContext | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The registered attention function. What it cannot honour it refuses."""
    if pal is None:
        raise ModelError("this LLM listens through PalModel: call PalModel, not its `llm` alone")
    if dropout:
        raise ModelError(f"attention dropout is {dropout}, packed attention has none: set it to 0")
    if softcap:
        raise ModelError(
            f"attention soft-capping ({softcap}) is not supported by packed attention: choose an "
            "LLM without it"
        )
    if attention_mask is not None:
        raise ModelError("an attention mask reached packed attention, whose segments say it all")
    if sliding_window is not None and pal.longest_span() > sliding_window:
        raise ModelError(
            f"a conversation spans {pal.longest_span()} positions, over the LLM's sliding window "
            f"of {sliding_window}: shorten it, or set sliding_window to null in the LLM's config"
        )
    return pal.attend(module, query, key, value, scale=scaling), None


def install(llm: PreTrainedModel) -> KeysAndValues:
    """Let `llm`, any decoder of the supported families, attend through `varlen_attention`.

    Returns how its layers make keys and values of audio.

    Raises:
        ModelError: the family, its RoPE or its dropout is not supported.
    """
    config: Any = llm.config
    keys_and_values = family_of(config.model_type)
    rope = rope_type(config)
    if rope not in ROPE_TYPES:
        raise ModelError(
            f"RoPE type '{rope}' depends on the length of the sequence, so audio keys cannot be "
            f"rotated apart; supported: {', '.join(ROPE_TYPES)}"
        )
    if getattr(config, "attention_dropout", 0.0):
        raise ModelError(
            f"attention_dropout is {config.attention_dropout}, packed attention has none: set it "
            "to 0"
        )
    AttentionInterface.register(ATTENTION_NAME, _attention)
    llm.set_attn_implementation(ATTENTION_NAME)
    return keys_and_values


def rope_type(config: Any) -> str:
    """The kind of rotary scaling of a `transformers` config, 'default' where it says none."""
    for field in ("rope_parameters", "rope_scaling"):
        parameters = getattr(config, field, None)
        if parameters:
            return str(parameters.get("rope_type", parameters.get("type", "default")))
    return "default"
