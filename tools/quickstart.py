"""The quickstart: from recordings to a trained, evaluated audio-LLM and its report.

    python tools/quickstart.py            # or: make quickstart
    python tools/quickstart.py --list     # only show the commands

It runs ordinary commands one after another, shows each before it runs, and stops at the first that
fails with its exit code. Each command skips what is done or resumes, so the same command again goes
on.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from paltrain.cli import main_guard
from paltrain.report.phases import PHASES_FILE, PhaseCall, append_phase

OUT = Path("runs/quickstart")
CONFIGS = "configs/quickstart"
PHASES = [
    ("recordings and questions", "tools/prepare_data.py soundscapes"),
    ("language model", f"tools/launch.py --cluster local {CONFIGS}/base.yaml"),
    ("features", f"tools/precompute_features.py {CONFIGS}/features.yaml"),
    ("LAL", f"tools/launch.py --cluster local {CONFIGS}/lal_stage1.yaml {CONFIGS}/lal_stage2.yaml"),
    (
        "PLITS",
        f"tools/launch.py --cluster local {CONFIGS}/plits_stage1.yaml {CONFIGS}/plits_stage2.yaml",
    ),
    ("evaluation", f"tools/evaluate.py {CONFIGS}/evaluate.yaml --with-control"),
    ("benchmark", f"tools/bench.py step --json {OUT}/bench.json"),
    ("report", f"tools/report.py --out {OUT}"),
]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    start = time.monotonic()
    for phase, command in PHASES:
        print(f"$ python {command}", flush=True)
        if arguments.list:
            continue
        code = run_phase(phase, command, phases=OUT / PHASES_FILE)
        if code:
            print(f"stopped: {phase} failed with exit code {code}", file=sys.stderr)
            return code
    if not arguments.list:
        minutes = (time.monotonic() - start) / 60
        print(f"done in {minutes:.1f} min; open {OUT}/report.html")
    return 0


def run_phase(phase: str, command: str, *, phases: Path) -> int:
    """Run one command with this Python, record its time; returns its exit code."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, *shlex.split(command)], check=False)
    seconds = round(time.monotonic() - start, 3)
    append_phase(phases, PhaseCall(phase, f"python {command}", seconds, done.returncode))
    return done.returncode


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="show the commands, run none")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main_guard(main))
