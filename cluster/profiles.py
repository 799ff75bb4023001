"""A cluster as a YAML file, `configs/cluster/NAME.yaml`: scheduler, sizes, limits, environment."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from paltrain.config.load import load_config
from paltrain.config.schema import ArrayConfig, LaunchConfig, Placement
from paltrain.errors import ConfigError, unknown_name
from paltrain.log import get_logger

log = get_logger(__name__)

FOLDER = Path(__file__).parents[1] / "configs" / "cluster"
AUTO = "auto"
AUTO_VARIABLE = "PALTRAIN_CLUSTER"  # names the profile that `auto` takes


class Scheduler(Enum):
    local = "local"
    slurm = "slurm"


class GpuRequest(Enum):
    """Which option of sbatch asks for GPUs."""

    gpus_per_node = "gpus_per_node"  # --gpus-per-node=4
    gres = "gres"  # --gres=gpu:4


@dataclass
class Limits:
    """The largest job that a partition or a QoS takes; None: no limit known."""

    max_nodes: int | None = None
    time_min: int | None = None


@dataclass
class SerialPlace:
    """Where jobs without GPUs go, such as the merge of a job array."""

    partition: str | None = None
    qos: str | None = None
    cpus: int = 4
    mem_mb: int | None = None
    time_min: int = 240


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
    account_help: str | None = None  # how a user finds theirs
    max_nodes: int = 1
    gpus_per_node: int | None = None  # default on this machine: those that are there
    cpus_per_node: int | None = None
    mem_mb_per_node: int | None = None
    time_min: int = 60
    max_time_min: int | None = None
    qos_limits: dict[str, Limits] = field(default_factory=dict)  # of each QoS that has its own
    signal_delay_s: int = 120  # how long before the time limit a job is told to save
    gpu_request: GpuRequest = GpuRequest.gpus_per_node
    cpu_bind: str | None = None  # srun's --cpu-bind, for jobs that take whole nodes
    sbatch: dict[str, str] = field(default_factory=dict)  # e.g. hint: nomultithread
    master_suffix: str = ""  # JUWELS, JUPITER: the fast network answers to HOSTi
    serial: SerialPlace | None = None  # default: as other jobs, without GPUs
    offline: bool = False  # nodes reach no internet: hubs and wandb are told so
    modules: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    setup: list[str] = field(default_factory=list)  # further shell lines before the job


@dataclass(frozen=True)
class Shape:
    """How many processes a job has, and what each and its node gets."""

    nodes: int
    processes_per_node: int
    threads: int
    gpus_per_node: int = 0
    cpus_per_process: int = 1

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node


def load_profile(name: str) -> Profile:
    """The profile of `configs/cluster/NAME.yaml`, or of a YAML file given by its path.

    `auto`: the one that $PALTRAIN_CLUSTER names, else `slurm` where Slurm is installed, else
    `local`.
    """
    if name == AUTO:
        has_slurm = shutil.which("sbatch") is not None
        name = os.environ.get(AUTO_VARIABLE) or ("slurm" if has_slurm else "local")
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.exists():
        valid = sorted(file.stem for file in FOLDER.glob("*.yaml"))
        raise ConfigError(unknown_name("cluster", name, valid))
    return load_config(Profile, [path])


def shape_of_run(profile: Profile, launch: LaunchConfig) -> Shape:
    """Nodes, processes and threads of a training run.

    Raises:
        ConfigError: more nodes or GPUs than the profile has.
    """
    if profile.scheduler is Scheduler.local and launch.nodes > 1:
        raise ConfigError(
            f"--nodes {launch.nodes} needs a cluster, but the profile '{profile.name}' is this "
            "machine alone: add --cluster NAME (configs/cluster/), where Slurm is installed"
        )
    gpus = _gpus(profile, launch.gpus_per_node)
    if launch.gpus_per_node is None and launch.processes_per_node is not None:
        gpus = min(gpus, launch.processes_per_node)  # one GPU a process, and none that idles
    processes = launch.processes_per_node or gpus or 1
    if profile.scheduler is Scheduler.local and 0 < gpus < processes:
        log.warning(
            "launch.processes_per_node=%d, but there are %d GPU(s): %d process(es), one a GPU",
            processes, gpus, gpus,
        )  # fmt: skip
        processes = gpus
    cores = _share_of_cores(profile, gpus)
    threads = launch.threads_per_process or max(1, cores // processes)
    return Shape(launch.nodes, processes, threads, gpus, max(1, cores // processes))


def shape_of_slice(profile: Profile, launch: ArrayConfig) -> Shape:
    """What one task of an array gets: a process with its share of a node."""
    offered = _gpus(profile, None)
    asked = launch.gpus_per_task if launch.gpus_per_task is not None else min(1, offered)
    gpus = _gpus(profile, asked)
    cores = _share_of_cores(profile, gpus)
    return Shape(1, 1, cores, gpus, cores)


def shape_of_merge(profile: Profile) -> Shape:
    """A process without a GPU."""
    cpus = profile.serial.cpus if profile.serial else 1
    return Shape(1, 1, cpus, 0, cpus)


def limits_of(profile: Profile, placement: Placement) -> Limits:
    """The largest job where the placement goes: its QoS's limits, else the partition's."""
    qos = placement.qos or profile.qos
    if qos in profile.qos_limits:
        return profile.qos_limits[qos]
    return Limits(profile.max_nodes, profile.max_time_min)


def time_of(profile: Profile, placement: Placement) -> int:
    """Minutes to ask for: as said, else the profile's, within the limit of the QoS."""
    most = limits_of(profile, placement).time_min
    return placement.time_min or min(profile.time_min, most or profile.time_min)


def faults_of_size(
    profile: Profile, placement: Placement, shape: Shape, *, is_training: bool
) -> list[str]:
    """Why a job of this size would wait for ever, or leave GPUs idle. is_training: its processes
    use one GPU each; a tool's one process uses all that it has."""
    limits = limits_of(profile, placement)
    qos = placement.qos or profile.qos
    where = f"the QoS '{qos}' of" if qos in profile.qos_limits else ""
    owner = f"{where} the profile '{profile.name}'".strip()
    faults = []
    if limits.max_nodes is not None and shape.nodes > limits.max_nodes:
        faults.append(
            f"--nodes {shape.nodes} is over max_nodes={limits.max_nodes} of {owner}, and such a "
            "job would wait for ever: ask for fewer" + _roomier(profile, "max_nodes", shape.nodes)
        )
    minutes = time_of(profile, placement)
    if limits.time_min is not None and minutes > limits.time_min:
        faults.append(
            f"launch.time_min={minutes} is over the {limits.time_min} minutes of {owner}, and such "
            "a job would wait for ever: ask for less (a run goes on by itself in the next job)"
            + _roomier(profile, "time_min", minutes)
        )
    uneven = shape.gpus_per_node and shape.processes_per_node != shape.gpus_per_node
    if is_training and uneven:
        faults.append(
            f"launch.processes_per_node={shape.processes_per_node} on {shape.gpus_per_node} GPUs "
            "of a node: a process uses one GPU, and a GPU serves one process; make them equal"
        )
    if profile.cpus_per_node and shape.processes_per_node > profile.cpus_per_node:
        faults.append(
            f"launch.processes_per_node={shape.processes_per_node} is over the "
            f"{profile.cpus_per_node} cores of a node of {owner}: ask for fewer"
        )
    return faults


def account_of(profile: Profile, placement: Placement) -> str | None:
    """The account to charge, None where the profile asks for none.

    Raises ConfigError where it asks for one and nobody names it.
    """
    account = placement.account or profile.account
    if account or profile.account_variable is None:
        return account
    account = os.environ.get(profile.account_variable)
    if not account:
        raise ConfigError(
            f"the profile '{profile.name}' needs an account, but ${profile.account_variable} is "
            f"not set: export {profile.account_variable}=NAME, or add launch.account=NAME"
            + (f" ({profile.account_help})" if profile.account_help else "")
        )
    return account


def visible_devices() -> list[str]:
    """The CUDA devices of this machine that a process may use, by their ids, without torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    n = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return list(map(str, range(n)))


def _gpus(profile: Profile, asked: int | None) -> int:
    offered = profile.gpus_per_node
    if offered is None:
        offered = len(visible_devices()) if profile.scheduler is Scheduler.local else 0
    if asked is None:
        return offered
    if asked > offered and profile.scheduler is Scheduler.slurm:
        raise ConfigError(
            f"--gpus-per-node {asked} is over gpus_per_node={offered} of the profile "
            f"'{profile.name}': ask for fewer, or correct the profile"
        )
    return asked


def _share_of_cores(profile: Profile, gpus: int) -> int:
    """Cores of a node that go with so many of its GPUs, or without any: as with one."""
    if profile.scheduler is Scheduler.local:
        return profile.cpus_per_node or len(os.sched_getaffinity(0))
    cores, whole = profile.cpus_per_node or 1, profile.gpus_per_node
    return max(1, cores * max(1, gpus) // whole) if whole else cores


def _roomier(profile: Profile, field_name: str, wanted: int) -> str:
    """Which QoS would take it, as the end of a sentence."""
    fitting = [
        name
        for name, limits in profile.qos_limits.items()
        if (getattr(limits, field_name) or wanted) >= wanted
    ]
    return f", or set launch.qos={' or '.join(fitting)}" if fitting else ", or raise it there"
