"""Log-mel filter banks as Kaldi computes them; this module alone knows which library does it.

torchaudio where it is installed (the extra `cuda`; without CUDA it cannot even be imported), else
kaldi-native-fbank. The two agree to 1e-3 (a test compares whichever are present).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Fbank = NDArray[np.float32]
WINDOW_MS = 25.0


def log_mel(
    waveform: NDArray[np.float32],
    *,
    sample_rate_hz: int,
    n_mels: int,
    frame_shift_ms: float,
    f_min_hz: float,
    f_max_hz: float,
) -> Fbank:
    """(n_samples,) -> (n_frames, n_mels): natural log of mel energies, Hann window of 25 ms, no
    dither.

    Frames are centred and mirrored at the borders, so n_frames = n_samples / shift, rounded.
    """
    options: dict[str, Any] = {
        "sample_rate_hz": sample_rate_hz,
        "n_mels": n_mels,
        "frame_shift_ms": frame_shift_ms,
        "f_min_hz": f_min_hz,
        "f_max_hz": f_max_hz,
    }
    return backend()(np.ascontiguousarray(waveform, np.float32), **options)


def has_empty_bands(n_mels: int, sample_rate_hz: int, *, f_min_hz: float, f_max_hz: float) -> bool:
    """Whether a band would hold no frequency of the transform, which Kaldi refuses."""
    n_fft = 1 << (round(sample_rate_hz * WINDOW_MS / 1000) - 1).bit_length()
    bins = _mel(np.arange(n_fft // 2) * sample_rate_hz / n_fft)
    edges = np.linspace(_mel(f_min_hz), _mel(f_max_hz), n_mels + 2)
    first_above = np.searchsorted(bins, edges[:-2], side="right")
    return bool((first_above >= np.searchsorted(bins, edges[2:])).any())


def _mel(hz: Any) -> Any:
    return 1127 * np.log1p(np.asarray(hz) / 700)


@lru_cache(maxsize=1)
def backend() -> Callable[..., Fbank]:
    """The function that will compute."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        return with_kaldi_native_fbank
    return with_torchaudio


def with_kaldi_native_fbank(
    waveform: NDArray[np.float32],
    *,
    sample_rate_hz: int,
    n_mels: int,
    frame_shift_ms: float,
    f_min_hz: float,
    f_max_hz: float,
) -> Fbank:
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = sample_rate_hz
    options.frame_opts.frame_shift_ms = frame_shift_ms
    options.frame_opts.frame_length_ms = WINDOW_MS
    options.frame_opts.window_type = "hanning"
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = n_mels
    options.mel_opts.low_freq = f_min_hz
    options.mel_opts.high_freq = f_max_hz
    computer = kaldi_native_fbank.OnlineFbank(options)
    computer.accept_waveform(sample_rate_hz, waveform)
    computer.input_finished()
    frames = [computer.get_frame(i) for i in range(computer.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, n_mels), np.float32)


def with_torchaudio(
    waveform: NDArray[np.float32],
    *,
    sample_rate_hz: int,
    n_mels: int,
    frame_shift_ms: float,
    f_min_hz: float,
    f_max_hz: float,
) -> Fbank:
    import torch
    from torchaudio.compliance import kaldi

    frames: Fbank = kaldi.fbank(
        torch.from_numpy(waveform)[None],
        sample_frequency=sample_rate_hz,
        num_mel_bins=n_mels,
        frame_shift=frame_shift_ms,
        frame_length=WINDOW_MS,
        window_type="hanning",
        low_freq=f_min_hz,
        high_freq=f_max_hz,
        snip_edges=False,
    ).numpy()
    return frames
