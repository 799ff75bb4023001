"""Scenes: one to three different events in a room with some noise, partly overlapping.

Level, length and place of an event are drawn without regard to its kind or its turn, so that what
is heard on average over a scene says nothing about the order. A scene depends on (seed, number)
alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import signal

from paltrain.data.soundscapes.events import EVENTS, RATE_HZ, Wave, make_event

MAX_EVENTS = 3
SCENE_S = (2.8, 3.6)
EVENT_S = (0.5, 1.1)
MIN_ONSET_GAP_S = 0.35  # what comes first can be told
MAX_OVERLAP_SHARE = 0.5  # of the shorter of two events


@dataclass(frozen=True)
class Event:
    """One sound of a scene: its kind (`EVENTS`), when it starts, how long and how loud it is."""

    kind: str
    onset_s: float
    duration_s: float
    level_db: float


@dataclass(frozen=True)
class Scene:
    """What happens in a recording; events stand in the order of their onsets."""

    number: int
    duration_s: float
    events: tuple[Event, ...]


def draw_scene(seed: int, number: int) -> Scene:
    """Scene `number` of the world `seed`."""
    rng = np.random.default_rng([seed, number])
    duration_s = round(rng.uniform(*SCENE_S), 2)
    n_events = int(rng.integers(1, MAX_EVENTS + 1))
    kinds = rng.permutation(list(EVENTS))[:n_events]
    places = _places(n_events, duration_s, rng)
    levels = rng.uniform(-6, 0, n_events)
    events = [
        Event(str(kind), onset_s, length_s, float(level))
        for kind, (onset_s, length_s), level in zip(kinds, places, levels, strict=True)
    ]
    return Scene(number, duration_s, tuple(events))


def _places(n_events: int, duration_s: float, rng: Generator) -> list[tuple[float, float]]:
    """(onset, length) of each event in seconds, by onset; drawn until they overlap little enough.

    The longer of two neighbours stands for both, or short events would tend to come first.
    """
    while True:
        lengths = rng.uniform(*EVENT_S, n_events)
        onsets = np.sort(rng.uniform(0.05, duration_s - EVENT_S[1], n_events))
        gaps = np.diff(onsets)
        longer, shorter = (f(lengths[:-1], lengths[1:]) for f in (np.maximum, np.minimum))
        if (gaps >= np.maximum(MIN_ONSET_GAP_S, longer - MAX_OVERLAP_SHARE * shorter)).all():
            return list(zip(onsets.tolist(), lengths.tolist(), strict=True))


def record(scene: Scene, seed: int) -> NDArray[np.float32]:
    """The recording of a scene: (n_samples,) at RATE_HZ, peak below 1."""
    rng = np.random.default_rng([seed, scene.number, 1])
    dry = np.zeros(round(scene.duration_s * RATE_HZ))
    for event in scene.events:
        wave = make_event(event.kind, event.duration_s, rng) * 10 ** (event.level_db / 20)
        start = round(event.onset_s * RATE_HZ)
        wave = wave[: len(dry) - start]
        dry[start : start + len(wave)] += wave
    wet = _in_a_room(dry, rng)
    mixed = wet / np.abs(wet).max() + _background(len(wet), rng)
    mixed *= rng.uniform(0.3, 0.9) / np.abs(mixed).max()
    return np.asarray(mixed, np.float32)


def _in_a_room(dry: Wave, rng: Generator) -> Wave:
    """Reverberation: an echo of noise that dies away within 0.1 to 0.4 s."""
    t = np.arange(round(0.4 * RATE_HZ)) / RATE_HZ
    echo = rng.normal(size=len(t)) * np.exp(-6.9 * t / rng.uniform(0.1, 0.4))
    echo *= rng.uniform(0.1, 0.4) / np.sqrt((echo**2).sum())
    echo[0] += 1
    wet: Wave = signal.fftconvolve(dry, echo)[: len(dry)]
    return wet


def _background(n_samples: int, rng: Generator) -> Wave:
    """White noise, pink noise or hum, 25 to 45 dB below the loudest moment."""
    kind = rng.integers(3)
    noise: Wave = rng.normal(size=n_samples)
    if kind == 1:  # pink by a filter of three poles (Kellet)
        noise = signal.lfilter(
            [0.049922035, -0.095993537, 0.050612699, -0.004408786],
            [1, -2.494956002, 2.017265875, -0.522189400],
            noise,
        )
    elif kind == 2:
        t = np.arange(n_samples) / RATE_HZ
        hum = sum(np.sin(2 * np.pi * 50 * k * t) / k for k in (1, 2, 3, 5))
        noise = 0.1 * noise + hum
    level = 10 ** (-rng.uniform(25, 45) / 20)
    return np.asarray(level * noise / np.sqrt((noise**2).mean()))
