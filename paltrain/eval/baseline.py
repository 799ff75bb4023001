"""What can be answered without listening over time: a classifier on each clip's average spectrum.

Per task, a logistic regression from the time-averaged log-mel energies and the words of the
question to the answer, fitted on one split and scored on another. Where a question has options, the
likeliest of them is its answer. An exam that this passes needs no sense of order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paltrain.data.index import Corpus
from paltrain.data.manifest import Question
from paltrain.data.selection import StreamFeatures
from paltrain.encoders import build_encoder
from paltrain.encoders.audio import load_audio

FITTED_ON = "train"
MAX_ANSWERS = 100  # a task with more different answers is free text and left out

Spectrum = NDArray[np.float32]
SpectrumOf = Callable[[int], Spectrum | None]  # of a clip; None: it has no features


@dataclass(frozen=True)
class _Asked:
    question: Question
    spectrum: Spectrum


class RecordedSpectra:
    """Average log-mel energies (n_mels,) of a clip, from its recording."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus, self._encoder = corpus, build_encoder("logmel")

    def __call__(self, clip: int) -> Spectrum:
        path = self._corpus.audio_path(clip)
        waveform = load_audio(path, sample_rate_hz=self._encoder.sample_rate_hz)
        spectrum: Spectrum = self._encoder.encode([waveform])[0].mean(axis=0)
        return spectrum


class StoredSpectra:
    """The same from a log-mel feature store, where there is one: a hundred times as fast."""

    def __init__(self, stream: StreamFeatures) -> None:
        self._stream = stream

    def __call__(self, clip: int) -> Spectrum | None:
        if self._stream.rows[clip] < 0:
            return None
        frames = np.empty((int(self._stream.n_frames[clip]), self._stream.width), np.float16)
        self._stream.read_into(clip, frames)
        return np.asarray(frames.mean(axis=0, dtype=np.float32))


def average_spectrum_baseline(
    corpus: Corpus,
    spectrum_of: SpectrumOf,
    *,
    test_split: str = "test",
    tasks: Sequence[str] | None = None,
) -> dict[str, float]:
    """Accuracy (0 to 1) by task: those of both splits with a closed set of answers, or of `tasks`.

    spectrum_of: `RecordedSpectra` or `StoredSpectra`; what they raise is passed on.
    """
    asked = _asked(corpus, [FITTED_ON, test_split], spectrum_of)
    accuracy = {}
    for task in sorted(asked[FITTED_ON].keys() & asked[test_split].keys()):
        train, test = asked[FITTED_ON][task], asked[test_split][task]
        answers = {each.question.answer for each in train}
        if (tasks and task not in tasks) or not 1 < len(answers) <= MAX_ANSWERS:
            continue
        accuracy[task] = _accuracy(train, test)
    return accuracy


def _asked(
    corpus: Corpus, splits: Sequence[str], spectrum_of: SpectrumOf
) -> dict[str, dict[str, list[_Asked]]]:
    """By split and task, the questions with their clips' average spectra."""
    asked: dict[str, dict[str, list[_Asked]]] = {split: {} for split in splits}
    for number in range(corpus.n_clips):
        split = corpus.splits[corpus.clip_split[number]]
        if split in asked and corpus.has_audio[number]:
            spectrum = spectrum_of(number)
            if spectrum is None:
                continue
            for question in corpus.clip(number).questions:
                asked[split].setdefault(question.task, []).append(_Asked(question, spectrum))
    return asked


def _accuracy(train: Sequence[_Asked], test: Sequence[_Asked]) -> float:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    words = CountVectorizer(binary=True).fit([each.question.instruction for each in train])
    scaler = StandardScaler()

    def inputs(asked: Sequence[_Asked]) -> NDArray[Any]:
        spectra = np.stack([each.spectrum for each in asked])
        bag = words.transform([each.question.instruction for each in asked]).toarray()
        return np.hstack([spectra, bag])

    model = LogisticRegression(max_iter=500, C=0.1)
    model.fit(scaler.fit_transform(inputs(train)), [each.question.answer for each in train])
    log_p = model.predict_log_proba(scaler.transform(inputs(test)))
    column = {answer: number for number, answer in enumerate(model.classes_)}
    right = [
        _likeliest(row, column, each.question) == each.question.answer
        for row, each in zip(log_p, test, strict=True)
    ]
    return float(np.mean(right))


def _likeliest(log_p: NDArray[Any], column: dict[str, int], question: Question) -> str:
    candidates = [option for option in question.options or column if option in column]
    return max(candidates or list(column), key=lambda answer: log_p[column[answer]])
