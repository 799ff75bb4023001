"""Questions about recordings, one alone or several in turn from a terminal or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from paltrain.errors import PaltrainError
from paltrain.model.card import STREAM_HEADER, stream_rows
from paltrain.model.conversation import Conversation
from paltrain.model.modeling import PalModel
from paltrain.model.processing import Features, PalProcessor

AUDIO_COMMAND, FORGET_COMMAND = "/audio", "/new"
HOW_TO = (
    f"one question a line; {AUDIO_COMMAND} FILE: the next one is about this recording, too; "
    f"{FORGET_COMMAND}: forget all; the end of input (Ctrl-D) ends"
)


def start_conversation(
    model: PalModel, *, folder: Path, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
) -> Conversation:
    """folder: the exported model's, which holds its tokenizer and encoders. temperature: 0 is
    greedy."""
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature}
    torch.manual_seed(seed)
    return Conversation(
        model,
        PalProcessor.from_pretrained(folder),
        max_new_tokens=max_new_tokens,
        options=sampling if temperature > 0 else {},
    )


def converse(
    conversation: Conversation, lines: Iterable[str], *, audio: Sequence[Path] = ()
) -> None:
    """Print an answer to every line. audio: what the first question is about.

    Why a question cannot be asked is said on stderr, and the conversation goes on: the next one
    hears its recordings.

    Raises:
        AudioError: one of `audio` cannot be read.
    """
    heard = [conversation.processor.features(file) for file in audio]
    for line in (line.strip() for line in lines):
        command, _, name = line.partition(" ")
        if command == FORGET_COMMAND:
            conversation.forget()
            heard = []
        elif command == AUDIO_COMMAND:
            heard += _recording(conversation, Path(name.strip()))
        elif command.startswith("/"):
            print(f"error: there is no command {command}; {HOW_TO}", file=sys.stderr, flush=True)
        elif line:
            try:
                print(conversation.ask(line, heard), flush=True)
            except PaltrainError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
            else:
                heard = []


def _recording(conversation: Conversation, file: Path) -> list[Features]:
    """A recording as the next question hears it; where it cannot be read stderr says so, and the
    question is without it."""
    if not file.is_file():
        print(f"error: there is no file '{file}'; {HOW_TO}", file=sys.stderr, flush=True)
        return []
    try:
        return [conversation.processor.features(file)]
    except PaltrainError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return []


def describe_streams(model: PalModel) -> str:
    """A line for each stream: what it hears, and how many tokens that takes."""
    rows = [dict(zip(STREAM_HEADER, row, strict=True)) for row in stream_rows(model.config)]
    return "\n".join(
        f"{row['stream']}: {row['features']}, {row['audio tokens']} by {row['route']}"
        for row in rows
    )
