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

from cluster import local, slurm
from cluster.ablation.freeze import freeze_ablation
from cluster.attempts import note_submission
from cluster.folder import read_lines
from cluster.freeze import freeze, launch_record
from cluster.job import Job, Role, record_of
from cluster.preflight.tools import has_all_features
from cluster.profiles import account_of
from cluster.queue import Queue
from paltrain.config.load import save_config
from paltrain.config.schema import AblationConfig, FeaturesConfig, TrainConfig
from paltrain.errors import ClusterError, ConfigError
from paltrain.files import locked, write_json
from paltrain.run_folder import check_same, find_init_folder, init_runs, prepare_run
from paltrain.status import FINISHED
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
        if waiting := job.folder.jobs.exists() and _in_queue([job]):
            raise ConfigError(
                f"{job.name} is in Slurm's queue as job {waiting[0].id}: cancel it first "
                "(tools/jobs.py cancel), or let it do the work"
            )
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
    submitted: list[Submitted] = []
    for folder, group in groupby(jobs, key=lambda job: job.folder):
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.path.parent):  # of two commands at once the second finds the first's
            _submit_folder(list(group), submitted)
    return submitted


def _submit_folder(jobs: Sequence[Job], submitted: list[Submitted]) -> None:
    """Submit what belongs to one configuration, unless it is finished or in the queue.

    submitted: the chain so far; what is submitted, or was, is added to it.
    """
    if jobs[0].is_done:
        _say_done(jobs[0])
        return
    config = jobs[0].config
    if isinstance(config, FeaturesConfig) and _is_complete(jobs[-1], config):
        print(f"{jobs[0].folder.name}: all features are in {config.folder} already")
        return
    if waiting := _in_queue(jobs):
        _check_as_submitted(waiting[0].id, jobs[0])
        submitted += waiting
        return
    _check_start(jobs[0], earlier=[link.job for link in submitted])
    _prepare(jobs[0])
    freeze(jobs[0].folder, jobs[0].profile)
    first = submitted[-1].id if submitted else None
    for job in jobs:
        after = submitted[-1].id if submitted else None
        try:
            link = _submit(job, after=after, first=first if job.role is Role.merge else None)
        except ClusterError as error:
            raise ClusterError(f"{error}{_left_behind(submitted)}") from error
        submitted.append(link)


def _left_behind(submitted: Sequence[Submitted]) -> str:
    """What of a chain stays in the queue when a later link is refused, as the end of a message."""
    if not submitted:
        return ""
    jobs = ", ".join(f"{link.job.name} as job {link.id}" for link in submitted)
    return f" In the queue before it, and kept: {jobs}; the same command goes on from there"


def _is_complete(last: Job, config: FeaturesConfig) -> bool:
    """Whether the last of a configuration's jobs has finished, and nothing has come since."""
    return last.part.status.read().get("state") == FINISHED and has_all_features(config)


def _check_as_submitted(id_: str, job: Job) -> None:
    """Raises ConfigError where the command asks for something else than what is in the queue."""
    if isinstance(job.config, TrainConfig):
        check_same(job.folder.run, job.config)
    there, here = job.folder.read_launch(), record_of(job)
    changed = [
        f"{key}: {there.get(key)} -> {here[key]}" for key in here if there.get(key) != here[key]
    ]
    if isinstance(job.config, TrainConfig) and job.config.run.fresh:
        changed.append("run.fresh: true")
    if changed:
        raise ConfigError(
            f"{job.folder.name} is in the queue as job {id_}, and this command asks for something "
            f"else ({'; '.join(changed)}): give the command it was submitted with, or first "
            f"tools/jobs.py cancel {job.folder.name}"
        )


def _in_queue(jobs: Sequence[Job]) -> list[Submitted]:
    """The jobs of a folder that wait or run, in the order submitted.

    Raises:
        ClusterError: one is just ending, and may be saving.
    """
    queue = Queue.read()
    if not queue.is_there and jobs[0].folder.jobs.exists():
        raise ClusterError(
            "Slurm does not answer (squeue failed), so nobody knows whether "
            f"{jobs[0].folder.name} is in its queue: try again"
        )
    job_of = {job.role.value: job for job in jobs}
    found = [
        Submitted(job_of.get(line["role"], jobs[0]), str(line["id"]), is_old=True)
        for line in {line["id"]: line for line in read_lines(jobs[0].folder.jobs)}.values()
        if queue.active_id(line)
    ]
    ending = [link for link in found if all(s.is_ending for s in queue.active(link.id))]
    if ending:
        raise ClusterError(
            f"job {ending[0].id} of {jobs[0].folder.name} is just ending, and may be saving: give "
            "the same command again in a moment"
        )
    if found and "merge" in job_of and all(link.job.role is Role.merge for link in found):
        return _without_lonely_merge(found, queue)
    return found


def _without_lonely_merge(merges: Sequence[Submitted], queue: Queue) -> list[Submitted]:
    """Take a merge that outlived its array out of the queue: a new array brings its own."""
    for link in merges:
        if any(state.state == "RUNNING" for state in queue.active(link.id)):
            raise ClusterError(
                f"the merge of {link.job.folder.name}, job {link.id}, runs: give the same command "
                "again when it has ended"
            )
        subprocess.run(["scancel", link.id], check=False)
    return []


def _submit(job: Job, *, after: str | None, first: str | None) -> Submitted:
    account = account_of(job.profile, job.placement)
    id_ = slurm.submit(job, account=account, after=after, first=first)
    note_submission(
        job.folder,
        {"id": id_, "role": job.role.value, "after": after, "n_tasks": job.n_tasks,
         "time_min": job.time_min, "name": job.name},
    )  # fmt: skip
    return Submitted(job, id_)


def _check_start(job: Job, *, earlier: Sequence[Job]) -> None:
    """Raises ConfigError where a run would start from a model that is not there and won't be."""
    config = job.config
    if not isinstance(config, TrainConfig) or config.stage.init_from is None:
        return
    if not set(init_runs(config)) & {before.folder.path for before in earlier}:
        find_init_folder(config)


def _prepare(job: Job) -> None:
    """Make the job's folder and say in it what is asked for."""
    record = launch_record(**record_of(job))
    if isinstance(job.config, TrainConfig):
        prepare_run(job.config, launch=record)
    else:
        job.folder.path.mkdir(parents=True, exist_ok=True)
        if isinstance(job.config, AblationConfig):
            freeze_ablation(job.config, job.folder)
        else:
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
