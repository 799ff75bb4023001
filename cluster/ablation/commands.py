"""A trial as ordinary commands over files in its folder, and the mark that it is done.

TRIAL/configs/1-RUN.yaml, ...    each stage, resolved
TRIAL/configs/evaluate.yaml      the evaluation of the last one
TRIAL/log.txt                    all that the commands said
TRIAL/done.json                  what was done, once it is: a hash of the configurations, seconds
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from typing import Any

import yaml

from cluster.freeze import PROJECT
from paltrain.ablation.build import Trial
from paltrain.ablation.results import has_results
from paltrain.config.load import save_config, to_yaml
from paltrain.files import write_json

LAUNCH, EVALUATE, BENCH = "tools/launch.py", "tools/evaluate.py", "tools/bench.py"
OF_A_PLACE = ("launch", "logging")  # of a stage's keys: where it runs, not what it comes to


class TrialFiles:
    """Where a trial's configurations, log and mark lie."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.configs = trial.folder / "configs"
        self.stages = [
            self.configs / f"{number}-{stage.run.name}.yaml"
            for number, stage in enumerate(trial.stages, start=1)
        ]
        self.evaluation = self.configs / "evaluate.yaml"
        self.log = trial.folder / "log.txt"
        self.done = trial.folder / "done.json"

    def write_configs(self) -> None:
        for stage, file in zip(self.trial.stages, self.stages, strict=True):
            save_config(stage, file)
        save_config(self.trial.evaluation, self.evaluation)

    @property
    def is_done(self) -> bool:
        """Whether this very trial was run to its end, and its results are still there."""
        try:
            mark = json.loads(self.done.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return mark.get("of") == _identity(self.trial) and has_results(self.trial)

    def mark_done(self, *, seconds: float) -> None:
        write_json(self.done, {"of": _identity(self.trial), "seconds": round(seconds, 1)})


def commands_of(trial: Trial, *, threads: int | None = None) -> list[list[str]]:
    """What a trial runs on this machine, one after the other. threads: of each process, where its
    stages do not say how many."""
    files = TrialFiles(trial)
    says = any(stage.launch.threads_per_process is not None for stage in trial.stages)
    share = [] if threads is None or says else [f"launch.threads_per_process={threads}"]
    stages = list(map(str, files.stages))
    return [
        [*tool(LAUNCH), "--cluster", "local", *stages, *share],
        [*tool(EVALUATE), str(files.evaluation), "--no-baseline"],
    ]


def prepare_command(configs: Iterable[str]) -> list[str]:
    """What makes the features and runs that trials start from, as far as they are missing."""
    return [*tool(LAUNCH), "--cluster", "local", *configs]


def tool(name: str) -> list[str]:
    """A tool of the code that this process runs, by this Python."""
    return [sys.executable, str(PROJECT / name)]


def _identity(trial: Trial) -> str:
    """Names what a trial comes to: its configurations, but for where they run."""
    parts: list[Any] = [yaml.safe_load(to_yaml(each)) for each in trial.stages]
    parts.append(yaml.safe_load(to_yaml(trial.evaluation)))
    for part in parts:
        for key in OF_A_PLACE:
            part.pop(key, None)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
