"""The data benchmark: its arms read the same, and tiny sizes give every row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paltrain.bench.cost import CostWork, random_lengths, relative_error
from paltrain.bench.data import DataBenchSettings, run_data
from paltrain.bench.opening import make_manifest_index, make_store_index
from paltrain.bench.planning import (
    KINDS,
    PlanWork,
    build_planner,
    measure_imbalance,
    synthetic_arrays,
)
from paltrain.bench.precompute import PrecomputeWork
from paltrain.bench.reader import (
    ReaderWork,
    make_store,
    packed_buffer,
    read_by_index,
    read_by_webdataset,
)
from paltrain.bench.record import BenchRow
from paltrain.bench.waiting import measure_waiting
from paltrain.data.index import Corpus
from paltrain.data.shards import FeatureStore
from paltrain.errors import ConfigError

READER = ReaderWork(5, 4, n_clips=8, clips_per_shard=3, n_samples=16)
COST = CostWork(n_batches=8, n_rounds=1, n_conversations=(1, 2), n_audio=(10, 90), n_text=(12, 40))
PLAN = PlanWork(n_clips=3000, n_questions=9000, clips_per_shard=100, n_ranks=4, n_draws=3)


@pytest.fixture(scope="module")
def rows() -> dict[str, BenchRow]:
    precompute = PrecomputeWork(
        "logmel", n_clips=12, n_bare=4, clips_per_shard=4, batch_clips=2, clip_s=0.5, workers=0
    )
    settings = DataBenchSettings(
        (READER,), n_reads=200, precompute=(precompute,), plan=PLAN, cost=COST, n_rounds=2
    )
    rows, machine = run_data(settings)
    assert machine
    return {row.metric: row for row in rows}


def test_both_readers_fill_the_buffer_alike(tmp_path: Path) -> None:
    store = make_store(tmp_path, READER)
    ours, theirs = packed_buffer(READER), packed_buffer(READER)
    read_by_index(store, range(READER.n_clips), ours)
    read_by_webdataset(tmp_path, 1, theirs)
    np.testing.assert_array_equal(ours, theirs)
    assert ours.any(axis=1).all()


def test_every_figure_is_there_with_its_goal(rows: dict[str, BenchRow]) -> None:
    goals = {metric: row.goal for metric, row in rows.items() if row.goal}
    assert goals == {
        "reader_speed_ratio_over_webdataset@5x4": ">= 2.5",
        "reader_memory_growth@5x4": "<= 8",
        "int8_bytes_ratio_over_float16@5x4": "<= 0.51",
        "precompute_rate_ratio_over_bare_encoder@logmel": ">= 0.9",
        "manifest_index_open_time": "< 0.1",
        "store_index_open_time": "< 0.1",
        "plan_build_time": "< 5",
        "plan_memory_peak": "< 300",
        "plan_seek_time": "< 10",
        "plan_step_time": "< 10",
        "cost_imbalance.fixed@256": "<= 1.03",
        "cost_imbalance.variable@256": "<= 1.03",
        "cost_imbalance.plits@256": "<= 1.03",
        "cost_imbalance.plits@2048": "<= 1.01",
        "cost_imbalance.long_tail@256": "<= 1.03",
        "cost_imbalance.long_tail@2048": "<= 1.01",
        "cost_imbalance.fixed@2048": "<= 1.01",
        "cost_imbalance.variable@2048": "<= 1.01",
    }
    positive = [row for row in rows.values() if row.unit != "MiB"]
    assert all(row.value > 0 for row in positive)


def test_what_a_run_waited_counts_every_step(tmp_path: Path) -> None:
    steps = [(2.0, 0.5), (1.0, 0.0), (1.0, 0.0)]
    lines = [json.dumps({"step_time_s": s, "data_wait_share": share}) for s, share in steps]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert measure_waiting(tmp_path).value == pytest.approx(25.0)
    with pytest.raises(ConfigError, match="has trained no step"):
        measure_waiting(tmp_path / "none")


def test_the_ratio_is_that_of_the_speeds(rows: dict[str, BenchRow]) -> None:
    speed = {name: rows[f"reader_speed.{name}@5x4"].value for name in ("paltrain", "webdataset")}
    ratio = rows["reader_speed_ratio_over_webdataset@5x4"].value
    assert ratio == pytest.approx(speed["paltrain"] / speed["webdataset"])


def test_the_cost_model_is_judged_by_what_it_was_not_fitted_to(rows: dict[str, BenchRow]) -> None:
    for route in ("lal", "plits"):
        assert 0 < rows[f"cost_model_error.{route}"].value < 1
        assert rows[f"cost_model_error_tokens_alone.{route}"].value > 0
    cost = np.arange(1.0, 13.0)
    assert relative_error(cost, 3 + 2 * cost) == pytest.approx(0, abs=1e-9)
    off = np.where(np.arange(12) % 2, 1.1, 1.0)  # every judged one takes a tenth longer
    assert relative_error(cost, (3 + 2 * cost) * off) == pytest.approx(1 - 1 / 1.1)


def test_lengths_lie_in_their_ranges() -> None:
    for conversations in random_lengths(COST):
        assert 1 <= len(conversations) <= 2
        assert all(10 <= audio <= 90 and 12 <= text <= 40 for audio, text in conversations)


def test_dealing_beats_splitting_at_random() -> None:
    rows = {row.metric: row.value for row in measure_imbalance(PLAN)}
    for name in (f"{kind}@{n}" for kind in KINDS for n in PLAN.n_visits):
        assert 1 <= rows[f"cost_imbalance.{name}"] < rows[f"cost_imbalance_random_split.{name}"]


def test_the_synthetic_corpus_is_as_large_as_said(tmp_path: Path) -> None:
    arrays = synthetic_arrays(PLAN)
    planner = build_planner(arrays, batch_questions=256)
    assert planner.order.n_questions == PLAN.n_questions
    corpus = Corpus.open([make_manifest_index(tmp_path / "manifest.jsonl", PLAN)])
    assert (corpus.n_clips, corpus.n_questions) == (PLAN.n_clips, PLAN.n_questions)
    np.testing.assert_array_equal(corpus.first_question, arrays.sizes.first_question)
    store = FeatureStore.open(make_store_index(tmp_path / "store", PLAN))
    assert len(store) == PLAN.n_clips
    np.testing.assert_array_equal(store.shard_of, arrays.shard)
