"""What one entry in a queue runs: a training run, a tool, a task array of it, or its merge.

    CONFIG of               jobs
    a training run          run      nodes x processes, one group
    features, evaluation,   run      the whole tool, where launch.array_tasks is 1
    ablation
                            array    one task a slice, then
                            merge    after all of them, puts the slices together

Commands are shell text: on a cluster they run from the code frozen in the job's folder.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from cluster.folder import JobFolder, Part
from cluster.freeze import PROJECT
from cluster.profiles import (
    Profile,
    Scheduler,
    Shape,
    shape_of_merge,
    shape_of_run,
    shape_of_slice,
    time_of,
)
from paltrain.ablation.build import plan_of
from paltrain.config.schema import (
    AblationConfig,
    EvalConfig,
    FeaturesConfig,
    Placement,
    TrainConfig,
)
from paltrain.run_folder import RunFolder

AnyConfig = TrainConfig | FeaturesConfig | EvalConfig | AblationConfig
TOOL_OF = {
    FeaturesConfig: "precompute_features.py",
    EvalConfig: "evaluate.py",
    AblationConfig: "ablate.py",
}
KIND_OF = {
    TrainConfig: "training",
    FeaturesConfig: "features",
    EvalConfig: "evaluation",
    AblationConfig: "ablation",
}
TASK = "$SLURM_ARRAY_TASK_ID"


class Role(Enum):
    run = "run"
    array = "array"
    merge = "merge"


@dataclass(frozen=True)
class Job:
    """One entry in a queue: its configuration, where it goes, and with how many processes."""

    config: AnyConfig
    folder: JobFolder
    role: Role
    profile: Profile
    shape: Shape

    @property
    def name(self) -> str:
        return self.folder.name + (f".{self.role.value}" if self.role is not Role.run else "")

    @property
    def is_training(self) -> bool:
        return isinstance(self.config, TrainConfig)

    @property
    def placement(self) -> Placement:
        """Where it goes. A merge goes where jobs without GPUs go, if the profile says so; an
        ablation's times training steps, and stays where the trials ran."""
        launch: Placement = self.config.launch
        serial = self.profile.serial
        if self.role is not Role.merge or serial is None or isinstance(self.config, AblationConfig):
            return launch
        return Placement(
            account=launch.account,
            partition=serial.partition,
            qos=serial.qos,
            time_min=serial.time_min,
        )

    @property
    def time_min(self) -> int:
        return time_of(self.profile, self.placement)

    @property
    def n_tasks(self) -> int | None:
        """Tasks of the array; None for a job that is none."""
        if self.role is not Role.array or isinstance(self.config, TrainConfig):
            return None
        return self.config.launch.array_tasks

    @property
    def part(self) -> Part:
        """Where it says how it stands; an array's tasks have parts of their own."""
        return self.folder.merge if self.role is Role.merge else self.folder.whole

    @property
    def waits_for_any_end(self) -> bool:
        """Whether it starts however the job before has ended: a merge says what is missing."""
        return self.role is Role.merge

    @property
    def is_done(self) -> bool:
        """Whether starting it again would do nothing, which is known of training runs alone."""
        if not isinstance(self.config, TrainConfig) or self.config.run.fresh:
            return False
        return self.folder.run.is_finished

    @property
    def command(self) -> list[str]:
        """What each process runs on this machine."""
        python = [sys.executable]
        if self.is_training:
            return [*python, "-m", "paltrain.run", str(self.folder.path)]
        status = str(self.part.status.path)
        return [*python, *self._tool(PROJECT), str(self.folder.config), "--heartbeat", status]

    @property
    def shell_command(self) -> str:
        """What each Slurm task runs, as shell text."""
        python = shlex.join([sys.executable, "-u"])
        if self.is_training:
            return f"{python} -P -m cluster.slurm_task {shlex.quote(str(self.folder.path))}"
        tool = shlex.join([*self._tool(self.folder.code), str(self.folder.config)])
        return f"{python} {tool} {self._slice_words()} --heartbeat {self.shell_folder}/status.json"

    @property
    def shell_folder(self) -> str:
        """The folder of the part that a batch script is about, as shell text."""
        if self.role is Role.array:
            return shlex.quote(str(self.folder.path / "tasks")) + f'/"{TASK}"'
        return shlex.quote(str(self.part.path))

    @property
    def environment(self) -> dict[str, str]:
        """Variables beyond the launcher's own, for processes on this machine."""
        old = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        paths = [str(PROJECT), *(path for path in old if path not in ("", str(PROJECT)))]
        return {**self.profile.environment, "PYTHONPATH": os.pathsep.join(paths)}

    def _tool(self, code: Path) -> list[str]:
        return [str(code / "tools" / TOOL_OF[type(self.config)])]

    def _slice_words(self) -> str:
        assert not isinstance(self.config, TrainConfig)
        n = self.config.launch.array_tasks
        return {Role.run: "", Role.array: f'slice="{TASK}/{n}"', Role.merge: f"--merge {n}"}[
            self.role
        ]


def jobs_of(config: AnyConfig, profile: Profile, *, source: Path) -> list[Job]:
    """The jobs that a configuration asks for, in order.

    source: the configuration's file; a tool's job is named after it where nothing else is said.

    Raises:
        ConfigError: it asks for more than the profile has, or for trials that cannot be.
    """
    folder = folder_of(config, source)
    if isinstance(config, AblationConfig):
        plan_of(config, name=folder.name)  # its faults are told before anything is started
    if isinstance(config, TrainConfig):
        return [Job(config, folder, Role.run, profile, shape_of_run(profile, config.launch))]
    work = Job(config, folder, Role.run, profile, shape_of_slice(profile, config.launch))
    if config.launch.array_tasks == 1 or profile.scheduler is Scheduler.local:
        return [work]
    times_steps = isinstance(config, AblationConfig)  # where the trials ran: on a GPU, if they did
    shape = work.shape if times_steps else shape_of_merge(profile)
    merge = Job(config, folder, Role.merge, profile, shape)
    return [replace(work, role=Role.array), merge]


def folder_of(config: AnyConfig, source: Path) -> JobFolder:
    """The folder of a configuration's jobs."""
    if isinstance(config, TrainConfig):
        path = RunFolder.of(config).path
    else:
        path = Path(config.launch.root) / (config.launch.name or named_after(source))
    return JobFolder(path.absolute())


def named_after(source: Path) -> str:
    """`configs/quickstart/features.yaml` -> `quickstart-features`."""
    return f"{source.absolute().parent.name}-{source.stem}"


def record_of(job: Job) -> dict[str, Any]:
    """What `launch.json` says of where the job runs."""
    return {
        "kind": KIND_OF[type(job.config)],
        "cluster": job.profile.name,
        "nodes": job.shape.nodes,
        "gpus": job.shape.nodes * job.shape.gpus_per_node,
        "world_size": job.shape.world_size,
        "array_tasks": job.n_tasks,
        "time_min": job.time_min,
    }
