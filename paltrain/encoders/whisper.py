"""The encoder of any Whisper that `transformers` loads, by folder or hub name.

Whisper hears windows of 30 s. What is shorter is padded as Whisper was trained, and its frames (50
a second) are trimmed to its duration. On a GPU the spectrograms are made there, too; half precision
(`options: {compute_dtype: bfloat16}`) is several times faster than float32, and stamped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import WhisperFeatureExtractor, WhisperModel

from paltrain.encoders.base import Waveforms, check_window, stamp_of, trimmed
from paltrain.encoders.weights import (
    compute_dtype_of,
    hash_of,
    load_model,
    load_part,
    named,
    need_path,
)


class WhisperEncoder:
    """See `AudioEncoder`. frame_rate_hz is 50; width is the model's."""

    tokens_per_step = 1

    def __init__(
        self,
        *,
        path: str | None = None,
        revision: str | None = None,
        compute_dtype: str = "float32",
    ) -> None:
        path = need_path("whisper", path, example="openai/whisper-small")
        dtype = compute_dtype_of(compute_dtype)
        self._extract: Any = load_part(WhisperFeatureExtractor, path, revision=revision)
        whole = load_model(WhisperModel, path, revision=revision, dtype=dtype)
        self._model: Any = whole.get_encoder()
        self._named = named(
            "whisper",
            path=path,
            revision=revision,
            options={"compute_dtype": (compute_dtype, "float32")},
        )
        self._weight_hash = hash_of(self._model)
        self.sample_rate_hz = int(self._extract.sampling_rate)
        self.width = int(self._model.config.d_model)
        window_samples = int(self._extract.n_samples)
        self.window_s: float | None = window_samples / self.sample_rate_hz
        n_positions = int(self._model.config.max_source_positions)
        self.frame_rate_hz = n_positions * self.sample_rate_hz / window_samples

    @torch.inference_mode()
    def encode(self, waveforms: Waveforms) -> list[NDArray[np.float32]]:
        check_window(waveforms, self)
        like = next(self._model.parameters())
        features = self._extract(
            list(waveforms),
            sampling_rate=self.sample_rate_hz,
            return_tensors="pt",
            device=str(like.device),
        ).input_features
        hidden = self._model(features.to(like.device, like.dtype)).last_hidden_state
        frames = hidden.float().cpu().numpy()
        return [
            trimmed(own, waveform, self) for own, waveform in zip(frames, waveforms, strict=True)
        ]

    def to(self, device: str) -> WhisperEncoder:
        self._model.to(device)
        return self

    def provenance(self) -> dict[str, Any]:
        return stamp_of(self, named=self._named, weight_hash=self._weight_hash)
