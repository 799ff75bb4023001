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

from paltrain.data.index import Corpus
from paltrain.data.manifest import Clip, Question, write_manifest
from paltrain.data.precompute import PrecomputeReport, precompute
from paltrain.data.shards import FeatureStore
from paltrain.encoders import build_encoder
from paltrain.encoders.audio import load_audio
from paltrain.errors import StoreError

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
    return precompute(corpus, encoder, store, **settings)


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
        precompute(corpus, other, tmp_path / "store", clips_per_shard=4, batch_clips=3, workers=0)
    assert contents(tmp_path / "store") == before


def write_config(folder: Path, clips_per_shard: int) -> list[str]:
    config = folder / "features.yaml"
    config.write_text(
        f"manifests: ['{folder}/manifest.jsonl']\nstore: '{folder}/store'\n"
        f"encoder: {{type: logmel, options: {{n_mels: 8}}}}\nclips_per_shard: {clips_per_shard}\n"
        "workers: 1\nbatch_clips: 3\n"
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
