"""Before a job queues: what would fail, or wait for ever, after it. Everything at once.

1. files        of each job, in order: manifests, stores, models, tokenizers, folders; what earlier
                jobs of the chain will make is not looked for (`training`, `tools`)
2. the child    what only torch knows of all jobs, from one process or from what it said before
                (`child`)
3. room         of all jobs together, by file system
4. Slurm        options, sizes and account of each job (`slurm`)

Imports no torch. A chain of four costs a tenth of a second beyond opening its manifests and
stores, some seconds more when the child is needed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from itertools import compress, groupby
from pathlib import Path

from cluster.job import KIND_OF, Job, Role
from cluster.preflight.ablation import (
    for_all_seeds,
    keep_faults_only,
    look_at_ablation,
    with_trials,
)
from cluster.preflight.chain import Chain, Findings, Need
from cluster.preflight.slurm import look_at_slurm
from cluster.preflight.tools import look_at_evaluation, look_at_features
from cluster.preflight.training import look_at_training
from paltrain.config.schema import AblationConfig, EvalConfig, FeaturesConfig, TrainConfig
from paltrain.errors import EXIT_USER_ERROR, ConfigError
from paltrain.log import get_logger

log = get_logger(__name__)

LOOK_AT = {
    TrainConfig: look_at_training,
    FeaturesConfig: look_at_features,
    EvalConfig: look_at_evaluation,
    AblationConfig: look_at_ablation,
}


def findings_of(jobs: Sequence[Job]) -> list[Findings]:
    """What was found of each job, in order, and of all together."""
    links = list(with_trials(jobs))
    chain = Chain([job for _, job, _ in links])
    findings = [Findings(name, KIND_OF[type(job.config)]) for name, job, _ in links]
    for (_, job, _), found in zip(links, findings, strict=True):
        if job.role is not Role.merge:  # it reads what its array has read
            LOOK_AT[type(job.config)](job, chain, found)
            _look_at_folder(job, found)
    chain.child.settle()
    of_trial = [is_of_trial for _, _, is_of_trial in links]
    keep_faults_only(compress(findings, of_trial))
    together = Findings("all together", "chain")
    _look_at_room(for_all_seeds(chain.needs, jobs), together)
    look_at_slurm(jobs, [found for found, of in zip(findings, of_trial, strict=True) if not of])
    _merge_repeated(findings)
    return [*findings, together]


def require(jobs: Sequence[Job]) -> None:
    """Raises ConfigError with everything that was found; warnings are logged."""
    findings = findings_of(jobs)
    for found in findings:
        for sentence in found.warnings:
            log.warning("%s: %s", found.name, sentence)
    n_problems = sum(len(found.problems) for found in findings)
    if n_problems:
        lines = [line for found in findings if found.problems for line in _lines(found, all_=False)]
        text = "\n  ".join(lines)
        raise ConfigError(f"{_count(n_problems, 'problem')}, nothing was submitted:\n  {text}")


def report(jobs: Sequence[Job]) -> int:
    """Print what was looked at and found; returns the exit code."""
    started = time.monotonic()
    findings = findings_of(jobs)
    for found in findings:
        if lines := list(_lines(found, all_=True)):
            print("\n".join(lines))
    n_problems = sum(len(found.problems) for found in findings)
    n_unknown = sum(len(found.unknown) for found in findings)
    unknown = f", {_count(n_unknown, 'thing')} unknown" if n_unknown else ""
    print(
        f"{_count(n_problems, 'problem')} in {_count(len(jobs), 'job')}{unknown}; nothing was "
        f"started ({time.monotonic() - started:.1f} s)"
    )
    return EXIT_USER_ERROR if n_problems else 0


def _lines(found: Findings, *, all_: bool) -> Iterator[str]:
    """A job's section of the report. all_: what is good and unknown, too."""
    marked = [("problem", sentence) for sentence in found.problems]
    if all_:
        marked = [
            *[("ok", sentence) for sentence in found.good],
            *[("unknown", sentence) for sentence in found.unknown],
            *[("warning", sentence) for sentence in found.warnings],
            *marked,
        ]
    if marked:
        yield f"{found.name} ({found.kind}):"
    for mark, sentence in marked:
        yield f"  {mark:<8}" + sentence.replace("\n", "\n    ")


def _merge_repeated(findings: Sequence[Findings]) -> None:
    """What several jobs have in common stands with the first of them, which names the others."""
    for kind in ("problems", "warnings"):
        owners: dict[str, list[Findings]] = {}
        for found in findings:
            for sentence in dict.fromkeys(getattr(found, kind)):
                owners.setdefault(sentence, []).append(found)
        for found in findings:
            own = [
                sentence + (f" [{', '.join(other.name for other in others)} too]" if others else "")
                for sentence in dict.fromkeys(getattr(found, kind))
                if owners[sentence][0] is found
                for others in [owners[sentence][1:]]
            ]
            setattr(found, kind, own)


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' * (number > 1)}"


# ---- folders and room ----------------------------------------------------------------------------


def _look_at_folder(job: Job, found: Findings) -> None:
    """Whether the job can write where it must."""
    folders = [job.folder.path]
    if isinstance(job.config, FeaturesConfig):
        folders += [Path(store).absolute() for store in job.config.stores().values()]
    if isinstance(job.config, EvalConfig) and job.config.out:
        folders.append(Path(job.config.out).absolute())
    for folder in folders:
        there = _nearest(folder)
        if not there.is_dir():
            found.problems.append(f"{folder} cannot be made: {there} is a file: move it away")
        elif not os.access(there, os.W_OK | os.X_OK):
            found.problems.append(
                f"{folder} cannot be written: {there} is read-only for you: choose another place"
            )


def _look_at_room(needs: Sequence[Need], found: Findings) -> None:
    """Whether a file system has room for all that the chain will write there and keep."""

    def device(need: Need) -> int:
        return _nearest(need.folder).stat().st_dev

    for _, group in groupby(sorted(needs, key=device), key=device):
        there = list(group)
        place = _nearest(there[0].folder)
        wanted, free = sum(need.n_bytes for need in there), shutil.disk_usage(place).free
        each = ", ".join(f"{need.name} {_size(need.n_bytes)} ({need.what})" for need in there)
        if wanted > free:
            found.problems.append(
                f"the file system of {place} has {_size(free)} free, but the chain will write "
                f"{_size(wanted)} there: {each}; free some, lower checkpoint.keep, or set run.root"
            )
        else:
            found.good.append(
                f"room: the chain will write {_size(wanted)}; {_size(free)} are free at {place} "
                f"(quotas are not looked at): {each}"
            )


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest of its parents that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _size(n_bytes: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{n_bytes / 1e6:.2g} MB"
