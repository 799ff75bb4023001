"""Puts a store together when all slices have made their shards: lists joined, one merged index.

Shards need no joining, so slices may have been of any number. No encoder is loaded, and no torch.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paltrain.data.assignment import (
    assign_corpus,
    assignment_of,
    clips_with_audio,
    shards_of_slice,
    unfinished,
    waiting_note,
)
from paltrain.data.duplicates import by_stored_clip
from paltrain.data.index import Corpus
from paltrain.data.rejected import join_rejected
from paltrain.data.shards import FeatureStore, finished_shards, read_stamp
from paltrain.errors import StoreError
from paltrain.log import get_logger
from paltrain.slices import EVERYTHING, Lack, incomplete

log = get_logger(__name__)


@dataclass(frozen=True)
class MergeReport:
    """Of the corpus: recordings, those with features, those set aside, those that are the same as
    another and counted among the others, too. n_shards: of the store."""

    n_clips: int
    n_encoded: int
    n_rejected: int
    n_shards: int
    n_duplicates: int = 0


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
        IncompleteError: shards are missing; names the slices, of n_slices, that would make them,
            and the shards that wait for other manifests.
        StoreError: it is a store of another encoder, or a shard has lost its index.
    """
    _check_encoder(folder, encoder_type)
    assignment = assignment_of(folder, corpus, clips_per_shard=clips_per_shard)
    stored = by_stored_clip(clips_with_audio(corpus), assignment.duplicates)
    lacks, note = _lacks(folder, assignment.shards, stored, n_slices)
    if lacks:
        raise incomplete(lacks, n_slices=n_slices, what="shards", command=command, note=note)
    if assignment.is_new:  # duplicates that came since
        assign_corpus(folder, corpus, clips_per_shard=clips_per_shard)
    rejected = join_rejected(folder, assignment.shards)
    return _report(corpus, FeatureStore.open(folder), rejected)


def _report(corpus: Corpus, store: FeatureStore, rejected: Container[str]) -> MergeReport:
    """Warns of recordings that are neither in the store nor rejected."""
    clips = list(clips_with_audio(corpus))
    rows = store.rows_of(clips)
    absent = [clip for clip, row in zip(clips, rows.tolist(), strict=True) if row < 0]
    lost = [clip for clip in absent if store.duplicates.get(clip, clip) not in rejected]
    _warn_of_lost(lost)
    return MergeReport(
        n_clips=len(clips),
        n_encoded=len(clips) - len(absent),
        n_rejected=len(absent) - len(lost),
        n_shards=len(finished_shards(store.folder)),
        n_duplicates=sum(clip in store.duplicates for clip in clips),
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
) -> tuple[list[Lack], str]:
    """What each slice lacks, and a note on the shards that wait for other manifests."""
    ours = shards_of_slice(shards, clips, EVERYTHING)
    todo, waiting = unfinished(folder, shards, clips, ours)
    missing = np.array([*todo, *waiting], int) % n_slices
    n_missing = np.bincount(missing, minlength=n_slices)
    n_ours = np.bincount(np.array(ours, int) % n_slices, minlength=n_slices)
    lacks = [
        Lack(number, int(n_missing[number]), int(n_ours[number]))
        for number in np.flatnonzero(n_missing).tolist()
    ]
    return lacks, waiting_note(waiting)


def _warn_of_lost(clips: Sequence[str]) -> None:
    if clips:
        log.warning(
            "%d recordings have neither features nor a line in rejected.jsonl (%s, ...): remove "
            "their shards and indexes, and run the same command again",
            len(clips),
            clips[0],
        )
