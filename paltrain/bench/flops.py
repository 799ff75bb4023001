"""Counts the multiply-adds that a training step needs, so that a measured ratio has a bound.

Per token as `paltrain.model.cost`; here for whole conversations, whose attention counts only the
(query, key) pairs that the causal mask lets through, and whose head runs at the targets.
"""

from __future__ import annotations

from typing import Any

from paltrain.model.cost import BACKWARD, DecoderShape, mlp_flops

LLAMA_1B: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
WHISPER_WIDTH = 1280  # of large-v3's encoder


def linear_flops(
    shape: DecoderShape, *, n_audio: int, n_text: int, n_targets: int, route: str
) -> int:
    """FLOPs of a forward pass's matrix products with weights, one conversation, no connector."""
    audio = shape.row_flops if route == "plits" else shape.n_layers * shape.key_flops
    return n_text * shape.row_flops + n_audio * audio + n_targets * shape.head_flops


def attention_flops(
    shape: DecoderShape, *, n_audio: int, n_text: int, n_before: int, route: str
) -> int:
    """FLOPs of the scores and the weighted sums, forward. n_before: text tokens before the clip."""
    n_after = n_text - n_before
    pairs = _causal(n_text) + n_after * n_audio
    if route == "plits":
        pairs += _causal(n_audio) + n_audio * n_before
    return pairs * shape.pair_flops


def connector_flops(
    *, n_audio: int, width: int, frame_stack: int, hidden: int, model_width: int
) -> int:
    """FLOPs of an `mlp` connector, forward."""
    return n_audio * mlp_flops(
        width=width, frame_stack=frame_stack, hidden=hidden, model_width=model_width
    )


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
