"""Let trained runs answer test questions, score the answers and print a table.

    python tools/evaluate.py configs/quickstart/evaluate.yaml
    python tools/evaluate.py configs/quickstart/evaluate.yaml max_questions=200 --with-control

Each run's answers and scores go to RUN/eval/<split>; the same command again continues where it
stopped. The deaf control (`shuffle_audio: true` or --with-control) asks the same questions about
other clips' recordings: accuracy must fall to about chance. Beside the models stands a logistic
regression on each clip's average spectrum, where the manifests have a train split.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from paltrain.cli import config_parser, load_merged, main_guard, parse_config_arguments

if TYPE_CHECKING:
    import argparse


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    from paltrain.config.schema import EvalConfig

    config = load_merged(EvalConfig, arguments)
    from paltrain.eval.build import evaluate_all
    from paltrain.eval.table import build_table, strays

    done = evaluate_all(
        config,
        with_control=config.shuffle_audio or arguments.with_control,
        with_baseline=not arguments.no_baseline,
        device=arguments.device,
    )
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
    return parse_config_arguments(parser, argv)


if __name__ == "__main__":
    sys.exit(main_guard(main))
