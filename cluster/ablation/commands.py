"""A trial as ordinary commands over files in its folder, and the mark that it is done.

TRIAL/configs/1-RUN.yaml, ...    each stage, resolved
TRIAL/configs/evaluate.yaml      the evaluation of the last one
TRIAL/log.txt                    all that the commands said
TRIAL/done.json                  what was done, once it is: a hash of the configurations, seconds
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from cluster.ablation.children import Share
from cluster.freeze import PROJECT
from paltrain.ablation.build import Trial
from paltrain.ablation.marks import is_marked
from paltrain.ablation.results import has_results
from paltrain.config.load import save_config
from paltrain.config.schema import TrainConfig

LAUNCH, EVALUATE, BENCH = "tools/launch.py", "tools/evaluate.py", "tools/bench.py"


class TrialFiles:
    """Where a trial's configurations, log and mark lie."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.configs = trial.folder / "configs"
        self.stages = stage_files(trial.stages, self.configs)
        self.evaluation = self.configs / "evaluate.yaml"
        self.log = trial.folder / "log.txt"

    def write_configs(self) -> None:
        save_stages(self.trial.stages, self.configs)
        save_config(self.trial.evaluation, self.evaluation)

    @property
    def is_done(self) -> bool:
        """Whether this very trial was run to its end, and its results are still there."""
        return is_marked(self.trial) and has_results(self.trial)


def stage_files(stages: Sequence[TrainConfig], folder: Path) -> list[Path]:
    """Where the stages of a trial or an arm lie in `folder`."""
    return [folder / f"{number}-{stage.run.name}.yaml" for number, stage in enumerate(stages, 1)]


def save_stages(stages: Sequence[TrainConfig], folder: Path) -> list[Path]:
    """Write each; their files."""
    files = stage_files(stages, folder)
    for stage, file in zip(stages, files, strict=True):
        save_config(stage, file)
    return files


def commands_of(trial: Trial, share: Share) -> list[list[str]]:
    """What a trial runs on its share of this machine, one after the other.

    The processes of a stage divide the share's threads, unless a stage says how many each has.
    """
    files = TrialFiles(trial)
    launches = [stage.launch for stage in trial.stages]
    n_processes = max(each.processes_per_node or share.n_devices or 1 for each in launches)
    says = any(each.threads_per_process is not None for each in launches)
    threads = f"launch.threads_per_process={max(1, share.threads // n_processes)}"
    stages = list(map(str, files.stages))
    return [
        [*tool(LAUNCH), "--cluster", "local", *stages, *([] if says else [threads])],
        [*tool(EVALUATE), str(files.evaluation), "--no-baseline"],
    ]


def prepare_command(configs: Iterable[str]) -> list[str]:
    """What makes the features and runs that trials start from, as far as they are missing."""
    return [*tool(LAUNCH), "--cluster", "local", *configs]


def tool(name: str) -> list[str]:
    """A tool of the code that this process runs, by this Python."""
    return [sys.executable, str(PROJECT / name)]
