"""Precompute: only what is missing, the same bytes after a kill, bad recordings set aside."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from paltrain.data import decoding
from paltrain.data.assignment import assign_shards
from paltrain.data.coverage import coverage
from paltrain.data.index import Corpus
from paltrain.data.makers import PrecomputeReport, Target
from paltrain.data.manifest import Clip, Question, write_manifest
from paltrain.data.precompute import precompute
from paltrain.data.rejected import note_rejected
from paltrain.data.shards import FeatureStore, shard_path
from paltrain.encoders import build_encoder
from paltrain.encoders.audio import load_audio, read_audio
from paltrain.errors import AudioError, ConfigError, ModelError, StoreError
from tests.whisper import save_tiny_whisper
from tools import precompute_features

ROOT = Path(__file__).parents[2]
ASKED = (Question("q", "t", "What?", "a sound"),)


def make_corpus(folder: Path, n: int = 14) -> Corpus:
    """Recordings of different lengths, the last silent."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    clips = []
    for number in range(n):
        samples = 0.1 * rng.normal(size=1600 * (1 + number % 4)) * (number < n - 1)
        soundfile.write(folder / f"{number}.flac", samples, 16_000)
        clips.append(Clip(f"c{number}", f"{number}.flac", 0.1, "d", "train", ASKED))
    write_manifest(folder / "manifest.jsonl", clips)
    return Corpus.open([folder / "manifest.jsonl"])


def run(corpus: Corpus, store: Path, *, workers: int = 0, **options: object) -> PrecomputeReport:
    encoder = build_encoder("logmel", options={"n_mels": 8})
    settings = {"clips_per_shard": 4, "batch_clips": 3, "workers": workers, **options}
    (report,) = precompute(corpus, [Target(store, [encoder])], **settings)
    return report


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.glob("shard-*")}


def test_every_recording_gets_its_own_features_and_a_rerun_does_nothing(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    report = run(corpus, tmp_path / "store")
    assert (report.n_encoded, report.n_silent, report.n_rejected) == (14, 1, 0)
    store = FeatureStore.open(tmp_path / "store")
    encoder = build_encoder("logmel", options={"n_mels": 8})
    for number in range(14):
        waveform = load_audio(tmp_path / f"{number}.flac", sample_rate_hz=16_000)
        expected = encoder.encode([waveform])[0].astype(np.float16)
        np.testing.assert_array_equal(store.read(f"c{number}"), expected)
    before = contents(tmp_path / "store")
    again = run(corpus, tmp_path / "store")
    assert (again.n_there_before, again.n_encoded) == (14, 0)
    assert contents(tmp_path / "store") == before


def test_worker_processes_and_slices_make_the_same_store(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    run(corpus, tmp_path / "one")
    run(corpus, tmp_path / "workers", workers=2)
    for which in (2, 0, 1):
        run(corpus, tmp_path / "slices", slice_of=(which, 3))
    assert contents(tmp_path / "one") == contents(tmp_path / "workers")
    assert contents(tmp_path / "one") == contents(tmp_path / "slices")


def test_bad_recordings_are_set_aside_with_their_reason_and_the_rest_goes_on(
    tmp_path: Path,
) -> None:
    corpus = make_corpus(tmp_path)
    (tmp_path / "2.flac").unlink()
    (tmp_path / "5.flac").write_bytes((tmp_path / "5.flac").read_bytes()[:900])
    report = run(corpus, tmp_path / "store")
    assert (report.n_encoded, report.n_rejected) == (12, 2)
    lines = (tmp_path / "store/rejected.jsonl").read_text().splitlines()
    reasons = {entry["clip"]: entry["reason"] for entry in map(json.loads, lines)}
    assert "2.flac is missing" in reasons["c2"]
    assert "5.flac c" in reasons["c5"]
    assert FeatureStore.open(tmp_path / "store").rows_of(["c2", "c5", "c3"]).tolist()[:2] == [
        -1,
        -1,
    ]


def test_a_recording_that_gets_features_after_all_loses_its_line(tmp_path: Path) -> None:
    """Another slice makes its shard again, whose own list has no line of it."""
    corpus, store = make_corpus(tmp_path), tmp_path / "store"
    broken = {name: (tmp_path / name).read_bytes() for name in ("5.flac", "9.flac")}
    for name in broken:
        (tmp_path / name).write_bytes(b"no recording")
    run(corpus, store)
    for number in (1, 2):
        shard_path(store, number).unlink()
    (tmp_path / "5.flac").write_bytes(broken["5.flac"])
    run(corpus, store, slice_of=(1, 4))
    (line,) = (store / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["clip"] == "c9"
    (tmp_path / "9.flac").write_bytes(broken["9.flac"])
    assert run(corpus, store).n_encoded == 4
    assert list(store.glob("rejected*")) == []
    assert len(FeatureStore.open(store)) == 14


def test_nothing_to_note_takes_no_lock(tmp_path: Path) -> None:
    note_rejected(tmp_path / "rejected.jsonl", {}, readable={"a"})
    assert list(tmp_path.iterdir()) == []
    note_rejected(tmp_path / "rejected.jsonl", {"b": '{"clip": "b"}'}, readable={"a"})
    (tmp_path / ".lock").unlink()
    note_rejected(tmp_path / "rejected.jsonl", {}, readable={"a"})
    assert not (tmp_path / ".lock").exists()


def test_added_clips_are_made_alone(tmp_path: Path) -> None:
    run(make_corpus(tmp_path, 6), tmp_path / "store")
    before = contents(tmp_path / "store")
    corpus = make_corpus(tmp_path, 9)
    report = run(corpus, tmp_path / "store")
    assert (report.n_there_before, report.n_encoded) == (6, 3)
    after = contents(tmp_path / "store")
    assert {name: after[name] for name in before} == before


def test_another_encoder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path)
    run(corpus, tmp_path / "store")
    before = contents(tmp_path / "store")
    other = build_encoder("logmel", options={"n_mels": 9})
    with pytest.raises(StoreError, match="holds features of another encoder.*width: 8 != 9"):
        precompute(
            corpus,
            [Target(tmp_path / "store", [other])],
            clips_per_shard=4,
            batch_clips=3,
            workers=0,
        )
    assert contents(tmp_path / "store") == before


def write_config(folder: Path, clips_per_shard: int) -> list[str]:
    config = folder / "features.yaml"
    config.write_text(
        f"manifests: ['{folder}/manifest.jsonl']\nfolder: '{folder}'\n"
        "encoders: {store: {type: logmel, options: {n_mels: 8}}}\n"
        f"clips_per_shard: {clips_per_shard}\nworkers: 1\nbatch_clips: 3\n"
    )
    return [sys.executable, str(ROOT / "tools/precompute_features.py"), str(config)]


def test_a_killed_run_leaves_whole_shards_and_the_next_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    corpus = make_corpus(tmp_path, 400)
    run(corpus, tmp_path / "unbroken", clips_per_shard=2)
    command = write_config(tmp_path, clips_per_shard=2)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    ) as child:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "store").glob("*.tar"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.002)
        os.killpg(child.pid, signal.SIGKILL)
    assert 2 <= len(list((tmp_path / "store").glob("*.tar"))) < 200
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert "400 recordings:" in done.stdout
    assert contents(tmp_path / "store") == contents(tmp_path / "unbroken")


def test_a_full_disk_ends_in_one_line_and_keeps_the_whole_shards(tmp_path: Path) -> None:
    """A limit on file size stands for the full disk: the second shard is larger than it allows."""
    corpus = make_corpus(tmp_path, 8)
    run(corpus, tmp_path / "store", slice_of=(0, 2))
    soundfile.write(tmp_path / "5.flac", 0.1 * np.ones(16_000 * 60), 16_000)
    command = write_config(tmp_path, clips_per_shard=4)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert done.returncode == 2, done.stderr
    assert "shard-000001.tar cannot be written: File too large; make room" in done.stderr
    assert "Traceback" not in done.stderr
    files = sorted(path.name for path in (tmp_path / "store").iterdir())
    assert [name for name in files if "shard-" in name] == [
        "shard-000000.index.npy",
        "shard-000000.tar",
    ]


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_whisper(tmp_path_factory.mktemp("whisper"))


def test_encoders_share_the_decoding_and_make_what_each_would_alone(
    tmp_path: Path, whisper_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three encoders, one of another sample rate's worth of frames; recordings are read once."""
    corpus = make_corpus(tmp_path, 10)
    encoders = {
        "mel": build_encoder("logmel", options={"n_mels": 8}),
        "pooled": build_encoder("logmel", options={"n_mels": 8}, pool=2),
        "whisper": build_encoder("whisper", path=str(whisper_folder)),
    }
    for name, encoder in encoders.items():
        precompute(
            corpus, [Target(tmp_path / "alone" / name, [encoder])], clips_per_shard=4,
            batch_clips=3, workers=0,
        )  # fmt: skip
    read: list[Path] = []

    def counting(path: Path) -> tuple[np.ndarray, int]:
        read.append(path)
        return read_audio(path)

    monkeypatch.setattr(decoding, "read_audio", counting)
    targets = [Target(tmp_path / "together" / name, [e]) for name, e in encoders.items()]
    reports = precompute(corpus, targets, clips_per_shard=4, batch_clips=3, workers=0)
    assert [report.n_encoded for report in reports] == [10, 10, 10]
    assert len(read) == 10
    for name in encoders:
        assert contents(tmp_path / "together" / name) == contents(tmp_path / "alone" / name)


def test_an_encoder_that_comes_later_makes_its_own_store_alone(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, 10)
    old, new = (build_encoder("logmel", options={"n_mels": n}) for n in (8, 9))
    run(corpus, tmp_path / "old")
    before = contents(tmp_path / "old")
    first, second = precompute(
        corpus,
        [Target(tmp_path / "old", [old]), Target(tmp_path / "new", [new])],
        clips_per_shard=4,
        batch_clips=3,
        workers=0,
    )
    assert (first.n_there_before, first.n_encoded) == (10, 0)
    assert (second.n_there_before, second.n_encoded) == (0, 10)
    assert contents(tmp_path / "old") == before
    assert len(FeatureStore.open(tmp_path / "new")) == 10


def test_several_devices_share_the_shards_and_write_the_same_bytes(tmp_path: Path) -> None:
    """Two encoders on the CPU stand for two GPUs: both must have worked."""
    corpus = make_corpus(tmp_path, 60)
    run(corpus, tmp_path / "one")
    copies = [CountingEncoder(), CountingEncoder()]
    (report,) = precompute(
        corpus, [Target(tmp_path / "two", copies)], clips_per_shard=4, batch_clips=3, workers=1
    )
    assert report.n_encoded == 60
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert all(encoder.n_batches for encoder in copies)
    assert sum(encoder.n_batches for encoder in copies) == 15 * 2


class CountingEncoder:
    """The log-mel encoder of `run`, which counts its batches and takes a moment for each."""

    def __init__(self) -> None:
        self._encoder = build_encoder("logmel", options={"n_mels": 8})
        self.n_batches = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._encoder, name)

    def encode(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        self.n_batches += 1
        time.sleep(0.01)
        return self._encoder.encode(waveforms)


class FaultyEncoder(CountingEncoder):
    """One recording's features overflow float16, as a half-precision encoder's may."""

    def encode(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        features = super().encode(waveforms)
        for frames, waveform in zip(features, waveforms, strict=True):
            if len(waveform) > 6000:
                frames[1, 3] = 1e6
        return features


def test_features_that_cannot_be_stored_set_their_recording_aside(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, 6)  # clip 3 has 6400 samples
    target = Target(tmp_path / "store", [FaultyEncoder()])
    (report,) = precompute(corpus, [target], clips_per_shard=4, batch_clips=3, workers=0)
    assert (report.n_encoded, report.n_rejected) == (5, 1)
    (line,) = (tmp_path / "store" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["clip"] == "c3"
    assert "frame 1 holds 1e+06" in json.loads(line)["reason"]


class FullEncoder(CountingEncoder):
    def encode(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        if self.n_batches == 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super().encode(waveforms)


def test_a_device_without_room_for_a_batch_says_what_to_lower(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, 12)
    target = Target(tmp_path / "store", [FullEncoder()])
    with pytest.raises(ConfigError, match="lower batch_clips or batch_audio_s"):
        precompute(corpus, [target], clips_per_shard=4, batch_clips=3, workers=0)
    assert len(FeatureStore.open(tmp_path / "store")) == 4


def test_int8_features_are_written_and_read(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, 5)
    run(corpus, tmp_path / "exact")
    encoder = build_encoder("logmel", options={"n_mels": 8})
    target = Target(tmp_path / "store", [encoder], "int8")
    precompute(corpus, [target], clips_per_shard=4, batch_clips=3, workers=0)
    exact, small = FeatureStore.open(tmp_path / "exact"), FeatureStore.open(tmp_path / "store")
    for number in range(5):
        a, b = exact.read(f"c{number}").astype(np.float32), small.read(f"c{number}")
        scale = np.abs(a).max(1, keepdims=True) / 127
        assert (np.abs(a - b) <= 0.51 * scale + 2e-3).all()


class Mute(CountingEncoder):
    def encode(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        return [frames * np.nan for frames in super().encode(waveforms)]


class Narrow(CountingEncoder):
    def encode(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        return [frames[:, :7] for frames in super().encode(waveforms)]


def test_a_broken_encoder_ends_the_run_and_no_shard_is_whole_without_clips(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, 20)
    for encoder, says in ((Mute(), "frame 0 holds nan"), (Narrow(), r"their shape is \(\d+, 7\)")):
        target = Target(tmp_path / "store", [encoder])
        with pytest.raises(ModelError, match=f"none of 20 recordings has usable features.*{says}"):
            precompute(corpus, [target], clips_per_shard=20, batch_clips=3, workers=0)
        assert not contents(tmp_path / "store")


@pytest.mark.parametrize("n", [20, 3])
def test_recordings_that_are_away_are_not_set_aside(tmp_path: Path, n: int) -> None:
    (tmp_path / "mount").mkdir()
    corpus = make_corpus(tmp_path / "mount" / "data", n)
    away = tmp_path / "away"
    (tmp_path / "mount" / "data").rename(away)
    with pytest.raises(AudioError, match="is their folder mounted"):
        run(corpus, tmp_path / "store", clips_per_shard=n)
    assert not contents(tmp_path / "store")
    assert not (tmp_path / "store" / "rejected.jsonl").exists()
    away.rename(tmp_path / "mount" / "data")
    assert run(corpus, tmp_path / "store", clips_per_shard=n).n_encoded == n


def test_a_disk_that_fails_ends_what_is_being_encoded(tmp_path: Path) -> None:
    """The first store cannot be written; the second's slow encoder is given up after its batch."""
    corpus = make_corpus(tmp_path, 60)
    (tmp_path / "a" / "shard-000000.index.npy").mkdir(parents=True)
    slow = CountingEncoder()
    with pytest.raises(StoreError, match=r"a/shard-000000.tar cannot be written"):
        precompute(
            corpus,
            [Target(tmp_path / "a", [CountingEncoder()]), Target(tmp_path / "b", [slow])],
            clips_per_shard=60,
            batch_clips=1,
            workers=0,
        )
    assert slow.n_batches < 60
    assert not contents(tmp_path / "b")


def test_progress_is_told_while_nothing_is_ready(tmp_path: Path) -> None:
    """A decoding process takes longer to start than a moment."""
    told: list[tuple[int, int, float]] = []
    corpus = make_corpus(tmp_path, 4)
    run(corpus, tmp_path / "store", workers=1, progress=lambda *seen: told.append(seen))
    assert told[0] == (0, 4, 0.0)
    assert told.count((0, 4, 0.0)) > 1
    assert told[-1][:2] == (4, 4)


def test_status_says_what_is_missing_and_what_it_will_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = make_corpus(tmp_path, 14)
    config = write_config(tmp_path, clips_per_shard=4)[2]
    precompute_features.main([config, "--status"])
    assert "store: 0 of 14 recordings done, 14 missing" in capsys.readouterr().out
    (tmp_path / "13.flac").unlink()
    run(corpus, tmp_path / "store", slice_of=(1, 2))  # shards 1 and 3
    words = [config, "encoders.other={type: whisper, path: no/whisper}", "--status"]
    precompute_features.main(words)
    said = capsys.readouterr().out
    assert "store: 6 of 14 recordings done, 8 missing" in said
    assert "1 set aside" in said
    assert "frames of width 8 per second) -> " in said
    assert "other: 0 of 14 recordings done" in said
    assert "size unknown: encoder 'whisper': no/whisper is neither a folder" in said
    assert "GB free" in said


def test_the_bytes_to_come_are_those_that_are_written(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, 14)
    stamp = {**build_encoder("logmel").provenance(), "dtype": "float16"}
    told = coverage(corpus, tmp_path / "store").n_bytes_to_come(stamp)
    precompute(
        corpus,
        [Target(tmp_path / "store", [build_encoder("logmel")])],
        clips_per_shard=14,
        batch_clips=3,
        workers=0,
    )
    size = (tmp_path / "store" / "shard-000000.tar").stat().st_size
    assert told == pytest.approx(size, rel=0.5)  # the clips of a tenth of a second are mostly tar
    assert coverage(corpus, tmp_path / "store").n_missing == 0


def test_long_recordings_make_shards_of_fewer_clips(tmp_path: Path) -> None:
    lasts = {
        f"c{n}": hours * 3600.0 for n, hours in enumerate([1, 1.5, 1.5, 0.1, 9, 0.1, 0.1, 0.1])
    }
    shards = assign_shards(tmp_path, list(lasts), clips_per_shard=3, seconds=lasts)
    assert shards == [["c0", "c1", "c2"], ["c3"], ["c4"], ["c5", "c6", "c7"]]
    again = assign_shards(tmp_path, [*lasts, "new"], clips_per_shard=3, seconds=lasts)
    assert again == [*shards, ["new"]]


def test_status_and_merge_notice_the_store_of_another_encoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make_corpus(tmp_path, 5), tmp_path / "store")
    config = write_config(tmp_path, clips_per_shard=4)[2]
    other = [config, "encoders.store.options.n_mels=9"]
    precompute_features.main([*other, "--status"])
    assert "NOT OF THIS ENCODER" in capsys.readouterr().out
    with pytest.raises(StoreError, match="width: 8 != 9"):
        precompute_features.main([*other, "--merge", "1"])
    precompute_features.main([config, "--merge", "1"])
