"""Write one self-contained page and one small JSON about some runs.

    python tools/report.py --out runs/quickstart
    python tools/report.py --runs runs/lal runs/plits --out runs/comparison

The page shows accuracy by task beside chance and the deaf control, the cost of a training step,
loss curves, seconds by phase, and test clips that can be played. What is not there is named with
the command that makes it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from paltrain.cli import main_guard


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    from paltrain.errors import ConfigError
    from paltrain.report.build import build_report
    from paltrain.report.collect import BENCH_FILE, find_runs
    from paltrain.report.phases import PHASES_FILE

    runs = [Path(run) for run in arguments.runs] or find_runs(arguments.out)
    absent = [str(run) for run in runs if not run.is_dir()]
    if absent:
        raise ConfigError(f"no such run folder: {', '.join(absent)}; train with tools/launch.py")
    written = build_report(
        runs,
        out=arguments.out,
        bench=arguments.bench or arguments.out / BENCH_FILE,
        phases=arguments.out / PHASES_FILE,
        split=arguments.split,
        title=arguments.title or f"paltrain: {arguments.out.name}",
        n_clips=arguments.clips,
    )
    for what, remedy in written.missing.items():
        print(f"not there: {what}; {remedy}")
    print(f"wrote {written.page} and {written.summary}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", nargs="+", default=[], metavar="RUN", help="default: all run folders under --out"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), metavar="DIR")
    parser.add_argument(
        "--bench",
        type=Path,
        metavar="FILE",
        help="of tools/bench.py step (default: OUT/bench.json)",
    )
    parser.add_argument("--split", default="test", help="the evaluated split (default: test)")
    parser.add_argument("--title", help="the page's heading")
    parser.add_argument("--clips", type=int, default=6, metavar="N", help="playable clips")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main_guard(main))
