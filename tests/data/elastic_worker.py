"""Run by test_elastic.py, once a rank: `elastic_worker FOLDER N_STEPS STATE_IN OUT`.

Takes `N_STEPS` steps of the corpus in FOLDER from the state that STATE_IN keeps (`start`: from the
beginning); rank 0 writes what all ranks together saw, and where the data stand then.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paltrain.comm import Comm
from paltrain.config.schema import DataConfig, MixtureConfig
from paltrain.data.build import build_plan
from paltrain.data.index import Corpus
from paltrain.data.lengths import find_length_table
from paltrain.data.loader import Loader, Step, build_loader
from paltrain.data.plan import DataState
from paltrain.data.shards import FeatureStore
from tests.data.conftest import half_as_many, render_words

HASHES = {"tokenizer_hash": "t", "template_hash": "r"}


@dataclass(frozen=True)
class Seen:
    """One rank's part of a step. ids: of the questions, a list a micro-batch (empty: a dummy)."""

    ids: list[list[str]]
    n_target_tokens: int

    @classmethod
    def of(cls, step: Step) -> Seen:
        ids = [list(batch.ids) if batch else [] for batch in step.batches]
        return cls(ids, step.n_target_tokens)


def open_loader(
    folder: Path, *, rank: int, world_size: int, n_steps: int, state: DataState | None = None
) -> Loader:
    """A mixture of the folder's corpus, several questions a visit."""
    manifest = folder / "manifest.jsonl"
    config = DataConfig(
        manifests=[str(manifest)],
        mixture={
            "counting": MixtureConfig(tasks=["count"], weight=1.5),
            "short": MixtureConfig(max_duration_s=12.0),
        },
        questions_per_visit=3,
        batch_questions=9,
        text_token_budget=60,
        audio_token_budget=40,
        window_shards=2,
    )
    corpus = Corpus.open([manifest])
    lengths = find_length_table(corpus, **HASHES)
    assert lengths is not None
    plan = build_plan(
        config,
        corpus=corpus,
        stores={"mel": FeatureStore.open(folder / "features")},
        lengths=lengths,
        audio_tokens={"mel": half_as_many},
        seed=11,
    )
    return build_loader(
        plan,
        config,
        render=render_words,
        rank=rank,
        world_size=world_size,
        state=state,
        n_steps=n_steps,
    )


def steps_together(loader: Loader, comm: Comm) -> Iterator[dict[str, Any]]:
    """By step, what each rank saw."""
    with loader:
        for step in loader:
            ranks = comm.gather(Seen.of(step))
            yield {
                "ids": [seen.ids for seen in ranks],
                "n_target_tokens": [seen.n_target_tokens for seen in ranks],
            }


def main(folder: Path, n_steps: int, state_in: str, out: Path) -> None:
    comm = Comm.from_environment(timeout_s=120)
    state = None
    if state_in != "start":
        saved = json.loads(Path(state_in).read_text(encoding="utf-8"))
        state = DataState.from_dict(saved["state"])
    loader = open_loader(
        folder, rank=comm.rank, world_size=comm.world_size, n_steps=n_steps, state=state
    )
    steps = list(steps_together(loader, comm))
    if comm.rank == 0:
        content = {"steps": steps, "state": loader.state.to_dict()}
        out.write_text(json.dumps(content), encoding="utf-8")
    comm.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
