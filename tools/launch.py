"""Train, compute features or evaluate, here or on a cluster: one configuration, or a chain.

    python tools/launch.py configs/quickstart/base.yaml
    python tools/launch.py stage1.yaml stage2.yaml optimizer.lr=1e-4          one after the other
    python tools/launch.py --nodes 8 --cluster leonardo --dry-run configs/pal_stage1.yaml
    python tools/launch.py --cluster slurm features.yaml stage1.yaml stage2.yaml evaluate.yaml

A CONFIG is a training run, features (it says `encoders`), an evaluation (`runs`) or an ablation
(`arms`). On a cluster the whole chain is submitted at once, each job waiting for the one before;
all but training runs become job arrays with launch.array_tasks=N. The same command again goes on
where things stand; a finished run is left alone, a queued job is kept. key=value applies to every
CONFIG that knows the key.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from cluster.chain import read_chain
from cluster.dry_run import dry_run
from cluster.monitor.follow import follow
from cluster.preflight.check import report, require
from cluster.profiles import AUTO, Scheduler
from cluster.start import run_here, submit_chain
from paltrain.cli import config_parser, main_guard, parse_config_arguments


def main(argv: Sequence[str] | None = None) -> int:
    parser = config_parser(__doc__)
    parser.add_argument("--nodes", type=int, help="of each training run; default: launch.nodes")
    parser.add_argument(
        "--gpus-per-node", type=int, metavar="G", help="default: all that a node has"
    )
    parser.add_argument(
        "--cluster",
        default=AUTO,
        metavar="NAME",
        help="configs/cluster/NAME.yaml, or a file; auto (default): $PALTRAIN_CLUSTER, else "
        "`slurm` where there is Slurm, else `local`",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would happen, start nothing"
    )
    parser.add_argument(
        "--check", action="store_true", help="look for what would fail, start nothing"
    )
    parser.add_argument(
        "--no-check", action="store_true", help="submit whatever the check would find"
    )
    parser.add_argument(
        "--follow", action="store_true", help="watch the submitted jobs until they have ended"
    )
    arguments = parse_config_arguments(parser, argv)
    jobs = read_chain(arguments)
    if arguments.dry_run:
        logging.getLogger("paltrain").setLevel(logging.WARNING)
        print(dry_run(jobs), end="")
        return 0
    if arguments.check:
        return report(jobs)
    if jobs[0].profile.scheduler is Scheduler.local:
        return run_here(jobs)
    if not arguments.no_check:
        require(jobs)
    submitted = submit_chain(jobs)
    for link in submitted:
        done = "is queued already" if link.is_old else "submitted"
        print(f"{link.job.name}: {done} as job {link.id} ({link.job.folder.path})")
    if submitted and arguments.follow:
        return follow(list(dict.fromkeys(link.job.folder for link in submitted)))
    if submitted:
        print(f"how they stand: {sys.executable} tools/jobs.py list --watch")
    return 0


if __name__ == "__main__":
    sys.exit(main_guard(main))
