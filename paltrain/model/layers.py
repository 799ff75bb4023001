"""Which of an LLM's layers take a stream's audio; torch-free, since plans and dry runs ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paltrain.errors import ModelError


def layers_of_stream(layers: Any, *, n_layers: int, stream: str) -> tuple[int, ...]:
    """The layers that take a stream's audio: "all", {"start": k} or a list of layer numbers.

    Raises:
        ModelError: a layer beyond the LLM's depth, or another form.
    """
    if layers == "all":
        return tuple(range(n_layers))
    if isinstance(layers, Mapping) and set(layers) == {"start"}:
        chosen = tuple(range(int(layers["start"]), n_layers))
        bad = [] if 0 <= int(layers["start"]) < n_layers else [int(layers["start"])]
    elif isinstance(layers, list | tuple) and layers:
        chosen = tuple(sorted({int(layer) for layer in layers}))
        bad = [layer for layer in chosen if not 0 <= layer < n_layers]
    else:
        raise ModelError(
            f"stream '{stream}': layers is {layers!r}; valid: all, {{start: k}}, or a list of "
            "layer numbers"
        )
    if bad:
        raise ModelError(
            f"stream '{stream}': layers name {bad}, but the LLM has layers 0 to {n_layers - 1}"
        )
    return chosen
