"""What every audio encoder answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Waveforms = Sequence[NDArray[np.float32]]


class AudioEncoder(Protocol):
    """Turns recordings into features: some frames a second, each a vector.

    sample_rate_hz: of the waveforms it takes. frame_rate_hz: frames a second. width: of a frame.
    window_s: the longest stretch of sound that it hears at once, None: any; `encode_all` cuts.
    """

    @property
    def sample_rate_hz(self) -> int: ...
    @property
    def frame_rate_hz(self) -> float: ...
    @property
    def width(self) -> int: ...
    @property
    def window_s(self) -> float | None: ...

    def encode(self, waveforms: Waveforms) -> list[NDArray[np.float32]]:
        """(n_samples,) each, no longer than a window -> (n_frames, width) each, trimmed to the
        waveform's duration.

        A recording's features do not depend on what it is batched with, but for float rounding.
        """
        ...

    def to(self, device: str) -> AudioEncoder:
        """Itself, its weights (if any) moved to `device`."""
        ...

    def provenance(self) -> dict[str, Any]:
        """What a feature store is stamped with and compared by.

        encoder: {type, path, revision, options, pool} (what `build_encoder` takes), weight_hash,
        sample_rate_hz, frame_rate_hz, width.
        """
        ...


def n_frames_of(n_samples: int, *, sample_rate_hz: int, frame_rate_hz: float) -> int:
    """Frames of a recording: its duration times the rate, rounded, at least one."""
    return max(1, round(n_samples * frame_rate_hz / sample_rate_hz))
