"""Log-mel frames: an encoder without weights, so that nothing has to be downloaded.

What a spectrogram shows, and no more: the LLM itself learns to listen. Normalised by AudioSet's
mean and deviation of log-mel energies (AST, arXiv 2104.01778, section 2.1), which leaves most
sounds between -2.5 and 2.5.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paltrain.encoders.base import Waveforms, n_frames_of, stamp_of
from paltrain.encoders.facts import Facts, Files
from paltrain.encoders.fbank import has_empty_bands, log_mel
from paltrain.errors import ConfigError

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974
SAMPLE_RATE_HZ = 16_000
NAMED: dict[str, Any] = {"type": "logmel", "path": None, "revision": None}


class LogMelEncoder:
    """See `AudioEncoder`. width is `n_mels`."""

    def __init__(
        self,
        *,
        n_mels: int = 64,
        frame_rate_hz: float = 50.0,
        f_min_hz: float = 20.0,
        f_max_hz: float = 8000.0,
    ) -> None:
        facts = self.facts(
            n_mels=n_mels, frame_rate_hz=frame_rate_hz, f_min_hz=f_min_hz, f_max_hz=f_max_hz
        )
        self.sample_rate_hz, self.frame_rate_hz = facts.sample_rate_hz, facts.frame_rate_hz
        self.width, self.tokens_per_step = facts.width, facts.tokens_per_step
        self.window_s = facts.window_s
        self._range_hz = (float(f_min_hz), float(f_max_hz))
        digest = hashlib.sha256(json.dumps(NAMED | {"options": facts.options}).encode())
        self._stamp = stamp_of(facts, **NAMED, weight_hash=digest.hexdigest()[:16])

    @staticmethod
    def facts(
        files: Files | None = None, *, n_mels: int, frame_rate_hz: float, f_min_hz: float,
        f_max_hz: float,
    ) -> Facts:  # fmt: skip
        _check(n_mels, frame_rate_hz, f_min_hz, f_max_hz)
        options = {
            "n_mels": n_mels,
            "frame_rate_hz": float(frame_rate_hz),
            "f_min_hz": float(f_min_hz),
            "f_max_hz": float(f_max_hz),
        }
        return Facts(SAMPLE_RATE_HZ, float(frame_rate_hz), n_mels, options=options)

    def encode(self, waveforms: Waveforms) -> list[NDArray[np.float32]]:
        return [self._encode(waveform) for waveform in waveforms]

    def _encode(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        n_frames = n_frames_of(
            len(waveform), sample_rate_hz=SAMPLE_RATE_HZ, frame_rate_hz=self.frame_rate_hz
        )
        shift = SAMPLE_RATE_HZ / self.frame_rate_hz
        room = int(np.ceil((n_frames + 1) * shift)) - len(waveform)
        frames = log_mel(
            np.pad(waveform, (0, max(room, 0))),
            sample_rate_hz=SAMPLE_RATE_HZ,
            n_mels=self.width,
            frame_shift_ms=1000.0 / self.frame_rate_hz,
            f_min_hz=self._range_hz[0],
            f_max_hz=self._range_hz[1],
        )
        return ((frames[:n_frames] - AUDIOSET_MEAN) / AUDIOSET_STD).astype(np.float32)

    def to(self, device: str) -> LogMelEncoder:
        return self

    def provenance(self) -> dict[str, Any]:
        return dict(self._stamp)


def _check(n_mels: int, frame_rate_hz: float, f_min_hz: float, f_max_hz: float) -> None:
    if not 0 < f_min_hz < f_max_hz <= SAMPLE_RATE_HZ / 2:
        raise ConfigError(
            f"logmel takes 0 < f_min_hz < f_max_hz <= {SAMPLE_RATE_HZ // 2}, not {f_min_hz} "
            f"and {f_max_hz}"
        )
    if n_mels < 1 or not 0 < frame_rate_hz <= 1000:
        raise ConfigError(
            f"logmel takes n_mels >= 1 and 0 < frame_rate_hz <= 1000, not {n_mels} and "
            f"{frame_rate_hz}"
        )
    if has_empty_bands(n_mels, SAMPLE_RATE_HZ, f_min_hz=f_min_hz, f_max_hz=f_max_hz):
        raise ConfigError(
            f"logmel cannot make n_mels={n_mels} bands from {f_min_hz:g} to {f_max_hz:g} Hz: one "
            "would hold no frequency of the transform; take fewer, or a higher f_min_hz"
        )
