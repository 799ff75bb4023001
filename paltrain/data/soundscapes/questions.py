"""Questions about a scene, each with the one right answer, in varying words.

which_sound   the kind of the only event, or of the one that was not named; 15 alternatives
which_first   of two events, the one that starts first; both are named in random order
which_last    likewise, the one that starts last
how_many      one, two or three
contains      yes or no, as often
describe      all events in order
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from paltrain.data.manifest import Question
from paltrain.data.soundscapes.events import EVENTS
from paltrain.data.soundscapes.scene import Scene

NUMBERS = ("one", "two", "three")
WORDS = {
    "which_sound": ("Which sound is heard?", "What sound is this?", "What do you hear?"),
    "which_of_two": (
        "Which sound is heard, {a} or {b}?",
        "What do you hear, {a} or {b}?",
        "What sound is this, {a} or {b}?",
    ),
    "which_first": (
        "Which comes first, {a} or {b}?",
        "Which starts first, {a} or {b}?",
        "What is heard first, {a} or {b}?",
    ),
    "which_last": (
        "Which comes last, {a} or {b}?",
        "Which starts last, {a} or {b}?",
        "What is heard last, {a} or {b}?",
    ),
    "how_many": ("How many sounds are there?", "How many different sounds are heard?"),
    "contains": ("Is there {a}?", "Can {a} be heard?", "Does the recording contain {a}?"),
    "describe": ("Describe the recording.", "What happens in the recording?"),
}


def ask(scene: Scene, seed: int, clip_id: str) -> tuple[Question, ...]:
    """The questions about a scene, in a fixed order of tasks."""
    rng = np.random.default_rng([seed, scene.number, 2])
    kinds = [event.kind for event in scene.events]
    asked = [_which_sound(kinds, rng), _how_many(kinds, rng), _contains(kinds, rng)]
    if len(kinds) > 1:
        asked += [_which(kinds, 0, rng), _which(kinds, -1, rng)]
    asked.append(("describe", _words("describe", rng), ", then ".join(kinds), None))
    return tuple(
        Question(f"{clip_id}/{task}", task, instruction, answer, options)
        for task, instruction, answer, options in asked
    )


Asked = tuple[str, str, str, tuple[str, ...] | None]  # task, instruction, answer, options


def _words(task: str, rng: Generator, **names: str) -> str:
    return str(rng.choice(WORDS[task])).format(**names)


def _which_sound(kinds: Sequence[str], rng: Generator) -> Asked:
    """The only sound; of several, one of them against one that is not heard."""
    answer = str(rng.choice(kinds))
    if len(kinds) == 1:
        return "which_sound", _words("which_sound", rng), answer, tuple(EVENTS)
    other = str(rng.choice([kind for kind in EVENTS if kind not in kinds]))
    a, b = rng.permutation([answer, other]).tolist()
    return "which_sound", _words("which_of_two", rng, a=a, b=b), answer, (a, b)


def _which(kinds: Sequence[str], wanted: int, rng: Generator) -> Asked:
    """Of two events, the first (wanted = 0) or the last (-1)."""
    pair = sorted(rng.choice(len(kinds), 2, replace=False).tolist())
    a, b = rng.permutation([kinds[i] for i in pair]).tolist()
    task = "which_first" if wanted == 0 else "which_last"
    return task, _words(task, rng, a=a, b=b), kinds[pair[wanted]], (a, b)


def _how_many(kinds: Sequence[str], rng: Generator) -> Asked:
    return "how_many", _words("how_many", rng), NUMBERS[len(kinds) - 1], NUMBERS


def _contains(kinds: Sequence[str], rng: Generator) -> Asked:
    is_there = bool(rng.integers(2))
    candidates = kinds if is_there else [kind for kind in EVENTS if kind not in kinds]
    words = _words("contains", rng, a=str(rng.choice(candidates)))
    return "contains", words, "yes" if is_there else "no", ("yes", "no")
