"""Train one or several runs, here or on a cluster.

    python tools/launch.py configs/quickstart/base.yaml
    python tools/launch.py stage1.yaml stage2.yaml optimizer.lr=1e-4      a chain
    python tools/launch.py --nodes 8 --cluster leonardo --dry-run configs/pal_stage1.yaml

The same command again goes on where a run stands; a finished run is left alone. A chain stops at
the first run that fails.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from cluster.job import Job, start
from cluster.profiles import Scheduler, load_profile, shape_of
from paltrain.cli import config_parser, load_each, main_guard, parse_config_arguments
from paltrain.config.schema import TrainConfig
from paltrain.errors import ConfigError
from paltrain.run import check_same, find_init_folder
from paltrain.train.signals import EXIT_INTERRUPTED, EXIT_REQUEUE

EXIT_MEANING = {
    EXIT_REQUEUE: "was told to stop and saved; the same command goes on",
    EXIT_INTERRUPTED: "was interrupted and saved; the same command goes on",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = config_parser(__doc__)
    parser.add_argument("--nodes", type=int, help="default: launch.nodes of the config")
    parser.add_argument(
        "--cluster", default="local", metavar="NAME", help="configs/cluster/NAME.yaml"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would happen, start nothing"
    )
    arguments = parse_config_arguments(parser, argv)
    profile = load_profile(arguments.cluster)
    jobs = []
    for config in load_each(TrainConfig, arguments):
        if arguments.nodes is not None:
            config = replace(config, launch=replace(config.launch, nodes=arguments.nodes))
        jobs.append(Job(config, profile, shape_of(profile, config.launch)))
    _check_names(jobs)
    if arguments.dry_run:
        from cluster.dry_run import dry_run

        print(dry_run(jobs), end="")
        return 0
    return run_chain(jobs)


def run_chain(jobs: Sequence[Job]) -> int:
    """Start the runs in order, each after the one before has succeeded; returns the exit code."""
    after: str | None = None
    submitted: list[str] = []
    for job in jobs:
        name = job.config.run.name
        if job.folder.is_finished and not job.config.run.fresh:
            check_same(job.folder, job.config)
            print(
                f"{name}: finished already ({job.folder.path}); run.fresh=true would start it anew"
            )
            continue
        if job.config.stage.init_from not in submitted:
            find_init_folder(job.config)
        outcome = start(job, after=after)
        if job.profile.scheduler is Scheduler.slurm:
            after = str(outcome)
            submitted.append(name)
            print(f"{name}: submitted as job {after}")
        elif outcome:
            meaning = EXIT_MEANING.get(int(outcome), f"failed with exit code {outcome}")
            print(f"{name}: {meaning} (log: {job.folder.log})", file=sys.stderr)
            return int(outcome)
    return 0


def _check_names(jobs: Sequence[Job]) -> None:
    folders = [job.folder.path for job in jobs]
    twice = {str(folder) for folder in folders if folders.count(folder) > 1}
    if twice:
        raise ConfigError(
            f"several runs of the chain share a folder: {', '.join(twice)}; give each its run.name"
        )


if __name__ == "__main__":
    sys.exit(main_guard(main))
