"""Look at runs and jobs, and end or restart them.

    python tools/jobs.py list [--watch]
    python tools/jobs.py show base              state, attempts, failure, where logs lie
    python tools/jobs.py tail base -f           what rank 0 says
    python tools/jobs.py cancel base
    python tools/jobs.py requeue base           with the frozen code and configuration
    python tools/jobs.py sync base              send wandb's offline runs

RUN is a folder, or a name below --root.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.folder import find_job
from cluster.monitor.follow import show_list, watch_list
from cluster.monitor.report import print_report, sync_wandb
from cluster.monitor.tail import tail
from cluster.requeue import cancel, requeue
from paltrain.cli import main_guard


def parser_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--root", type=Path, default=Path("runs"), help="where runs lie (default: runs)"
    )
    about_one = argparse.ArgumentParser(add_help=False, parents=[shared])
    about_one.add_argument("run", metavar="RUN", help="a folder, or a name below --root")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", parents=[shared], help="all jobs, a line each")
    listing.add_argument("--watch", action="store_true", help="draw it again and again")
    commands.add_parser("show", parents=[about_one], help="all that is known of a job")
    tailing = commands.add_parser("tail", parents=[about_one], help="the end of its log")
    tailing.add_argument("-n", dest="lines", type=int, default=30, metavar="LINES")
    tailing.add_argument("--rank", type=int, default=0, metavar="N", help="default: 0")
    tailing.add_argument(
        "--task", type=int, metavar="N", help="of an array; default: one that failed or works"
    )
    tailing.add_argument("-f", "--follow", action="store_true", help="go on until it ends")
    commands.add_parser("cancel", parents=[about_one], help="end its jobs; training saves first")
    commands.add_parser(
        "requeue", parents=[about_one], help="restart a running job, submit an ended one again"
    )
    syncing = commands.add_parser("sync", parents=[about_one], help="send wandb's offline runs")
    syncing.add_argument("--dry-run", action="store_true", help="print the command alone")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser_of().parse_args(argv)
    if arguments.command == "list":
        return (watch_list if arguments.watch else show_list)(arguments.root)
    name, folder = find_job(arguments.run, arguments.root)
    match arguments.command:
        case "show":
            return print_report(folder, name)
        case "tail":
            return tail(
                folder,
                name,
                n_lines=arguments.lines,
                rank=arguments.rank,
                task=arguments.task,
                follows=arguments.follow,
            )
        case "cancel":
            return cancel(folder, name)
        case "requeue":
            return requeue(folder, name)
        case _:
            return sync_wandb(folder, name, dry_run=arguments.dry_run)


if __name__ == "__main__":
    sys.exit(main_guard(main))
