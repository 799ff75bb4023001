"""Measure what paltrain claims, all arms in one run; prints a table, writes JSON rows.

    python tools/bench.py step                             the quickstart's model, this machine
    python tools/bench.py step --preset llama-1b           Llama-3.2-1B's shapes, on a GPU
    python tools/bench.py step --na 512 --nt 108 --json out.json
    python tools/bench.py attention --preset llama-1b      packed LAL attention, bare kernel
    python tools/bench.py data --json data.json            reader, precompute, order, plan, balance
    python tools/bench.py data --run runs/quickstart/lal_stage2      and what that run waited
    python tools/bench.py forms --ablation configs/ablations/forms.yaml    an ablation's arms

step: forward and backward of LAL, of packed PLITS and of plain `transformers` PLITS in turns:
median times, FLOP bound, peak memory beyond weights and gradients. attention: one layer's packed
LAL attention, gather included, beside the bare kernel on its segments. data: the feature reader
beside WebDataset's, computing features beside the bare encoder, order and plan of 5.7 M questions,
32 ranks' balance, the cost model beside measured steps. forms: a step of what each arm of an
ablation has trained (its first seed), all on the same questions; it must be named with --ablation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from paltrain.cli import main_guard

if TYPE_CHECKING:
    from paltrain.bench.record import BenchRow


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    from paltrain.bench.record import print_rows, write_rows

    run = {"data": run_data, "forms": run_forms}.get(arguments.what, run_model)
    rows, machine = run(arguments)
    print_rows(rows, machine=machine)
    if arguments.json:
        write_rows(arguments.json, rows, machine=machine)
        print(f"wrote {arguments.json}")


def run_data(arguments: argparse.Namespace) -> tuple[list[BenchRow], str]:
    """The data path."""
    from paltrain.bench import data

    return data.run_data(data.DataBenchSettings(n_rounds=arguments.rounds, runs=arguments.run))


def run_forms(arguments: argparse.Namespace) -> tuple[list[BenchRow], str]:
    """The arms of an ablation, as far as they are trained; the baseline's first."""
    from cluster.job import folder_of
    from paltrain.ablation.build import plan_of
    from paltrain.config.load import load_config
    from paltrain.config.schema import AblationConfig
    from paltrain.errors import ConfigError

    if arguments.ablation is None:
        raise ConfigError(
            "forms measures an ablation's arms, but none is named: add --ablation "
            "configs/ablations/NAME.yaml"
        )
    config = load_config(AblationConfig, [arguments.ablation])
    plan = plan_of(config, name=folder_of(config, arguments.ablation).name)
    from paltrain.bench.forms import Form, measure_forms

    trials = sorted(plan.first_trained, key=lambda t: t.variant.arm != plan.baseline_arm)
    forms = [Form(trial.variant.name, trial.last.path) for trial in trials]
    return measure_forms(forms, n_rounds=arguments.rounds, threads=arguments.threads)


def run_model(arguments: argparse.Namespace) -> tuple[list[BenchRow], str]:
    """A training step, or attention."""
    from paltrain.bench.build import BenchSettings, run_attention, run_step

    settings = BenchSettings(
        preset=arguments.preset,
        config=arguments.config,
        n_audio=arguments.na,
        n_text=arguments.nt,
        n_conversations=arguments.conversations,
        backend=arguments.backend,
        n_rounds=arguments.rounds,
        threads=arguments.threads,
    )
    return {"step": run_step, "attention": run_attention}[arguments.what](settings)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["step", "attention", "data", "forms"])
    add_common_options(parser.add_argument_group("all benchmarks"))
    add_model_options(parser.add_argument_group("step and attention"))
    parser.add_argument_group("step, attention and forms").add_argument(
        "--threads", type=int, help="CPU threads (default: those of a training process)"
    )
    parser.add_argument_group("data").add_argument(
        "--run",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="also the time that this run waited for data; may be given several times",
    )
    parser.add_argument_group("forms").add_argument(
        "--ablation", type=Path, metavar="CONFIG", help="whose arms are measured; forms needs it"
    )
    return parser.parse_args(argv)


def add_common_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    group.add_argument("--rounds", type=int, default=10, help="timed turns of each arm")


def add_model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--preset",
        default="quickstart",
        choices=["quickstart", "llama-1b"],
        help="the model's shapes and the grid of lengths (default: quickstart)",
    )
    group.add_argument(
        "--config",
        default="configs/quickstart/lal_stage2.yaml",
        metavar="CONFIG",
        help="the run whose connector and encoder width the quickstart preset takes",
    )
    group.add_argument("--na", type=int, help="audio tokens of a clip (default: the preset's grid)")
    group.add_argument("--nt", type=int, help="text tokens of a conversation")
    group.add_argument("--conversations", type=int, help="in one step")
    group.add_argument("--backend", default="auto", help="auto, flash_attn, torch or sdpa")


if __name__ == "__main__":
    sys.exit(main_guard(main))
