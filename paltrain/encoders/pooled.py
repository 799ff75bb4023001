"""Fewer tokens from any encoder: the mean of every few neighbouring frames."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paltrain.encoders.base import AudioEncoder, Waveforms
from paltrain.errors import ConfigError

WHOLE = 1e-6  # how near to a whole number of frames a window must come


class PooledEncoder:
    """See `AudioEncoder`. Each frame is the mean of `pool` frames of `encoder`, the last of a
    recording of what is left; frame_rate_hz is `pool` times lower.
    """

    def __init__(self, encoder: AudioEncoder, pool: int) -> None:
        """Raises ConfigError where a window would not hold a whole number of pooled frames."""
        self._encoder, self._pool = encoder, pool
        self.sample_rate_hz = encoder.sample_rate_hz
        self.frame_rate_hz = encoder.frame_rate_hz / pool
        self.width = encoder.width
        self.window_s = encoder.window_s
        if self.window_s is not None:
            per_window = self.window_s * encoder.frame_rate_hz
            if pool < 1 or abs(per_window / pool - round(per_window / pool)) > WHOLE:
                raise ConfigError(
                    f"pool={pool} must divide the encoder's {per_window:g} frames a window of "
                    f"{self.window_s:g} s: choose 2 or 4, or leave it out"
                )

    def encode(self, waveforms: Waveforms) -> list[NDArray[np.float32]]:
        return [
            mean_of_neighbours(frames, self._pool) for frames in self._encoder.encode(waveforms)
        ]

    def to(self, device: str) -> PooledEncoder:
        self._encoder = self._encoder.to(device)
        return self

    def provenance(self) -> dict[str, Any]:
        of_encoder = self._encoder.provenance()
        return {
            **of_encoder,
            "encoder": {**of_encoder["encoder"], "pool": self._pool},
            "frame_rate_hz": self.frame_rate_hz,
        }


def mean_of_neighbours(frames: NDArray[np.float32], pool: int) -> NDArray[np.float32]:
    """(n, width) -> (ceil(n / pool), width)."""
    starts = np.arange(0, len(frames), pool)
    sums = np.add.reduceat(frames, starts, axis=0, dtype=np.float32)
    sizes = np.minimum(pool, len(frames) - starts).astype(np.float32)
    return (sums / sizes[:, None]).astype(np.float32)
