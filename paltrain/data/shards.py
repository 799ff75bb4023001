"""The feature store: one encoder's features of many clips, in indexed plain WebDataset shards.

    features/logmel/store.json               the stamp: what made the features (compared on use)
                   /shards.jsonl             which clips each shard is for, in order
                   /shard-000000.tar         <key>.npy float16 (n_frames, width), <key>.json clip id
                   /shard-000000.index.npy   where each clip's frames lie in that tar
                   /index.npy                which shards it covers, and their indexes in one
                   /rejected.jsonl           what could not be read, and why (`data/rejected.py`)
                   /.lock                    held for moments by what writes

`index.npy` is a cache of two arrays, one behind the other: COVERED, a row for each shard, and
INDEX, a row for each clip. It is made again unless it covers exactly the shards that are there, by
number and by the size of their indexes; no clock is asked.

Reading is by index and offset (`preadv` into the caller's buffer), so any order costs the same; the
tars stay readable for every WebDataset client. A checksum guards each clip. No torch here.

Costs: opening is one listing, one `stat` a shard and one memory map; joining C clip ids hashes
each; a clip is one read of its frames.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from paltrain.errors import StoreError
from paltrain.files import beside

DTYPE = np.dtype("<f2")
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
COMPARED = ("weight_hash", "sample_rate_hz", "frame_rate_hz", "width", "dtype")
COMPARED_OF_ENCODER = ("type", "options")  # a path differs from machine to machine, weights do not

Float16Array = NDArray[np.float16]


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.tar"


def shard_index_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.index.npy"


def merged_index_path(folder: Path) -> Path:
    return folder / "index.npy"


def id_hash(clip_id: str) -> int:
    """What a clip is found by, 64 bits."""
    return int(xxhash.xxh3_64_intdigest(clip_id.encode()))


def read_stamp(folder: Path) -> dict[str, Any]:
    """`store.json`. Raises StoreError where there is none."""
    try:
        stamp: dict[str, Any] = json.loads((folder / "store.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"no feature store in {folder} (store.json: {error}): "
            "tools/precompute_features.py CONFIG makes one"
        ) from error
    return stamp


def read_assignment(folder: Path) -> list[list[str]]:
    """The clip ids that each shard is for (`shards.jsonl`)."""
    file = folder / "shards.jsonl"
    if not file.exists():
        return []
    return [json.loads(line)["clips"] for line in file.read_text(encoding="utf-8").splitlines()]


def stamp_differences(mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What of two stamps must agree and does not, `field: mine != other`."""

    def compared(stamp: Mapping[str, Any]) -> dict[str, Any]:
        encoder = stamp.get("encoder") or {}
        fields = {field: stamp.get(field) for field in COMPARED}
        return fields | {f"encoder.{field}": encoder.get(field) for field in COMPARED_OF_ENCODER}

    a, b = compared(mine), compared(other)
    return [f"{field}: {a[field]!r} != {b[field]!r}" for field in a if a[field] != b[field]]


def finished_shards(folder: Path) -> list[int]:
    """Numbers of the whole shards in a store."""
    return sorted(int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-*.tar"))


class FeatureStore:
    """Reads a store. Rows number its clips; `rows_of` finds them by clip id.

    stamp: what made the features. n_frames: (n,) int32. shard_of: (n,) int32. width: of a frame.
    """

    def __init__(
        self, folder: Path, stamp: dict[str, Any], index: NDArray[Any], *, verify: bool
    ) -> None:
        self.folder, self.stamp, self._index, self._verify = folder, stamp, index, verify
        self.width = int(stamp["width"])
        self.frame_rate_hz = float(stamp["frame_rate_hz"])

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> FeatureStore:
        """verify: compare checksums while reading.

        Raises:
            StoreError: there is no store, it has no whole shard, or a shard has lost its index.
        """
        folder = Path(folder)
        stamp = read_stamp(folder)
        return cls(folder, stamp, _open_index(folder), verify=verify)

    @property
    def n_frames(self) -> NDArray[np.int32]:
        return np.asarray(self._index["n_frames"])

    @property
    def shard_of(self) -> NDArray[np.int32]:
        return np.asarray(self._index["shard"])

    @cached_property
    def fingerprint(self) -> str:
        """Names the store's contents."""
        return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(self._index).tobytes())

    def __len__(self) -> int:
        return len(self._index)

    def rows_of(self, clip_ids: Sequence[str] | NDArray[np.str_]) -> NDArray[np.int64]:
        """(len(clip_ids),) row of each clip, -1 where the store lacks it."""
        wanted = np.array([id_hash(str(clip_id)) for clip_id in clip_ids], np.uint64)
        hashes, order = self._sorted_hashes
        at = np.minimum(np.searchsorted(hashes, wanted), max(len(hashes) - 1, 0))
        if not len(hashes):
            return np.full(len(wanted), -1, np.int64)
        return np.where(hashes[at] == wanted, order[at], -1).astype(np.int64)

    def read(self, clip_id: str) -> Float16Array:
        """(n_frames, width) float16 of one clip."""
        row = int(self.rows_of([clip_id])[0])
        if row < 0:
            raise StoreError(
                f"clip '{clip_id}' has no features in {self.folder}: "
                "run tools/precompute_features.py again, or see rejected.jsonl there"
            )
        frames = np.empty((int(self._index["n_frames"][row]), self.width), DTYPE)
        self.read_into(row, frames)
        return frames

    def read_into(self, row: int, out: Float16Array) -> None:
        """Fill `out`, C-contiguous float16 (n_frames, width), with the frames of a row.

        Raises:
            StoreError: the tar is missing or torn, or the frames are not those that were written.
        """
        entry = self._index[row]
        expected = (int(entry["n_frames"]), self.width)
        assert out.shape == expected, f"buffer of {out.shape} for frames of {expected}"
        path = shard_path(self.folder, int(entry["shard"]))
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise StoreError(f"{path} cannot be opened: {error.strerror}; {REMEDY}") from error
        try:
            n_read = os.preadv(file, [out.data.cast("B")], int(entry["offset"]))
        finally:
            os.close(file)
        if n_read != out.nbytes:
            raise StoreError(
                f"{path} is torn: of clip '{self._name_of(row)}' {n_read} of {out.nbytes} bytes "
                f"are there; {REMEDY}"
            )
        if self._verify and xxhash.xxh3_64_intdigest(out.data) != int(entry["checksum"]):
            raise StoreError(
                f"{path}: the frames of clip '{self._name_of(row)}' are not those that were "
                f"written (checksum); {REMEDY}"
            )

    def _name_of(self, row: int) -> str:
        """A row's clip id, for messages."""
        entry = self._index[row]
        for clip_id in read_assignment(self.folder)[int(entry["shard"])]:
            if id_hash(clip_id) == int(entry["id_hash"]):
                return clip_id
        return f"number {row}"

    def check_stamp(self, expected: Mapping[str, Any]) -> None:
        """Refuse a store that was made otherwise than `expected`, another stamp.

        Raises:
            StoreError: names the fields that differ.
        """
        if differences := stamp_differences(self.stamp, expected):
            raise StoreError(
                f"{self.folder} was made with another encoder than the model was trained with "
                f"({'; '.join(differences)}): name the right store"
            )

    @cached_property
    def _sorted_hashes(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        hashes = np.asarray(self._index["id_hash"])
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order


REMEDY = "remove the shard and its index and run tools/precompute_features.py again"


def _open_index(folder: Path) -> NDArray[Any]:
    """The merged index, made again unless it covers exactly the shards that are there."""
    shards = finished_shards(folder)
    if not shards:
        raise StoreError(
            f"{folder} has no whole shard yet: run tools/precompute_features.py CONFIG"
        )
    covered = _covered_by(folder, shards)
    merged = merged_index_path(folder)
    index = _read_merged(merged, covered)
    if index is None:
        index = np.concatenate([_shard_index(folder, number) for number in shards])
        _try_save(merged, covered, index)
    return index


def covered_shards(folder: Path) -> set[int]:
    """The shards in the merged index, none where there is no such index."""
    try:
        with open(merged_index_path(folder), "rb") as file:
            covered = np.lib.format.read_array(file)
    except (OSError, ValueError):
        return set()
    return set(covered["shard"].tolist()) if covered.dtype == COVERED else set()


def _covered_by(folder: Path, shards: Sequence[int]) -> NDArray[Any]:
    """(len(shards),) COVERED of an index of these shards."""
    covered = np.zeros(len(shards), COVERED)
    for place, number in enumerate(shards):
        path = shard_index_path(folder, number)
        try:
            covered[place] = number, path.stat().st_size
        except FileNotFoundError as error:
            raise StoreError(
                f"{shard_path(folder, number)} has lost its index ({path.name}); {REMEDY}"
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
            return np.memmap(file, INDEX, "r", offset=file.tell(), shape=shape)
    except (OSError, ValueError):
        return None


def _shard_index(folder: Path, number: int) -> NDArray[Any]:
    path = shard_index_path(folder, number)
    try:
        index: NDArray[Any] = np.load(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}); {REMEDY}") from error
    if index.dtype != INDEX:
        raise StoreError(f"{path} is no index of this version of the store; {REMEDY}")
    return index


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
