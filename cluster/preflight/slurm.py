"""Preflight of what Slurm thinks of the jobs: commands, account, sizes, and `sbatch --test-only`.

`--test-only` lets Slurm validate the text that a launch would submit, and submits nothing. It says
when the job could start; that needs no job before it, so dependencies are left out.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from cluster import slurm
from cluster.job import Job
from cluster.preflight.chain import Findings, is_done
from cluster.profiles import Scheduler, account_of, faults_of_size
from paltrain.errors import ClusterError, ConfigError

LIMIT_S = 60.0  # a controller that answers later is taken for absent
MISREAD = {"\\": "a backslash", "\n": "a newline"}  # by --output and srun


def look_at_slurm(jobs: Sequence[Job], findings: Sequence[Findings]) -> None:
    """What Slurm would refuse of the jobs, or keep waiting for ever. findings: of each job."""
    there = [(j, f) for j, f in zip(jobs, findings, strict=True) if _is_asked_of_slurm(j)]
    if not there:
        return
    try:
        slurm.check_installed()
    except ConfigError as error:
        there[0][1].problems.append(str(error))
        return
    submitted, partitions = [], _partitions()
    for job, found in there:
        found.problems += faults_of_size(
            job.profile, job.placement, job.shape, is_training=job.is_training
        )
        found.problems += _faults_of_partition(job, partitions)
        found.problems += _faults_of_path(job)
        account = found.attempt(partial(_account, job))
        if account is not None:
            submitted.append((job, found, account or None))
    with ThreadPoolExecutor(max_workers=8) as pool:
        answers = list(pool.map(lambda each: _test(each[0], each[2]), submitted))
    for (_, found, _), answer in zip(submitted, answers, strict=True):
        if isinstance(answer, ClusterError):
            found.problems.append(str(answer))
        else:
            found.good.append(answer)


@dataclass(frozen=True)
class Partition:
    """What Slurm says of a partition. time_min: None where there is no limit."""

    name: str
    time_min: int | None


def _partitions() -> dict[str, Partition]:
    """All partitions by name, the default one also as the empty name; {} if Slurm says nothing."""
    asked = subprocess.run(
        ["sinfo", "--noheader", "-o", "%P|%l"], capture_output=True, text=True, check=False
    )
    found: dict[str, Partition] = {}
    for row in (line.split("|") for line in asked.stdout.splitlines()):
        name = row[0].rstrip("*")
        found[name] = Partition(name, minutes_of(row[1]))
        if row[0].endswith("*"):
            found[""] = found[name]
    return found


def minutes_of(limit: str) -> int | None:
    """
    >>> minutes_of("1-12:00:00"), minutes_of("30:00"), minutes_of("infinite")
    (2160, 30, None)
    """
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit.strip())
    if match is None:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes


def _faults_of_partition(job: Job, partitions: Mapping[str, Partition]) -> list[str]:
    """Why Slurm would keep the job waiting for ever: it takes such jobs, and says nothing."""
    partition = partitions.get(job.placement.partition or job.profile.partition or "")
    if partition is None or partition.time_min is None or job.time_min <= partition.time_min:
        return []
    return [
        f"{job.time_min} minutes are over the {partition.time_min} of the partition "
        f"'{partition.name}', and the job would wait for ever: lower launch.time_min (a run "
        "goes on by itself in the next job), and set max_time_min in the profile"
    ]


def _is_asked_of_slurm(job: Job) -> bool:
    return job.profile.scheduler is Scheduler.slurm and not is_done(job)


def _account(job: Job) -> str:
    return account_of(job.profile, job.placement) or ""


def _faults_of_path(job: Job) -> list[str]:
    path = str(job.folder.path)
    return [
        f"the job's folder {path!r} has {name} in its path, which Slurm misreads: choose another "
        f"{'run.root' if job.is_training else 'launch.root'}"
        for character, name in MISREAD.items()
        if character in path
    ]


def _test(job: Job, account: str | None) -> str | ClusterError:
    """What Slurm says of the job, or that it refuses it."""
    try:
        parameters = slurm.parameters_of(job, account=account)
        command = slurm.command_of(job)
        text = slurm.sbatch_text(parameters, command=command, folder=job.folder.slurm)
        with slurm.outside_of_jobs():
            done = subprocess.run(
                ["sbatch", "--test-only"],
                input=text, capture_output=True, text=True, check=False, timeout=LIMIT_S,
            )  # fmt: skip
    except ConfigError as error:
        return ClusterError(str(error))
    except subprocess.TimeoutExpired:
        return ClusterError(
            f"Slurm has not answered `sbatch --test-only` for {LIMIT_S:g} s: look whether `sinfo` "
            "answers, and try again"
        )
    if done.returncode:
        return ClusterError(slurm.refusal(job.name, (done.stderr + done.stdout).strip()))
    lines = [line for line in (done.stderr + done.stdout).splitlines() if "to start at" in line]
    said = lines[0].partition("sbatch: ")[2] or lines[0] if lines else ""
    charged = f" for account {account}" if account else ""
    return f"Slurm would take it{charged}" + (f" ({said})" if said else "")
