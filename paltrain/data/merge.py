"""Puts a store together when all slices have made their shards: lists joined, one merged index.

Shards need no joining, so slices may have been of any number. No encoder is loaded, and no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paltrain.data.assignment import clips_with_audio, new_shards, shards_of_slice, unfinished
from paltrain.data.index import Corpus
from paltrain.data.rejected import join_rejected
from paltrain.data.shards import FeatureStore, finished_shards, read_assignment, read_stamp
from paltrain.errors import StoreError
from paltrain.log import get_logger
from paltrain.slices import EVERYTHING, Lack, incomplete

log = get_logger(__name__)


@dataclass(frozen=True)
class MergeReport:
    """Of the corpus: recordings, those with features, those set aside. n_shards: of the store."""

    n_clips: int
    n_encoded: int
    n_rejected: int
    n_shards: int


def merge_features(
    corpus: Corpus,
    folder: Path,
    *,
    encoder_type: str,
    clips_per_shard: int,
    n_slices: int,
    command: str,
) -> MergeReport:
    """Join what slices made of the store in `folder`, if all of them are whole.

    command: makes a slice, with I for its number.

    Raises:
        IncompleteError: shards are missing; names the slices, of n_slices, that would make them.
        StoreError: it is a store of another encoder, or a shard has lost its index.
    """
    _check_encoder(folder, encoder_type)
    clips = clips_with_audio(corpus)
    recorded = read_assignment(folder)
    shards = recorded + new_shards(recorded, list(clips), clips_per_shard=clips_per_shard)
    if lacks := _lacks(folder, shards, clips, n_slices):
        raise incomplete(lacks, n_slices=n_slices, what="shards", command=command)
    rejected = join_rejected(folder, shards)
    store = FeatureStore.open(folder)
    absent = [clip for clip, row in zip(clips, store.rows_of(list(clips)), strict=True) if row < 0]
    _warn_of_lost([clip for clip in absent if clip not in rejected])
    return MergeReport(
        n_clips=len(clips),
        n_encoded=len(clips) - len(absent),
        n_rejected=sum(clip in rejected for clip in absent),
        n_shards=len(finished_shards(folder)),
    )


def _check_encoder(folder: Path, encoder_type: str) -> None:
    """What can be told without the encoder's weights; the slices compared them."""
    if (folder / "store.json").exists():
        made_by = read_stamp(folder)["encoder"]["type"]
        if made_by != encoder_type:
            raise StoreError(
                f"{folder} holds features of encoder '{made_by}', not of '{encoder_type}': name "
                "the configuration that its slices were made with"
            )


def _lacks(
    folder: Path, shards: Sequence[Sequence[str]], clips: dict[str, int], n_slices: int
) -> list[Lack]:
    ours = shards_of_slice(shards, clips, EVERYTHING)
    missing = np.array(unfinished(folder, shards, clips, ours), int) % n_slices
    n_missing = np.bincount(missing, minlength=n_slices)
    n_ours = np.bincount(np.array(ours, int) % n_slices, minlength=n_slices)
    return [
        Lack(number, int(n_missing[number]), int(n_ours[number]))
        for number in np.flatnonzero(n_missing).tolist()
    ]


def _warn_of_lost(clips: Sequence[str]) -> None:
    if clips:
        log.warning(
            "%d recordings have neither features nor a line in rejected.jsonl (%s, ...): remove "
            "their shards and indexes, and run the same command again",
            len(clips),
            clips[0],
        )
