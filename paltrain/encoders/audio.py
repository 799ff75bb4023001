"""Recordings: decoded with soundfile, resampled with soxr, refused when they are not what they
declare.

wav, flac, mp3, ogg and opus at any sample rate and bit depth; several channels are averaged to one.
soundfile returns what it could read of a cut-off file without an error, so what was read is
compared with what the file declares. Silence is a sound: it is accepted, and `is_silent` tells.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from paltrain.errors import AudioError

Waveform = NDArray[np.float32]

SILENCE_PEAK = 1e-4  # of full scale, -80 dB
HEADER_BYTES = 1 << 17  # what is read of a file's beginning and end; an Ogg page has at most 65 kB


@dataclass(frozen=True)
class AudioInfo:
    """What a file declares of itself."""

    duration_s: float
    sample_rate_hz: int
    n_channels: int


def probe(path: str | Path) -> AudioInfo:
    """A recording's declared length and form, from its header.

    Raises:
        AudioError: the file is missing, empty, or no audio that can be read.
    """
    info = _info(Path(path))
    return AudioInfo(info.frames / info.samplerate, info.samplerate, info.channels)


def load_audio(path: str | Path, *, sample_rate_hz: int) -> Waveform:
    """A recording as one channel at `sample_rate_hz`: (n_samples,) float32, full scale 1.

    Raises:
        AudioError: missing, empty, cut off, or holding values that are no numbers.
    """
    path = Path(path)
    info = _info(path)
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(
            f"{path} cannot be decoded ({_reason(error)}): replace the file or take it out"
        ) from error
    _check_length(path, info, len(samples))
    waveform = samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(waveform).all():
        n_bad = int((~np.isfinite(waveform)).sum())
        raise AudioError(
            f"{path} has {n_bad} samples that are no numbers (NaN or infinity): write it again"
        )
    return resample(waveform, rate, sample_rate_hz)


def resample(waveform: Waveform, rate_hz: int, target_hz: int) -> Waveform:
    """(n,) at rate_hz -> (n * target / rate,) at target_hz, high quality (soxr HQ)."""
    if rate_hz == target_hz:
        return np.ascontiguousarray(waveform, np.float32)
    resampled: Waveform = soxr.resample(waveform, rate_hz, target_hz).astype(np.float32)
    return resampled


def is_silent(waveform: Waveform) -> bool:
    """Whether no sample exceeds -80 dB of full scale."""
    return not len(waveform) or float(np.abs(waveform).max()) < SILENCE_PEAK


def _info(path: Path) -> soundfile._SoundFileInfo:
    if not path.is_file():
        raise AudioError(f"{path} is missing: a manifest's audio paths are relative to its folder")
    if path.stat().st_size == 0:
        raise AudioError(f"{path} is empty (0 bytes): replace the file or take it out")
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(
            f"{path} is no audio that can be read ({_reason(error)}); readable are wav, flac, mp3, "
            "ogg and opus"
        ) from error
    if info.frames == 0:
        raise AudioError(f"{path} holds no samples: replace the file or take it out")
    return info


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def _check_length(path: Path, info: soundfile._SoundFileInfo, n_read: int) -> None:
    """Refuse a file that ends before what it declares: samples (wav), bytes (mp3), a last page
    (ogg)."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(HEADER_BYTES)
        file.seek(max(0, size - HEADER_BYTES))
        tail = file.read()
    if head[:4] == b"OggS":
        complete, declared = _ends_in_last_page(tail), "an end of stream"
    elif info.format in ("MP3", "MPEG"):
        n_bytes = _mp3_bytes(head)
        complete, declared = size >= n_bytes, f"{n_bytes} bytes, of which {size} are there"
    else:
        n_declared = _wav_samples(head, info) if head[8:12] == b"WAVE" else info.frames
        complete, declared = n_read >= n_declared, f"{n_declared / info.samplerate:.2f} s"
    if not complete:
        raise AudioError(
            f"{path} is cut off: it declares {declared}, and {n_read / info.samplerate:.2f} s can "
            "be read; copy or download it again"
        )


def _wav_samples(head: bytes, info: soundfile._SoundFileInfo) -> int:
    """From the sizes of the `fmt ` and `data` chunks; 0 for a stream of unknown length."""
    at, block_align = 12, 0
    while at + 8 <= len(head):
        name, size = head[at : at + 4], struct.unpack_from("<I", head, at + 4)[0]
        if name == b"fmt " and at + 22 <= len(head):
            block_align = struct.unpack_from("<H", head, at + 20)[0]
        if name == b"data":
            unknown = size in (0, 0xFFFFFFFF) or block_align == 0
            compressed = not info.subtype.startswith(("PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW"))
            return 0 if unknown or compressed else int(size // block_align)
        at += 8 + size + size % 2
    return 0


def _mp3_bytes(head: bytes) -> int:
    """Bytes up to the stream's end, by the byte count of a Xing or Info header; 0 without one."""
    for tag in (b"Xing", b"Info"):
        at = head.find(tag)
        if at > 0 and at + 16 <= len(head):
            flags = struct.unpack_from(">I", head, at + 4)[0]
            if flags & 2:  # the count starts at the frame that holds the header
                n_bytes = struct.unpack_from(">I", head, at + 8 + 4 * (flags & 1))[0]
                return int(n_bytes + head.rfind(b"\xff", 0, at))
    return 0


def _ends_in_last_page(tail: bytes) -> bool:
    """Whether the last Ogg page is marked as such and whole (RFC 3533, section 6)."""
    at = tail.rfind(b"OggS")
    if at < 0 or at + 27 > len(tail) or not tail[at + 5] & 4:
        return False
    n_segments = tail[at + 26]
    body = sum(tail[at + 27 : at + 27 + n_segments])
    return at + 27 + n_segments + body <= len(tail)
