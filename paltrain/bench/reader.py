"""The feature reader beside `webdataset.WebDataset(...).decode()`: the same shards, the same copy.

    paltrain     by index and offset, in random order, checksums compared
    webdataset   streamed in order; decoded arrays are copied into the same packed buffer

The shards lie in the page cache. Both are one thread, take turns, and are counted in samples per
second of CPU time (user and system), so what else runs on the machine is not counted.

The same for features stored as int8 and as float16: their bytes, and what int8 loses of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import webdataset
from numpy.typing import NDArray

from paltrain.bench.record import BenchRow
from paltrain.bench.timing import Times
from paltrain.data.frames import FLOAT16, INT8
from paltrain.data.shard_writer import claim_store, write_shard
from paltrain.data.shards import FeatureStore, finished_shards, shard_path

MIB = 1 << 20
READER_GOAL = 2.5
RSS_GOAL_MIB = 8
INT8_BYTES_GOAL = 0.51
CLIPS_OF_ERROR = 16
CLIPS_PER_BATCH = 8  # clips that the packed buffer holds
CHANNEL_SIGMA, OUTLIER_EVERY, OUTLIER_FACTOR = 0.5, 100, 10.0

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


def stamp_of(*, width: int, dtype: str = FLOAT16) -> dict[str, Any]:
    """A store's stamp; no encoder made it."""
    return {
        "encoder": {"type": "none", "path": None, "revision": None, "options": {}},
        "weight_hash": "0",
        "sample_rate_hz": 16_000,
        "frame_rate_hz": 50.0,
        "width": width,
        "dtype": dtype,
    }


def make_store(folder: Path, work: ReaderWork, *, dtype: str = FLOAT16) -> FeatureStore:
    """Random features: see `channel_scales`."""
    claim_store(folder, stamp_of(width=work.width, dtype=dtype))
    generator = np.random.Generator(np.random.Philox(0))
    scales = channel_scales(work.width)

    def clips(first: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
        for number in range(first, min(first + work.clips_per_shard, work.n_clips)):
            shape = (work.n_frames, work.width)
            yield f"clip{number}", scales * generator.standard_normal(shape, np.float32)

    for shard, first in enumerate(range(0, work.n_clips, work.clips_per_shard)):
        write_shard(folder, shard, clips(first), dtype=dtype)
    return FeatureStore.open(folder)


def channel_scales(width: int) -> NDArray[np.float32]:
    """(width,) standard deviations: log-normal, and a few far out, as in a transformer's states."""
    generator = np.random.Generator(np.random.Philox(3))
    scales = generator.lognormal(0.0, CHANNEL_SIGMA, width)
    scales[::OUTLIER_EVERY] *= OUTLIER_FACTOR
    return scales.astype(np.float32)


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


def measure_int8(folder: Path, work: ReaderWork, *, n_rounds: int) -> list[BenchRow]:
    """Features stored as int8 beside the same as float16: bytes, error, speed."""
    exact = make_store(folder / FLOAT16, work)
    small = make_store(folder / INT8, work, dtype=INT8)
    n_bytes = [
        sum(tar.stat().st_size for tar in store.folder.glob("*.tar")) for store in (exact, small)
    ]
    error, error_of_most = _relative_errors(exact, small, work)
    return [
        BenchRow(
            f"int8_bytes_ratio_over_float16@{work.name}",
            n_bytes[1] / n_bytes[0],
            "x",
            "bytes of the tars",
            f"<= {INT8_BYTES_GOAL:g}",
        ),
        BenchRow(
            f"int8_relative_error@{work.name}",
            error,
            "x",
            f"RMS error / RMS; of all but the outliers {error_of_most:.3g}; Gaussian features, "
            f"channels' scales log-normal (sigma {CHANNEL_SIGMA:g}), every {OUTLIER_EVERY}th "
            f"{OUTLIER_FACTOR:g} times larger",
        ),
        _int8_speed(exact, small, work, n_rounds),
    ]


def _int8_speed(
    exact: FeatureStore, small: FeatureStore, work: ReaderWork, n_rounds: int
) -> BenchRow:
    out = packed_buffer(work)
    rows = np.random.Generator(np.random.Philox(4)).permutation(work.n_clips).tolist()
    float16, int8 = Times(), Times()
    for store in (exact, small):  # warm-up
        read_by_index(store, rows, out)
    for _ in range(n_rounds):
        float16.add(partial(read_by_index, exact, rows, out))
        int8.add(partial(read_by_index, small, rows, out))
    each = [1e6 * taken.median_s / work.n_clips for taken in (float16, int8)]
    return BenchRow(
        f"int8_reader_speed_ratio_over_float16@{work.name}",
        each[0] / each[1],
        "x",
        f"{each[1]:.0f} us a clip, {each[0]:.0f} as float16; warm cache, checksums on; by wall "
        f"time {float16.wall_median_s / int8.wall_median_s:.3g}",
    )


def _relative_errors(
    exact: FeatureStore, small: FeatureStore, work: ReaderWork
) -> tuple[float, float]:
    """RMS error / RMS of all channels, and of those that are no outliers."""
    errors, squares = np.zeros(work.width), np.zeros(work.width)
    for number in range(min(work.n_clips, CLIPS_OF_ERROR)):
        frames = exact.read(f"clip{number}").astype(np.float64)
        errors += np.sum((small.read(f"clip{number}") - frames) ** 2, axis=0)
        squares += np.sum(frames**2, axis=0)
    most = np.arange(work.width) % OUTLIER_EVERY != 0
    return (
        float(np.sqrt(errors.sum() / squares.sum())),
        float(np.sqrt(errors[most].sum() / squares[most].sum())),
    )


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
