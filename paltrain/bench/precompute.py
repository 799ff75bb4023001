"""Computing features beside the bare encoder: what decoding, batching and writing cost.

Both arms encode the same recordings in batches of the same size, in turns. The bare arm has the
waveforms in memory and drops the features; the other reads files, encodes and writes a store. Rates
are by wall time: that of the pipeline is taken between its first and its last shard, so that
starting worker processes, once a command, is told apart.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from paltrain.bench.record import BenchRow
from paltrain.data.index import Corpus
from paltrain.data.makers import Target
from paltrain.data.manifest import Clip, Question, write_manifest
from paltrain.data.precompute import precompute
from paltrain.encoders import build_encoder
from paltrain.encoders.audio import load_audio
from paltrain.encoders.base import AudioEncoder
from paltrain.encoders.windows import encode_all

GOAL = ">= 0.9"
SAMPLE_RATE_HZ = 16_000
N_FILES = 32  # that all clips share, so that little room is needed
ASKED = (Question("q", "made_up", "What is heard?", "noise"),)


@dataclass(frozen=True)
class PrecomputeWork:
    """An encoder and recordings for it. whisper: of random weights at whisper-tiny's shapes."""

    encoder: str
    n_clips: int
    n_bare: int = 256  # clips of the bare arm
    clips_per_shard: int = 64
    batch_clips: int = 16
    clip_s: float = 10.0
    workers: int = 1


def measure_precompute(folder: Path, work: PrecomputeWork, *, n_rounds: int) -> list[BenchRow]:
    """The ratio, and both arms' rates."""
    folder.mkdir()
    corpus = _make_recordings(folder, work)
    encoder = build_encoder(**_encoder_fields(folder, work.encoder))
    waveforms = [
        load_audio(corpus.audio_path(number), sample_rate_hz=SAMPLE_RATE_HZ)
        for number in range(min(N_FILES, work.n_clips))
    ]
    bare, whole, start = [], [], []
    for _ in range(n_rounds):
        bare.append(_bare_rate(encoder, waveforms, work))
        rate, start_s = _pipeline_rate(folder / "store", corpus, encoder, work)
        whole.append(rate)
        start.append(start_s)
    ratios = [a / b for a, b in zip(whole, bare, strict=True)]
    told = f"{work.n_clips} clips of {work.clip_s:g} s, batches of {work.batch_clips}"
    turns = f"turns {min(ratios):.2f} to {max(ratios):.2f}; {n_rounds} turns"
    return [
        BenchRow(
            f"precompute_rate_ratio_over_bare_encoder@{work.encoder}",
            statistics.median(ratios),
            "x",
            f"{told}, {work.workers} decoding process; {turns}; starting took another "
            f"{statistics.median(start):.1f} s",
            GOAL,
        ),
        BenchRow(f"precompute_rate@{work.encoder}", statistics.median(whole), "clips/s", told),
        BenchRow(f"bare_encoder_rate@{work.encoder}", statistics.median(bare), "clips/s", told),
    ]


def _make_recordings(folder: Path, work: PrecomputeWork) -> Corpus:
    rng = np.random.default_rng(0)
    n_samples = round(work.clip_s * SAMPLE_RATE_HZ)
    for number in range(min(N_FILES, work.n_clips)):
        samples = (0.1 * rng.normal(size=n_samples)).astype(np.float32)
        soundfile.write(folder / f"{number}.flac", samples, SAMPLE_RATE_HZ)
    clips = [
        Clip(f"c{number}", f"{number % N_FILES}.flac", work.clip_s, "made_up", "train", ASKED)
        for number in range(work.n_clips)
    ]
    write_manifest(folder / "manifest.jsonl", clips)
    return Corpus.open([folder / "manifest.jsonl"])


def _encoder_fields(folder: Path, name: str) -> Mapping[str, Any]:
    if name != "whisper":
        return {"type": name}
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    config = WhisperConfig(  # the decoder is not used, and small
        d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536,
        decoder_layers=1, decoder_attention_heads=1, decoder_ffn_dim=4, vocab_size=50,
        num_mel_bins=80, max_source_positions=1500,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "whisper")
    return {"type": "whisper", "path": str(folder / "whisper")}


def _bare_rate(encoder: AudioEncoder, waveforms: list[Any], work: PrecomputeWork) -> float:
    """Clips a second."""
    chosen = [waveforms[number % len(waveforms)] for number in range(work.n_bare)]
    began = time.perf_counter()
    encode_all(encoder, chosen, batch_clips=work.batch_clips)
    return len(chosen) / (time.perf_counter() - began)


def _pipeline_rate(
    store: Path, corpus: Corpus, encoder: AudioEncoder, work: PrecomputeWork
) -> tuple[float, float]:
    """(clips a second after the first shard, seconds until the first shard)."""
    shutil.rmtree(store, ignore_errors=True)
    seen: list[tuple[float, int]] = []
    tell = _noting(seen)
    began = time.perf_counter()
    precompute(
        corpus,
        [Target(store, [encoder])],
        clips_per_shard=work.clips_per_shard,
        batch_clips=work.batch_clips,
        workers=work.workers,
        progress=tell,
    )
    first_at, first = next((at, done) for at, done in seen if done)
    last_at, last = seen[-1]
    return (last - first) / (last_at - first_at), first_at - began


def _noting(seen: list[tuple[float, int]]) -> Callable[[int, int, float], None]:
    def note(done: int, total: int, audio_s: float) -> None:
        if not seen or done > seen[-1][1]:
            seen.append((time.perf_counter(), done))

    return note
