"""The feature reader beside `webdataset.WebDataset(...).decode()`: the same shards, the same copy.

    paltrain     by index and offset, in random order, checksums compared
    webdataset   streamed in order; decoded arrays are copied into the same packed buffer

The shards lie in the page cache. Both are one thread, take turns, and are counted in samples per
second of CPU time (user and system), so what else runs on the machine is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import webdataset
from numpy.typing import NDArray

from paltrain.bench.record import BenchRow
from paltrain.bench.timing import Times
from paltrain.data.shard_writer import claim_store, write_shard
from paltrain.data.shards import FeatureStore, finished_shards, shard_path

MIB = 1 << 20
READER_GOAL = 2.5
RSS_GOAL_MIB = 8
CLIPS_PER_BATCH = 8  # clips that the packed buffer holds

Buffer = NDArray[np.float16]


@dataclass(frozen=True)
class ReaderWork:
    """A store to read: clips of (n_frames, width), all alike. n_samples: read in one turn."""

    n_frames: int
    width: int
    n_clips: int = 48
    clips_per_shard: int = 16
    n_samples: int = 192

    @property
    def name(self) -> str:
        return f"{self.n_frames}x{self.width}"


def stamp_of(*, width: int) -> dict[str, Any]:
    """A store's stamp; no encoder made it."""
    return {
        "encoder": {"type": "none", "path": None, "revision": None, "options": {}},
        "weight_hash": "0",
        "sample_rate_hz": 16_000,
        "frame_rate_hz": 50.0,
        "width": width,
        "dtype": "float16",
    }


def make_store(folder: Path, work: ReaderWork) -> FeatureStore:
    """Random float16 features."""
    claim_store(folder, stamp_of(width=work.width))
    generator = np.random.Generator(np.random.Philox(0))

    def clips(first: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
        for number in range(first, min(first + work.clips_per_shard, work.n_clips)):
            shape = (work.n_frames, work.width)
            yield f"clip{number}", generator.standard_normal(shape, np.float32)

    for shard, first in enumerate(range(0, work.n_clips, work.clips_per_shard)):
        write_shard(folder, shard, clips(first))
    return FeatureStore.open(folder)


def packed_buffer(work: ReaderWork) -> Buffer:
    return np.zeros((CLIPS_PER_BATCH * work.n_frames, work.width), np.float16)


def read_by_index(store: FeatureStore, rows: Sequence[int], out: Buffer) -> None:
    """Every row into the next place of the packed buffer."""
    n_frames = len(out) // CLIPS_PER_BATCH
    for place, row in enumerate(rows):
        at = place % CLIPS_PER_BATCH * n_frames
        store.read_into(row, out[at : at + n_frames])


def read_by_webdataset(folder: Path, n_passes: int, out: Buffer) -> None:
    """All shards in order, `n_passes` times."""
    urls = [str(shard_path(folder, number)) for number in finished_shards(folder)]
    n_frames = len(out) // CLIPS_PER_BATCH
    for _ in range(n_passes):
        samples = webdataset.WebDataset(urls, shardshuffle=False).decode()
        for place, sample in enumerate(samples):
            at = place % CLIPS_PER_BATCH * n_frames
            out[at : at + n_frames] = sample["npy"]


def measure_reader(store: FeatureStore, work: ReaderWork, *, n_rounds: int) -> list[BenchRow]:
    """Ratio of the median CPU times, and both speeds."""
    out = packed_buffer(work)
    n_passes = max(1, work.n_samples // work.n_clips)
    n_samples = n_passes * work.n_clips
    generator = np.random.Generator(np.random.Philox(1))
    rows = generator.permutation(np.tile(np.arange(work.n_clips), n_passes)).tolist()
    ways: dict[str, Callable[[], None]] = {
        "paltrain": lambda: read_by_index(store, rows, out),
        "webdataset": lambda: read_by_webdataset(store.folder, n_passes, out),
    }
    times = {name: Times() for name in ways}
    for read in ways.values():  # warm-up
        read()
    for _ in range(n_rounds):
        for name, read in ways.items():
            times[name].add(read)
    ours, theirs = times["paltrain"], times["webdataset"]
    turns = [b / a for a, b in zip(ours.cpu_s, theirs.cpu_s, strict=True)]
    how = f"{n_samples} samples a turn, {n_rounds} turns, warm cache"
    return [
        BenchRow(
            f"reader_speed_ratio_over_webdataset@{work.name}",
            theirs.median_s / ours.median_s,
            "x",
            f"webdataset {version('webdataset')} decode() and the same copy; checksums on; turns "
            f"{min(turns):.3g} to {max(turns):.3g}; by wall time "
            f"{theirs.wall_median_s / ours.wall_median_s:.3g}",
            f">= {READER_GOAL:g}",
        ),
        *(
            BenchRow(
                f"reader_speed.{name}@{work.name}",
                n_samples / taken.median_s,
                "samples/s/core",
                f"{how}; by wall time {n_samples / taken.wall_median_s:.0f}",
            )
            for name, taken in times.items()
        ),
    ]


def measure_reader_memory(store: FeatureStore, work: ReaderWork, *, n_reads: int) -> BenchRow:
    """How much more memory the process has after `n_reads` more than after a tenth of them."""
    out = packed_buffer(work)
    generator = np.random.Generator(np.random.Philox(2))

    def read(n: int) -> int:
        for first in range(0, n, 1000):
            rows = generator.integers(0, work.n_clips, min(1000, n - first)).tolist()
            read_by_index(store, rows, out)
        return int(psutil.Process().memory_info().rss)

    before = read(max(1, n_reads // 10))
    grown = read(n_reads) - before
    return BenchRow(
        f"reader_memory_growth@{work.name}",
        grown / MIB,
        "MiB",
        f"resident memory after {n_reads} further reads; before {before / MIB:.0f} MiB",
        f"<= {RSS_GOAL_MIB}",
    )
