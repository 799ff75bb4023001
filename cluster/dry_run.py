"""What a launch would do, as text: each job, where it runs, and its step plan. Starts nothing.

Needs no Slurm, no torch and no tokenizer: manifests, stores and length tables are enough. A figure
that needs something absent reads `unknown: what is missing, how to get it`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from cluster import slurm
from cluster.job import Job, Role
from cluster.local import rank_environment
from cluster.plan_report import line, plan_lines, say, stream_lines
from cluster.profiles import Scheduler, account_of, faults_of_size
from cluster.run_data import Unknown, look_at, stream_stamps
from cluster.slurm_env import FIRST_PORT, N_PORTS
from paltrain.ablation.build import plan_of
from paltrain.config.schema import AblationConfig, FeaturesConfig, TrainConfig
from paltrain.errors import ConfigError
from paltrain.run_folder import find_init_folder


def dry_run(jobs: Sequence[Job]) -> str:
    """The report on a chain of jobs."""
    sections = []
    for number, job in enumerate(jobs, start=1):
        names = _runs_before(job, jobs[: number - 1])
        lines = [f"=== job {number} of {len(jobs)}: {job.name} ==="]
        lines += _identity(job, names)
        lines += _text(job, place=number)
        if isinstance(job.config, TrainConfig):
            shape = job.shape
            data = look_at(
                job.config, world_size=shape.world_size, n_nodes=shape.nodes, earlier=names
            )
            makers = [
                before.config
                for before in jobs[: number - 1]
                if isinstance(before.config, FeaturesConfig)
            ]
            lines += stream_lines(job.config, stream_stamps(job.config, makers))
            lines += plan_lines(job.config, data)
        sections.append("\n".join(lines))
    return "\n\n".join([*sections, _total(jobs)]) + "\n"


def _runs_before(job: Job, earlier: Sequence[Job]) -> list[str]:
    """Names of the runs that come before a job, under the same root."""
    root = job.folder.path.parent
    runs = [before.folder.path for before in earlier if before.is_training]
    return [path.name for path in runs if path.parent == root]


def gpu_hours(job: Job) -> float:
    """What the job asks for, at most: every task for its whole time limit."""
    return job.shape.nodes * job.shape.gpus_per_node * (job.n_tasks or 1) * job.time_min / 60


def _identity(job: Job, earlier: Sequence[str]) -> Iterator[str]:
    shape = job.shape
    yield line("folder", f"{job.folder.path} ({_standing(job)})")
    if job.n_tasks:
        yield line("job array", f"{job.n_tasks} tasks, {slurm.parallelism(job)} at a time")
    yield line(
        "world size",
        f"{shape.world_size} ({shape.nodes} node(s) x {shape.processes_per_node} process(es), "
        f"{shape.gpus_per_node} GPU(s) a node, {shape.threads} thread(s) a process)",
    )
    for fault in faults_of_size(job.profile, job.placement, shape, is_training=job.is_training):
        yield line("too large", fault)
    config = job.config
    if isinstance(config, TrainConfig):
        yield line("starts from", say(lambda: _starts_from(config, earlier)))
        yield line("trains", f"{', '.join(config.stage.trainable)}; {_length(config)}")
    if isinstance(config, AblationConfig) and job.role is not Role.merge:
        yield from _trials(job, config)
    if job.profile.scheduler is Scheduler.slurm:
        yield line("GPU-hours", f"at most {gpu_hours(job):.4g} ({job.time_min} minutes)")
    if job.profile.scheduler is Scheduler.slurm and job.is_training:
        yield line(
            "rendezvous",
            f"the job's first node{_suffix(job)}, the first free port from {FIRST_PORT} + "
            f"(7 x job id) % {N_PORTS}",
        )


def _trials(job: Job, config: AblationConfig) -> Iterator[str]:
    """How many trials a task has, and what each arm trains."""
    plan = plan_of(config, name=job.folder.name)
    n = len(plan.trials)
    yield line(
        "trials",
        f"{n}: {len(plan.variants)} arms and values of their axes x {len(config.seeds)} seeds, at "
        f"most {-(-n // (job.n_tasks or 1))} a task, {config.parallel} at once",
    )
    for variant in plan.variants:
        stages = plan.trials_of(variant)[0].stages
        yield line(f"  {variant.name}", ", ".join(f"{s.run.name} ({_length(s)})" for s in stages))
    yield from (line("  without", remark) for remark in plan.remarks)


def _length(stage: TrainConfig) -> str:
    epochs = stage.stage.epochs
    return f"{stage.stage.steps} steps" if epochs is None else f"{epochs:g} epochs"


def _suffix(job: Job) -> str:
    return f" + '{job.profile.master_suffix}'" if job.profile.master_suffix else ""


def _standing(job: Job) -> str:
    if not job.folder.config.exists():
        return "new"
    if not isinstance(job.config, TrainConfig):
        return "does what is missing"
    if job.config.run.fresh:
        return "run.fresh: the old one is moved aside"
    return job.folder.run.standing()


def _starts_from(config: TrainConfig, earlier: Sequence[str]) -> str:
    if config.stage.init_from in earlier:
        return f"the run {config.stage.init_from} of this chain"
    try:
        return str(find_init_folder(config) or config.model.llm or "a fresh LLM")
    except ConfigError as error:
        raise Unknown(str(error)) from error


def _text(job: Job, *, place: int) -> Iterator[str]:
    """What starts it. place: in the chain, from 1."""
    if job.profile.scheduler is Scheduler.local:
        yield line("command", shlex.join(job.command))
        variables = dict(job.environment)
        if job.is_training:
            variables |= rank_environment(
                0, job.shape.world_size, port=0, threads=job.shape.threads
            )
            variables["MASTER_PORT"] = "<free port>"
        yield line("environment", "of rank 0:" if job.is_training else "")
        yield from (f"    {name}={value}" for name, value in variables.items())
        return
    try:
        account = account_of(job.profile, job.placement)
        yield line("account", account or "none")
    except ConfigError as error:
        account = f"${job.profile.account_variable}"
        yield line("account", f"unknown: {error}")
    after = "JOB_BEFORE" if place > 1 else None
    first = "JOB_BEFORE_ARRAY" if job.role is Role.merge and place > 2 else None
    parameters = slurm.parameters_of(job, account=account, after=after, first=first)
    text = slurm.sbatch_text(parameters, command=slurm.command_of(job), folder=job.folder.slurm)
    yield line("sbatch text", "")
    yield from ("    " + text_line for text_line in text.splitlines())


def _total(jobs: Sequence[Job]) -> str:
    on_slurm = jobs[0].profile.scheduler is Scheduler.slurm
    hours = sum(gpu_hours(job) for job in jobs)
    asked = f", at most {hours:.4g} GPU-hours" if on_slurm else ""
    n_merges = sum(job.role is Role.merge for job in jobs)
    merges = f" ({n_merges} of them merge an array)" if n_merges else ""
    return f"{len(jobs)} job(s){merges}{asked}; nothing was started"
