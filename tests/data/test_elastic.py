"""A run that moves to another number of processes in mid-epoch goes on with the same batches."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from cluster.local import run_processes
from paltrain.data.index import Corpus
from paltrain.data.lengths import build_length_table
from paltrain.data.manifest import write_manifest
from tests.data.conftest import render_words, tiny_clips, tiny_features, write_store
from tests.data.elastic_worker import HASHES, open_loader

ROOT = Path(__file__).resolve().parents[2]
MOVED_AT, N_STEPS = 4, 13  # an epoch has fewer, so the second part goes on into the next one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_manifest(tmp_path / "manifest.jsonl", tiny_clips())
    write_store(tmp_path / "features", tiny_features(tiny_clips()))
    build_length_table(Corpus.open([tmp_path / "manifest.jsonl"]), render_words, **HASHES)
    return tmp_path


def run(folder: Path, *, world_size: int, n_steps: int, state: str) -> dict:
    """What `world_size` real processes saw, and the state that they left."""
    out = folder / f"{world_size}.json"
    words = [str(folder), str(n_steps), state, str(out)]
    code = run_processes(
        [sys.executable, "-m", "tests.data.elastic_worker", *words],
        world_size=world_size,
        threads=1,
        log_folder=folder / "logs",
        environment={"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert code == 0
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.distributed
def test_two_processes_then_four_see_the_batches_of_one(folder: Path) -> None:
    with open_loader(folder, rank=0, world_size=1, n_steps=N_STEPS) as loader:
        alone = list(loader)
    two = run(folder, world_size=2, n_steps=MOVED_AT, state="start")
    four = run(folder, world_size=4, n_steps=N_STEPS - MOVED_AT, state=str(folder / "2.json"))
    assert (two["state"]["epoch"], four["state"]["epoch"]) == (0, 1)
    for number, (one, many) in enumerate(zip(alone, [*two["steps"], *four["steps"]], strict=True)):
        together = Counter(name for rank in many["ids"] for batch in rank for name in batch)
        assert together == Counter(name for batch in one.batches for name in batch.ids)
        assert len(many["ids"]) == (2 if number < MOVED_AT else 4)
        assert len({len(rank) for rank in many["ids"]}) == 1
        assert set(many["n_target_tokens"]) == {one.n_target_tokens}
    assert four["state"] == alone[-1].state_after.to_dict()
    first_epoch = [step for step in alone if step.state_after.epoch == 0]
    asked = Counter(name for step in first_epoch for batch in step.batches for name in batch.ids)
    assert max(asked.values()) > 1  # the mixture repeats
