"""The feature store: one encoder's features of many clips, in indexed plain WebDataset shards.

    features/logmel/store.json               the stamp: what made the features (compared on use)
                   /shards.jsonl             which clips each shard is for, in order
                   /duplicates.jsonl         clips stored as another of the same recording
                   /shard-000000.tar         <key>.npy the frames (`data/frames.py`), <key>.json id
                   /shard-000000.index.npy   where each clip's frames lie in that tar
                   /index.npy                the shards' indexes in one (`data/shard_index.py`)
                   /rejected.jsonl           what could not be read, and why (`data/rejected.py`)
                   /.lock                    held for moments by what writes

Reading is by index and offset (`preadv` into the caller's buffer), so any order costs the same; the
tars stay readable for every WebDataset client. A checksum guards each clip. Several threads may
read at once. No torch here.

Costs: opening is one listing, one `stat` a shard and one memory map; joining C clip ids hashes
each; a clip is one read of its frames.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import xxhash
from numpy.typing import NDArray

from paltrain.data.duplicates import read_duplicates
from paltrain.data.frames import FLOAT16, Float16Array, Unpacker, dtype_of
from paltrain.data.shard_cache import ShardCache
from paltrain.data.shard_index import REMEDY, ShardFiles, open_index
from paltrain.errors import StoreError

COMPARED = ("weight_hash", "sample_rate_hz", "frame_rate_hz", "width", "dtype")
COMPARED_OF_ENCODER = ("type", "options", "pool")  # a path differs from machine to machine
ENCODER_DEFAULTS = {"pool": 1}  # of stores that were made before there was a choice


SHARD_NAME = re.compile(r"shard-(\d{6}|[1-9]\d{6,})\.tar", re.ASCII)


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


class ShardLine(TypedDict):
    """A line of `shards.jsonl`. contents: of the clips' recordings, where any is known."""

    shard: int
    clips: list[str]
    contents: NotRequired[list[str | None]]


def assignment_path(folder: Path) -> Path:
    return folder / "shards.jsonl"


def read_shard_lines(folder: Path) -> list[ShardLine]:
    """`shards.jsonl`; without it, none.

    Raises:
        StoreError: it cannot be read, or its lines are not those of shards 0, 1, ...
    """
    file = assignment_path(folder)
    try:
        text = file.read_text(encoding="utf-8").splitlines()
        lines = [parse_shard_line(line) for line in text]
        if [line["shard"] for line in lines] != list(range(len(lines))):
            raise ValueError("its lines are not those of shards 0, 1, ...")
        return lines
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{file} cannot be read ({error!r}): `tools/precompute_features.py repair {folder}` "
            "makes it again from the shards"
        ) from error


def parse_shard_line(text: str) -> ShardLine:
    """A line of `shards.jsonl`. Raises ValueError, KeyError or TypeError where it is none."""
    line: ShardLine = json.loads(text)
    if not isinstance(line["shard"], int) or not isinstance(line["clips"], list):
        raise TypeError(f"shard {line['shard']!r} of clips {line['clips']!r}")
    return line


def read_assignment(folder: Path) -> list[list[str]]:
    """The clip ids that each shard is for (`shards.jsonl`)."""
    return [line["clips"] for line in read_shard_lines(folder)]


def stamp_differences(mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What of two stamps must agree and does not, `field: mine != other`."""

    def compared(stamp: Mapping[str, Any]) -> dict[str, Any]:
        encoder = {**ENCODER_DEFAULTS, **(stamp.get("encoder") or {})}
        fields = {field: stamp.get(field) for field in COMPARED}
        return fields | {f"encoder.{field}": encoder.get(field) for field in COMPARED_OF_ENCODER}

    a, b = compared(mine), compared(other)
    return [f"{field}: {a[field]!r} != {b[field]!r}" for field in a if a[field] != b[field]]


def finished_shards(folder: Path) -> list[int]:
    """Numbers of the whole shards in a store; a copy of another name is none."""
    names = (SHARD_NAME.fullmatch(path.name) for path in folder.glob("shard-*.tar"))
    return sorted(int(name[1]) for name in names if name)


def missing_shards(folder: Path) -> list[int]:
    """Numbers of the shards that are recorded for clips and not there."""
    finished = set(finished_shards(folder))
    shards = enumerate(read_assignment(folder))
    return [number for number, clips in shards if clips and number not in finished]


class FeatureStore:
    """Reads a store. Rows number its clips; `rows_of` finds them by clip id.

    stamp: what made the features. n_frames: (n,) int32. shard_of: (n,) int32. width: of a frame.
    dtype: of the stored frames; they are read as float16.
    """

    def __init__(
        self,
        folder: Path,
        stamp: dict[str, Any],
        index: NDArray[Any],
        *,
        verify: bool,
        cache: ShardCache | None = None,
    ) -> None:
        self.folder, self.stamp, self._index, self._verify = folder, stamp, index, verify
        self.width = int(stamp["width"])
        self.frame_rate_hz = float(stamp["frame_rate_hz"])
        self.dtype = dtype_of(stamp)
        self._cache = cache
        self._unpacker = Unpacker()

    @classmethod
    def open(
        cls, folder: str | Path, *, verify: bool = True, cache: ShardCache | None = None
    ) -> FeatureStore:
        """verify: compare checksums while reading. cache: local copies to read from.

        Raises:
            StoreError: there is no store, it has no whole shard, or a shard has lost its index.
        """
        folder = Path(folder)
        stamp = read_stamp(folder)
        shards = [
            ShardFiles(number, shard_path(folder, number), shard_index_path(folder, number))
            for number in finished_shards(folder)
        ]
        if not shards:
            raise StoreError(
                f"{folder} has no whole shard yet: run tools/precompute_features.py CONFIG"
            )
        index = open_index(merged_index_path(folder), shards)
        return cls(folder, stamp, index, verify=verify, cache=cache)

    @property
    def n_frames(self) -> NDArray[np.int32]:
        return np.asarray(self._index["n_frames"])

    @property
    def shard_of(self) -> NDArray[np.int32]:
        return np.asarray(self._index["shard"])

    @cached_property
    def duplicates(self) -> Mapping[str, str]:
        """By clip without features of its own, the clip of the same recording."""
        return read_duplicates(self.folder)

    @cached_property
    def index_hash(self) -> str:
        """Names what lies in the shards."""
        return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(self._index).tobytes())

    def hash_of(self, rows: NDArray[np.integer]) -> str:
        """Names what lies in these rows, in this order, and in which shards: no other row counts,
        so that clips that come later change nothing for a run that does not hear them.
        """
        digest = xxhash.xxh3_64()
        for name in ("checksum", "n_frames", "shard"):
            digest.update(np.ascontiguousarray(self._index[name][rows]).tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._index)

    def rows_of(self, clip_ids: Sequence[str] | NDArray[np.str_]) -> NDArray[np.int64]:
        """(len(clip_ids),) row of each clip, -1 where the store lacks it; duplicates share one."""
        rows = self._rows_in_shards(clip_ids)
        if self.duplicates:
            at = np.flatnonzero(rows < 0)
            stored = [self.duplicates.get(str(clip_ids[place]), "") for place in at.tolist()]
            rows[at] = self._rows_in_shards(stored)
        return rows

    def _rows_in_shards(self, clip_ids: Sequence[str] | NDArray[np.str_]) -> NDArray[np.int64]:
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
        frames = np.empty((int(self._index["n_frames"][row]), self.width), np.float16)
        self.read_into(row, frames)
        return frames

    def read_into(self, row: int, out: Float16Array) -> None:
        """Fill `out`, C-contiguous float16 (n_frames, width), with the frames of a row.

        Raises:
            StoreError: the tar is missing or torn, or the frames are not those that were written.
        """
        expected = (int(self._index["n_frames"][row]), self.width)
        assert out.shape == expected, f"buffer of {out.shape} for frames of {expected}"
        if self.dtype == FLOAT16:
            self._read_stored(row, out.data.cast("B"))
            return
        records = self._unpacker.records(*expected)
        self._read_stored(row, records.view(np.uint8).data)
        self._unpacker.unpack(records, out)

    def _read_stored(self, row: int, into: memoryview) -> None:
        """The bytes of a row, from the shard's local copy if there is one and it is right."""
        shard = shard_path(self.folder, int(self._index["shard"][row]))
        copy = self._cache.path_of(shard) if self._cache else shard
        if self._cache and copy != shard:
            try:
                return self._read_from(copy, row, into)
            except StoreError as error:
                self._read_from(shard, row, into)
                if isinstance(error.__cause__, FileNotFoundError):  # it gave way just now
                    return None
                return self._cache.drop(shard)
        return self._read_from(shard, row, into)

    def _read_from(self, path: Path, row: int, into: memoryview) -> None:
        entry = self._index[row]
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise StoreError(f"{path} cannot be opened: {error.strerror}; {REMEDY}") from error
        try:
            n_read = os.preadv(file, [into], int(entry["offset"]))
        except OSError as error:
            raise StoreError(
                f"{path} cannot be read: {error.strerror}; look at its disk, or {REMEDY}"
            ) from error
        finally:
            os.close(file)
        if n_read != into.nbytes:
            raise StoreError(
                f"{path} is torn: of clip '{self._name_of(row)}' {n_read} of {into.nbytes} bytes "
                f"are there; {REMEDY}"
            )
        if self._verify and xxhash.xxh3_64_intdigest(into) != int(entry["checksum"]):
            raise StoreError(
                f"{path}: the frames of clip '{self._name_of(row)}' are not those that were "
                f"written (checksum); {REMEDY}"
            )

    def _name_of(self, row: int) -> str:
        """A row's clip id, for messages."""
        entry = self._index[row]
        try:
            clips = read_assignment(self.folder)[int(entry["shard"])]
        except (StoreError, LookupError):  # shards.jsonl is damaged, too
            clips = []
        return next((c for c in clips if id_hash(c) == int(entry["id_hash"])), f"number {row}")

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
