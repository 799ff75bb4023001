"""Which clip lies in which shard of a feature store, and which slice makes each shard.

It is recorded before anything is encoded (`shards.jsonl`) and depends on the manifests alone, never
on how many workers make the shards. Clips that come later get new shards, so what is there is never
rewritten. Shard k is made by slice k modulo n:

    shard      0  1  2  3  4  5  6
    slice/3    0  1  2  0  1  2  0
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from pathlib import Path

from paltrain.data.index import Corpus
from paltrain.data.shards import finished_shards, read_assignment
from paltrain.files import locked, write_atomically
from paltrain.log import get_logger
from paltrain.slices import Slice

log = get_logger(__name__)


def assign_shards(
    folder: Path, clip_ids: Sequence[str], *, clips_per_shard: int
) -> list[list[str]]:
    """The clip ids of every shard, those recorded and new ones for clips that have none yet.

    Commands with different manifests may call it at the same time: each adds to what is there.
    """
    recorded = read_assignment(folder)
    if not new_shards(recorded, clip_ids, clips_per_shard=clips_per_shard):
        return recorded
    with locked(folder):
        recorded = read_assignment(folder)
        shards = recorded + new_shards(recorded, clip_ids, clips_per_shard=clips_per_shard)
        if len(shards) > len(recorded):
            lines = [
                json.dumps({"shard": number, "clips": clips}) for number, clips in enumerate(shards)
            ]
            write_atomically(folder / "shards.jsonl", "\n".join(lines) + "\n")
    return shards


def new_shards(
    recorded: Sequence[Sequence[str]], clip_ids: Sequence[str], *, clips_per_shard: int
) -> list[list[str]]:
    """Shards for the clips that no recorded shard is for."""
    known = {clip_id for shard in recorded for clip_id in shard}
    new = [clip_id for clip_id in clip_ids if clip_id not in known]
    return [new[at : at + clips_per_shard] for at in range(0, len(new), clips_per_shard)]


def clips_with_audio(corpus: Corpus) -> dict[str, int]:
    """The clips of the corpus that have a recording: their numbers by id, in order."""
    return {
        str(clip_id): number
        for number, clip_id in enumerate(corpus.clip_id_array)
        if corpus.has_audio[number]
    }


def shards_of_slice(
    shards: Sequence[Sequence[str]], ours: Container[str], slice_of: Slice
) -> list[int]:
    """Numbers of the slice's shards that are for any of our clips."""
    which, n_slices = slice_of
    return [
        number
        for number in range(which, len(shards), n_slices)
        if any(clip_id in ours for clip_id in shards[number])
    ]


def unfinished(
    folder: Path, shards: Sequence[Sequence[str]], ours: Container[str], wanted: Sequence[int]
) -> list[int]:
    """Which of the shards `wanted` are to be made: not whole yet, and for clips of ours alone."""
    finished = set(finished_shards(folder))
    todo = []
    for number in wanted:
        if number in finished:
            continue
        others = next((clip_id for clip_id in shards[number] if clip_id not in ours), None)
        if others is None:
            todo.append(number)
        else:
            log.warning(
                "shard %d is for clips of other manifests, too (%s, ...): name those to make it",
                number,
                others,
            )
    return todo
