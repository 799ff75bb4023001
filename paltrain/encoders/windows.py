"""Recordings of any length through an encoder that hears some seconds at once.

    recording of 70 s    |------ 30 s ------|------ 30 s ------|-- 10 s --|    window_s = 30
    frames               |      1500        |      1500        |   500    |    joined: 3500

Windows of all recordings are encoded together, in batches of like length, so little is padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from paltrain.encoders.base import AudioEncoder, Waveforms
from paltrain.errors import AudioError


def encode_all(
    encoder: AudioEncoder,
    waveforms: Waveforms,
    *,
    batch_clips: int = 16,
    batch_audio_s: float = math.inf,
    on_batch: Callable[[float], None] = lambda audio_s: None,
) -> list[NDArray[np.float32]]:
    """(n_samples,) each -> (n_frames, width) each, in the order of `waveforms`.

    A batch has at most `batch_clips` windows and `batch_audio_s` seconds, each counted as long as
    the longest; a longer window is alone. on_batch: told the seconds of audio encoded.

    Raises:
        AudioError: a waveform is empty, or no row of finite numbers.
    """
    for waveform in waveforms:
        if waveform.ndim != 1 or not len(waveform) or not np.isfinite(waveform).all():
            raise AudioError(
                "a waveform must be a row of finite numbers, at least one; it has the shape "
                f"{waveform.shape}: give (n_samples,), one channel"
            )
    windows = [
        (number, window)
        for number, waveform in enumerate(waveforms)
        for window in cut(waveform, encoder)
    ]
    lengths = [len(window) for _, window in windows]
    most = batch_audio_s * encoder.sample_rate_hz
    encoded: dict[int, NDArray[np.float32]] = {}
    for places in batches_of_like_length(lengths, batch_clips=batch_clips, batch_samples=most):
        frames = encoder.encode([windows[place][1] for place in places])
        encoded.update(zip(places, frames, strict=True))
        on_batch(sum(lengths[place] for place in places) / encoder.sample_rate_hz)
    parts: list[list[NDArray[np.float32]]] = [[] for _ in waveforms]
    for place, (number, _) in enumerate(windows):
        parts[number].append(encoded[place])
    return [own[0] if len(own) == 1 else np.concatenate(own) for own in parts]


def cut(waveform: NDArray[np.float32], encoder: AudioEncoder) -> list[NDArray[np.float32]]:
    """A recording as windows one after the other, the last as long as what is left.

    What is left is dropped where it lasts less than half a time step.
    """
    if encoder.window_s is None:
        return [waveform]
    size = round(encoder.window_s * encoder.sample_rate_hz)
    half_a_step = encoder.tokens_per_step * encoder.sample_rate_hz / encoder.frame_rate_hz / 2
    end = len(waveform)
    if end > size and end % size < half_a_step:
        end -= end % size
    return [waveform[start : min(start + size, end)] for start in range(0, max(end, 1), size)]


def batches_of_like_length(
    lengths: Sequence[int], *, batch_clips: int, batch_samples: float
) -> Iterator[list[int]]:
    """Places of `lengths`, short ones first, in batches that keep to both limits."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (
            len(batch) == batch_clips or lengths[place] * (len(batch) + 1) > batch_samples
        ):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
