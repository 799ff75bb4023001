"""What a run makes of its configuration before anything trains."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paltrain.comm import Comm
from paltrain.config import TrainConfig, load_config
from paltrain.run_folder import RunFolder
from paltrain.train.build import make_parts
from paltrain.train.job import Parts, Paths
from tests.cluster.material import write_config, write_sounds


@pytest.fixture
def alone() -> Iterator[Comm]:
    """A group of one, which leaves nothing in the environment."""
    before = dict(os.environ)
    comm = Comm.from_environment(timeout_s=60.0)
    yield comm
    comm.close()
    os.environ.clear()
    os.environ.update(before)


def parts_of(folder: Path, comm: Comm, *, n_positions: int) -> Parts:
    """A run on the sounds of `material`, whose LLM has so many positions."""
    stream = {"features": str(folder / "store")}
    file = write_config(folder, model={"streams": {"mel": stream}})
    word = f"model.architecture.max_position_embeddings={n_positions}"
    config = load_config(TrainConfig, [file], [word])
    return make_parts(config, comm, Paths.of(RunFolder.of(config)), None)


def test_questions_beyond_the_llms_positions_are_set_aside_at_the_start(
    tmp_path: Path, alone: Comm
) -> None:
    write_sounds(tmp_path)
    plan = parts_of(tmp_path, alone, n_positions=4096).plan
    assert plan.left_out == {}
    sizes: Any = plan.planner.sizes
    lengths = sizes.lengths["trunk"] + sizes.lengths["branch"] + sizes.clips["audio"]
    most = int(lengths.max()) - 1
    parts = parts_of(tmp_path, alone, n_positions=most)
    ((reason, n),) = parts.plan.left_out.items()
    assert f"longer than the LLM's {most} positions" in reason
    assert n == int((lengths > most).sum())
