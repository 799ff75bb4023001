"""SSLAM and EAT: self-supervised encoders of general sounds, by folder, hub name or random seed.

    output: frames        64 steps x 8 bands a window, time-major: 50 tokens a second
    output: time_pooled   the mean over the 8 bands of a step: 6.25 tokens a second

A recording is heard in windows of 10.24 s; what is shorter is padded as in training, and its frames
are trimmed to whole steps (160 ms) of its duration. `random_seed: N` in place of a path gives
random weights, always the same for N: the control that asks what the pretraining is worth.

Input as in the reference (github.com/ta012/SSLAM, feature_extract/feature_extract.py): 16 kHz, mean
removed, Kaldi's fbank of 128 bands, zeros up to 1024 frames, then (x + 4.268) / (2 * 4.569).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paltrain.encoders.base import Waveforms, check_window, stamp_of, trimmed
from paltrain.encoders.facts import Facts, Files, changed, check_compute_dtype, check_output
from paltrain.errors import ConfigError, ModelError, cannot_load, some_of

if TYPE_CHECKING:
    import torch

    from paltrain.encoders.sslam_vit import SpectrogramViT

SAMPLE_RATE_HZ = 16_000
N_MELS, N_FRAMES, PATCH = 128, 1024, 16
BANDS, STEPS = N_MELS // PATCH, N_FRAMES // PATCH
FRAME, SHIFT, N_FFT = 400, 160, 512  # samples: 25 ms, 10 ms
MEAN, STD = -4.268, 4.569
OUTPUTS = ("frames", "time_pooled")
WEIGHTS = "model.safetensors"
SIZES = {"width": 768, "depth": 12, "n_heads": 12}  # of what is released


class SslamEncoder:
    """See `AudioEncoder`. width, depth, n_heads: the ViT's sizes."""

    def __init__(
        self,
        *,
        path: str | None = None,
        revision: str | None = None,
        output: str = "frames",
        random_seed: int | None = None,
        compute_dtype: str = "float32",
        width: int = SIZES["width"],
        depth: int = SIZES["depth"],
        n_heads: int = SIZES["n_heads"],
    ) -> None:
        from paltrain.encoders.spectrogram import kaldi_mel_filters
        from paltrain.encoders.sslam_vit import SpectrogramViT
        from paltrain.encoders.weights import compute_dtype_of, hash_of

        facts = self.facts(
            path=path,
            output=output,
            random_seed=random_seed,
            compute_dtype=compute_dtype,
            width=width,
            depth=depth,
            n_heads=n_heads,
        )
        self.sample_rate_hz, self.frame_rate_hz = facts.sample_rate_hz, facts.frame_rate_hz
        self.width, self.tokens_per_step = facts.width, facts.tokens_per_step
        self.window_s = facts.window_s
        model = SpectrogramViT(width=width, depth=depth, n_heads=n_heads)
        if path is None:
            model.randomise(random_seed or 0)
        else:
            _load(model, path, revision=revision)
        self._model = model.to(compute_dtype_of(compute_dtype)).eval()
        self._filters = kaldi_mel_filters(N_MELS, sample_rate_hz=SAMPLE_RATE_HZ, n_fft=N_FFT)
        self._stamp = stamp_of(
            facts, type="sslam", path=path, revision=revision, weight_hash=hash_of(self._model)
        )

    @staticmethod
    def facts(
        files: Files | None = None, *, path: str | None, output: str, random_seed: int | None,
        compute_dtype: str, width: int, depth: int, n_heads: int,
    ) -> Facts:  # fmt: skip
        sizes = {"width": width, "depth": depth, "n_heads": n_heads}
        check_output("sslam", output, OUTPUTS)
        check_compute_dtype(compute_dtype)
        _check_sizes(**sizes)
        if (path is None) == (random_seed is None):
            raise ConfigError(
                "encoder 'sslam' takes either a path (a folder or hub name, e.g. "
                f"ta012/SSLAM_pretrain) or random_seed, not path={path} and "
                f"random_seed={random_seed}"
            )
        cells, window_s = BANDS if output == "frames" else 1, N_FRAMES * SHIFT / SAMPLE_RATE_HZ
        return Facts(
            sample_rate_hz=SAMPLE_RATE_HZ,
            frame_rate_hz=STEPS * cells / window_s,
            width=width,
            tokens_per_step=cells,
            window_s=window_s,
            options=changed(
                output=(output, "frames"),
                random_seed=(random_seed, None),
                compute_dtype=(compute_dtype, "float32"),
                **{name: (size, SIZES[name]) for name, size in sizes.items()},
            ),
            weights_file=WEIGHTS if random_seed is None else None,
        )

    def encode(self, waveforms: Waveforms) -> list[NDArray[np.float32]]:
        import torch

        check_window(waveforms, self)
        with torch.inference_mode():
            spectrograms = self._spectrograms(waveforms).to(self._model.positions.dtype)
            tokens = self._model(spectrograms).float()
        if self.tokens_per_step == 1:
            tokens = tokens.unflatten(1, (STEPS, BANDS)).mean(2)
        frames = tokens.cpu().numpy()
        return [
            trimmed(own, waveform, self) for own, waveform in zip(frames, waveforms, strict=True)
        ]

    def _spectrograms(self, waveforms: Waveforms) -> torch.Tensor:
        """(B, 1024, 128) float32, normalised; frames that a waveform does not fill were zero."""
        import torch

        from paltrain.encoders.spectrogram import kaldi_fbank, stacked

        device = self._model.positions.device
        centred = stacked([waveform - waveform.mean() for waveform in waveforms], N_FRAMES * SHIFT)
        bank = kaldi_fbank(centred.to(device), self._filters, frame=FRAME, shift=SHIFT)
        filled = torch.tensor([1 + (len(waveform) - FRAME) // SHIFT for waveform in waveforms])
        padding = torch.arange(bank.shape[1]) >= filled[:, None]
        bank = bank.masked_fill(padding[..., None].to(device), 0.0)
        bank = torch.nn.functional.pad(bank, (0, 0, 0, N_FRAMES - bank.shape[1]))
        return (bank - MEAN) / (2 * STD)

    def to(self, device: str) -> SslamEncoder:
        self._model.to(device)
        self._filters = self._filters.to(device)
        return self

    def provenance(self) -> dict[str, Any]:
        return dict(self._stamp)


def _check_sizes(*, width: int, depth: int, n_heads: int) -> None:
    if min(width, depth, n_heads) < 1 or width % n_heads or width % 4:
        raise ConfigError(
            "encoder 'sslam' takes a depth of at least 1 and a width that is a multiple of 4 and "
            f"of n_heads, not width={width}, depth={depth}, n_heads={n_heads}"
        )


def _load(model: SpectrogramViT, path: str, *, revision: str | None) -> None:
    """Released weights into the model.

    Raises:
        ModelError: there are none, or theirs are other names or shapes.
    """
    from safetensors.torch import load_file

    from paltrain.encoders.sslam_vit import released_names
    from paltrain.encoders.weights import LOADING_ERRORS

    try:
        held = load_file(_weights_file(path, revision))
    except LOADING_ERRORS as error:
        raise ModelError(cannot_load(path, error)) from error
    names = released_names(len(model.blocks))
    _check_names(path, held=set(held), wanted=set(names.values()))
    weights = {own: held[released].float() for own, released in names.items()}
    n_positions = model.positions.shape[1]
    weights["positions"] = weights["positions"][:, :n_positions]  # of more steps, in order of time
    for own, weight in model.state_dict().items():
        if weights[own].shape != weight.shape:
            raise ModelError(
                f"'{path}' has {names[own]} of shape {tuple(held[names[own]].shape)}, and the "
                f"encoder's is {tuple(weight.shape)}: give its sizes as options width, depth and "
                "n_heads"
            )
    model.load_state_dict(weights)


def _weights_file(path: str, revision: str | None) -> Path:
    if Path(path).is_dir():
        file = Path(path) / WEIGHTS
        if not file.is_file():
            raise FileNotFoundError(f"the folder has no {WEIGHTS}")
        return file
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(path, WEIGHTS, revision=revision))


def _check_names(path: str, *, held: set[str], wanted: set[str]) -> None:
    faults = [
        f"{what}: {some_of(sorted(keys))}"
        for what, keys in (("missing", wanted - held), ("unknown", held - wanted))
        if keys
    ]
    if faults:
        raise ModelError(
            f"the weights in '{path}' are not those of an SSLAM or EAT encoder: "
            f"{'; '.join(faults)}. Give the release for pretraining (ta012/SSLAM_pretrain), or "
            "its depth as an option"
        )
