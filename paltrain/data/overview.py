"""How far a feature store is: what is there, what is to come, and whether there is room for it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paltrain.data.duplicates import read_duplicates
from paltrain.data.frames import FLOAT16
from paltrain.data.rejected import listed_clips
from paltrain.data.shards import (
    finished_shards,
    missing_shards,
    read_assignment,
    read_stamp,
    shard_index_path,
    shard_path,
)
from paltrain.data.verify import load_index
from paltrain.encoders.facts import frames_in_words


@dataclass(frozen=True)
class Overview:
    """How far a store is. Clips of a shard that is done are features or rejected.

    missing: numbers of the shards that are to be made. n_duplicates: clips that have the features
    of others, and are not among n_clips. n_bytes: of all tars. n_bytes_to_come: by
    the mean of what is there, None before there is anything.
    """

    encoder: str
    n_shards: int
    n_shards_done: int
    missing: Sequence[int]
    n_clips: int
    n_clips_done: int
    n_rejected: int
    n_duplicates: int
    n_without_index: int
    n_bytes: int
    n_bytes_to_come: int | None
    n_bytes_free: int


def overview(folder: Path) -> Overview:
    """Raises StoreError where there is no store. Reads no features."""
    stamp = read_stamp(folder)
    assignment, done = read_assignment(folder), finished_shards(folder)
    missing = missing_shards(folder)
    indexes = [load_index(shard_index_path(folder, number))[0] for number in done]
    n_bytes = sum(shard_path(folder, number).stat().st_size for number in done)
    n_assigned_done = sum(len(assignment[n]) for n in done if n < len(assignment))
    n_missing = sum(len(assignment[number]) for number in missing)
    to_come = round(n_missing * n_bytes / n_assigned_done) if n_assigned_done else None
    return Overview(
        encoder=f"{stamp['encoder']['type']}, {frames_in_words(stamp)}, "
        f"{stamp.get('dtype', FLOAT16)}",
        n_shards=len(done) + len(missing),
        n_shards_done=len(done),
        missing=missing,
        n_clips=n_assigned_done + n_missing,
        n_clips_done=sum(len(index) for index in indexes if index is not None),
        n_rejected=len(listed_clips(folder)),
        n_duplicates=len(read_duplicates(folder)),
        n_without_index=sum(index is None for index in indexes),
        n_bytes=n_bytes,
        n_bytes_to_come=to_come if missing else 0,
        n_bytes_free=shutil.disk_usage(folder).free,
    )
