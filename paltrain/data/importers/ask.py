"""Tasks and wording of the questions that importers make of labels and captions.

classification   one label is right; the labels are the options
tags             several labels may be right; the answer names them all, separated by "; "
tags_strong      likewise, from labels that annotators gave with times and completely
which_first      of two sounds, the one that starts first
describe         a caption; the others are references
open_ended       any other question and answer (OpenAQA)
temporal         when sounds come, and in which order (OpenAQA)

In training every caption is a question of its own; else one question has all captions, so that
each recording counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

CLASSIFICATION = "classification"
TAGS = "tags"
TAGS_STRONG = "tags_strong"
WHICH_FIRST = "which_first"
DESCRIBE = "describe"
OPEN_ENDED = "open_ended"
TEMPORAL = "temporal"

MAX_OPTIONS = 100  # of more labels, none is an option
MAX_NAMED = 10  # of more labels, the question names none: it would be longer than its answer
WHICH_SOUND = "Which sound is heard?"
WHICH_OF = "Which of these sounds is heard: {labels}?"
WHICH_SOUNDS = "Which sounds are heard? Name them all."
FIRST_OF_TWO = "Which comes first, {a} or {b}?"
DESCRIBE_IT = "Describe the recording."
ONSET_MARGIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Draft:
    """A question that has no id yet; fields as in `manifest.Question`."""

    task: str
    instruction: str
    answer: str
    options: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    references: tuple[str, ...] | None = None


def classify(label: str, *, labels: Sequence[str]) -> Draft:
    """Which of `labels` it is; they are options where there are two to MAX_OPTIONS."""
    options = tuple(labels) if 1 < len(labels) <= MAX_OPTIONS else None
    named = 1 < len(labels) <= MAX_NAMED
    wording = WHICH_OF.format(labels=_listed(labels)) if named else WHICH_SOUND
    return Draft(CLASSIFICATION, wording, label, options, (label,))


def tag(labels: Sequence[str], *, task: str = TAGS) -> Draft:
    """All sounds that are heard, in the order of the alphabet. labels: at least one."""
    named = tuple(sorted(set(labels)))
    return Draft(task, WHICH_SOUNDS, "; ".join(named), labels=named)


def describe(captions: Sequence[str], *, split: str) -> tuple[Draft, ...]:
    """Captions of one recording: a question each in training, one with all of them elsewhere."""
    distinct = list(dict.fromkeys(captions))
    answers = distinct if split == "train" else distinct[:1]
    return tuple(
        Draft(
            DESCRIBE,
            DESCRIBE_IT,
            answer,
            references=tuple(c for c in distinct if c != answer) or None,
        )
        for answer in answers
    )


def which_first(onsets: Sequence[tuple[float, str]], *, clip: str) -> Draft | None:
    """The earliest sound against the latest other one. onsets: (seconds, label) of every event.

    None where no other sound starts ONSET_MARGIN_S later. Which is named first is drawn from the
    clip's name.
    """
    start: dict[str, float] = {}
    for onset_s, label in sorted(onsets):
        start.setdefault(label, onset_s)
    first = min(start, key=lambda label: start[label])
    last = max(start, key=lambda label: start[label])
    others = sorted(start.values())[1:]
    if not others or min(others) - start[first] < ONSET_MARGIN_S:
        return None
    a, b = (first, last) if crc32(clip.encode()) % 2 else (last, first)
    return Draft(WHICH_FIRST, FIRST_OF_TWO.format(a=a, b=b), first, (a, b))


def _listed(labels: Sequence[str]) -> str:
    return f"{', '.join(labels[:-1])} or {labels[-1]}"
