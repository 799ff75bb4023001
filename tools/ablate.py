"""Train and evaluate the arms of an ablation alike, and put them into one table.

    python tools/ablate.py configs/ablations/soundscapes.yaml
    python tools/ablate.py configs/ablations/layers.yaml seeds=[0,1] parallel=2
    python tools/ablate.py configs/ablations/forms.yaml --list      its trials and their commands
    python tools/ablate.py configs/ablations/forms.yaml --table     only the table of what is there

A trial is an arm, a value of each axis and a seed. Its runs lie in ROOT/NAME/TRIAL, with all that
they said in log.txt. What `prepare` names is made first; trials then run here, `parallel` at a
time, in a line each. One that fails stops no other: it is named at the end, and the exit code is 1.
The same command again skips what is done and goes on with the rest. At the end all arms' steps are
timed on the same questions (tools/bench.py forms), and the table goes to `report`.md and .json
(default ROOT/NAME/report). --list and --table start nothing; --list writes nothing either.

On a cluster `tools/launch.py --cluster NAME CONFIG` makes it a job array: each of
launch.array_tasks tasks runs a slice of the trials on one node's share, and a merge writes the
table. A trial that needs several nodes is a chain of its own: launch it by what --list shows for
it, with --cluster NAME --nodes N, and let this command, or --table, put all together. Where --list
shows a trial in several lines, each of them starts from what the one before has made.

    python tools/ablate.py CONFIG --slice 3/64
    python tools/ablate.py CONFIG --merge 64
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from paltrain.cli import (
    EXIT_INTERRUPTED,
    add_slice_options,
    check_merge,
    config_parser,
    load_merged,
    main_guard,
    parse_config_arguments,
    progress_in,
    settle_slice,
)

if TYPE_CHECKING:
    import argparse


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from cluster.ablation.work import Work
    from paltrain.config.schema import AblationConfig

    config = load_merged(AblationConfig, arguments)
    check_merge(arguments, config.slice)
    work = Work.of(config, arguments.configs[0], command=command_of(arguments))
    if arguments.list:
        return work.list()
    if arguments.table:
        return work.write_table()
    try:
        with progress_in(arguments.heartbeat) as told:
            if arguments.merge is not None:
                return work.merge(arguments.merge, told)
            return work.run(told)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED


def command_of(arguments: argparse.Namespace) -> str:
    """What a reader of the table gives to make it again."""
    words = [word for word in arguments.words if not word.startswith("slice=")]
    return shlex.join(["python", "tools/ablate.py", *words])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(__doc__)
    parser.add_argument(
        "--list",
        action="store_true",
        help="show the trials and the commands of each; run and write nothing",
    )
    parser.add_argument("--table", action="store_true", help="only the table of what is there")
    add_slice_options(parser)
    arguments = parse_config_arguments(parser, argv)
    settle_slice(arguments)
    return arguments


if __name__ == "__main__":
    sys.exit(main_guard(main))
