"""Fifteen kinds of sound, synthesised: every call gives another one of its kind.

Pitch, tempo and timbre vary with the generator that is passed in; length is the caller's choice.
Each maker returns (n_samples,) float64 with a peak of 1, faded at both ends.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import signal

RATE_HZ = 16_000
Wave = NDArray[np.float64]


def make_event(kind: str, duration_s: float, rng: Generator) -> Wave:
    """One event of a kind of `EVENTS`, about `duration_s` long."""
    wave = EVENTS[kind](_time(duration_s), rng)
    return _faded(wave / max(float(np.abs(wave).max()), 1e-9))


def _time(duration_s: float) -> Wave:
    return np.arange(round(duration_s * RATE_HZ)) / RATE_HZ


def _faded(wave: Wave, fade_s: float = 0.01) -> Wave:
    ramp = np.linspace(0, 1, round(fade_s * RATE_HZ))
    wave[: len(ramp)] *= ramp
    wave[-len(ramp) :] *= ramp[::-1]
    return wave


def _sweep(frequency_hz: Wave) -> Wave:
    """A sine of changing frequency."""
    return np.sin(2 * np.pi * np.cumsum(frequency_hz) / RATE_HZ)


def _band(noise: Wave, low_hz: float, high_hz: float) -> Wave:
    filtered: Wave = signal.sosfilt(
        signal.butter(4, [low_hz, high_hz], "bandpass", fs=RATE_HZ, output="sos"), noise
    )
    return filtered


def _repeat(shape: Wave, t: Wave, every_s: float) -> Wave:
    """`shape` again and again, `every_s` apart, over the length of `t`."""
    wave = np.zeros(len(t))
    for start in range(0, len(t), round(every_s * RATE_HZ)):
        piece = shape[: len(t) - start]
        wave[start : start + len(piece)] += piece
    return wave


def tone(t: Wave, rng: Generator) -> Wave:
    wave: Wave = np.sin(2 * np.pi * rng.uniform(350, 1400) * t)
    return wave


def rising_whistle(t: Wave, rng: Generator) -> Wave:
    low, octaves = rng.uniform(400, 700), rng.uniform(1.5, 2.3)
    return _sweep(low * 2 ** (octaves * t / t[-1]))


def falling_whistle(t: Wave, rng: Generator) -> Wave:
    return rising_whistle(t, rng)[::-1].copy()


def siren(t: Wave, rng: Generator) -> Wave:
    centre, rate_hz = rng.uniform(700, 1100), rng.uniform(2.5, 4.0)
    frequency = centre * 2 ** (0.45 * np.sin(2 * np.pi * rate_hz * t + rng.uniform(0, 6)))
    return _sweep(frequency) + 0.4 * _sweep(2 * frequency)


def alarm(t: Wave, rng: Generator) -> Wave:
    """Beeps: a hard-edged tone, on and off."""
    beep: Wave = signal.square(2 * np.pi * rng.uniform(900, 1600) * t)
    return beep * (np.mod(t * rng.uniform(5, 8), 1) < 0.5)


def bell(t: Wave, rng: Generator) -> Wave:
    """Inharmonic partials that die away, the higher the sooner."""
    pitch = rng.uniform(450, 900)
    wave = np.zeros(len(t))
    for ratio, level in ((1, 1.0), (2.0, 0.6), (2.76, 0.8), (5.4, 0.5), (8.1, 0.25)):
        if pitch * ratio < RATE_HZ / 2:
            wave += level * np.exp(-3.0 * ratio**0.5 * t) * np.sin(2 * np.pi * pitch * ratio * t)
    return wave


def hiss(t: Wave, rng: Generator) -> Wave:
    return _band(rng.normal(size=len(t)), rng.uniform(1500, 2500), rng.uniform(5500, 7500))


def knock(t: Wave, rng: Generator) -> Wave:
    """Dull blows, some a second."""
    blow_t = _time(0.09)
    thud = np.exp(-45 * blow_t) * np.sin(2 * np.pi * rng.uniform(140, 280) * blow_t)
    click = 0.5 * np.exp(-120 * blow_t) * rng.normal(size=len(blow_t))
    return _repeat(thud + click, t, rng.uniform(0.15, 0.24))


def guitar(t: Wave, rng: Generator) -> Wave:
    """A plucked string (Karplus and Strong, 1983): noise that runs round a delay line and dulls."""
    period = round(RATE_HZ / rng.uniform(120, 320))
    pluck = np.zeros(len(t))
    pluck[:period] = rng.uniform(-1, 1, period)
    feedback = np.zeros(period + 2)
    feedback[0], feedback[period], feedback[period + 1] = 1, -0.498, -0.498
    wave: Wave = signal.lfilter([1.0], feedback, pluck)
    return wave


def flute(t: Wave, rng: Generator) -> Wave:
    """A few harmonics with vibrato, and breath."""
    vibrato = 1 + 0.012 * np.sin(2 * np.pi * rng.uniform(4.5, 6) * t)
    pitch = rng.uniform(500, 950) * vibrato
    breath = 0.25 * _band(rng.normal(size=len(t)), 1500, 6000)
    return _sweep(pitch) + 0.5 * _sweep(2 * pitch) + 0.3 * _sweep(3 * pitch) + breath


def organ(t: Wave, rng: Generator) -> Wave:
    """A held chord of pipes: root, third and fifth, each with its octaves."""
    root = rng.uniform(130, 250)
    wave = np.zeros(len(t))
    for interval in (1.0, 1.26, 1.5):
        for harmonic, level in ((1, 1.0), (2, 0.8), (3, 0.4), (4, 0.5), (8, 0.3)):
            wave += level * np.sin(2 * np.pi * root * interval * harmonic * t + rng.uniform(0, 6))
    return wave


def bird(t: Wave, rng: Generator) -> Wave:
    """A trill of short high chirps."""
    every_s = rng.uniform(0.09, 0.14)
    chirp_t = _time(every_s * 0.6)
    high, low = rng.uniform(4200, 5600), rng.uniform(2600, 3400)
    chirp = _sweep(np.linspace(high, low, len(chirp_t))) * np.hanning(len(chirp_t))
    return _repeat(chirp, t, every_s)


def dog(t: Wave, rng: Generator) -> Wave:
    """Barks: a rough voice that rises and falls, shaped by a mouth."""
    bark_t = _time(rng.uniform(0.13, 0.18))
    arc = np.sin(np.pi * bark_t / bark_t[-1])
    voice = signal.sawtooth(
        2 * np.pi * np.cumsum(rng.uniform(280, 420) * (0.8 + 0.4 * arc)) / RATE_HZ
    )
    rough = voice + 0.7 * rng.normal(size=len(bark_t))
    return _repeat(_band(rough, 450, 1800) * arc, t, rng.uniform(0.28, 0.4))


def frog(t: Wave, rng: Generator) -> Wave:
    """Croaks: quick pulses of one low resonance."""
    pulse_t = _time(0.03)
    pulse = np.exp(-140 * pulse_t) * np.sin(2 * np.pi * rng.uniform(480, 800) * pulse_t)
    croak_t = _time(rng.uniform(0.18, 0.28))
    croak = _repeat(pulse, croak_t, rng.uniform(0.022, 0.032)) * np.hanning(len(croak_t))
    return _repeat(croak, t, len(croak_t) / RATE_HZ + rng.uniform(0.06, 0.15))


def cricket(t: Wave, rng: Generator) -> Wave:
    """One high pitch in groups of three pulses."""
    pulse_t = _time(0.018)
    pulse = np.hanning(len(pulse_t)) * np.sin(2 * np.pi * rng.uniform(4000, 4900) * pulse_t)
    group = _repeat(pulse, _time(0.09), 0.03)
    return _repeat(group, t, rng.uniform(0.18, 0.26))


EVENTS: dict[str, Callable[[Wave, Generator], Wave]] = {
    "a tone": tone,
    "a rising whistle": rising_whistle,
    "a falling whistle": falling_whistle,
    "a siren": siren,
    "an alarm": alarm,
    "a bell": bell,
    "a hiss": hiss,
    "a knock": knock,
    "a guitar": guitar,
    "a flute": flute,
    "an organ": organ,
    "a bird": bird,
    "a dog": dog,
    "a frog": frog,
    "a cricket": cricket,
}
