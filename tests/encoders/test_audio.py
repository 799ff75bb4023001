"""Recordings of every kind are read; those that are not what they declare are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from paltrain.encoders.audio import is_silent, load_audio, probe
from paltrain.errors import AudioError

FORMS = [
    ("a.wav", 8_000, "WAV", "PCM_16", 1),
    ("b.wav", 192_000, "WAV", "FLOAT", 2),
    ("c.wav", 44_100, "WAV", "PCM_24", 6),
    ("d.flac", 16_000, "FLAC", "PCM_16", 1),
    ("e.mp3", 44_100, "MP3", None, 2),
    ("f.mp3", 16_000, "MP3", None, 1),
    ("g.ogg", 22_050, "OGG", "VORBIS", 1),
    ("h.opus", 48_000, "OGG", "OPUS", 2),
]


def tone(duration_s: float, rate_hz: int, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(duration_s * rate_hz)) / rate_hz)


def write(folder: Path, form: tuple, duration_s: float = 1.0) -> Path:
    name, rate, container, subtype, channels = form
    samples = np.repeat(tone(duration_s, rate)[:, None], channels, axis=1)
    soundfile.write(folder / name, samples, rate, format=container, subtype=subtype)
    return folder / name


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[0])
@pytest.mark.parametrize("duration_s", [0.1, 1.0])
def test_every_form_is_read_as_one_channel_at_the_rate_asked_for(
    tmp_path: Path, form: tuple, duration_s: float
) -> None:
    path = write(tmp_path, form, duration_s)
    waveform = load_audio(path, sample_rate_hz=16_000)
    assert waveform.dtype == np.float32
    assert len(waveform) / 16_000 == pytest.approx(duration_s, abs=0.08)
    spectrum = np.abs(np.fft.rfft(waveform))
    assert np.argmax(spectrum) * 16_000 / len(waveform) == pytest.approx(440, abs=11)
    info = probe(path)
    assert info.sample_rate_hz == form[1]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[0])
@pytest.mark.parametrize("share", [0.3, 0.97])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, form: tuple, share: float) -> None:
    path = write(tmp_path, form, duration_s=3.0)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        AudioError, match=f"{path.name} (is cut off|cannot be|is no audio|holds no samples)"
    ):
        load_audio(path, sample_rate_hz=16_000)


def test_ten_minutes_are_read_whole(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.flac", tone(600.0, 8_000), 8_000)
    assert len(load_audio(tmp_path / "long.flac", sample_rate_hz=8_000)) == 600 * 8_000


def test_a_missing_an_empty_and_a_foreign_file_are_refused_each_with_its_reason(
    tmp_path: Path,
) -> None:
    (tmp_path / "empty.wav").touch()
    (tmp_path / "notes.wav").write_text("not audio")
    soundfile.write(tmp_path / "hollow.wav", np.zeros(0), 16_000)
    for name, reason in {
        "gone.wav": "is missing",
        "empty.wav": r"is empty \(0 bytes\)",
        "notes.wav": "is no audio that can be read",
        "hollow.wav": "holds no samples",
    }.items():
        with pytest.raises(AudioError, match=f"{name} {reason}"):
            load_audio(tmp_path / name, sample_rate_hz=16_000)


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    samples = tone(0.5, 16_000)
    samples[7:9] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match="has 2 samples that are no numbers"):
        load_audio(tmp_path / "nan.wav", sample_rate_hz=16_000)


def test_silence_is_read_and_told(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(1600), 16_000)
    assert is_silent(load_audio(tmp_path / "silence.wav", sample_rate_hz=16_000))
    assert not is_silent(tone(0.1, 16_000).astype(np.float32))
