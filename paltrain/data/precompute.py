"""Encoder features of every recording, once: decode, encode, write whole shards.

1. the store is claimed for the encoder, or refused
2. every clip has its shard, recorded before anything is encoded
3. worker processes decode a shard's recordings while the one before is encoded
4. the encoder runs in batches of like length; a shard appears by rename when it is whole

A rerun makes only what is missing, and the same bytes. A recording that cannot be read goes to
`rejected.jsonl` with its reason and stops nothing; silence is encoded, and counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paltrain.data.index import Corpus
from paltrain.data.shard_writer import assign_shards, claim_store, write_shard
from paltrain.data.shards import finished_shards
from paltrain.encoders.audio import Waveform, is_silent, load_audio
from paltrain.encoders.base import AudioEncoder
from paltrain.errors import AudioError
from paltrain.log import get_logger

log = get_logger(__name__)

DECODED_PER_TASK = 16  # recordings a worker decodes at a time
VERSIONS_OF = ("numpy", "soundfile", "soxr", "kaldi-native-fbank", "torch", "transformers")

Decoded = Waveform | str  # a waveform, or why there is none
Recording = tuple[str, Path]  # clip id, file
Progress = Callable[[int, float], None]  # clips and seconds of audio done so far


@dataclass
class PrecomputeReport:
    """What a run did; rejected and silent count this run's clips alone."""

    n_clips: int
    n_there_before: int
    n_encoded: int = 0
    n_rejected: int = 0
    n_silent: int = 0
    audio_s: float = 0.0
    n_bytes: int = 0


def precompute(
    corpus: Corpus,
    encoder: AudioEncoder,
    folder: Path,
    *,
    clips_per_shard: int,
    batch_clips: int,
    workers: int,
    slice_of: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> PrecomputeReport:
    """Make what the store in `folder` lacks of the corpus's recordings.

    slice_of: (i, n) makes the shards whose number is i modulo n, for job arrays.

    Raises:
        StoreError: the store was made with another encoder, or the disk is full.
    """
    claim_store(folder, {**encoder.provenance(), "dtype": "float16", "versions": _versions()})
    files = {
        str(clip_id): corpus.audio_path(number)
        for number, clip_id in enumerate(corpus.clip_id_array)
        if corpus.has_audio[number]
    }
    shards = assign_shards(folder, list(files), clips_per_shard=clips_per_shard)
    todo = _unfinished(folder, shards, files, slice_of)
    n_todo = sum(len(recordings) for _, recordings in todo)
    mine = sum(len(s) for n, s in enumerate(shards) if n % slice_of[1] == slice_of[0])
    report = PrecomputeReport(n_clips=len(files), n_there_before=mine - n_todo)
    for number, recordings, decoded in _decode_ahead(todo, encoder.sample_rate_hz, workers):
        heard = _set_aside(folder, recordings, decoded, report)
        features = _encode(encoder, [waveform for _, waveform in heard], batch_clips)
        ids = [clip_id for clip_id, _ in heard]
        report.n_bytes += write_shard(folder, number, zip(ids, features, strict=True))
        report.n_encoded += len(ids)
        report.audio_s += sum(len(waveform) for _, waveform in heard) / encoder.sample_rate_hz
        if progress:
            progress(report.n_encoded + report.n_rejected, report.audio_s)
    return report


def _unfinished(
    folder: Path,
    shards: Sequence[Sequence[str]],
    files: dict[str, Path],
    slice_of: tuple[int, int],
) -> list[tuple[int, list[Recording]]]:
    """Shards to make: of the slice, not whole yet, and with all their clips in these manifests."""
    which, n_slices = slice_of
    finished = set(finished_shards(folder))
    todo = []
    for number, clip_ids in enumerate(shards):
        if number in finished or number % n_slices != which:
            continue
        unknown = [clip_id for clip_id in clip_ids if clip_id not in files]
        if unknown:
            log.warning(
                "shard %d is for clips of other manifests (%s, ...): name those too to make it",
                number,
                unknown[0],
            )
            continue
        todo.append((number, [(clip_id, files[clip_id]) for clip_id in clip_ids]))
    return todo


def _decode_ahead(
    todo: Sequence[tuple[int, list[Recording]]], sample_rate_hz: int, workers: int
) -> Iterator[tuple[int, list[Recording], list[Decoded]]]:
    """Each shard decoded, the next one under way; workers = 0: in this process."""
    decode = partial(_decode, sample_rate_hz)
    if workers == 0:
        for number, recordings in todo:
            yield number, recordings, decode([path for _, path in recordings])
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:

        def start(recordings: list[Recording]) -> list[Future[list[Decoded]]]:
            paths = [path for _, path in recordings]
            parts = [
                paths[at : at + DECODED_PER_TASK] for at in range(0, len(paths), DECODED_PER_TASK)
            ]
            return [pool.submit(decode, part) for part in parts]

        under_way = start(todo[0][1]) if todo else []
        for place, (number, recordings) in enumerate(todo):
            parts = under_way
            under_way = start(todo[place + 1][1]) if place + 1 < len(todo) else []
            yield number, recordings, list(chain.from_iterable(p.result() for p in parts))


def _decode(sample_rate_hz: int, paths: Sequence[Path]) -> list[Decoded]:
    decoded: list[Decoded] = []
    for path in paths:
        try:
            decoded.append(load_audio(path, sample_rate_hz=sample_rate_hz))
        except AudioError as error:
            decoded.append(str(error))
    return decoded


def _set_aside(
    folder: Path,
    recordings: Sequence[Recording],
    decoded: Sequence[Decoded],
    report: PrecomputeReport,
) -> list[tuple[str, Waveform]]:
    """The clips that can be heard; the others go to rejected.jsonl, each once."""
    file = folder / "rejected.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    known = {json.loads(line)["clip"] for line in lines}
    heard = []
    for (clip_id, path), waveform in zip(recordings, decoded, strict=True):
        if not isinstance(waveform, str):
            report.n_silent += is_silent(waveform)
            heard.append((clip_id, waveform))
            continue
        report.n_rejected += 1
        if clip_id not in known:
            entry = {"clip": clip_id, "audio": str(path), "reason": waveform}
            with open(file, "a", encoding="utf-8") as out:
                out.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return heard


def _encode(
    encoder: AudioEncoder, waveforms: Sequence[Waveform], batch_clips: int
) -> list[NDArray[np.float32]]:
    """Features in the order of `waveforms`, encoded in batches of like length."""
    by_length = sorted(range(len(waveforms)), key=lambda place: len(waveforms[place]))
    features: dict[int, NDArray[np.float32]] = {}
    for at in range(0, len(by_length), batch_clips):
        places = by_length[at : at + batch_clips]
        encoded = encoder.encode([waveforms[place] for place in places])
        features.update(zip(places, encoded, strict=True))
    return [features[place] for place in range(len(waveforms))]


def _versions() -> dict[str, Any]:
    return {name: version(name) for name in VERSIONS_OF}
