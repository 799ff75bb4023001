"""What a launch would do, as text: the job, the step plan, the shard audit. Starts nothing.

A figure that needs something absent reads `unknown: what is missing, how to get it`; the rest is
printed all the same. Reads manifests, stores and length tables only: no torch, no tokenizer.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from cluster import slurm
from cluster.job import Job, slurm_parameters
from cluster.local import rank_environment
from cluster.profiles import Scheduler, account_of
from paltrain.config.schema import TrainConfig
from paltrain.data.build import DataPlan, build_plan
from paltrain.data.summary import PlanSummary, plan_summary
from paltrain.errors import ConfigError, PaltrainError
from paltrain.run import RunFolder, find_init_folder

if TYPE_CHECKING:
    from paltrain.data.index import Corpus
    from paltrain.data.lengths import LengthTable
    from paltrain.data.shards import FeatureStore

T = TypeVar("T")
LABEL_WIDTH = 20


class Unknown(Exception):  # noqa: N818 - it is printed, not an error
    """Why a figure cannot be said yet, and how to get what is missing."""


def dry_run(jobs: Sequence[Job]) -> str:
    """The report on a chain of runs."""
    sections = []
    for number, job in enumerate(jobs, start=1):
        earlier = [before.config.run.name for before in jobs[: number - 1]]
        lines = [f"=== run {number} of {len(jobs)}: {job.config.run.name} ==="]
        lines += _identity(job, earlier)
        lines += _job_text(job, after="JOB_BEFORE" if earlier else None)
        lines += _data(job, earlier)
        sections.append("\n".join(lines))
    return "\n\n".join(sections) + "\n"


def _identity(job: Job, earlier: Sequence[str]) -> Iterator[str]:
    shape = job.shape
    yield _line("run folder", f"{job.folder.path} ({_standing(job.folder, job.config)})")
    yield _line(
        "world size",
        f"{shape.world_size} ({shape.nodes} node(s) x {shape.processes_per_node} process(es), "
        f"{shape.threads} thread(s) each)",
    )
    yield _line("starts from", _say(lambda: _starts_from(job.config, earlier)))


def _standing(folder: RunFolder, config: TrainConfig) -> str:
    if not folder.config.exists():
        return "new"
    return "run.fresh: the old one is moved aside" if config.run.fresh else folder.standing()


def _starts_from(config: TrainConfig, earlier: Sequence[str]) -> str:
    if config.stage.init_from in earlier:
        return f"the run {config.stage.init_from} of this chain"
    try:
        return str(find_init_folder(config) or config.model.llm or "a fresh LLM")
    except ConfigError as error:
        raise Unknown(str(error)) from error


def _job_text(job: Job, *, after: str | None) -> Iterator[str]:
    if job.profile.scheduler is Scheduler.local:
        variables = {
            **job.environment,
            **rank_environment(0, job.shape.world_size, port=0, threads=job.shape.threads),
            "MASTER_PORT": "<free port>",
        }
        yield _line("command", shlex.join(job.command))
        yield _line("environment", "of rank 0:")
        yield from (f"    {name}={value}" for name, value in variables.items())
        return
    try:
        account = account_of(job.profile)
        yield _line("account", account or "none")
    except ConfigError as error:
        account = f"${job.profile.account_variable}"
        yield _line("account", f"unknown: {error}")
    parameters = slurm_parameters(job, account=account, after=after)
    yield _line("sbatch text", "")
    yield from (
        "    " + line
        for line in slurm.sbatch_text(parameters, folder=job.slurm_folder).splitlines()
    )


def _data(job: Job, earlier: Sequence[str]) -> Iterator[str]:
    """Step plan and shard audit, as far as files allow."""
    config = job.config
    try:
        corpus = _corpus(config)
    except Unknown as error:
        yield _line("step plan", f"unknown: {error}")
        yield _line("shard audit", f"unknown: {error}")
        return
    stores, missing = {}, {}
    for name, stream in config.model.streams.items():
        try:
            stores[name] = _store(stream.features)
        except Unknown as error:
            missing[name] = f"unknown: {error}"
    lengths: LengthTable | None = None
    why_no_lengths = ""
    try:
        lengths = _lengths(config, corpus, earlier, hears=bool(config.model.streams))
    except Unknown as error:
        why_no_lengths = f"unknown: {error}"
    try:
        plan = _known(lambda: _plan(config, corpus, stores, lengths))
        summary = plan_summary(plan, world_size=job.shape.world_size, audio_known=not missing)
        audio_reason = "; ".join(missing.values()) or why_no_lengths
        yield from _plan_lines(config, summary, why_no_lengths, audio_reason)
    except Unknown as error:
        yield _line("step plan", f"unknown: {error}")
    yield _line("shard audit", "" if config.model.streams else "no streams: text only")
    for name in config.model.streams:
        found = missing.get(name) or _audit(corpus, stores[name], config.data.split)
        yield _line(f"  {name}", found)


def _corpus(config: TrainConfig) -> Corpus:
    from paltrain.data.index import Corpus

    paths = [Path(path) for path in config.data.manifests]
    absent = [str(path) for path in paths if not path.exists()]
    if absent:
        raise Unknown(f"no manifest {', '.join(absent)}; make it with tools/prepare_data.py")
    return _known(lambda: Corpus.open(paths))


def _store(folder: str) -> FeatureStore:
    from paltrain.data.shards import FeatureStore

    if not Path(folder).exists():
        raise Unknown(
            f"no feature store {folder}; make it with tools/precompute_features.py CONFIG"
        )
    return _known(lambda: FeatureStore.open(Path(folder)))


def _lengths(
    config: TrainConfig, corpus: Corpus, earlier: Sequence[str], *, hears: bool
) -> LengthTable:
    from paltrain.data.lengths import find_length_table
    from paltrain.model.build import template_fields, tokenizer_source
    from paltrain.model.tokenization import template_hash, tokenizer_hash

    how = "a launch builds it, or tools/prepare_data.py lengths CONFIG"
    start = config.stage.init_from
    before = RunFolder(Path(config.run.root) / (start or ""))
    if start in earlier and not before.is_finished and not config.model.tokenizer:
        raise Unknown(f"the tokenizer comes from the run {start}; {how}")
    init_folder = _known(lambda: find_init_folder(config))
    source = tokenizer_source(config, init_folder)
    own = RunFolder.of(config).tokenizer
    if source is None and not own.exists():
        raise Unknown(f"the tokenizer is trained by the run itself; {how}")
    tokenizer = _known(lambda: tokenizer_hash(source or str(own)))
    template = template_hash(asdict(template_fields(config))) + ("" if hears else "-text")
    table = find_length_table(corpus, tokenizer_hash=tokenizer, template_hash=template)
    if table is None:
        raise Unknown(f"no length table for this tokenizer and template; {how}")
    return table


def _plan(
    config: TrainConfig,
    corpus: Corpus,
    stores: dict[str, FeatureStore],
    lengths: LengthTable | None,
) -> DataPlan:
    from paltrain.model.build import audio_token_counts

    return build_plan(
        config.data,
        corpus=corpus,
        stores=stores,
        lengths=lengths,
        audio_tokens=audio_token_counts(config),
        seed=config.run.seed,
    )


def _plan_lines(
    config: TrainConfig, plan: PlanSummary, why_no_lengths: str, why_no_audio: str
) -> Iterator[str]:
    steps = config.stage.steps or max(1, round(plan.steps_per_epoch * (config.stage.epochs or 0)))
    epochs = steps / plan.steps_per_epoch
    yield _line("step plan", "")
    rows: list[tuple[str, object, str]] = [
        ("questions", f"{plan.n_questions} of {plan.n_clips} clips, {plan.n_visits} visits", ""),
        ("left out", "; ".join(f"{n} {why}" for why, n in plan.left_out.items()) or "none", ""),
        ("steps", f"{steps} ({epochs:.2f} epochs of {plan.steps_per_epoch})", ""),
        ("text tokens", plan.n_text_tokens, why_no_lengths),
        ("target tokens", plan.n_target_tokens, why_no_lengths),
        ("audio tokens", plan.n_audio_tokens, why_no_audio),
        ("micro-batches", plan.micro_batches_per_step, why_no_audio),
        ("imbalance", plan.imbalance, why_no_audio),
        ("padding share", plan.padding_share, why_no_audio),
    ]
    unknown: dict[str, list[str]] = {}
    for label, value, reason in rows:
        if value is None:
            unknown.setdefault(reason, []).append(label)
        else:
            shown = f"{value:.3f}" if isinstance(value, float) else str(value)
            yield _line("  " + label, shown)
    for reason, labels in unknown.items():
        yield f"  {', '.join(labels)}: {reason}"


def _audit(corpus: Corpus, store: FeatureStore, split: str) -> str:
    n_shards = len(np.unique(np.asarray(store.shard_of)))
    rows = store.rows_of(corpus.clip_id_array)
    wanted = np.asarray(corpus.has_audio)
    if split in list(corpus.splits):
        wanted = wanted & (np.asarray(corpus.clip_split) == list(corpus.splits).index(split))
    absent = int((wanted & (rows < 0)).sum())
    return (
        f"{len(store.n_frames)} clips in {n_shards} shard(s); of {int(wanted.sum())} '{split}' "
        f"clips with audio {absent} lack features"
        + ("; run tools/precompute_features.py again" if absent else "")
    )


def _known(act: Callable[[], T]) -> T:
    """`act()`, what a user can mend turned into Unknown."""
    try:
        return act()
    except PaltrainError as error:
        raise Unknown(str(error)) from error


def _say(act: Callable[[], str]) -> str:
    try:
        return act()
    except Unknown as error:
        return f"unknown: {error}"


def _line(label: str, value: str) -> str:
    return f"{label:<{LABEL_WIDTH}} {value}".rstrip()
