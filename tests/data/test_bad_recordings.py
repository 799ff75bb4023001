"""Recordings as people have them: odd ones are heard, bad ones are set aside with their reason, by
the decoder and by a whole run of the feature tool, which goes on with the rest."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from paltrain.data import decoding
from paltrain.data.importers.recordings import is_utf8
from paltrain.data.index import Corpus
from paltrain.data.manifest import Clip, Question, write_manifest
from paltrain.data.shards import FeatureStore
from paltrain.encoders import build_encoder
from paltrain.encoders.audio import Waveform, is_silent, load_audio, read_audio
from paltrain.errors import AudioError
from tests.data.test_precompute import run
from tools import precompute_features

RATE = 16_000
SECONDS = 0.5
ASKED = (Question("q", "t", "What?", "a sound"),)
Make = Callable[[Path], object]


def tone(rate_hz: int = RATE, seconds: float = SECONDS) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)


def written(
    samples: np.ndarray | None = None, rate_hz: int = RATE, form: str = "WAV", sub: str = "PCM_16"
) -> Make:
    """Writes a file of that form, whatever its name; a tone by default."""

    def make(path: Path) -> None:
        sound = tone(rate_hz) if samples is None else samples
        with open(path, "wb") as file:
            soundfile.write(file, sound, rate_hz, format=form, subtype=sub)

    return make


def changed(at: int | bytes, content: bytes, make: Make | None = None) -> Make:
    """Overwrites bytes of what `make` makes: at a place, or behind what is found."""

    def harm(path: Path) -> None:
        (make or written())(path)
        whole = bytearray(path.read_bytes())
        start = whole.index(at) + len(at) if isinstance(at, bytes) else at
        whole[start : start + len(content)] = content
        path.write_bytes(whole)

    return harm


def cut(share: float, make: Make) -> Make:
    def harm(path: Path) -> None:
        make(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return harm


NOISE = np.random.default_rng(0)
LONG_NOISE = 0.1 * NOISE.normal(size=3 * RATE)
FLAC, OGG = written(LONG_NOISE, form="FLAC"), written(LONG_NOISE, form="OGG", sub="OPUS")
MP3 = written(form="MP3", sub="MPEG_LAYER_III")
WITH_NAN, WITH_INF = tone(), tone()
WITH_NAN[3:5], WITH_INF[7] = np.nan, -np.inf
SAMPLES_OF_FLAC = 8 + 13  # in its STREAMINFO: the last 36 of 40 bits

BAD: dict[str, tuple[Make, str]] = {
    "gone.wav": (lambda path: None, "is missing"),
    "folder.wav": (Path.mkdir, "is no file, but a folder"),
    "empty.wav": (Path.touch, r"is empty \(0 bytes\)"),
    "hollow.wav": (written(np.zeros(0)), "holds no samples"),
    "text.wav": (lambda path: path.write_text("no sound"), "is no audio that can be read"),
    "noise.mp3": (lambda path: path.write_bytes(NOISE.bytes(4000)), "is no audio|cannot be dec"),
    "no_header.flac": (changed(0, NOISE.bytes(64), FLAC), "is no audio that can be read"),
    "cut.wav": (cut(0.7, written()), r"is cut off .* declares 0\.50 s, and 0\.35 s can be read"),
    "cut.flac": (cut(0.7, FLAC), "cannot be decoded|is cut off"),
    "cut.mp3": (cut(0.7, MP3), "is cut off"),
    "cut.opus": (cut(0.7, OGG), "declares an end of stream, and"),
    "corrupt.flac": (changed(20_000, NOISE.bytes(2000), FLAC), "cannot be decoded"),
    "corrupt.opus": (changed(5000, NOISE.bytes(99), OGG), r"damaged: it declares 3\.00 s, and"),
    "nan.wav": (written(WITH_NAN, sub="FLOAT"), "has 2 samples that are no numbers"),
    "inf.wav": (written(WITH_INF, sub="DOUBLE"), "has 1 samples that are no numbers"),
    "huge_values.wav": (written(tone() * 1e300, sub="DOUBLE"), "samples that are no numbers"),
    "claims_4_GB.wav": (changed(b"data", b"\xf0\xff\xff\xff"), r"is cut off .* declares 134217"),
    "claims_25_GB.flac": (
        changed(SAMPLES_OF_FLAC, struct.pack(">BI", 0xF3, 0), FLAC),
        "declares 12884901888 samples, which [0-9]+ bytes cannot hold",
    ),
    "of_no_length.flac": (
        changed(SAMPLES_OF_FLAC, struct.pack(">BI", 0xF0, 0), FLAC),
        "its header is wrong, or that of a stream",
    ),
    "rate_0.wav": (changed(24, struct.pack("<I", 0)), "is no audio that can be read"),
    "rate_1.wav": (changed(24, struct.pack("<I", 1)), "declares 1 samples a second, under 1000"),
    "no_channels.wav": (changed(22, b"\0\0"), "is no audio that can be read"),
    "n" * 300 + ".wav": (lambda path: None, r"cannot be opened \(File name too long\)"),
    os.fsdecode(b"g\xe4nse.wav"): (written(), r"its name is no UTF-8: 'g\\udce4nse\.wav'"),
}
OPPOSITE = np.stack([tone(), -tone()], axis=1)
HEARD: dict[str, tuple[Make, float]] = {
    "plain.wav": (written(), SECONDS),
    "mp3_named.wav": (MP3, SECONDS),
    "wav_named.mp3": (written(), SECONDS),
    "8_kHz.wav": (written(rate_hz=8_000), SECONDS),
    "192_kHz.wav": (written(rate_hz=192_000), SECONDS),
    "six_channels.wav": (written(np.repeat(tone()[:, None], 6, axis=1)), SECONDS),
    "float.wav": (written(sub="FLOAT"), SECONDS),
    "double.wav": (written(sub="DOUBLE"), SECONDS),
    "opposite.wav": (written(OPPOSITE), SECONDS),
    "Gänse 鹅 🦢 'q\" \\.wav": (written(), SECONDS),
    "ü" * 125 + ".wav": (written(), SECONDS),
    "silence.flac": (written(np.zeros(RATE // 2), form="FLAC"), SECONDS),
    "one_sample.wav": (written(np.array([0.5])), 1 / RATE),
    "one_at_192_kHz.wav": (written(np.array([0.5]), 192_000), 1 / RATE),
}


def made(folder: Path, name: str, make: Make) -> Path:
    """The recording in a folder; a name that is too long has none."""
    folder.mkdir(parents=True, exist_ok=True)
    make(folder / name)
    return folder / name


@pytest.mark.parametrize("name", BAD, ids=lambda name: ascii(name)[:30])
def test_a_bad_recording_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    make, says = BAD[name]
    path = made(tmp_path, name, make)
    with pytest.raises(AudioError, match=says):
        load_audio(path, sample_rate_hz=RATE)


@pytest.mark.parametrize("name", HEARD, ids=lambda name: ascii(name)[:30])
def test_an_odd_recording_is_heard(tmp_path: Path, name: str) -> None:
    make, seconds = HEARD[name]
    waveform = load_audio(made(tmp_path, name, make), sample_rate_hz=RATE)
    assert len(waveform) / RATE == pytest.approx(seconds, abs=0.03 if "mp3" in name else 1e-9)
    assert np.isfinite(waveform).all()
    assert is_silent(waveform) == (name == "silence.flac")
    if seconds == SECONDS and name != "silence.flac":
        middle = waveform[1000:-1000]
        assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_a_run_sets_bad_recordings_aside_says_why_and_keeps_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line, with a process that decodes. A manifest names UTF-8 files alone."""
    bad = {name: entry for name, entry in BAD.items() if is_utf8(name)}
    recordings = {**bad, **HEARD}
    lines = []
    for number, (name, (make, _)) in enumerate(recordings.items()):
        made(tmp_path, name, make)
        clip = Clip(f"c{number}", "a.wav", SECONDS, "d", "train", ASKED)
        write_manifest(tmp_path / "line.jsonl", [clip])
        lines.append({**json.loads((tmp_path / "line.jsonl").read_text()), "audio": name})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = [f"manifests=[{tmp_path}/manifest.jsonl]", f"folder={tmp_path}", "workers=1"]
    precompute_features.main(["configs/quickstart/features.yaml", *settings, "clips_per_shard=10"])
    said = capsys.readouterr().out
    assert f"{len(recordings)} recordings: 0 there before, {len(HEARD)} encoded" in said
    assert f"of them 1 silent; {len(bad)} set aside in {tmp_path}/logmel/rejected.jsonl" in said
    rejected = (tmp_path / "logmel/rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["clip"] for line in rejected] == [f"c{n}" for n in range(len(bad))]
    for line, (name, (_, says)) in zip(rejected, bad.items(), strict=True):
        with pytest.raises(AudioError, match=says):
            raise AudioError(json.loads(line)["reason"])
        assert json.loads(line)["audio"].endswith(name)
    store = FeatureStore.open(tmp_path / "logmel")
    assert len(store) == len(HEARD)
    for number, (_, seconds) in enumerate(HEARD.values(), len(bad)):
        frames = store.read(f"c{number}")
        assert len(frames) == pytest.approx(seconds * 50, abs=2)
        assert len(frames)
        assert np.isfinite(frames).all()


def test_three_hours_are_heard_in_the_memory_of_one_channel(tmp_path: Path) -> None:
    n, rate = 3 * 3600 * 1000, 1000
    with soundfile.SoundFile(tmp_path / "long.flac", "w", rate, 6, format="FLAC") as file:
        for _ in range(3 * 36):
            file.write(np.tile(tone(rate, 100.0)[:, None], 6))
    tracemalloc.start()
    waveform = load_audio(tmp_path / "long.flac", sample_rate_hz=rate)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(waveform) == n
    assert np.sqrt((waveform**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    assert peak < 4 * n * 4  # six channels at once would be 6 * n * 4, and their mean
    encoder = build_encoder("logmel", options={"n_mels": 8})
    (frames,) = encoder.encode([load_audio(tmp_path / "long.flac", sample_rate_hz=RATE // 16)])
    assert len(frames) == pytest.approx(n / RATE * 50, abs=1)


def test_a_changed_manifest_asks_for_its_new_clips_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clip is gone, the others have moved and have other questions, two are new."""

    def corpus(*numbers: int, answer: str) -> Corpus:
        clips = []
        for number in numbers:
            made(tmp_path, f"{number}.wav", written(tone() * (number + 1) / 9))
            asked = (Question("q", "t", "What?", answer),)
            clips.append(Clip(f"c{number}", f"{number}.wav", 0.5, "d", "train", asked))
        write_manifest(tmp_path / "manifest.jsonl", clips)
        return Corpus.open([tmp_path / "manifest.jsonl"])

    run(corpus(0, 1, 2, 3, 4, answer="a"), tmp_path / "store")
    before = FeatureStore.open(tmp_path / "store").read("c3")
    read: list[str] = []

    def counting(path: Path) -> tuple[Waveform, int]:
        read.append(path.name)
        return read_audio(path)

    monkeypatch.setattr(decoding, "read_audio", counting)
    report = run(corpus(7, 4, 3, 1, 0, 6, answer="b"), tmp_path / "store")
    assert read == ["7.wav", "6.wav"]
    assert (report.n_clips, report.n_there_before, report.n_encoded) == (6, 4, 2)
    store = FeatureStore.open(tmp_path / "store")
    np.testing.assert_array_equal(store.read("c3"), before)
    assert (store.rows_of([f"c{n}" for n in (0, 1, 2, 3, 4, 6, 7)]) >= 0).all()
