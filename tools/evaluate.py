"""Let trained runs answer test questions, score the answers and print a table.

    python tools/evaluate.py configs/quickstart/evaluate.yaml
    python tools/evaluate.py configs/quickstart/evaluate.yaml max_questions=200 --with-control

Each run's answers and scores go to RUN/eval/<split>; the same command again continues where it
stopped. The deaf control (`shuffle_audio: true` or --with-control) asks the same questions about
other clips' recordings: accuracy must fall to about chance. Beside the models stands a logistic
regression on each clip's average spectrum, where the manifests have a train split.

A job array shares the work: each of its tasks answers one slice of every run's questions, counted
from 0, in any order and on any machine, into RUN/eval/<split>/slice-003-of-064. A merge puts the
answers together, scores them and prints the table, as if one process had given them all. It loads
no model; if answers are missing it says of which slices, changes nothing and exits with code 2.

    python tools/evaluate.py CONFIG --with-control --slice 3/64
    python tools/evaluate.py CONFIG --with-control --merge 64
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from paltrain.cli import (
    add_slice_options,
    check_merge,
    config_parser,
    load_merged,
    main_guard,
    parse_config_arguments,
    progress_in,
    settle_slice,
    slice_command,
)
from paltrain.slices import EVERYTHING, parse_slice

if TYPE_CHECKING:
    import argparse

    from paltrain.cli import Progress
    from paltrain.config.schema import EvalConfig
    from paltrain.eval.build import Evaluated


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    from paltrain.config.schema import EvalConfig

    config = load_merged(EvalConfig, arguments)
    check_merge(arguments, config.slice)
    with progress_in(arguments.heartbeat) as told:
        if arguments.merge is not None:
            show(merge(config, arguments, told), config)
        elif parse_slice(config.slice) != EVERYTHING:
            answer_slice(config, arguments, told)
        else:
            show(evaluate(config, arguments, told), config)


def evaluate(config: EvalConfig, arguments: argparse.Namespace, told: Progress) -> Evaluated:
    """Answer all that is missing."""
    from paltrain.eval.build import evaluate_all

    return evaluate_all(
        config,
        with_control=config.shuffle_audio or arguments.with_control,
        with_baseline=not arguments.no_baseline,
        device=arguments.device,
        progress=told,
    )


def answer_slice(config: EvalConfig, arguments: argparse.Namespace, told: Progress) -> None:
    """Answer a slice's questions; scores come with the merge."""
    from paltrain.eval.build import evaluate_slice

    parts = evaluate_slice(
        config,
        with_control=config.shuffle_audio or arguments.with_control,
        device=arguments.device,
        progress=told,
    )
    for part in parts:
        print(
            f"slice {config.slice} of {part.label}: {part.n_questions} questions, "
            f"{part.n_there_before} answered before -> {part.folder}"
        )


def merge(config: EvalConfig, arguments: argparse.Namespace, told: Progress) -> Evaluated:
    """Put the slices' answers together, if all are there."""
    from paltrain.eval.build import merge_slices

    options = ["--with-control"] if arguments.with_control else []
    options += ["--device", arguments.device] if arguments.device else []
    done = merge_slices(
        config,
        n_slices=arguments.merge,
        command=slice_command("tools/evaluate.py", arguments, *options),
        with_control=config.shuffle_audio or arguments.with_control,
        with_baseline=not arguments.no_baseline,
    )
    n_questions = sum(each.n_questions for each in done.evaluations)
    told(n_questions, n_questions)
    return done


def show(done: Evaluated, config: EvalConfig) -> None:
    """The table, what to know about it, and where the answers are."""
    from paltrain.eval.table import build_table, strays

    build_table(done.evaluations, baseline=done.baseline).print(
        title=f"right answers, % (95 % interval), split {config.split}"
    )
    for sentence in strays(done.evaluations):
        print(sentence)
    for folder in done.folders:
        print(f"wrote {folder}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = config_parser(__doc__)
    parser.add_argument(
        "--with-control", action="store_true", help="also with the recordings shuffled"
    )
    parser.add_argument(
        "--no-baseline", action="store_true", help="without the average-spectrum classifier"
    )
    parser.add_argument("--device", help="default: the GPU if there is one")
    add_slice_options(parser)
    arguments = parse_config_arguments(parser, argv)
    settle_slice(arguments)
    return arguments


if __name__ == "__main__":
    sys.exit(main_guard(main))
