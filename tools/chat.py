"""Ask a trained model about one recording, or without one.

    python tools/chat.py runs/quickstart/lal_stage2 --audio scene.flac --ask "What came first?"

Prints the answer and nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from paltrain.cli import main_guard


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    from paltrain.eval.chat import ask
    from paltrain.eval.runs import RunToEvaluate, load_model

    print(
        ask(
            load_model(RunToEvaluate.find(arguments.run).model_folder, device=arguments.device),
            folder=RunToEvaluate.find(arguments.run).model_folder,
            audio=arguments.audio,
            text=arguments.ask,
            max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature,
            seed=arguments.seed,
        )
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a finished run's folder, or an exported model")
    parser.add_argument(
        "--audio",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="wav, flac, mp3, ogg",
    )
    parser.add_argument("--ask", required=True, metavar="TEXT")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0: greedy (default); else sampled"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--device", help="default: the GPU if there is one")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main_guard(main))
