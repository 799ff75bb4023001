"""Counts the multiply-adds that a training step needs, so that a measured ratio has a bound.

Per decoder layer and row: the projections q, k, v, o and the FFN's three; attention counts only the
(query, key) pairs that the causal mask lets through; the head runs at the targets. Backward is
twice
forward. What differs between the routes is which rows pay for what:

              q, o, FFN          k, v               pairs
    PLITS     audio and text     audio and text     causal over audio and text
    LAL       text               audio and text     text x (audio + text up to itself)

Notation: T text tokens, A audio tokens (of one conversation), D width, N heads, K kv heads, H head
dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BACKWARD = 2  # times forward: gradients of the inputs and of the weights


@dataclass(frozen=True)
class DecoderShape:
    """The sizes that the count needs, from a `transformers` configuration."""

    n_layers: int
    width: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_width: int
    vocab_size: int

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        n_heads = config.num_attention_heads
        return cls(
            n_layers=config.num_hidden_layers,
            width=config.hidden_size,
            n_heads=n_heads,
            n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
            ffn_width=config.intermediate_size,
            vocab_size=config.vocab_size,
        )


def linear_flops(
    shape: DecoderShape, *, n_audio: int, n_text: int, n_targets: int, route: str
) -> int:
    """FLOPs of a forward pass's matrix products with weights, one conversation, no connector."""
    rows = n_text + n_audio if route == "plits" else n_text
    key_rows = n_text + n_audio
    query_and_out = 4 * shape.width * shape.n_heads * shape.head_dim
    key_and_value = 4 * shape.width * shape.n_kv_heads * shape.head_dim
    ffn = 6 * shape.width * shape.ffn_width
    layer = rows * (query_and_out + ffn) + key_rows * key_and_value
    return shape.n_layers * layer + 2 * shape.width * shape.vocab_size * n_targets


def attention_flops(
    shape: DecoderShape, *, n_audio: int, n_text: int, n_before: int, route: str
) -> int:
    """FLOPs of the scores and the weighted sums, forward. n_before: text tokens before the clip."""
    n_after = n_text - n_before
    pairs = _causal(n_text) + n_after * n_audio
    if route == "plits":
        pairs += _causal(n_audio) + n_audio * n_before
    return shape.n_layers * pairs * 4 * shape.n_heads * shape.head_dim


def connector_flops(
    *, n_audio: int, width: int, frame_stack: int, hidden: int, model_width: int
) -> int:
    """FLOPs of an `mlp` connector, forward."""
    return 2 * n_audio * (width * frame_stack * hidden + hidden * model_width)


def step_flops(
    shape: DecoderShape,
    *,
    n_audio: int,
    n_text: int,
    n_before: int,
    n_targets: int,
    connector: int,
    route: str,
) -> int:
    """FLOPs of one conversation's forward and backward. connector: its forward."""
    forward = (
        linear_flops(shape, n_audio=n_audio, n_text=n_text, n_targets=n_targets, route=route)
        + attention_flops(shape, n_audio=n_audio, n_text=n_text, n_before=n_before, route=route)
        + connector
    )
    return (1 + BACKWARD) * forward


def _causal(n: int) -> int:
    return n * (n + 1) // 2
