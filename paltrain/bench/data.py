"""The data path: the reader, opening the indexes, precompute, order and plan, the ranks' balance,
and whether what it is balanced by is what a step takes.

Everything is synthetic and made in a temporary folder ($TMPDIR; 300 MB), at the size of the largest
corpus that the design speaks of. The last part steps a small decoder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paltrain.bench.cost import CostWork, measure_cost
from paltrain.bench.opening import measure_opening
from paltrain.bench.planning import PlanWork, measure_imbalance, measure_planning
from paltrain.bench.precompute import PrecomputeWork, measure_precompute
from paltrain.bench.reader import (
    ReaderWork,
    make_store,
    measure_int8,
    measure_reader,
    measure_reader_memory,
)
from paltrain.bench.record import BenchRow, describe_machine
from paltrain.bench.waiting import measure_waiting

SLOW_ROUNDS = 5  # of what takes seconds
FEW_ROUNDS = 3  # of what takes a minute


@dataclass(frozen=True)
class DataBenchSettings:
    """What is measured. n_reads: of the first reader's store, over which memory must stay flat.

    runs: folders of training runs whose waiting for data is told.
    """

    readers: tuple[ReaderWork, ...] = (
        ReaderWork(512, 768),
        ReaderWork(1500, 1280, n_clips=24, clips_per_shard=8, n_samples=48),
    )
    n_reads: int = 100_000
    precompute: tuple[PrecomputeWork, ...] = (
        PrecomputeWork("logmel", n_clips=1024, clips_per_shard=128),
        PrecomputeWork("whisper", n_clips=40, clips_per_shard=8, batch_clips=8, n_bare=16),
    )
    plan: PlanWork = field(default_factory=PlanWork)
    cost: CostWork = field(default_factory=CostWork)
    n_rounds: int = 10
    runs: Sequence[Path] = ()


def run_data(settings: DataBenchSettings) -> tuple[list[BenchRow], str]:
    """Rows of the data benchmark, and the machine."""
    waiting = [measure_waiting(run) for run in settings.runs]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        stores = [make_store(folder / work.name, work) for work in settings.readers]
        rows = [
            row
            for store, work in zip(stores, settings.readers, strict=True)
            for row in measure_reader(store, work, n_rounds=settings.n_rounds)
        ]
        rows.append(measure_reader_memory(stores[0], settings.readers[0], n_reads=settings.n_reads))
        rows += measure_int8(folder / "both", settings.readers[0], n_rounds=settings.n_rounds)
        rows += measure_opening(folder, settings.plan, n_rounds=settings.n_rounds)
        for precompute in settings.precompute:
            rows += measure_precompute(
                folder / precompute.encoder, precompute, n_rounds=min(settings.n_rounds, FEW_ROUNDS)
            )
    rows += measure_planning(settings.plan, n_rounds=min(settings.n_rounds, SLOW_ROUNDS))
    rows += measure_imbalance(settings.plan) + measure_cost(settings.cost)
    return rows + waiting, describe_machine()
