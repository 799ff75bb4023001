"""A handful of test clips for the page: heard, seen as a spectrogram, asked and answered.

Audio goes into the page as FLAC (every browser plays it), 16 kHz mono, at most `MAX_SECONDS`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import spectrogram

from paltrain.eval.records import Answer, read_answers

SAMPLE_RATE_HZ = 16000
MAX_SECONDS = 20.0
DYNAMIC_RANGE_DB = 70.0
IMAGE_SIZE = (96, 480)  # rows (frequency), columns (time)


@dataclass(frozen=True)
class AskedQuestion:
    """One question with every model's answer: {model: (given, correct)}."""

    task: str
    instruction: str
    expected: str
    given: Mapping[str, tuple[str, bool]]


@dataclass(frozen=True)
class PlayableClip:
    """A clip with its recording and spectrogram as data URIs; no recording reads as a sentence."""

    clip_id: str
    audio_uri: str | None
    image_uri: str | None
    seconds: float
    why_silent: str | None
    questions: tuple[AskedQuestion, ...]


def choose_clips(folders: Mapping[str, Path], *, n: int) -> list[str]:
    """The ids of `n` clips that every model was asked about, with as many tasks as can be.

    folders: an evaluation folder for each model. Greedy and deterministic: next comes the clip that
    adds most tasks not yet shown, and among equals one that some model got wrong.
    """
    tasks: dict[str, set[str]] = {}
    flawed: set[str] = set()
    asked: list[set[str]] = []
    for folder in folders.values():
        answers = list(read_answers(folder))
        asked.append({answer.clip_id for answer in answers})
        for answer in answers:
            tasks.setdefault(answer.clip_id, set()).add(answer.task)
            if not answer.correct:
                flawed.add(answer.clip_id)
    left = sorted(set.intersection(*asked)) if asked else []
    chosen: list[str] = []
    shown: set[str] = set()
    while left and len(chosen) < n:
        wants_flaw = len(chosen) % 2 == 1
        best = max(left, key=lambda c: (len(tasks[c] - shown), (c in flawed) == wants_flaw))
        left.remove(best)
        chosen.append(best)
        shown |= tasks[best]
    return chosen


def playable_clips(
    folders: Mapping[str, Path], audio: Mapping[str, Path], *, clip_ids: Sequence[str]
) -> list[PlayableClip]:
    """The clips with their questions and every model's answers.

    audio: the recording of each clip that has one. An unreadable recording does not stop the page.
    """
    wanted = set(clip_ids)
    by_clip: dict[str, dict[str, dict[str, Answer]]] = {clip: {} for clip in clip_ids}
    for model, folder in folders.items():
        for answer in read_answers(folder):
            if answer.clip_id in wanted:
                by_clip[answer.clip_id].setdefault(answer.question_id, {})[model] = answer
    return [_playable(clip, by_clip[clip], audio.get(clip)) for clip in clip_ids]


def _playable(
    clip_id: str, questions: Mapping[str, Mapping[str, Answer]], path: Path | None
) -> PlayableClip:
    asked = []
    for by_model in questions.values():
        any_answer = next(iter(by_model.values()))
        given = {model: (answer.given, answer.correct) for model, answer in by_model.items()}
        asked.append(
            AskedQuestion(any_answer.task, any_answer.instruction, any_answer.expected, given)
        )
    try:
        if path is None:
            raise FileNotFoundError(f"the manifest names no recording for clip '{clip_id}'")
        samples = _read(path)
    except (OSError, soundfile.LibsndfileError) as error:
        return PlayableClip(clip_id, None, None, 0.0, str(error), tuple(asked))
    seconds = len(samples) / SAMPLE_RATE_HZ
    return PlayableClip(
        clip_id, audio_uri(samples), spectrogram_uri(samples), seconds, None, tuple(asked)
    )


def audio_uri(samples: NDArray[np.float32]) -> str:
    """(n,) mono samples at `SAMPLE_RATE_HZ` as a FLAC data URI."""
    out = io.BytesIO()
    soundfile.write(out, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return "data:audio/flac;base64," + base64.b64encode(out.getvalue()).decode()


def spectrogram_uri(samples: NDArray[np.float32]) -> str:
    """(n,) samples as a PNG data URI: time to the right, mel-like frequency upwards."""
    n_fft = min(512, max(16, len(samples)))
    hertz, _, power = spectrogram(samples, SAMPLE_RATE_HZ, nperseg=n_fft, noverlap=n_fft // 2)
    decibel = 10 * np.log10(power + 1e-12)
    floor = decibel.max() - DYNAMIC_RANGE_DB
    rows = np.interp(_mel_spaced_hertz(IMAGE_SIZE[0]), hertz, np.arange(len(hertz))).round()
    columns = np.linspace(0, decibel.shape[1] - 1, IMAGE_SIZE[1]).round()
    picked = decibel[rows.astype(int)][:, columns.astype(int)][::-1]
    shade = np.clip((picked - floor) / DYNAMIC_RANGE_DB, 0, 1)
    out = io.BytesIO()
    mpl.image.imsave(out, mpl.colormaps["magma"](shade), format="png")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _mel_spaced_hertz(n: int) -> NDArray[np.float64]:
    top = 2595 * np.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    hertz: NDArray[np.float64] = 700 * (10 ** (np.linspace(0, top, n) / 2595) - 1)
    return hertz


def _read(path: Path) -> NDArray[np.float32]:
    """The first `MAX_SECONDS` of a recording, (n,) mono at `SAMPLE_RATE_HZ`."""
    import soxr

    with soundfile.SoundFile(path) as file:
        frames = file.read(int(MAX_SECONDS * file.samplerate), dtype="float32", always_2d=True)
        mono = frames.mean(axis=1)
        resampled: NDArray[np.float32] = soxr.resample(mono, file.samplerate, SAMPLE_RATE_HZ)
    return resampled
