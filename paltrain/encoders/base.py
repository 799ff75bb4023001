"""What every audio encoder answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from paltrain.encoders.facts import Facts

Waveforms = Sequence[NDArray[np.float32]]


class AudioEncoder(Protocol):
    """Turns recordings into features: some frames a second, each a vector.

    A frame becomes an audio token, unless a connector stacks several. An encoder that keeps
    frequencies apart gives a time step several frames, one a frequency cell, low ones first, before
    those of the next step:

        tokens_per_step = 2       t0 low | t0 high | t1 low | t1 high | t2 low | t2 high

    sample_rate_hz: of the waveforms it takes. frame_rate_hz: frames a second, all cells counted.
    tokens_per_step: frames of a time step. width: of a frame. window_s: the longest stretch of
    sound that it hears at once, None: any; `encode_all` cuts.
    """

    @property
    def sample_rate_hz(self) -> int: ...
    @property
    def frame_rate_hz(self) -> float: ...
    @property
    def tokens_per_step(self) -> int: ...
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
        sample_rate_hz, frame_rate_hz, width; tokens_per_step where it is not 1.
        """
        ...


def n_frames_of(
    n_samples: int, *, sample_rate_hz: int, frame_rate_hz: float, tokens_per_step: int = 1
) -> int:
    """Frames of a recording: the time steps of its duration, rounded, at least one; times the
    frames of a step."""
    steps = round(n_samples * frame_rate_hz / sample_rate_hz / tokens_per_step)
    return max(1, steps) * tokens_per_step


def trimmed(
    frames: NDArray[np.float32], waveform: NDArray[np.float32], encoder: AudioEncoder
) -> NDArray[np.float32]:
    """(n, width), n of a padded window -> (n_frames, width), those of the waveform's duration."""
    n_frames = n_frames_of(
        len(waveform),
        sample_rate_hz=encoder.sample_rate_hz,
        frame_rate_hz=encoder.frame_rate_hz,
        tokens_per_step=encoder.tokens_per_step,
    )
    return frames[:n_frames]


def check_window(waveforms: Waveforms, encoder: AudioEncoder) -> None:
    """That nothing is longer than a window; only a bug brings what is."""
    assert encoder.window_s is not None
    longest, most = max(map(len, waveforms)), round(encoder.window_s * encoder.sample_rate_hz)
    assert longest <= most, f"{longest} samples, over {most}: `encode_all` cuts windows"


def stamp_of(
    facts: Facts, *, type: str, path: str | None, revision: str | None, weight_hash: str | None
) -> dict[str, Any]:
    """An encoder's `provenance`. weight_hash: None where only loading the weights would tell."""
    named = {"type": type, "path": path, "revision": revision, "options": dict(facts.options)}
    return {
        "encoder": named,
        **({} if weight_hash is None else {"weight_hash": weight_hash}),
        "sample_rate_hz": facts.sample_rate_hz,
        "frame_rate_hz": facts.frame_rate_hz,
        "width": facts.width,
        # Follows from type and options, so stores without it are compared all the same.
        **({} if facts.tokens_per_step == 1 else {"tokens_per_step": facts.tokens_per_step}),
    }
