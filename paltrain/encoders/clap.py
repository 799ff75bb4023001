"""The audio encoder of CLAP (HTSAT), by folder or hub name: a whole CLAP, or its audio half.

    output: tokens   the last layer's map, 2 frequency cells x 32 steps a window: 6.4 a second
    output: pooled   their mean, one frame a window; a last window under half its length has none

CLAP hears windows of 10 s at 48 kHz. What is shorter is repeated and padded as CLAP was trained,
and its frames are trimmed to whole steps (312.5 ms) of its duration. Where no clip of a batch is
longer than a window, the feature extractor of `transformers` calls a random one so, for models with
fusion; here none ever is, so features depend neither on chance nor on the batch.

HTSAT folds a spectrogram of 1024 x 64 into a square, four stretches of time one above the other;
`transformers` unfolds its last map to (batch, width, frequency, time), time growing through all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, ClapAudioModel, ClapFeatureExtractor, ClapModel

from paltrain.encoders.base import Waveforms, check_window, stamp_of, trimmed
from paltrain.encoders.spectrogram import mel_energies, stacked
from paltrain.encoders.weights import (
    check_output,
    compute_dtype_of,
    hash_of,
    load_model,
    load_part,
    named,
    need_path,
)
from paltrain.errors import ModelError

OUTPUTS = ("tokens", "pooled")
LEAST_ENERGY = 1e-10  # -100 dB
FUSION_MAPS = 4  # views of a long clip that a model with fusion takes; all the same for a window


class ClapEncoder:
    """See `AudioEncoder`."""

    def __init__(
        self,
        *,
        path: str | None = None,
        revision: str | None = None,
        output: str = "tokens",
        compute_dtype: str = "float32",
    ) -> None:
        path = need_path("clap", path, example="laion/clap-htsat-unfused")
        check_output("clap", output, OUTPUTS)
        dtype = compute_dtype_of(compute_dtype)
        self._extract: Any = load_part(ClapFeatureExtractor, path, revision=revision)
        self._model = _load_audio_model(path, revision=revision, dtype=dtype)
        self._pooled = output == "pooled"
        self._named = named(
            "clap",
            path=path,
            revision=revision,
            options={"output": (output, "tokens"), "compute_dtype": (compute_dtype, "float32")},
        )
        self._weight_hash = hash_of(self._model)
        self.sample_rate_hz = int(self._extract.sampling_rate)
        self._window_samples = int(self._extract.nb_max_samples)
        self.window_s: float | None = self._window_samples / self.sample_rate_hz
        cells, steps = _map_of(self._model.config)
        self.tokens_per_step = 1 if self._pooled else cells
        per_window = 1 if self._pooled else cells * steps
        self.frame_rate_hz = per_window * self.sample_rate_hz / self._window_samples
        self.width = int(self._model.audio_encoder.num_features)

    @torch.inference_mode()
    def encode(self, waveforms: Waveforms) -> list[NDArray[np.float32]]:
        check_window(waveforms, self)
        like = next(self._model.parameters())
        output = self._model(
            input_features=self._spectrograms(waveforms).to(like.dtype),
            is_longer=torch.zeros(len(waveforms), 1, dtype=torch.bool, device=like.device),
        )
        if self._pooled:
            tokens = output.pooler_output[:, None]
        else:  # (B, width, cells, steps) -> (B, steps * cells, width)
            tokens = output.last_hidden_state.permute(0, 3, 2, 1).flatten(1, 2)
        frames = tokens.float().cpu().numpy()
        return [
            trimmed(own, waveform, self) for own, waveform in zip(frames, waveforms, strict=True)
        ]

    def _spectrograms(self, waveforms: Waveforms) -> torch.Tensor:
        """(B, 1 or 4, n_frames, n_mels) float32: what `ClapFeatureExtractor` makes of clips that
        are not longer than a window, all at once and on the model's device."""
        extract, device = self._extract, next(self._model.parameters()).device
        n_fft, fusion = extract.fft_window_size, extract.truncation == "fusion"
        filled = [self._filled(waveform) for waveform in waveforms]
        padded = stacked(filled, self._window_samples).to(device).double()
        borders = (n_fft // 2, n_fft // 2)
        padded = torch.nn.functional.pad(padded[:, None], borders, mode="reflect")[:, 0]
        hann = torch.hann_window(n_fft, dtype=torch.float64, device=device)
        frames = padded.unfold(1, n_fft, extract.hop_length) * hann
        filters = torch.from_numpy(extract.mel_filters if fusion else extract.mel_filters_slaney)
        decibels = 10 * mel_energies(frames, filters).clamp(min=LEAST_ENERGY).log10()
        return decibels.float()[:, None].expand(-1, FUSION_MAPS if fusion else 1, -1, -1)

    def _filled(self, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        """A short clip, repeated as the feature extractor says."""
        repeats = self._window_samples // len(waveform)
        if self._extract.padding == "repeat":
            return np.tile(waveform, repeats + 1)[: self._window_samples]
        return np.tile(waveform, repeats) if self._extract.padding == "repeatpad" else waveform

    def to(self, device: str) -> ClapEncoder:
        self._model.to(device)
        return self

    def provenance(self) -> dict[str, Any]:
        return stamp_of(self, named=self._named, weight_hash=self._weight_hash)


def _load_audio_model(path: str, *, revision: str | None, dtype: torch.dtype) -> Any:
    kind = load_part(AutoConfig, path, revision=revision).model_type
    if kind == "clap":
        return load_model(ClapModel, path, revision=revision, dtype=dtype).audio_model
    if kind == "clap_audio_model":
        return load_model(ClapAudioModel, path, revision=revision, dtype=dtype)
    raise ModelError(
        f"'{path}' holds a model of type '{kind}', and encoder 'clap' takes 'clap' or "
        "'clap_audio_model', e.g. laion/clap-htsat-unfused"
    )


def _map_of(config: Any) -> tuple[int, int]:
    """Frequency cells and time steps of the last map (`ClapAudioEncoder.forward`)."""
    stride = config.patch_stride
    vertical, horizontal = (stride, stride) if isinstance(stride, int) else stride
    halvings = 2 ** (len(config.depths) - 1)
    folds = config.spec_size // config.num_mel_bins
    rows = config.spec_size // halvings // vertical
    return rows // folds, folds * (config.spec_size // halvings // horizontal)
