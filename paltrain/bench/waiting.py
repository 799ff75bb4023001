"""How much of a training run's time went to waiting for data, from its `metrics.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from paltrain.bench.record import BenchRow
from paltrain.errors import ConfigError

GOAL = "< 1"


def measure_waiting(run: Path) -> BenchRow:
    """Waiting time over all step time of the run in folder `run`, every step counted.

    Raises:
        ConfigError: the run has no step.
    """
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    steps = [json.loads(line) for line in lines]
    if not steps:
        raise ConfigError(f"--run {run} has trained no step ({file}): name the folder of a run")
    step_s = np.array([step["step_time_s"] for step in steps])
    wait = step_s * np.array([step["data_wait_share"] for step in steps])
    return BenchRow(
        f"data_wait_share@{run.name}",
        100 * float(wait.sum() / step_s.sum()),
        "%",
        f"{len(steps)} steps, {step_s.sum():.0f} s, each start's first included; median step "
        f"{100 * float(np.median(wait / step_s)):.3g} %",
        GOAL,
    )
