"""Where each clip's frames lie: an index for each shard, and all of them in one file.

`index.npy` is a cache of two arrays, one behind the other: COVERED, a row for each shard, and
INDEX, a row for each clip. It is made again unless it covers exactly the shards that are there, by
number and by the size of their indexes; no clock is asked.

Costs: one `stat` a shard and one memory map; all indexes are read once after a change.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paltrain.errors import StoreError
from paltrain.files import beside

INDEX = np.dtype(
    [
        ("id_hash", "<u8"),  # xxh3 of the clip id
        ("checksum", "<u8"),  # xxh3 of the frames' bytes
        ("offset", "<i8"),  # of the frames in the tar, bytes
        ("n_frames", "<i4"),
        ("shard", "<i4"),
    ]
)
COVERED = np.dtype([("shard", "<i8"), ("index_bytes", "<i8")])  # of an empty shard, too
NO_ARRAY = (  # what numpy makes of a damaged header
    ValueError,
    SyntaxError,
    TokenError,
    MemoryError,
    OverflowError,
)
REMEDY = "remove the shard and its index and run tools/precompute_features.py again"
INDEX_REMEDY = "`tools/precompute_features.py repair STORE` makes it again from the tar"


@dataclass(frozen=True)
class ShardFiles:
    """A whole shard: its tar and the index beside it."""

    number: int
    tar: Path
    index: Path


def open_index(merged: Path, shards: Sequence[ShardFiles]) -> NDArray[Any]:
    """The index of all shards, from `merged` if that covers exactly these.

    Raises:
        StoreError: a shard has lost its index, or it cannot be read.
    """
    covered = _covered_by(shards)
    index = _read_merged(merged, covered)
    if index is None:
        index = np.concatenate([_shard_index(shard.index) for shard in shards])
        _try_save(merged, covered, index)
    return index


def covered_shards(merged: Path) -> set[int]:
    """The shards in the merged index, none where there is no such index."""
    try:
        with open(merged, "rb") as file:
            covered = np.lib.format.read_array(file)
    except (OSError, *NO_ARRAY):
        return set()
    return set(covered["shard"].tolist()) if covered.dtype == COVERED else set()


def _covered_by(shards: Sequence[ShardFiles]) -> NDArray[Any]:
    """(len(shards),) COVERED of an index of these shards."""
    covered = np.zeros(len(shards), COVERED)
    for place, shard in enumerate(shards):
        try:
            covered[place] = shard.number, shard.index.stat().st_size
        except FileNotFoundError as error:
            raise StoreError(
                f"{shard.tar} has lost its index ({shard.index.name}); {REMEDY}"
            ) from error
    return covered


def _read_merged(path: Path, covered: NDArray[Any]) -> NDArray[Any] | None:
    """The merged index; None if there is none, or one of other shards, torn, or of old."""
    try:
        with open(path, "rb") as file:
            recorded = np.lib.format.read_array(file)
            if recorded.dtype != COVERED or not np.array_equal(recorded, covered):
                return None
            if np.lib.format.read_magic(file) != (1, 0):
                return None
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if dtype != INDEX:
                return None
            index = np.memmap(file, INDEX, "r", offset=file.tell(), shape=shape)
            return index if file.seek(0, os.SEEK_END) == index.offset + index.nbytes else None
    except (OSError, *NO_ARRAY):
        return None


def read_shard_index(path: Path) -> NDArray[Any]:
    """(n clips,) INDEX of a shard.

    Raises:
        OSError or one of NO_ARRAY: it cannot be read, or is no index of this version of the store.
    """
    with open(path, "rb") as file:
        index = np.lib.format.read_array(file)
        if index.dtype != INDEX or index.ndim != 1:
            raise ValueError("no index of this version of the store")
        if file.read(1):
            raise ValueError(f"bytes follow the {len(index)} clips that its header names")
    return index


def _shard_index(path: Path) -> NDArray[Any]:
    try:
        return read_shard_index(path)
    except (OSError, *NO_ARRAY) as error:
        raise StoreError(f"{path} cannot be read ({error}); {INDEX_REMEDY}") from error


def _try_save(path: Path, covered: NDArray[Any], index: NDArray[Any]) -> None:
    """Keep the merged index, beside and renamed; a read-only or full disk does without."""
    written = beside(path)
    try:
        with open(written, "wb") as file:
            np.save(file, covered)
            np.save(file, index)
        os.replace(written, path)
    except OSError:
        written.unlink(missing_ok=True)
