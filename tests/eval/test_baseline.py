"""The average-spectrum classifier: passes an exam of timbre, fails one of order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from paltrain.data.index import Corpus
from paltrain.data.manifest import Clip, Question, write_manifest
from paltrain.eval.baseline import RecordedSpectra, average_spectrum_baseline

RATE_HZ = 16_000


def beep(hz: float) -> np.ndarray:
    wave = np.sin(2 * np.pi * hz * np.arange(RATE_HZ // 5) / RATE_HZ)
    return 0.3 * np.pad(wave * np.hanning(len(wave)), 1600)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """120 clips: a low and a high beep in either order, or one of them twice."""
    rng = np.random.default_rng(0)
    clips = []
    for number in range(120):
        first, second = rng.choice([400, 3000], 2)
        samples = np.concatenate([beep(first), beep(second)])
        samples += 0.02 * rng.normal(size=len(samples))
        soundfile.write(tmp_path / f"{number}.flac", samples, RATE_HZ)
        high = "yes" if 3000 in (first, second) else "no"
        questions = [Question(f"{number}/high", "has_high", "Is there a high beep?", high)]
        if first != second:
            answer = "low" if first == 400 else "high"
            options = ("low", "high")
            questions.append(Question(f"{number}/o", "order", "First?", answer, options))
        split = "test" if number % 3 == 0 else "train"
        clips.append(Clip(str(number), f"{number}.flac", 0.4, "d", split, tuple(questions)))
    write_manifest(tmp_path / "m.jsonl", clips)
    return Corpus.open([tmp_path / "m.jsonl"])


def test_it_hears_what_sounds_and_not_in_which_order(corpus: Corpus) -> None:
    accuracy = average_spectrum_baseline(corpus, RecordedSpectra(corpus))
    assert accuracy["has_high"] == 1.0
    assert accuracy["order"] < 0.75


def test_only_the_tasks_asked_for_are_fitted(corpus: Corpus) -> None:
    accuracy = average_spectrum_baseline(corpus, RecordedSpectra(corpus), tasks=["order"])
    assert list(accuracy) == ["order"]


def test_clips_without_features_are_left_out(corpus: Corpus) -> None:
    whole = RecordedSpectra(corpus)
    accuracy = average_spectrum_baseline(corpus, lambda clip: None if clip < 12 else whole(clip))
    assert accuracy["has_high"] == 1.0
