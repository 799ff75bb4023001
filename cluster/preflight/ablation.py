"""Preflight of an ablation: the stages and the evaluation of every arm, as jobs of their own.

Seeds differ in nothing that could be missing, so of each arm (and each value of its axes) the first
seed's trial is looked at, and the room for its files is counted for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.ablation.listing import JOB
from cluster.folder import JobFolder
from cluster.job import Job, Role
from cluster.preflight.chain import Chain, Findings, Need
from paltrain.ablation.build import Trial, plan_of
from paltrain.config.schema import AblationConfig


def with_trials(jobs: Sequence[Job]) -> Iterator[tuple[str, Job, bool]]:
    """Every job with its name, before an ablation's the jobs that its trials are made of; True for
    those, which no queue will ever see."""
    for job in jobs:
        if isinstance(job.config, AblationConfig) and job.role is not Role.merge:
            for trial in first_trials(job):
                for part in _jobs_of(trial, job):
                    yield f"{trial.name}/{part.name}", part, True
        yield job.name, job, False


def first_trials(job: Job) -> list[Trial]:
    """The first seed's trial of each variant."""
    assert isinstance(job.config, AblationConfig)
    plan = plan_of(job.config, name=job.folder.name)
    return [plan.trials_of(variant)[0] for variant in plan.variants]


def look_at_ablation(job: Job, chain: Chain, findings: Findings) -> None:
    """What is said of its trials stands before it; here is how many there are."""
    assert isinstance(job.config, AblationConfig)
    trials = first_trials(job)
    n_stages = sum(len(trial.stages) for trial in trials)
    findings.good.append(
        f"{len(trials) * len(job.config.seeds)} trials; looked at {n_stages} stages and "
        f"{len(trials)} evaluations, those of the first seed"
    )


def keep_faults_only(findings: Iterable[Findings]) -> None:
    """Of many trials what is good is told by their number alone."""
    for found in findings:
        found.good.clear()


def for_all_seeds(needs: Iterable[Need], jobs: Sequence[Job]) -> list[Need]:
    """The room that all trials take, from that of the first seed's."""
    ablations = {
        job.folder.path: job.config for job in jobs if isinstance(job.config, AblationConfig)
    }

    def times(folder: Path) -> int:
        return next((len(ablations[p].seeds) for p in folder.parents if p in ablations), 1)

    return [replace(need, n_bytes=need.n_bytes * times(need.folder)) for need in needs]


def _jobs_of(trial: Trial, job: Job) -> Iterator[Job]:
    """A trial's stages and its evaluation, in the shape of the task that runs them."""
    for stage in trial.stages:
        folder = JobFolder(Path(stage.run.root, stage.run.name).absolute())
        yield Job(stage, folder, Role.run, job.profile, job.shape)
    folder = JobFolder((trial.folder / JOB).absolute())
    yield Job(trial.evaluation, folder, Role.run, job.profile, job.shape)
