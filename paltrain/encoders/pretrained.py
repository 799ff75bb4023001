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
from collections.abc import Mapping
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
from paltrain.errors import ConfigError, ModelError, cannot_load

EXAMPLE = "microsoft/wavlm-base-plus"

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
        from transformers import AutoConfig, AutoFeatureExtractor

        from paltrain.encoders.weights import hash_of, load_part

        path = need_path("transformers", path, example=EXAMPLE)
        config = load_part(AutoConfig, path, revision=revision)
        self._extract: Any = load_part(AutoFeatureExtractor, path, revision=revision)
        files = {CONFIG: config.to_dict(), PREPROCESSOR: self._extract.to_dict()}
        facts = self.facts(
            files.__getitem__,
            path=path,
            layer=layer,
            window_s=window_s,
            compute_dtype=compute_dtype,
            random_seed=random_seed,
        )
        self.sample_rate_hz, self.frame_rate_hz = facts.sample_rate_hz, facts.frame_rate_hz
        self.width, self.tokens_per_step = facts.width, facts.tokens_per_step
        self.window_s = facts.window_s
        self._layer, self._grid = layer, _patch_grid(files[CONFIG])
        self._least = _least_samples(files[CONFIG], facts.sample_rate_hz)
        self._model = _model_of(path, config, revision, compute_dtype, random_seed)
        if self._grid is None and not _hears_waveforms(self._extract):
            raise _other_kind(path, type(self._model).__name__)
        weights = hash_of(self._model)
        self._stamp = stamp_of(
            facts, type="transformers", path=path, revision=revision, weight_hash=weights
        )

    @staticmethod
    def facts(
        files: Files, *, path: str | None, layer: int | None, window_s: float | None,
        compute_dtype: str, random_seed: int | None,
    ) -> Facts:  # fmt: skip
        path = need_path("transformers", path, example=EXAMPLE)
        check_compute_dtype(compute_dtype)
        config, rate = files(CONFIG), int(files(PREPROCESSOR)["sampling_rate"])
        frame_rate_hz, cells, window = _frames_of(path, config, rate, window_s)
        _check_layer(layer, config)
        return Facts(
            sample_rate_hz=rate,
            frame_rate_hz=frame_rate_hz,
            width=int(config["hidden_size"]),
            tokens_per_step=cells,
            window_s=window,
            options=changed(
                layer=(layer, None),
                window_s=(window_s, None),
                compute_dtype=(compute_dtype, "float32"),
                random_seed=(random_seed, None),
            ),
            weights_file=CONFIG if random_seed is None else None,
        )

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
        import torch

        like = next(self._model.parameters())
        inputs = self._extract(
            list(waveforms), sampling_rate=self.sample_rate_hz, return_tensors="pt"
        ).input_values
        with torch.inference_mode():
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
        return dict(self._stamp)


def _model_of(
    path: str, config: Any, revision: str | None, compute_dtype: str, random_seed: int | None
) -> Any:
    """The model, its weights from its files or drawn."""
    import torch
    from transformers import AutoModel

    from paltrain.encoders.weights import LOADING_ERRORS, compute_dtype_of, load_model

    dtype = compute_dtype_of(compute_dtype)
    if random_seed is None:
        return load_model(AutoModel, path, revision=revision, dtype=dtype)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_seed)
            return AutoModel.from_config(config).to(dtype).eval()
    except LOADING_ERRORS as error:
        raise ModelError(cannot_load(path, error)) from error


def _frames_of(
    path: str, config: Mapping[str, Any], rate_hz: int, window_s: float | None
) -> tuple[float, int, float]:
    """Frames a second, frames of a time step, and the window, by the model's kind."""
    grid = _patch_grid(config)
    if grid is not None:
        if window_s is not None:
            raise ConfigError(f"'{path}' hears a fixed window: leave out window_s={window_s:g}")
        (cells, n_steps), step_s = grid, config["time_stride"] * FBANK_SHIFT_S
        return cells / step_s, cells, n_steps * step_s
    convolves = "conv_kernel" in config and "conv_stride" in config
    if not convolves or config.get("is_encoder_decoder", False):
        raise _other_kind(path, (config.get("architectures") or [config.get("model_type")])[0])
    window, least = WINDOW_S if window_s is None else float(window_s), _field_and_hop(config)[0]
    if window * rate_hz < least:
        raise ConfigError(
            f"window_s={window_s} must hold at least the {least} samples of a frame "
            f"({least / rate_hz:g} s)"
        )
    return rate_hz / _field_and_hop(config)[1], 1, window


def _check_layer(layer: int | None, config: Mapping[str, Any]) -> None:
    n_layers = int(config.get("num_hidden_layers", 0))
    if layer is not None and not 0 <= layer <= n_layers:
        raise ConfigError(f"layer={layer} must be from 0 (before the first) to {n_layers}")


def _patch_grid(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Frequency cells and time steps of a model of spectrogram patches (`ASTEmbeddings.get_shape`),
    None for any other."""
    names = ("frequency_stride", "time_stride", "num_mel_bins", "max_length", "patch_size")
    if not all(name in config for name in names):
        return None
    cells = (config["num_mel_bins"] - config["patch_size"]) // config["frequency_stride"] + 1
    steps = (config["max_length"] - config["patch_size"]) // config["time_stride"] + 1
    return cells, steps


def _least_samples(config: Mapping[str, Any], rate_hz: int) -> int:
    """The shortest sound that gives a frame."""
    if _patch_grid(config) is not None:
        return round(FBANK_FRAME_S * rate_hz)
    return _field_and_hop(config)[0]


def _hears_waveforms(extract: Any) -> bool:
    return bool(getattr(extract, "model_input_names", [None])[0] == "input_values")


def _other_kind(path: str, kind: str) -> ModelError:
    """The error where a model does not turn waveforms into frames by convolutions."""
    return ModelError(
        f"'{path}' is a {kind}, and encoder 'transformers' takes models whose last_hidden_state "
        "has frames of a waveform (wav2vec 2.0, HuBERT, WavLM) or patches of a spectrogram (AST); "
        "for Whisper use type: whisper, for CLAP type: clap"
    )


def _field_and_hop(config: Mapping[str, Any]) -> tuple[int, int]:
    """Samples that one frame hears, and from one frame to the next: the convolutions' arithmetic
    (`_get_feat_extract_output_lengths`)."""
    field, hop = 1, 1
    for kernel, stride in zip(config["conv_kernel"], config["conv_stride"], strict=True):
        field += (kernel - 1) * hop
        hop *= stride
    if config.get("add_adapter", False):
        hop *= config["adapter_stride"] ** config["num_adapter_layers"]
    return int(field), int(hop)
