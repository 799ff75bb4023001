"""Log-mel spectrograms of many waveforms at once, on the device of the encoder that reads them.

Energies are computed in float64, so that a batch, a device or a library's own loop over frames
make no difference that an encoder could hear. `fbank.py` is for one waveform at a time and for any
bands; here bands may be so narrow that they hold no frequency, as those of pretrained encoders are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.audio_utils import mel_filter_bank

PREEMPHASIS = 0.97
LOWEST_HZ = 20.0
KALDI_FLOOR = float(np.finfo(np.float32).eps)


def stacked(waveforms: Sequence[NDArray[np.float32]], n_samples: int) -> torch.Tensor:
    """(n,) each, n <= n_samples -> (B, n_samples), zeros behind each."""
    padded = np.zeros((len(waveforms), n_samples), np.float32)
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: len(waveform)] = waveform
    return torch.from_numpy(padded)


def kaldi_mel_filters(n_mels: int, *, sample_rate_hz: int, n_fft: int) -> torch.Tensor:
    """(n_fft // 2 + 1, n_mels) float64: triangles on Kaldi's mel scale, from 20 Hz to half the
    rate. A band between two frequencies of the transform is zero."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "At least one mel filter has all zero values")
        filters = mel_filter_bank(
            num_frequency_bins=n_fft // 2 + 1,
            num_mel_filters=n_mels,
            min_frequency=LOWEST_HZ,
            max_frequency=sample_rate_hz / 2,
            sampling_rate=sample_rate_hz,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
    return torch.from_numpy(filters)


def kaldi_fbank(
    waveforms: torch.Tensor, filters: torch.Tensor, *, frame: int, shift: int
) -> torch.Tensor:
    """Kaldi's log-mel filter bank, Hann window, no dither, frames not beyond the borders.

    waveforms: (B, n_samples). filters: (n_fft // 2 + 1, n_mels). frame, shift: samples.
    Returns (B, n_frames, n_mels) float32, n_frames = 1 + (n_samples - frame) // shift.
    """
    frames = waveforms.double().unfold(1, frame, shift)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    hann = torch.hann_window(frame, periodic=False, dtype=torch.float64, device=frames.device)
    energies = mel_energies((frames - PREEMPHASIS * before) * hann, filters)
    return energies.clamp(min=KALDI_FLOOR).log().float()


def mel_energies(frames: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Windowed frames (B, n_frames, frame) -> (B, n_frames, n_mels), both float64."""
    n_fft = 2 * (len(filters) - 1)
    power: torch.Tensor = torch.fft.rfft(frames, n_fft).abs().square()
    return power @ filters.to(power)
