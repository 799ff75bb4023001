"""Start a chain of jobs, here or on a cluster: freeze what each needs, then run or submit it.

Here they run one after the other. On a cluster all are submitted at once, each waiting for the one
before: a chain returns in seconds, and a link that fails takes those behind it out of the queue.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from cluster import local, slurm
from cluster.attempts import note_submission
from cluster.folder import read_lines
from cluster.freeze import freeze, launch_record
from cluster.job import Job, record_of
from cluster.profiles import account_of
from cluster.queue import Queue
from paltrain.config.load import save_config
from paltrain.config.schema import TrainConfig
from paltrain.run_folder import check_same, find_init_folder, prepare_run
from paltrain.status import write_json
from paltrain.train.signals import EXIT_INTERRUPTED, EXIT_REQUEUE

EXIT_MEANING = {
    EXIT_REQUEUE: "was told to stop and saved; the same command goes on",
    EXIT_INTERRUPTED: "was interrupted and saved; the same command goes on",
}


@dataclass(frozen=True)
class Submitted:
    """A job in Slurm's queue. is_old: it was there before."""

    job: Job
    id: str
    is_old: bool = False


def run_here(jobs: Sequence[Job]) -> int:
    """Run the chain on this machine to its end, or to the first job that fails."""
    for job in jobs:
        if job.is_done:
            _say_done(job)
            continue
        _check_start(job, earlier=[])
        _prepare(job)
        exit_code = _run_here(job)
        if exit_code:
            meaning = EXIT_MEANING.get(exit_code, f"failed with exit code {exit_code}")
            log = f" (log: {job.folder.run.log})" if job.is_training else ""
            print(f"{job.name}: {meaning}{log}", file=sys.stderr)
            return exit_code
    return 0


def submit_chain(jobs: Sequence[Job]) -> list[Submitted]:
    """Submit the chain. What is finished is left out; a folder with jobs in the queue is kept.

    Raises:
        ConfigError: a run's configuration has changed, or what it starts from is not there.
        ClusterError: Slurm refuses a job; those submitted before it stay, and are named.
    """
    slurm.check_installed()
    queue = Queue.read()
    submitted: list[Submitted] = []
    for folder, group in groupby(jobs, key=lambda job: job.folder):
        links = list(group)
        if links[0].is_done:
            _say_done(links[0])
            continue
        if waiting := _in_queue(links, queue):
            submitted += waiting
            continue
        _check_start(links[0], earlier=[link.job for link in submitted])
        _prepare(links[0])
        freeze(folder, links[0].profile)
        for job in links:
            submitted.append(_submit(job, after=submitted[-1] if submitted else None))
    return submitted


def _in_queue(jobs: Sequence[Job], queue: Queue) -> list[Submitted]:
    """The jobs of a folder that are queued or run, in the order submitted."""
    job_of = {job.role.value: job for job in jobs}
    return [
        Submitted(job_of.get(line["role"], jobs[0]), str(line["id"]), is_old=True)
        for line in read_lines(jobs[0].folder.jobs)
        if queue.active_id(line) and "cancelled" not in line
    ]


def _submit(job: Job, *, after: Submitted | None) -> Submitted:
    before = after.id if after else None
    id_ = slurm.submit(job, account=account_of(job.profile, job.placement), after=before)
    note_submission(
        job.folder,
        {"id": id_, "role": job.role.value, "after": before, "n_tasks": job.n_tasks,
         "time_min": job.time_min, "name": job.name},
    )  # fmt: skip
    return Submitted(job, id_)


def _check_start(job: Job, *, earlier: Sequence[Job]) -> None:
    """Raises ConfigError where a run would start from a model that is not there and won't be."""
    config = job.config
    if not isinstance(config, TrainConfig) or config.stage.init_from is None:
        return
    start = Path(config.run.root, config.stage.init_from).absolute()
    if start not in [before.folder.path for before in earlier]:
        find_init_folder(config)


def _prepare(job: Job) -> None:
    """Make the job's folder and say in it what is asked for."""
    record = launch_record(**record_of(job))
    if isinstance(job.config, TrainConfig):
        prepare_run(job.config, launch=record)
    else:
        job.folder.path.mkdir(parents=True, exist_ok=True)
        save_config(job.config, job.folder.config)
        write_json(job.folder.launch, record)


def _run_here(job: Job) -> int:
    job.part.failure.unlink(missing_ok=True)
    if not job.is_training:
        return subprocess.run(job.command, env={**local.own_environment(), **job.environment},
                              check=False).returncode  # fmt: skip
    return local.run_processes(
        job.command,
        world_size=job.shape.world_size,
        threads=job.shape.threads,
        log_folder=job.folder.run.ranks,
        environment=job.environment,
    )


def _say_done(job: Job) -> None:
    assert isinstance(job.config, TrainConfig)
    check_same(job.folder.run, job.config)
    print(f"{job.name}: finished already ({job.folder.path}); run.fresh=true would start it anew")
