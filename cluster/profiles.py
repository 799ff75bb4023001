"""A cluster as a YAML file, `configs/cluster/NAME.yaml`: scheduler, sizes, environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from paltrain.config.load import load_config
from paltrain.config.schema import LaunchConfig
from paltrain.errors import ConfigError, unknown_name

FOLDER = Path(__file__).parents[1] / "configs" / "cluster"


class Scheduler(Enum):
    local = "local"
    slurm = "slurm"


@dataclass
class Profile:
    """What a cluster offers and asks for."""

    extends: Any = None
    name: str = "local"
    scheduler: Scheduler = Scheduler.local
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    account_variable: str | None = None  # names the environment variable that holds the account
    max_nodes: int = 1
    gpus_per_node: int | None = None  # default on this machine: those that are there
    cpus_per_node: int | None = None
    mem_gb_per_node: float | None = None
    time_min: int = 60
    signal_delay_s: int = 120  # how long before the time limit a job is told to save
    gres: str | None = None  # where --gpus-per-node is unknown, e.g. "gpu:4"
    master_suffix: str = ""  # JUWELS, JUPITER: the fast network answers to HOSTi
    modules: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)  # further shell lines before the job


@dataclass(frozen=True)
class Shape:
    """How many processes a run has, and what each gets."""

    nodes: int
    processes_per_node: int
    threads: int

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node


def load_profile(name: str) -> Profile:
    """The profile of `configs/cluster/NAME.yaml`, or of a YAML file given by its path."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.exists():
        valid = sorted(file.stem for file in FOLDER.glob("*.yaml"))
        raise ConfigError(unknown_name("cluster", name, valid))
    return load_config(Profile, [path])


def shape_of(profile: Profile, launch: LaunchConfig) -> Shape:
    """Nodes, processes and threads of a run. Raises ConfigError beyond what the profile offers."""
    if profile.scheduler is Scheduler.local and launch.nodes > 1:
        raise ConfigError(
            f"--nodes {launch.nodes} needs a cluster, but the profile '{profile.name}' is this "
            "machine alone: add --cluster NAME (configs/cluster/), where Slurm is installed"
        )
    if launch.nodes > profile.max_nodes:
        raise ConfigError(
            f"--nodes {launch.nodes} is over max_nodes={profile.max_nodes} of the profile "
            f"'{profile.name}', and such a job would wait for ever: ask for fewer, or raise it "
            "there"
        )
    gpus = profile.gpus_per_node if profile.gpus_per_node is not None else visible_accelerators()
    processes = launch.processes_per_node or gpus or 1
    cores = profile.cpus_per_node or len(os.sched_getaffinity(0))
    threads = launch.threads_per_process or max(1, cores // processes)
    return Shape(launch.nodes, processes, threads)


def account_of(profile: Profile) -> str | None:
    """The account to charge, None where the profile asks for none.

    Raises ConfigError where it asks for one and the environment has none.
    """
    if profile.account or profile.account_variable is None:
        return profile.account
    account = os.environ.get(profile.account_variable)
    if not account:
        raise ConfigError(
            f"the profile '{profile.name}' needs an account, but ${profile.account_variable} is "
            f"not set: export {profile.account_variable}=NAME (on LEONARDO, `saldo -b` lists "
            "yours)"
        )
    return account


def visible_accelerators() -> int:
    """CUDA devices of this machine that a process may use, without torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([d for d in chosen.split(",") if d.strip() and d.strip() != "-1"])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
