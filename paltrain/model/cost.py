"""What the parts of a training step cost, in FLOPs of a forward pass, from an LLM's sizes alone.

A product with a weight is 2 FLOPs a token; backward is `BACKWARD` times forward everywhere, so the
proportions are those of a whole step. The routes differ in which tokens pay for what:

              q, o, FFN          k, v               pairs (query, key)
    PLITS     audio and text     audio and text     causal over audio and text
    LAL       text               audio and text     text x (audio + text up to itself)
    xattn     text               text; audio in     causal over text; text x audio in its blocks
                                 its blocks

and every audio token passes its connector, once for all layers. Torch-free: plans and dry runs ask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paltrain.errors import ModelError
from paltrain.model.audio_tokens import FIXED
from paltrain.model.layers import layers_of_stream

BACKWARD = 2  # times forward: gradients of the inputs and of the weights
PROJECTION_WEIGHTS = {"shared": 0, "linear": 1, "mlp": 2}  # P_l of LAL, in squares of the width


@dataclass(frozen=True)
class DecoderShape:
    """The sizes that the counts need, from a `transformers` configuration."""

    n_layers: int
    width: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_width: int
    vocab_size: int

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """config: a `transformers` configuration, or its fields.

        Raises:
            ModelError: it does not say a size, or says one for each layer.
        """

        def said(name: str) -> int | None:
            is_plain = isinstance(config, Mapping)
            value = config.get(name) if is_plain else getattr(config, name, None)
            if value is not None and not isinstance(value, int):
                raise ModelError(
                    f"the LLM's configuration must say {name} as one number, is {value!r:.60}: "
                    "choose a model whose layers all have the same"
                )
            return value

        def size(name: str) -> int:
            value = said(name)
            if not value:
                raise ModelError(f"the LLM's configuration has no {name}: write it there")
            return value

        n_heads = size("num_attention_heads")
        return cls(
            n_layers=size("num_hidden_layers"),
            width=size("hidden_size"),
            n_heads=n_heads,
            n_kv_heads=said("num_key_value_heads") or n_heads,
            head_dim=said("head_dim") or size("hidden_size") // n_heads,
            ffn_width=size("intermediate_size"),
            vocab_size=size("vocab_size"),
        )

    @property
    def row_flops(self) -> int:
        """A token with a query: the products of all layers with q, k, v, o and the FFN."""
        query_and_out = 4 * self.width * self.n_heads * self.head_dim
        return self.n_layers * (query_and_out + self.key_flops + 6 * self.width * self.ffn_width)

    @property
    def key_flops(self) -> int:
        """A token's key and value in one layer."""
        return 4 * self.width * self.n_kv_heads * self.head_dim

    @property
    def block_flops(self) -> int:
        """A token that passes a block of cross-attention: q, o and the FFN of 4 times the width."""
        return 4 * self.width * self.n_heads * self.head_dim + 16 * self.width**2

    @property
    def pair_flops(self) -> int:
        """Score and weighted value of a query and a key, in all layers."""
        return self.n_layers * 4 * self.n_heads * self.head_dim

    @property
    def head_flops(self) -> int:
        """The logits of one target."""
        return 2 * self.width * self.vocab_size


def mlp_flops(*, width: int, frame_stack: int, hidden: int, model_width: int) -> int:
    """An audio token of an `mlp` connector."""
    return 2 * (width * frame_stack * hidden + hidden * model_width)


def connector_flops(
    connector: Mapping[str, Any], *, width: int, model_width: int
) -> tuple[int, int]:
    """What an audio token takes, and what a frame takes besides.

    connector: the fields of `ConnectorConfig`. width: of the encoder's frames.
    """
    by_windows = connector["type"] == "summary" and connector["summary_by"] == "windows"
    if connector["type"] == "mlp" or by_windows:
        hidden = connector.get("hidden_width") or model_width
        stack = 1 if by_windows else connector["frame_stack"]
        return mlp_flops(width=width, frame_stack=stack, hidden=hidden, model_width=model_width), 0
    n_layers, square = connector["n_layers"], model_width**2
    n_latents = connector[FIXED[connector["type"]]]
    latent = n_layers * (4 + 16) * square  # q, o and the FFN
    frame = n_layers * (4 * square + 4 * n_latents * model_width)  # k, v and pairs
    return latent, 2 * width * model_width + frame


def stream_costs(shape: DecoderShape, spec: Mapping[str, Any], *, stream: str) -> dict[str, float]:
    """What one stream's audio takes: `token` and `frame` in FLOPs, attention's pairs apart.

    spec: route, width, connector, layers and layer_projection, as `PalConfig` keeps them. rows,
    keys: the share of the layers in which an audio token is a query and a key, or a key alone.

    Raises:
        ModelError: `layers` names one that the LLM has not.
    """
    token, frame = connector_flops(spec["connector"], width=spec["width"], model_width=shape.width)
    if spec["route"] == "plits":
        return {"token": token + shape.row_flops, "frame": frame, "rows": 1.0, "keys": 0.0}
    n_taking = len(layers_of_stream(spec["layers"], n_layers=shape.n_layers, stream=stream))
    if spec["route"] == "xattn":
        token += n_taking * 4 * shape.width * shape.n_heads * shape.head_dim
        return {"token": token, "frame": frame, "rows": 0.0, "keys": n_taking / shape.n_layers}
    projection = 2 * PROJECTION_WEIGHTS[spec["layer_projection"]] * shape.width**2
    token += n_taking * (shape.key_flops + projection)
    return {"token": token, "frame": frame, "rows": 0.0, "keys": n_taking / shape.n_layers}


def visit_costs(llm_config: Any, streams: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers by which plans weigh visits (`paltrain.data.packing.CostModel`).

    llm_config: a `transformers` configuration, or its fields. streams: by name, as `stream_costs`.
    text: a text token; target: a token to predict; pair: a query and a key that it looks at.
    """
    shape = DecoderShape.of(llm_config)
    blocks = sum(
        len(layers_of_stream(spec["layers"], n_layers=shape.n_layers, stream=name))
        for name, spec in streams.items()
        if spec["route"] == "xattn"
    )
    return {
        "text": shape.row_flops + blocks * shape.block_flops,
        "target": shape.head_flops,
        "pair": shape.pair_flops,
        "streams": {name: stream_costs(shape, spec, stream=name) for name, spec in streams.items()},
    }
