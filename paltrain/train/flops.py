"""FLOPs that a token's training takes, for MFU.

Counted are the products with the LLM's layer weights: 2 a weight in the forward pass, 2 for the
gradient of the activations, 2 more where the weight trains. Left out are attention's own products,
the head (only target rows reach it), and connectors; so an MFU from it is a lower bound.
"""

from __future__ import annotations

from torch import nn

from paltrain.train.loop import TokenFlops

LAL_WEIGHTS = (".self_attn.k_proj.", ".self_attn.v_proj.")


def token_flops(model: nn.Module, peak_tflops: float | None) -> TokenFlops:
    """For a model with parameter names as in `paltrain.train.stages` and `config.streams[...]`.

    An audio token of a `plits` stream costs what a text token does; of a `lal` stream only keys and
    values. Several streams: their mean.
    """
    weights = [
        (name, parameter.numel() * (6 if parameter.requires_grad else 4))
        for name, parameter in model.named_parameters()
        if ".layers." in name and name.startswith("llm.") and parameter.dim() > 1
    ]
    text = sum(flops for _, flops in weights)
    lal = sum(flops for name, flops in weights if any(part in name for part in LAL_WEIGHTS))
    streams = model.config.streams.values()  # type: ignore[union-attr,operator]
    audio = [lal if stream["route"] == "lal" else text for stream in streams]
    return TokenFlops(float(text), sum(audio) / len(audio) if audio else 0.0, peak_tflops)
