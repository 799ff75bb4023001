"""Ask a trained model about recordings, or without one: once, or in a conversation.

    python tools/chat.py runs/quickstart/lal_stage2 --audio scene.flac --ask "What came first?"
    python tools/chat.py runs/quickstart/lal_stage2 --audio scene.flac

With --ask it prints the answer and nothing else. Without, it reads questions from standard input, a
line each, and answers them one after the other with all that was said and heard before; the line
"/audio FILE" lets the next question be about a further recording, "/new" forgets everything. Every
recording is encoded once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from paltrain.cli import main_guard


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    from paltrain.eval.chat import HOW_TO, converse, describe_streams, start_conversation
    from paltrain.eval.runs import RunToEvaluate, load_model

    folder = RunToEvaluate.find(arguments.run).model_folder
    model = load_model(folder, device=arguments.device)
    conversation = start_conversation(
        model,
        folder=folder,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
    )
    if arguments.ask is not None:
        print(conversation.ask(arguments.ask, arguments.audio))
        return
    print(f"{describe_streams(model)}\n{HOW_TO}", file=sys.stderr)
    converse(conversation, _lines(), audio=arguments.audio)


def _lines() -> Iterator[str]:
    """What is typed, with a prompt, or what comes through a pipe."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    import readline  # noqa: F401 (lines can be edited)

    while True:
        try:
            yield input("> ")
        except EOFError:
            return


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
        help="wav, flac, mp3, ogg; of the first question",
    )
    parser.add_argument("--ask", metavar="TEXT", help="default: questions from standard input")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0: greedy (default); else sampled"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--device", help="default: the GPU if there is one")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main_guard(main))
