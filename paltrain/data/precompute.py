"""Encoder features of every recording, once: decode, encode, write whole shards.

1. the store is claimed for the encoder, or refused
2. every clip has its shard, recorded before anything is encoded
3. worker processes decode a shard's recordings while the one before is encoded
4. the encoder runs in batches of like length; a shard appears by rename when it is whole

A rerun makes only what is missing, and the same bytes. A recording that cannot be read goes to
`rejected.jsonl` with its reason and stops nothing; silence is encoded, and counted.

A slice makes every n-th shard and keeps a list of its own of what it could not read. Slices need
not run at the same time, nor be as many every time; `merge_features` joins their lists.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paltrain.data.assignment import assign_shards, clips_with_audio, shards_of_slice, unfinished
from paltrain.data.index import Corpus
from paltrain.data.rejected import add_rejected, rejected_path
from paltrain.data.shard_writer import claim_store, write_shard
from paltrain.data.shards import shard_path
from paltrain.encoders.audio import Waveform, is_silent, load_audio
from paltrain.encoders.base import AudioEncoder
from paltrain.errors import AudioError
from paltrain.log import get_logger
from paltrain.slices import EVERYTHING, Slice

log = get_logger(__name__)

DECODED_PER_TASK = 16  # recordings a worker decodes at a time
VERSIONS_OF = ("numpy", "soundfile", "soxr", "kaldi-native-fbank", "torch", "transformers")

Decoded = Waveform | str  # a waveform, or why there is none
Recording = tuple[str, Path]  # clip id, file
Progress = Callable[[int, int, float], None]  # clips done, of so many; seconds of audio encoded


@dataclass
class PrecomputeReport:
    """What a run did; rejected and silent count this run's clips alone.

    n_clips: the recordings of the slice. n_there_before: of them, those that another run did.
    """

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
    slice_of: Slice = EVERYTHING,
    progress: Progress | None = None,
) -> PrecomputeReport:
    """Make what the store in `folder` lacks of the corpus's recordings.

    slice_of: (i, n) makes the shards whose number is i modulo n, for job arrays.

    Raises:
        StoreError: the store was made with another encoder, or the disk is full.
    """
    claim_store(folder, {**encoder.provenance(), "dtype": "float16", "versions": _versions()})
    numbers = clips_with_audio(corpus)
    shards = assign_shards(folder, list(numbers), clips_per_shard=clips_per_shard)
    mine = shards_of_slice(shards, numbers, slice_of)
    todo = [
        (number, [(clip_id, corpus.audio_path(numbers[clip_id])) for clip_id in shards[number]])
        for number in unfinished(folder, shards, numbers, mine)
    ]
    n_clips = sum(clip_id in numbers for number in mine for clip_id in shards[number])
    report = PrecomputeReport(n_clips, n_clips - sum(len(clips) for _, clips in todo))
    _tell(progress, report)
    rejected = rejected_path(folder, slice_of)
    with closing(_decode_ahead(todo, encoder.sample_rate_hz, workers)) as ahead:
        for number, clips, decoded in ahead:
            if shard_path(folder, number).exists():  # another process was faster
                report.n_there_before += len(clips)
            else:
                heard = _set_aside(rejected, clips, decoded, report)
                features = _encode(encoder, [waveform for _, waveform in heard], batch_clips)
                ids = [clip_id for clip_id, _ in heard]
                report.n_bytes += write_shard(folder, number, zip(ids, features, strict=True))
                report.n_encoded += len(ids)
                report.audio_s += sum(len(wave) for _, wave in heard) / encoder.sample_rate_hz
            _tell(progress, report)
    return report


def _tell(progress: Progress | None, report: PrecomputeReport) -> None:
    if progress:
        done = report.n_there_before + report.n_encoded + report.n_rejected
        progress(done, report.n_clips, report.audio_s)


def _decode_ahead(
    todo: Sequence[tuple[int, list[Recording]]], sample_rate_hz: int, workers: int
) -> Generator[tuple[int, list[Recording], list[Decoded]], None, None]:
    """Each shard decoded, the next one under way; workers = 0: in this process."""
    decode = partial(_decode, sample_rate_hz)
    if workers == 0:
        for number, recordings in todo:
            yield number, recordings, decode([path for _, path in recordings])
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:

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
    finally:  # on a signal, too: what nobody will encode is not decoded
        pool.shutdown(cancel_futures=True)


def _decode(sample_rate_hz: int, paths: Sequence[Path]) -> list[Decoded]:
    decoded: list[Decoded] = []
    for path in paths:
        try:
            decoded.append(load_audio(path, sample_rate_hz=sample_rate_hz))
        except AudioError as error:
            decoded.append(str(error))
    return decoded


def _set_aside(
    file: Path,
    clips: Sequence[Recording],
    decoded: Sequence[Decoded],
    report: PrecomputeReport,
) -> list[tuple[str, Waveform]]:
    """The clips that can be heard; the others go to `file`, each once."""
    heard, rejected = [], {}
    for (clip_id, path), waveform in zip(clips, decoded, strict=True):
        if isinstance(waveform, str):
            entry = {"clip": clip_id, "audio": str(path), "reason": waveform}
            rejected[clip_id] = json.dumps(entry, ensure_ascii=False)
        else:
            report.n_silent += is_silent(waveform)
            heard.append((clip_id, waveform))
    report.n_rejected += len(rejected)
    if rejected:
        add_rejected(file, rejected)
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
