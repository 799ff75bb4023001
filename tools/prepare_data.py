#!/usr/bin/env python
"""Turn recordings and questions into a manifest that training reads.

  python tools/prepare_data.py soundscapes                      the quickstart's synthetic scenes
  python tools/prepare_data.py table --audio-dir DIR --table questions.csv --out data/mine

`table` reads a CSV file with the columns audio, question, answer and, if you like, task, split and
options (separated by |). Rows that cannot be used are set aside in OUT/rejected.jsonl with their
line and reason, and the rest goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from paltrain.cli import main_guard
from paltrain.data.importers.summary import summarize

Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    arguments.run(arguments)


def soundscapes(arguments: Arguments) -> None:
    from paltrain.data.soundscapes.dataset import write_soundscapes

    with Progress() as bar:
        task = bar.add_task("recordings", total=arguments.scenes)
        written = write_soundscapes(
            arguments.out,
            n_scenes=arguments.scenes,
            seed=arguments.seed,
            workers=arguments.workers,
            progress=lambda done: bar.update(task, completed=done),
        )
    print(f"{written.n_made} recordings made, {written.n_scenes - written.n_made} there before")
    print(summarize(written.manifest))


def table(arguments: Arguments) -> None:
    from paltrain.data.importers.table import import_table

    imported = import_table(
        arguments.table,
        audio_dir=arguments.audio_dir,
        out=arguments.out,
        test_fraction=arguments.test_fraction,
        seed=arguments.seed,
    )
    print(imported.report())
    print(summarize(imported.manifest))


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    scenes = commands.add_parser("soundscapes", help="synthesise scenes and ask about them")
    scenes.add_argument("--out", type=Path, default=Path("data/soundscapes"))
    scenes.add_argument("--scenes", type=_positive, default=4000, help="default: 4000")
    scenes.add_argument("--seed", type=int, default=0)
    scenes.add_argument(
        "--workers", type=_positive, default=os.cpu_count() or 1, help="default: one a core"
    )
    scenes.set_defaults(run=soundscapes)

    own = commands.add_parser("table", help="your own recordings and a CSV of questions")
    own.add_argument("--audio-dir", type=Path, required=True, help="where the recordings lie")
    own.add_argument("--table", type=Path, required=True, help="CSV: audio, question, answer, ...")
    own.add_argument("--out", type=Path, required=True, help="folder of the manifest")
    own.add_argument(
        "--test-fraction",
        type=float,
        default=0.1,
        help="share of the recordings that are kept for the test, where the table has no column "
        "split (default: 0.1)",
    )
    own.add_argument("--seed", type=int, default=0, help="of that choice")
    own.set_defaults(run=table)
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, is {value}")
    return value


if __name__ == "__main__":
    sys.exit(main_guard(main))
