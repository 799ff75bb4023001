"""Encoder features of every recording, once: decode, encode, write whole shards.

1. each target's store is claimed, or refused
2. every clip has its shard in every store, recorded before anything is encoded
3. worker processes decode a shard's recordings while those before are encoded (`decoding`)
4. the encoders run in batches of like length on every device; a shard appears by rename when it is
   whole, while the next is encoded (`makers`)

A rerun makes only what is missing, and the same bytes. A recording that cannot be read goes to
`rejected.jsonl` with its reason and stops nothing; silence is encoded, and counted. What is under
way is bounded: three works decoded, and for each device two encoded and two shards being written.

A slice makes every n-th shard and keeps a list of its own of what it could not read. Slices need
not run at the same time, nor be as many every time; `merge_features` joins their lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from contextlib import closing
from functools import partial
from importlib.metadata import version
from pathlib import Path

from paltrain.data.assignment import assign_corpus, shards_of_slice, unfinished, waiting_note
from paltrain.data.decoding import Work, decode_ahead
from paltrain.data.index import Corpus
from paltrain.data.makers import Makers, PrecomputeReport, Target
from paltrain.data.rejected import rejected_clips
from paltrain.data.shard_writer import claim_store
from paltrain.encoders.windows import encode_all
from paltrain.log import get_logger
from paltrain.slices import EVERYTHING, Slice

log = get_logger(__name__)

VERSIONS_OF = ("numpy", "soundfile", "soxr", "kaldi-native-fbank", "torch", "transformers")

Progress = Callable[[int, int, float], None]  # features done, of so many; seconds of audio encoded


def precompute(
    corpus: Corpus,
    targets: Sequence[Target],
    *,
    clips_per_shard: int,
    batch_clips: int,
    batch_audio_s: float = math.inf,
    workers: int,
    slice_of: Slice = EVERYTHING,
    progress: Progress | None = None,
) -> list[PrecomputeReport]:
    """Make what the targets' stores lack of the corpus's recordings; a report for each.

    slice_of: (i, n) makes the shards whose number is i modulo n, for job arrays.

    Raises:
        StoreError: a store was made with another encoder, or the disk is full.
        ConfigError: a device has not the memory for a batch.
    """
    for target in targets:
        stamp = {**target.encoders[0].provenance(), "dtype": target.dtype}
        claim_store(target.folder, {**stamp, "versions": _versions()})
    works, reports = _works(corpus, targets, clips_per_shard=clips_per_shard, slice_of=slice_of)
    encode = partial(encode_all, batch_clips=batch_clips, batch_audio_s=batch_audio_s)
    makers = Makers(targets, encode, slice_of=slice_of)
    rates = sorted({target.encoders[0].sample_rate_hz for target in targets})

    def note_made() -> None:
        for which, made in makers.take_made():
            reports[which].add(made)
        if progress:
            done, total = sum(r.n_done for r in reports), sum(r.n_clips for r in reports)
            progress(done, total, makers.audio_s)

    note_made()
    try:
        with makers, closing(decode_ahead(works, rates, workers)) as decoded:
            for _ in makers.make_all(decoded):
                note_made()
    finally:  # what was being written when a signal came is whole now
        note_made()
    return reports


def _works(
    corpus: Corpus, targets: Sequence[Target], *, clips_per_shard: int, slice_of: Slice
) -> tuple[list[Work], list[PrecomputeReport]]:
    """The slice's works in the order of their shards, and each target's report so far."""
    works: dict[tuple[str, ...], Work] = {}
    reports = []
    for which, target in enumerate(targets):
        shards, numbers = assign_corpus(target.folder, corpus, clips_per_shard=clips_per_shard)
        mine = shards_of_slice(shards, numbers, slice_of)
        todo, waiting = unfinished(target.folder, shards, numbers, mine)
        if waiting:
            log.warning("%s: %s", target.folder, waiting_note(waiting))
        reports.append(_report_so_far(target.folder, shards, numbers, mine, {*todo, *waiting}))
        reports[-1].n_waiting = sum(clip in numbers for n in waiting for clip in shards[n])
        for number in todo:
            clips = tuple(shards[number])
            if clips not in works:
                works[clips] = Work([(clip, corpus.audio_path(numbers[clip])) for clip in clips])
            works[clips].shards.append((which, number))
    return list(works.values()), reports


def _report_so_far(
    folder: Path,
    shards: Sequence[Sequence[str]],
    ours: Container[str],
    mine: Sequence[int],
    unmade: Container[int],
) -> PrecomputeReport:
    """Of our clips in the slice's shards: all, those with features, those set aside."""
    rejected = rejected_clips(folder)
    clips = [clip for number in mine for clip in shards[number] if clip in ours]
    done = [clip for n in mine if n not in unmade for clip in shards[n] if clip in ours]
    n_rejected = sum(clip in rejected for clip in done)
    return PrecomputeReport(
        n_clips=len(clips),
        n_there_before=len(done) - n_rejected,
        n_rejected_before=n_rejected,
    )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONS_OF}
