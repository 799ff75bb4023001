"""Which of an LLM's layers take a stream's audio; torch-free, since plans and dry runs ask."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from paltrain.errors import ModelError

KEYS = {"start", "every"}


def layers_of_stream(layers: Any, *, n_layers: int, stream: str) -> tuple[int, ...]:
    """The layers that take a stream's audio: "all", {"start": k}, {"every": n}, both of
    these, or a list of layer numbers.

    Raises:
        ModelError: a layer beyond the LLM's depth, or another form.
    """
    if layers == "all":
        return tuple(range(n_layers))
    if isinstance(layers, Mapping) and _are_whole(layers.values()) and layers.keys() <= KEYS:
        start, every = layers.get("start", 0), layers.get("every", 1)
        if every < 1:
            raise ModelError(f"stream '{stream}': layers.every must be at least 1, is {every}")
        chosen = tuple(range(start, n_layers, every))
        bad = [] if 0 <= start < n_layers else [start]
    elif isinstance(layers, list | tuple) and _are_whole(layers):
        chosen = tuple(sorted(set(layers)))
        bad = [layer for layer in chosen if not 0 <= layer < n_layers]
    else:
        raise ModelError(
            f"stream '{stream}': layers is {layers!r}; valid: all, {{start: k}}, {{every: n}}, or "
            "a list of layer numbers"
        )
    if bad:
        raise ModelError(
            f"stream '{stream}': layers name {bad}, but the LLM has layers 0 to {n_layers - 1}"
        )
    return chosen


def _are_whole(numbers: Collection[Any]) -> bool:
    return bool(numbers) and all(type(number) is int for number in numbers)
