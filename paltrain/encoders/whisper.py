"""The encoder of any Whisper that `transformers` loads, by folder or hub name.

Whisper hears windows of 30 s. What is shorter is padded as Whisper was trained, and its frames (50
a second) are trimmed to its duration. On a GPU the spectrograms are made there, too; half precision
(`options: {compute_dtype: bfloat16}`) is several times faster than float32, and stamped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paltrain.encoders.base import Waveforms, check_window, stamp_of, trimmed
from paltrain.encoders.facts import (
    CONFIG,
    PREPROCESSOR,
    Facts,
    Files,
    changed,
    check_compute_dtype,
    need_path,
)

EXAMPLE = "openai/whisper-small"


class WhisperEncoder:
    """See `AudioEncoder`. frame_rate_hz is 50; width is the model's."""

    def __init__(
        self,
        *,
        path: str | None = None,
        revision: str | None = None,
        compute_dtype: str = "float32",
    ) -> None:
        from transformers import WhisperFeatureExtractor, WhisperModel

        from paltrain.encoders.weights import compute_dtype_of, hash_of, load_model, load_part

        path = need_path("whisper", path, example=EXAMPLE)
        dtype = compute_dtype_of(compute_dtype)
        self._extract: Any = load_part(WhisperFeatureExtractor, path, revision=revision)
        whole = load_model(WhisperModel, path, revision=revision, dtype=dtype)
        self._model: Any = whole.get_encoder()
        files = {CONFIG: self._model.config.to_dict(), PREPROCESSOR: self._extract.to_dict()}
        facts = self.facts(files.__getitem__, path=path, compute_dtype=compute_dtype)
        self.sample_rate_hz, self.frame_rate_hz = facts.sample_rate_hz, facts.frame_rate_hz
        self.width, self.tokens_per_step = facts.width, facts.tokens_per_step
        self.window_s = facts.window_s
        self._stamp = stamp_of(
            facts, type="whisper", path=path, revision=revision, weight_hash=hash_of(self._model)
        )

    @staticmethod
    def facts(files: Files, *, path: str | None, compute_dtype: str) -> Facts:
        need_path("whisper", path, example=EXAMPLE)
        check_compute_dtype(compute_dtype)
        model, audio = files(CONFIG), files(PREPROCESSOR)
        rate, window = int(audio["sampling_rate"]), int(audio["n_samples"])
        return Facts(
            sample_rate_hz=rate,
            frame_rate_hz=int(model["max_source_positions"]) * rate / window,
            width=int(model["d_model"]),
            window_s=window / rate,
            options=changed(compute_dtype=(compute_dtype, "float32")),
            weights_file=CONFIG,
        )

    def encode(self, waveforms: Waveforms) -> list[NDArray[np.float32]]:
        import torch

        check_window(waveforms, self)
        like = next(self._model.parameters())
        features = self._extract(
            list(waveforms),
            sampling_rate=self.sample_rate_hz,
            return_tensors="pt",
            device=str(like.device),
        ).input_features
        with torch.inference_mode():
            hidden = self._model(features.to(like.device, like.dtype)).last_hidden_state
        frames = hidden.float().cpu().numpy()
        return [
            trimmed(own, waveform, self) for own, waveform in zip(frames, waveforms, strict=True)
        ]

    def to(self, device: str) -> WhisperEncoder:
        self._model.to(device)
        return self

    def provenance(self) -> dict[str, Any]:
        return dict(self._stamp)
