"""Any audio encoder of `transformers` with `last_hidden_state`, by folder or hub name.

Two kinds are told apart by the model itself:

    waveform      wav2vec 2.0, HuBERT, WavLM, ...: any length, in windows of `window_s`; as many
                  frames as the model's convolutions give (mostly 50 a second, one less a window)
    spectrogram   AST: a fixed window; patches in time-major order, without the tokens in front,
                  trimmed to whole steps of the duration

Many waveform models take no padding mask, and their normalisation would hear padding, so only
recordings of equal length share a batch: `batch_clips` helps little where lengths differ.
`random_seed: N` leaves the weights out and draws them; the folder then needs only its two
configuration files.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

from paltrain.encoders.base import Waveforms, check_window, stamp_of, trimmed
from paltrain.encoders.weights import (
    LOADING_ERRORS,
    cannot_load,
    compute_dtype_of,
    hash_of,
    load_model,
    load_part,
    named,
    need_path,
)
from paltrain.errors import ConfigError, ModelError

WINDOW_S = 30.0  # of waveform models
FBANK_FRAME_S, FBANK_SHIFT_S = 0.025, 0.01  # of `ASTFeatureExtractor`


class TransformersEncoder:
    """See `AudioEncoder`. layer: the hidden state to take, 0 before the first layer; None: the
    model's last_hidden_state. window_s: of waveform models, 30 s by default."""

    def __init__(
        self,
        *,
        path: str | None = None,
        revision: str | None = None,
        layer: int | None = None,
        window_s: float | None = None,
        compute_dtype: str = "float32",
        random_seed: int | None = None,
    ) -> None:
        path = need_path("transformers", path, example="microsoft/wavlm-base-plus")
        dtype = compute_dtype_of(compute_dtype)
        config = load_part(AutoConfig, path, revision=revision)
        self._extract: Any = load_part(AutoFeatureExtractor, path, revision=revision)
        if random_seed is None:
            self._model = load_model(AutoModel, path, revision=revision, dtype=dtype)
        else:
            self._model = _random_model(path, config, seed=random_seed).to(dtype).eval()
        options = {
            "layer": (layer, None),
            "window_s": (window_s, None),
            "compute_dtype": (compute_dtype, "float32"),
            "random_seed": (random_seed, None),
        }
        self._named = named("transformers", path=path, revision=revision, options=options)
        self._weight_hash = hash_of(self._model)
        self._layer = _checked_layer(layer, config)
        self.sample_rate_hz = int(self._extract.sampling_rate)
        self.width = int(config.hidden_size)
        self._set_frames(path, config, window_s)

    def _set_frames(self, path: str, config: Any, window_s: float | None) -> None:
        """What there is of frames, by the model's kind."""
        self._grid = _patch_grid(config)
        self.window_s: float | None
        if self._grid is not None:
            if window_s is not None:
                raise ConfigError(f"'{path}' hears a fixed window: leave out window_s={window_s:g}")
            self.tokens_per_step, n_steps = self._grid
            self.window_s = n_steps * config.time_stride * FBANK_SHIFT_S
            self.frame_rate_hz = self.tokens_per_step / (config.time_stride * FBANK_SHIFT_S)
            self._least = round(FBANK_FRAME_S * self.sample_rate_hz)
            return
        _check_waveform_model(path, self._model, self._extract)
        self.tokens_per_step, self.window_s = 1, WINDOW_S if window_s is None else float(window_s)
        self._least, hop = _field_and_hop(config)
        self.frame_rate_hz = self.sample_rate_hz / hop
        if self.window_s * self.sample_rate_hz < self._least:
            raise ConfigError(
                f"window_s={window_s} must hold at least the {self._least} samples of a frame "
                f"({self._least / self.sample_rate_hz:g} s)"
            )

    @torch.inference_mode()
    def encode(self, waveforms: Waveforms) -> list[NDArray[np.float32]]:
        check_window(waveforms, self)
        heard = [
            np.pad(waveform, (0, max(0, self._least - len(waveform)))) for waveform in waveforms
        ]
        batches = defaultdict(list)
        for place, waveform in enumerate(heard):
            batches[len(waveform) if self._grid is None else 0].append(place)
        frames: dict[int, NDArray[np.float32]] = {}
        for places in batches.values():
            frames.update(zip(places, self._hidden([heard[p] for p in places]), strict=True))
        if self._grid is None:
            return [frames[place] for place in range(len(waveforms))]
        return [trimmed(frames[place], waveforms[place], self) for place in range(len(waveforms))]

    def _hidden(self, waveforms: Waveforms) -> NDArray[np.float32]:
        """(n_samples,) each, of equal length where they are not padded -> (B, n_frames, width)."""
        like = next(self._model.parameters())
        inputs = self._extract(
            list(waveforms), sampling_rate=self.sample_rate_hz, return_tensors="pt"
        ).input_values
        output = self._model(
            inputs.to(like.device, like.dtype), output_hidden_states=self._layer is not None
        )
        hidden = (
            output.last_hidden_state if self._layer is None else output.hidden_states[self._layer]
        )
        if self._grid is not None:  # [CLS, distillation, all steps of a cell, of the next, ...]
            cells, steps = self._grid
            patches = hidden[:, hidden.shape[1] - cells * steps :].unflatten(1, (cells, steps))
            hidden = patches.transpose(1, 2).flatten(1, 2)
        frames: NDArray[np.float32] = hidden.float().cpu().numpy()
        return frames

    def to(self, device: str) -> TransformersEncoder:
        self._model.to(device)
        return self

    def provenance(self) -> dict[str, Any]:
        return stamp_of(self, named=self._named, weight_hash=self._weight_hash)


def _random_model(path: str, config: Any, *, seed: int) -> Any:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModel.from_config(config)
    except LOADING_ERRORS as error:
        raise ModelError(cannot_load(path, error)) from error


def _checked_layer(layer: int | None, config: Any) -> int | None:
    n_layers = int(getattr(config, "num_hidden_layers", 0))
    if layer is not None and not 0 <= layer <= n_layers:
        raise ConfigError(f"layer={layer} must be from 0 (before the first) to {n_layers}")
    return layer


def _patch_grid(config: Any) -> tuple[int, int] | None:
    """Frequency cells and time steps of a model of spectrogram patches (`ASTEmbeddings.get_shape`),
    None for any other."""
    names = ("frequency_stride", "time_stride", "num_mel_bins", "max_length", "patch_size")
    if not all(hasattr(config, name) for name in names):
        return None
    cells = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    steps = (config.max_length - config.patch_size) // config.time_stride + 1
    return cells, steps


def _check_waveform_model(path: str, model: Any, extract: Any) -> None:
    """Raises ModelError where a model does not turn waveforms into frames by convolutions."""
    config = model.config
    hears = getattr(extract, "model_input_names", [None])[0] == "input_values"
    convolves = hasattr(config, "conv_kernel") and hasattr(config, "conv_stride")
    if not hears or not convolves or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"'{path}' is a {type(model).__name__}, and encoder 'transformers' takes models whose "
            "last_hidden_state has frames of a waveform (wav2vec 2.0, HuBERT, WavLM) or patches of "
            "a spectrogram (AST); for Whisper use type: whisper, for CLAP type: clap"
        )


def _field_and_hop(config: Any) -> tuple[int, int]:
    """Samples that one frame hears, and from one frame to the next: the convolutions' arithmetic
    (`_get_feat_extract_output_lengths`)."""
    field, hop = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    if getattr(config, "add_adapter", False):
        hop *= config.adapter_stride**config.num_adapter_layers
    return int(field), int(hop)
