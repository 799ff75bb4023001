"""Writes the shards of a feature store: whole tars, by rename, the same bytes every time.

Several processes may write a store at the same time: tasks of a job array, or commands with
different manifests.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
import xxhash
from numpy.typing import NDArray

from paltrain.data.frames import FLOAT16, fault_of, pack_frames
from paltrain.data.shard_index import INDEX, covered_shards
from paltrain.data.shards import (
    id_hash,
    merged_index_path,
    read_stamp,
    shard_index_path,
    shard_path,
    stamp_differences,
)
from paltrain.errors import StoreError
from paltrain.files import beside, locked, write_atomically

MAKE_WRITABLE = "make room there, or take write permission"
Sample = tuple[str, NDArray[np.floating[Any]]]  # clip id, frames


def claim_store(folder: Path, stamp: Mapping[str, Any]) -> None:
    """Make `folder` a store of `stamp`, or find that it is one already.

    Raises:
        StoreError: it holds features of another encoder; names the fields that differ. Or it
            cannot be written.
    """
    file = folder / "store.json"
    try:
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder):
                if not file.exists():
                    write_atomically(file, json.dumps(dict(stamp), indent=2) + "\n")
    except OSError as error:
        raise StoreError(
            f"{file} cannot be written: {error.strerror}; name another store, or {MAKE_WRITABLE}"
        ) from error
    if differences := stamp_differences(read_stamp(folder), stamp):
        is_empty = not any(folder.glob("shard-*.tar"))
        remedy = "it has no shard yet: remove it, unless another process is at its first one"
        raise StoreError(
            f"{folder} holds features of another encoder ({'; '.join(differences)}; there != "
            f"here): {remedy if is_empty else 'name another store, or remove this one'}"
        )


def write_shard(
    folder: Path, number: int, features: Iterable[Sample], *, dtype: str = FLOAT16
) -> int:
    """Write (clip id, (n_frames, width)) samples as shard `number`; returns its bytes.

    dtype: of the stored frames, as `store.json` says. Of two processes that make the same shard
    the first one's stays: a tar never gets the other's index.

    Raises:
        StoreError: the disk is full or not writable, or a clip's features are no numbers that
            float16 can say. The shard is then taken away, others stay.
    """
    final, final_index = shard_path(folder, number), shard_index_path(folder, number)
    merged = merged_index_path(folder)
    tar, index = beside(final), beside(final_index)
    try:
        entries = _write_tar(tar, number, features, dtype)
        with open(index, "wb") as file:
            np.save(file, _locate(tar, number, entries))
        size = tar.stat().st_size
        with locked(folder):
            if not final.exists():
                if number in covered_shards(merged):  # removed since, and made again
                    merged.unlink(missing_ok=True)
                os.replace(index, final_index)
                os.replace(tar, final)
    except OSError as error:
        raise StoreError(
            f"{final} cannot be written: {error.strerror}; {MAKE_WRITABLE} and run the same "
            "command again: whole shards are kept"
        ) from error
    finally:
        tar.unlink(missing_ok=True)
        index.unlink(missing_ok=True)
    return size


def _write_tar(
    path: Path, number: int, features: Iterable[Sample], dtype: str
) -> list[tuple[int, int, int]]:
    """Write the samples; (id hash, checksum, n_frames) of each."""
    entries = []
    with (
        open(path, "wb") as file,
        webdataset.TarWriter(file, mtime=0.0, user="paltrain", group="paltrain") as tar,
    ):
        for place, (clip_id, frames) in enumerate(features):
            if fault := fault_of(frames):
                raise StoreError(
                    f"the features of clip '{clip_id}' cannot be stored: {fault}; look at its "
                    "recording and at the encoder's options"
                )
            packed = pack_frames(frames, dtype)
            tar.write(
                {
                    "__key__": f"{number:06d}-{place:06d}",
                    "npy": packed,
                    "json": {"id": clip_id, "n_frames": len(packed)},
                }
            )
            checksum = xxhash.xxh3_64_intdigest(packed.view(np.uint8).data)
            entries.append((id_hash(clip_id), checksum, len(packed)))
    return entries


def _locate(path: Path, number: int, entries: Sequence[tuple[int, int, int]]) -> NDArray[Any]:
    """The index of a tar: where in it each sample's frames begin."""
    index = np.zeros(len(entries), INDEX)
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.name.endswith(".npy")]
        for row, (member, entry) in enumerate(zip(members, entries, strict=True)):
            npy = tar.extractfile(member)
            assert npy is not None
            version = np.lib.format.read_magic(npy)
            assert version == (1, 0), version
            np.lib.format.read_array_header_1_0(npy)
            index[row] = (entry[0], entry[1], member.offset_data + npy.tell(), entry[2], number)
    return index
