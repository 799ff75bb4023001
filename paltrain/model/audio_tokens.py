"""How many audio tokens a clip takes, and whose take positions. No torch: dry runs ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

BESIDE_THE_SEQUENCE = ("xattn",)  # routes whose audio tokens have no positions among the text's
FIXED = {"resampler": "n_latents", "summary": "n_summary"}  # type -> the field with its tokens


def n_audio_tokens(n_frames: NDArray[np.int64], connector: Mapping[str, Any]) -> NDArray[np.int64]:
    """How many audio tokens clips of `n_frames` frames take; none for a clip without frames.

    connector: the fields of `ConnectorConfig` (type, frame_stack, n_latents, n_summary).
    """
    n_frames = np.asarray(n_frames, np.int64)
    if connector["type"] in FIXED:
        n_tokens = connector[FIXED[connector["type"]]]
        return np.where(n_frames > 0, n_tokens, 0).astype(np.int64)
    return -(-n_frames // int(connector["frame_stack"]))


def in_the_sequence(routes: Mapping[str, str]) -> list[str]:
    """The streams whose audio tokens take positions of a conversation. routes: by stream."""
    return [name for name, route in routes.items() if route not in BESIDE_THE_SEQUENCE]
