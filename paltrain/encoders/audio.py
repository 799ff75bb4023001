"""Recordings: decoded with soundfile, resampled with soxr, refused when they are not what they
declare.

wav, flac, mp3, ogg and opus at any sample rate from 1 kHz on and any bit depth, told by what the
file holds, whatever its name. Several channels are averaged to one; where they cancel each other
the loudest is taken. soundfile returns what it could read of a cut-off file without an error, so
what was read is compared with what the file declares. Silence is a sound: it is accepted, and
`is_silent` tells.

Cost: memory follows what a file holds, not what its header claims: 8 bytes a sample of one channel
(three hours at 44.1 kHz: 4 GB).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from paltrain.errors import AudioError

Waveform = NDArray[np.float32]

BLOCK_SAMPLES = 1 << 20  # of each channel, decoded at once
MOST_SAMPLES_PER_BYTE = 1 << 16  # a flac's longest block, of silence, takes some ten bytes
MOST_MISSING_S = 0.1  # of an ogg: encoders may count their delay differently
LEAST_RATE_HZ = 1000  # less is a wrong header, which would make an hour of a second
SILENCE_PEAK = 1e-4  # of full scale, -80 dB
HEADER_BYTES = 1 << 17  # what is read of a file's beginning and end; an Ogg page has at most 65 kB


@dataclass(frozen=True)
class AudioInfo:
    """What a file declares of itself."""

    duration_s: float
    sample_rate_hz: int


def probe(path: str | Path) -> AudioInfo:
    """A recording's declared length and rate, from its header.

    Raises:
        AudioError: the file is missing, empty, or no audio that can be read.
    """
    info = _info(Path(path))
    return AudioInfo(info.frames / info.samplerate, info.samplerate)


def load_audio(path: str | Path, *, sample_rate_hz: int) -> Waveform:
    """A recording as one channel at `sample_rate_hz`: (n_samples,) float32, full scale 1.

    Raises:
        AudioError: missing, empty, cut off, or holding values that are no numbers.
    """
    return resample(*read_audio(path), sample_rate_hz)


def read_audio(path: str | Path) -> tuple[Waveform, int]:
    """The same at its own sample rate, and the rate."""
    path = Path(path)
    info = _info(path)
    try:
        waveform, peaks = _decode(path)
        if len(peaks) > 1 and is_silent(waveform) and peaks.max() >= SILENCE_PEAK:
            waveform, _ = _decode(path, channel=int(peaks.argmax()))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(
            f"{path} cannot be decoded ({_reason(error)}): replace the file or take it out"
        ) from error
    _check_length(path, info, len(waveform))
    n_bad = len(waveform) - int(np.isfinite(waveform).sum())
    if n_bad:
        raise AudioError(
            f"{path} has {n_bad} samples that are no numbers (NaN or infinity): write it again"
        )
    return waveform, info.samplerate


def _decode(path: Path, *, channel: int | None = None) -> tuple[Waveform, NDArray[np.float32]]:
    """A channel, or the mean of all; and every channel's peak. Block by block, since a header may
    claim more than the memory holds; up to a short one, behind which damage may lie."""
    blocks, peaks, size = [], np.zeros(1, np.float32), BLOCK_SAMPLES
    with soundfile.SoundFile(path) as file:
        while size == BLOCK_SAMPLES:
            block = file.read(BLOCK_SAMPLES, dtype="float32", always_2d=True)
            size = len(block)
            peaks = np.maximum(peaks, np.abs(block).max(axis=0, initial=0.0))
            one = block.mean(axis=1, dtype=np.float32) if channel is None else block[:, channel]
            blocks.append(one)
    return np.concatenate(blocks), peaks


def resample(waveform: Waveform, rate_hz: int, target_hz: int) -> Waveform:
    """(n,) at rate_hz -> (n * target / rate,) at target_hz, high quality (soxr HQ); n of at least
    one stay at least one."""
    if rate_hz == target_hz:
        return np.ascontiguousarray(waveform, np.float32)
    resampled: Waveform = soxr.resample(waveform, rate_hz, target_hz).astype(np.float32)
    return resampled if len(resampled) else waveform[:1].astype(np.float32)


def is_silent(waveform: Waveform) -> bool:
    """Whether no sample exceeds -80 dB of full scale."""
    return not len(waveform) or float(np.abs(waveform).max()) < SILENCE_PEAK


def _info(path: Path) -> soundfile._SoundFileInfo:
    n_bytes = _size(path)
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(
            f"{path} is no audio that can be read ({_reason(error)}); readable are wav, flac, mp3, "
            "ogg and opus"
        ) from error
    if info.frames == 0:
        raise AudioError(f"{path} holds no samples: replace the file or take it out")
    if info.frames > n_bytes * MOST_SAMPLES_PER_BYTE:
        raise AudioError(
            f"{path} declares {info.frames} samples, which {n_bytes} bytes cannot hold: its header "
            "is wrong, or that of a stream, and says no length; write it again"
        )
    if info.samplerate < LEAST_RATE_HZ:
        raise AudioError(
            f"{path} declares {info.samplerate} samples a second, under {LEAST_RATE_HZ}: its "
            "header is wrong; write it again"
        )
    return info


def _size(path: Path) -> int:
    """Bytes. Refuses what is no file, empty, or has a name that libsndfile cannot take."""
    try:
        stat = path.stat()
        str(path).encode()
    except FileNotFoundError as error:
        raise AudioError(
            f"{path} is missing (in a manifest, audio paths are relative to its folder)"
        ) from error
    except (OSError, ValueError) as error:  # too long a name, no permission; no UTF-8
        reason = getattr(error, "strerror", None) or f"its name is no UTF-8: {path.name!a}"
        raise AudioError(
            f"{str(path)!a} cannot be opened ({reason}): rename or replace it"
        ) from error
    if not S_ISREG(stat.st_mode):
        raise AudioError(f"{path} is no file, but a folder or device: name a recording")
    if stat.st_size == 0:
        raise AudioError(f"{path} is empty (0 bytes): replace the file or take it out")
    if not os.access(path, os.R_OK):
        raise AudioError(f"{path} may not be read: give yourself permission (chmod +r)")
    return stat.st_size


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def _check_length(path: Path, info: soundfile._SoundFileInfo, n_read: int) -> None:
    """Refuse a file that ends before what it declares: samples (wav, flac), bytes (mp3), a last
    page and samples (ogg)."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(HEADER_BYTES)
        file.seek(max(0, size - HEADER_BYTES))
        tail = file.read()
    if head[:4] == b"OggS":
        complete, declared = _ends_in_last_page(tail), "an end of stream"
        if complete:  # damaged pages in between are left out without a word
            complete = n_read >= info.frames - MOST_MISSING_S * info.samplerate
            declared = f"{info.frames / info.samplerate:.2f} s"
    elif info.format in ("MP3", "MPEG"):
        n_bytes = _mp3_bytes(head)
        complete, declared = size >= n_bytes, f"{n_bytes} bytes, of which {size} are there"
    else:
        n_declared = _wav_samples(head, info) if head[8:12] == b"WAVE" else info.frames
        complete, declared = n_read >= n_declared, f"{n_declared / info.samplerate:.2f} s"
    if not complete:
        raise AudioError(
            f"{path} is cut off or damaged: it declares {declared}, and "
            f"{n_read / info.samplerate:.2f} s can be read; copy or download it again"
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
