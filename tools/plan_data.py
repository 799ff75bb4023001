#!/usr/bin/env python
"""What a run's data amount to, without starting anything: questions, tokens, steps, bytes, balance.

    python tools/plan_data.py configs/quickstart/lal_stage1.yaml
    python tools/plan_data.py configs/pal_stage1.yaml --nodes 8 --gpus-per-node 4
    python tools/plan_data.py configs/own_data/train.yaml --lengths --out plans/own.png

Prints what `tools/launch.py --dry-run` says of the data, and draws how long the questions and clips
are. A figure that needs something absent reads `unknown: what is missing, how to get it`. Tokens of
text need the length table, which a launch makes; --lengths makes it here, if there is a tokenizer.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.plan_report import line, plan_lines, stream_lines
from cluster.run_data import RunData, Unknown, look_at, make_lengths, stream_stamps
from paltrain.cli import config_parser, load_each, main_guard, parse_config_arguments
from paltrain.config.schema import TrainConfig
from paltrain.errors import ConfigError

PICTURES = (".png", ".svg", ".pdf")


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_config_arguments(_parser(), argv)
    if len(arguments.configs) != 1:
        raise ConfigError(f"one CONFIG at a time, not {len(arguments.configs)}: name one run")
    (config,) = load_each(TrainConfig, arguments)
    launch = config.launch
    nodes = _at_least_one("--nodes", arguments.nodes, launch.nodes)
    processes = launch.processes_per_node or launch.gpus_per_node or 1
    processes = _at_least_one("--gpus-per-node", arguments.gpus_per_node, processes)
    picture = arguments.out or Path(f"plan_{config.run.name}.png")
    if picture.suffix not in PICTURES:
        raise ConfigError(f"--out {picture} must end in one of {', '.join(PICTURES)}")
    logging.getLogger("paltrain").setLevel(logging.WARNING)
    if arguments.lengths:
        _make_lengths(config)
    data = look_at(config, world_size=nodes * processes, n_nodes=nodes)
    shape = f"{nodes} node{'s' * (nodes > 1)} x {processes} process{'es' * (processes > 1)}"
    print(line("run", config.run.name))
    print(line("world size", f"{nodes * processes} ({shape})"))
    print("\n".join([*stream_lines(config, stream_stamps(config)), *plan_lines(config, data)]))
    print(line("picture", _draw(config, data, picture, shape)))


def _parser() -> argparse.ArgumentParser:
    parser = config_parser(__doc__)
    parser.add_argument("--nodes", type=int, metavar="N", help="default: launch.nodes")
    parser.add_argument(
        "--gpus-per-node",
        type=int,
        metavar="G",
        help="processes on each; default: launch.processes_per_node, launch.gpus_per_node, or 1",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the picture, .png, .svg or .pdf; default: plan_RUN.png in the current folder",
    )
    parser.add_argument(
        "--lengths",
        action="store_true",
        help="make the length table if there is none (loads the tokenizer, and with it torch)",
    )
    return parser


def _at_least_one(option: str, said: int | None, otherwise: int) -> int:
    if said is not None and said < 1:
        raise ConfigError(f"{option} must be at least 1, is {said}")
    return said or otherwise


def _make_lengths(config: TrainConfig) -> None:
    try:
        make_lengths(config)
    except Unknown as error:
        raise ConfigError(f"--lengths cannot make the length table: {error}") from error


def _draw(config: TrainConfig, data: RunData | Unknown, path: Path, shape: str) -> str:
    """Where the picture is, or why there is none."""
    from paltrain.model.build import audio_token_counts
    from paltrain.report.plan_picture import draw, panels_of

    if isinstance(data, Unknown) or data.plan is None or data.summary is None:
        return "none: there is no step plan"
    panels = panels_of(
        data.plan,
        routes={name: stream.route.value for name, stream in config.model.streams.items()},
        audio_tokens=audio_token_counts(config),
        no_text=data.no_text,
        no_stores=data.no_stores,
    )
    told = data.summary
    asked = f"{told.n_questions:,} questions asked, {told.n_different:,} different"
    steps = f"about {told.n_clips:,} clips, in {told.steps_per_epoch:,} steps"
    subtitle = f"An epoch: {asked}, {steps}; {shape}"
    try:
        draw(panels, path, title=config.run.name, subtitle=subtitle)
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written: {error.strerror}") from error
    return str(path)


if __name__ == "__main__":
    sys.exit(main_guard(main))
