"""Opening the indexes of a large corpus: the manifest's, and a feature store's of as many clips.

Only what opening looks at is made: compiled arrays beside an empty manifest, and a store's indexes
beside empty tars. Times are medians of CPU time, in a warm cache.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paltrain.bench.planning import PlanWork, synthetic_arrays
from paltrain.bench.reader import stamp_of
from paltrain.bench.record import BenchRow
from paltrain.bench.timing import times_of
from paltrain.data import index as manifest_index
from paltrain.data.index import Corpus
from paltrain.data.shard_index import INDEX
from paltrain.data.shard_writer import claim_store
from paltrain.data.shards import FeatureStore, shard_index_path, shard_path

GOAL = "< 0.1"


def measure_opening(folder: Path, work: PlanWork, *, n_rounds: int) -> list[BenchRow]:
    """Manifest index, merged store index, the store's index without the merged one, and a join."""
    manifest = make_manifest_index(folder / "manifest.jsonl", work)
    store = make_store_index(folder / "indexes", work)
    n_shards = -(-work.n_clips // work.clips_per_shard)
    merge = times_of(lambda: FeatureStore.open(store))
    opened = FeatureStore.open(store)
    ids = [f"clip{number}" for number in range(work.n_clips)]
    join = times_of(lambda: opened.rows_of(ids))
    corpus_open = times_of(lambda: Corpus.open([manifest]), n=n_rounds)
    store_open = times_of(lambda: FeatureStore.open(store), n=n_rounds)
    return [
        BenchRow(
            "manifest_index_open_time",
            corpus_open.median_s,
            "s",
            f"{work.n_questions / 1e6:g} M questions on {work.n_clips / 1e6:g} M clips; "
            + corpus_open.told(),
            GOAL,
        ),
        BenchRow(
            "store_index_open_time",
            store_open.median_s,
            "s",
            f"{work.n_clips / 1e6:g} M clips in {n_shards} shards, on a local disk; "
            + store_open.told(),
            GOAL,
        ),
        BenchRow(
            "store_index_merge_time",
            merge.median_s,
            "s",
            f"the first opening after a change, once; {merge.told()}",
        ),
        BenchRow(
            "store_join_time",
            join.median_s,
            "s",
            f"rows of {work.n_clips / 1e6:g} M clip ids, once a start; {join.told()}",
        ),
    ]


def make_manifest_index(path: Path, work: PlanWork) -> Path:
    """A manifest that its compiled index stands for; its own text is never asked for."""
    arrays = synthetic_arrays(work)
    path.write_text("", encoding="utf-8")
    folder = path.with_name(path.name + ".index")
    content = manifest_index._content_hash(path, folder)
    compiled = {
        "line_offset": np.arange(work.n_clips + 1) * 400,
        "clip_id": np.char.add(b"clip", np.arange(work.n_clips).astype(np.bytes_)),
        "id_hash": np.arange(work.n_clips, dtype=np.uint64),
        "clip_split": np.zeros(work.n_clips, np.int8),
        "clip_dataset": np.zeros(work.n_clips, np.int16),
        "content": np.arange(1, work.n_clips + 1, dtype=np.uint64),
        "has_audio": np.ones(work.n_clips, bool),
        "duration_s": arrays.sizes.clips["audio"].astype(np.float32) / 25,
        "first_question": arrays.sizes.first_question,
        "question_task": (arrays.questions % 8).astype(np.int16),
    }
    tasks = [f"task{number}" for number in range(8)]
    meta = {
        "hash": content,
        "tasks": tasks,
        "splits": ["train"],
        "datasets": ["made_up"],
        "further_clips": {},
    }
    manifest_index._write(folder / content, compiled, meta)
    return path


def make_store_index(folder: Path, work: PlanWork) -> Path:
    """The indexes of a store whose tars are empty."""
    claim_store(folder, stamp_of(width=768))
    index = np.zeros(work.n_clips, INDEX)
    index["id_hash"] = np.random.Generator(np.random.Philox(5)).integers(
        0, 1 << 63, work.n_clips, np.uint64
    )
    index["n_frames"] = 500
    index["shard"] = np.arange(work.n_clips) // work.clips_per_shard
    for number in range(-(-work.n_clips // work.clips_per_shard)):
        first = number * work.clips_per_shard
        np.save(shard_index_path(folder, number), index[first : first + work.clips_per_shard])
        shard_path(folder, number).touch()
    return folder
