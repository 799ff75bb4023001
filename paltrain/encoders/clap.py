"""The audio encoder of CLAP (HTSAT), by folder or hub name: a whole CLAP, or its audio half.

    output: tokens   the last layer's map, 2 frequency cells x 32 steps a window: 6.4 a second
    output: pooled   their mean, one frame a window; a last window under half its length has none

CLAP hears windows of 10 s at 48 kHz. What is shorter is repeated and padded as CLAP was trained,
and its frames are trimmed to whole steps (312.5 ms) of its duration. Where no clip of a batch is
longer than a window, the feature extractor of `transformers` marks a random clip as longer than a
window, for models with fusion; here none ever is, so features depend neither on chance nor on the
batch.

HTSAT folds a spectrogram of 1024 x 64 into a square, four stretches of time one above the other;
`transformers` unfolds its last map to (batch, width, frequency, time), time growing through all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
    check_output,
    need_path,
)
from paltrain.errors import ModelError

if TYPE_CHECKING:
    import torch

EXAMPLE = "laion/clap-htsat-unfused"
OUTPUTS = ("tokens", "pooled")
LEAST_ENERGY = 1e-10  # -100 dB
WHOLE, HALF = "clap", "clap_audio_model"  # types of models
LEFT_OUT = {  # what `transformers` does not write of a whole CLAP's audio half, where it is this
    "depths": (2, 2, 6, 2),
    "num_mel_bins": 64,
    "patch_embeds_hidden_size": 96,
    "patch_stride": 4,
    "spec_size": 256,
}
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
        from transformers import AutoConfig, ClapFeatureExtractor

        from paltrain.encoders.weights import compute_dtype_of, hash_of, load_part

        path = need_path("clap", path, example=EXAMPLE)
        dtype = compute_dtype_of(compute_dtype)
        self._extract: Any = load_part(ClapFeatureExtractor, path, revision=revision)
        config = load_part(AutoConfig, path, revision=revision).to_dict()
        files = {CONFIG: config, PREPROCESSOR: self._extract.to_dict()}
        facts = self.facts(files.__getitem__, path=path, output=output, compute_dtype=compute_dtype)
        self.sample_rate_hz, self.frame_rate_hz = facts.sample_rate_hz, facts.frame_rate_hz
        self.width, self.tokens_per_step = facts.width, facts.tokens_per_step
        self.window_s = facts.window_s
        self._window_samples = int(self._extract.nb_max_samples)
        self._pooled = output == "pooled"
        self._model = _load_audio_model(config, path, revision=revision, dtype=dtype)
        self._stamp = stamp_of(
            facts, type="clap", path=path, revision=revision, weight_hash=hash_of(self._model)
        )

    @staticmethod
    def facts(files: Files, *, path: str | None, output: str, compute_dtype: str) -> Facts:
        path = need_path("clap", path, example=EXAMPLE)
        check_output("clap", output, OUTPUTS)
        check_compute_dtype(compute_dtype)
        model, audio = _audio_config(files(CONFIG), path), files(PREPROCESSOR)
        _check_fusion(model, audio, path)
        rate, window = int(audio["sampling_rate"]), int(audio["nb_max_samples"])
        cells, steps = (1, 1) if output == "pooled" else _map_of(model)
        return Facts(
            sample_rate_hz=rate,
            frame_rate_hz=cells * steps * rate / window,
            width=int(model["patch_embeds_hidden_size"]) * 2 ** (len(model["depths"]) - 1),
            tokens_per_step=cells,
            window_s=window / rate,
            options=changed(output=(output, "tokens"), compute_dtype=(compute_dtype, "float32")),
            weights_file=CONFIG,
        )

    def encode(self, waveforms: Waveforms) -> list[NDArray[np.float32]]:
        import torch

        check_window(waveforms, self)
        like = next(self._model.parameters())
        with torch.inference_mode():
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
        import torch

        from paltrain.encoders.spectrogram import mel_energies, stacked

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
        return dict(self._stamp)


def _check_fusion(model: Mapping[str, Any], audio: Mapping[str, Any], path: str) -> None:
    """That the spectrograms that the feature extractor makes are those that the model takes."""
    fuses, fused = bool(model.get("enable_fusion")), audio["truncation"] == "fusion"
    if fuses != fused:
        raise ModelError(
            f"encoder 'clap': in {path} the model's enable_fusion is {fuses}, but the "
            f"preprocessor's truncation is '{audio['truncation']}': they are of two models; one "
            "with fusion takes 'fusion', one without 'rand_trunc'"
        )


def _audio_config(config: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """That of the audio half. Raises ModelError where it is another model's."""
    if config["model_type"] == HALF:
        return config
    if config["model_type"] == WHOLE:
        return {**LEFT_OUT, **config["audio_config"]}
    raise ModelError(
        f"'{path}' holds a model of type '{config['model_type']}', and encoder 'clap' takes "
        f"'{WHOLE}' or '{HALF}', e.g. {EXAMPLE}"
    )


def _load_audio_model(
    config: Mapping[str, Any], path: str, *, revision: str | None, dtype: torch.dtype
) -> Any:
    from transformers import ClapAudioModel, ClapModel

    from paltrain.encoders.weights import load_model

    if config["model_type"] == WHOLE:
        return load_model(ClapModel, path, revision=revision, dtype=dtype).audio_model
    return load_model(ClapAudioModel, path, revision=revision, dtype=dtype)


def _map_of(config: Mapping[str, Any]) -> tuple[int, int]:
    """Frequency cells and time steps of the last map (`ClapAudioEncoder.forward`)."""
    stride = config["patch_stride"]
    vertical, horizontal = (stride, stride) if isinstance(stride, int) else stride
    size, halvings = config["spec_size"], 2 ** (len(config["depths"]) - 1)
    folds = size // config["num_mel_bins"]
    return size // halvings // vertical // folds, folds * (size // halvings // horizontal)
