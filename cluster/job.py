"""Freeze what a run needs into its folder, and start it here or on a cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paltrain
from cluster import local, slurm
from cluster.profiles import Profile, Scheduler, Shape, account_of
from paltrain.config.schema import TrainConfig
from paltrain.run import RunFolder, prepare_run

PROJECT = Path(paltrain.__file__).parents[1]
CODE = ("paltrain", "cluster")


@dataclass(frozen=True)
class Job:
    """One run to start: its configuration, where, and with how many processes."""

    config: TrainConfig
    profile: Profile
    shape: Shape

    @property
    def folder(self) -> RunFolder:
        return RunFolder.of(self.config)

    @property
    def command(self) -> list[str]:
        """What each rank runs on one machine."""
        return [sys.executable, "-m", "paltrain.run", str(self.folder.path)]

    @property
    def environment(self) -> dict[str, str]:
        """Variables beyond the launcher's own."""
        old = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        paths = [str(PROJECT), *(path for path in old if path not in ("", str(PROJECT)))]
        return {**self.profile.environment, "PYTHONPATH": os.pathsep.join(paths)}

    @property
    def slurm_folder(self) -> Path:
        return self.folder.path.absolute() / "slurm"

    @property
    def code_folder(self) -> Path:
        return self.folder.path.absolute() / "code"


def start(job: Job, *, after: str | None = None) -> int | str:
    """Train to the end here and return the exit code, or submit and return the job's id.

    after: id of the Slurm job that must succeed first.
    """
    on_slurm = job.profile.scheduler is Scheduler.slurm
    if on_slurm:
        slurm.check_installed()
    account = account_of(job.profile)
    folder = prepare_run(job.config, launch=_record(job))
    if not on_slurm:
        return local.run_processes(
            job.command,
            world_size=job.shape.world_size,
            threads=job.shape.threads,
            log_folder=folder.ranks,
            environment=job.environment,
        )
    _freeze_code(job.code_folder)
    parameters = slurm_parameters(job, account=account, after=after)
    return slurm.submit(parameters, run_folder=folder.path.absolute(), folder=job.slurm_folder)


def slurm_parameters(job: Job, *, account: str | None, after: str | None = None) -> dict[str, Any]:
    """What submitit is told of the job; it runs the code frozen in its folder."""
    parameters = slurm.slurm_parameters(
        job.profile, job.shape, job_name=job.config.run.name, account=account, after=after
    )
    parameters["setup"].append(f"export PYTHONPATH={job.code_folder}${{PYTHONPATH:+:$PYTHONPATH}}")
    return parameters


def code_version() -> str:
    """The commit of the code, marked if there are uncommitted changes; else its version."""
    asked = subprocess.run(
        ["git", "-C", str(PROJECT), "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return asked.stdout.strip() or f"v{paltrain.__version__}"


def _record(job: Job) -> dict[str, object]:
    return {
        "code_version": code_version(),
        "arguments": sys.argv,
        "python": sys.executable,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "cluster": job.profile.name,
        "world_size": job.shape.world_size,
    }


def _freeze_code(folder: Path) -> None:
    """A copy of the code beside the run, so that later edits do not reach a queued job."""
    if folder.exists():
        shutil.rmtree(folder)
    for package in CODE:
        shutil.copytree(
            PROJECT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
