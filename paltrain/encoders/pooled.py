"""Fewer tokens from any encoder: the mean of every few neighbouring time steps.

Where an encoder keeps frequencies apart, each cell is averaged over time by itself: a low and a
high frequency are never mixed.

    tokens_per_step = 2, pool = 2     t0 low  t0 high  t1 low  t1 high  t2 low ...
                                      mean(t0, t1) low | mean(t0, t1) high | ...
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paltrain.encoders.base import AudioEncoder, Waveforms
from paltrain.encoders.facts import Facts
from paltrain.errors import ConfigError

MOST_POOL = 10  # of those that are proposed
WHOLE = 1e-6  # how near to a whole number of frames a window must come


class PooledEncoder:
    """See `AudioEncoder`. Each frame is the mean of `pool` time steps' frames of `encoder`, the
    last of a recording of what is left; frame_rate_hz is `pool` times lower.
    """

    def __init__(self, encoder: AudioEncoder, pool: int) -> None:
        """Raises ConfigError as `pooled_rate_hz`."""
        self._encoder, self._pool = encoder, pool
        self.sample_rate_hz = encoder.sample_rate_hz
        self.frame_rate_hz = pooled_rate_hz(encoder, pool)
        self.tokens_per_step = encoder.tokens_per_step
        self.width = encoder.width
        self.window_s = encoder.window_s

    def encode(self, waveforms: Waveforms) -> list[NDArray[np.float32]]:
        cells = self.tokens_per_step
        return [
            mean_of_neighbours(frames.reshape(-1, cells * self.width), self._pool).reshape(
                -1, self.width
            )
            for frames in self._encoder.encode(waveforms)
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


def pooled_rate_hz(encoder: AudioEncoder | Facts, pool: int) -> float:
    """Frames a second that are left.

    Raises:
        ConfigError: `pool` is no whole number of at least 1, or a window would not hold a whole
            number of pooled frames.
    """
    if not isinstance(pool, int) or pool < 1:
        raise ConfigError(f"pool must be a whole number of at least 1, is {pool!r}")
    if encoder.window_s is not None:
        per_window = encoder.window_s * encoder.frame_rate_hz / encoder.tokens_per_step
        if abs(per_window / pool - round(per_window / pool)) > WHOLE:
            fitting = [str(n) for n in range(2, MOST_POOL + 1) if round(per_window) % n == 0]
            raise ConfigError(
                f"pool={pool} must divide the encoder's {per_window:g} time steps a window of "
                f"{encoder.window_s:g} s: choose {' or '.join(fitting) or 'another encoder'}, or "
                "leave it out"
            )
    return encoder.frame_rate_hz / pool


def mean_of_neighbours(frames: NDArray[np.float32], pool: int) -> NDArray[np.float32]:
    """(n, width) -> (ceil(n / pool), width)."""
    starts = np.arange(0, len(frames), pool)
    sums = np.add.reduceat(frames, starts, axis=0, dtype=np.float32)
    sizes = np.minimum(pool, len(frames) - starts).astype(np.float32)
    return (sums / sizes[:, None]).astype(np.float32)
