"""The encoder of any Whisper that `transformers` loads, by folder or hub name.

Whisper hears windows of 30 s. What is shorter is padded as Whisper was trained, and its frames (50
a second) are trimmed to its duration. On a GPU the spectrograms are made there, too; half precision
(`options: {compute_dtype: bfloat16}`) is several times faster than float32, and stamped.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import WhisperFeatureExtractor, WhisperModel

from paltrain.encoders.base import Waveforms, n_frames_of
from paltrain.errors import ConfigError, ModelError, unknown_name

COMPUTE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class WhisperEncoder:
    """See `AudioEncoder`. frame_rate_hz is 50; width is the model's."""

    def __init__(
        self,
        *,
        path: str | None = None,
        revision: str | None = None,
        compute_dtype: str = "float32",
    ) -> None:
        if path is None:
            raise ConfigError(
                "encoder 'whisper' needs its path: a folder or hub name, e.g. openai/whisper-small"
            )
        if compute_dtype not in COMPUTE_DTYPES:
            raise ConfigError(unknown_name("compute_dtype", compute_dtype, list(COMPUTE_DTYPES)))
        try:
            self._extract: Any = WhisperFeatureExtractor.from_pretrained(path, revision=revision)
            self._model: Any = (
                WhisperModel.from_pretrained(
                    path, revision=revision, dtype=COMPUTE_DTYPES[compute_dtype]
                )
                .get_encoder()
                .eval()
            )
        except (OSError, ValueError) as error:
            raise ModelError(
                f"Whisper '{path}' cannot be loaded: {str(error).splitlines()[0]}. Give a folder "
                "that `save_pretrained` wrote, or a hub name that is in the local cache"
            ) from error
        self._named: dict[str, Any] = {
            "type": "whisper",
            "path": path,
            "revision": revision,
            "options": {} if compute_dtype == "float32" else {"compute_dtype": compute_dtype},
        }
        self.sample_rate_hz = int(self._extract.sampling_rate)
        self._window_samples = int(self._extract.n_samples)
        n_positions = int(self._model.config.max_source_positions)
        self.frame_rate_hz = n_positions * self.sample_rate_hz / self._window_samples
        self.width = int(self._model.config.d_model)
        self.window_s: float | None = self._window_samples / self.sample_rate_hz
        self._weight_hash = _hash_of(self._model)

    @torch.inference_mode()
    def encode(self, waveforms: Waveforms) -> list[NDArray[np.float32]]:
        longest = max(map(len, waveforms))
        assert longest <= self._window_samples, f"{longest} samples: `encode_all` cuts windows"
        like = next(self._model.parameters())
        features = self._extract(
            list(waveforms),
            sampling_rate=self.sample_rate_hz,
            return_tensors="pt",
            device=str(like.device),
        ).input_features
        hidden = self._model(features.to(like.device, like.dtype)).last_hidden_state
        frames = hidden.float().cpu().numpy()
        return [self._trim(f, waveform) for f, waveform in zip(frames, waveforms, strict=True)]

    def _trim(
        self, frames: NDArray[np.float32], waveform: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        return frames[
            : n_frames_of(
                len(waveform), sample_rate_hz=self.sample_rate_hz, frame_rate_hz=self.frame_rate_hz
            )
        ]

    def to(self, device: str) -> WhisperEncoder:
        self._model.to(device)
        return self

    def provenance(self) -> dict[str, Any]:
        return {
            "encoder": self._named,
            "weight_hash": self._weight_hash,
            "sample_rate_hz": self.sample_rate_hz,
            "frame_rate_hz": self.frame_rate_hz,
            "width": self.width,
        }


def _hash_of(model: torch.nn.Module) -> str:
    """16 hex digits over names and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
