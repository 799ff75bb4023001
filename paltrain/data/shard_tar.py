"""What a shard's tar holds, found by reading it from end to end and asking no index.

Guarantee: a tar that is cut off, has a hole, or holds anything but whole samples is not called
whole. Costs: every byte is read once; memory for one clip.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from paltrain.data.frames import frame_bytes, layout_of
from paltrain.data.shard_index import INDEX, NO_ARRAY
from paltrain.data.shards import id_hash, shard_path
from paltrain.errors import StoreError

Entry = tuple[int, int, int, int, int]  # a row of INDEX


@dataclass(frozen=True)
class Expected:
    """What a store's stamp says of its frames; None where nothing does."""

    width: int | None = None
    dtype: str | None = None


ANY = Expected()


@dataclass(frozen=True)
class TarContents:
    """clips: ids in order. index: (len(clips),) INDEX; its checksums are of the frames as they are
    now. fault: why the tar is not whole; None if it is.
    """

    clips: list[str]
    index: NDArray[Any]
    fault: str | None


def read_tar(folder: Path, number: int, *, expected: Expected = ANY) -> TarContents:
    """The samples of shard `number` up to the first fault."""
    clips: list[str] = []
    entries: list[Entry] = []
    fault = None
    try:
        with open(shard_path(folder, number), "rb") as file:
            for clip_id, entry in _samples(file, number, expected):
                clips.append(clip_id)
                entries.append(entry)
    except (OSError, StoreError) as error:
        fault = str(error)
    return TarContents(clips, np.array(entries, INDEX), fault)


def _samples(file: BinaryIO, number: int, expected: Expected) -> Iterator[tuple[str, Entry]]:
    members, fault = _members(file)
    by_key: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in members:
        key, _, kind = member.name.partition(".")
        by_key.setdefault(key, {})[kind] = member
    for key, kinds in by_key.items():
        if set(kinds) != {"npy", "json"}:
            raise StoreError(fault or f"sample {key} has {', '.join(kinds)}, not npy and json")
        clip_id, n_frames = _identity(file, kinds["json"])
        yield clip_id, _entry(file, kinds["npy"], clip_id, n_frames, number, expected)
    if fault:
        raise StoreError(fault)


def _members(file: BinaryIO) -> tuple[list[tarfile.TarInfo], str | None]:
    """The whole members, and what is wrong behind them.

    `tarfile` itself ends quietly where a header is damaged or missing.
    """
    members: list[tarfile.TarInfo] = []
    size = file.seek(0, 2)
    file.seek(0)
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                blocks = -(-member.size // tarfile.BLOCKSIZE)
                end = member.offset_data + blocks * tarfile.BLOCKSIZE
                if end <= size:
                    members.append(member)
    except tarfile.TarError as error:
        return members, f"torn or damaged behind byte {end} of {size} ({error})"
    file.seek(end)
    if file.read(2 * tarfile.BLOCKSIZE) != bytes(2 * tarfile.BLOCKSIZE):
        return members, f"torn or damaged behind byte {end} of {size}: no end of archive there"
    if size - end > 2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE:
        return members, f"damaged: it ends at byte {end}, but has {size}"
    return members, None


def _identity(file: BinaryIO, member: tarfile.TarInfo) -> tuple[str, int]:
    file.seek(member.offset_data)
    try:
        said = json.loads(file.read(member.size))
        return str(said["id"]), int(said["n_frames"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{member.name} names no clip ({error})") from error


def _entry(
    file: BinaryIO,
    member: tarfile.TarInfo,
    clip_id: str,
    n_frames: int,
    number: int,
    expected: Expected,
) -> Entry:
    file.seek(member.offset_data)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("npy of another version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except NO_ARRAY as error:
        raise StoreError(f"{member.name} of clip '{clip_id}' is no array ({error})") from error
    layout = layout_of(shape, dtype)
    wanted = (expected.dtype, n_frames, expected.width)
    if layout is None or any(w not in (None, is_) for w, is_ in zip(wanted, layout, strict=True)):
        shown = f"{dtype} {shape}" if layout is None else " x ".join(map(str, layout))
        said = " x ".join(str(value or "any") for value in wanted)
        raise StoreError(f"{member.name} of clip '{clip_id}' is {shown}, not {said}")
    offset = file.tell()
    frames = file.read(member.offset_data + member.size - offset)
    if len(frames) != n_frames * frame_bytes(layout[2], layout[0]):
        raise StoreError(f"{member.name} of clip '{clip_id}' has {len(frames)} bytes of {shape}")
    return id_hash(clip_id), xxhash.xxh3_64_intdigest(frames), offset, n_frames, number
