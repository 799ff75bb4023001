"""Which of a corpus's questions are asked for: by task, by dataset, by what the recordings last.

A run's data have one such filter, and each part of its mixture another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os.path import normpath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paltrain.data.selection import hears_only
from paltrain.errors import ManifestError, unknown_name

if TYPE_CHECKING:
    from paltrain.data.index import Corpus

BoolArray = NDArray[np.bool_]


def asked_for(
    corpus: Corpus,
    where: str,
    *,
    tasks: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    min_duration_s: float | None = None,
    max_duration_s: float | None = None,
) -> Iterator[tuple[BoolArray, str]]:
    """For each filter that is given: (Q,) the questions that pass, and why the others do not.

    where: the key of the configuration that says so, for messages. Durations are those of every
    recording that a question hears; a question that hears none passes.

    Raises:
        ManifestError: an unknown task or dataset.
    """
    if tasks is not None:
        numbers = _numbers("task", f"{where}.tasks", tasks, corpus.tasks)
        yield np.isin(corpus.question_task, numbers), f"not of {where}.tasks"
    if datasets is not None:
        numbers = _numbers("dataset", f"{where}.datasets", datasets, corpus.datasets)
        clips = np.isin(corpus.clip_dataset, numbers)
        yield np.repeat(clips, np.diff(corpus.first_question)), f"not of {where}.datasets"
    if min_duration_s is not None:
        long_enough = corpus.duration_s >= np.float32(min_duration_s)
        yield _hears(corpus, long_enough), f"shorter than {where}.min_duration_s"
    if max_duration_s is not None:
        short_enough = corpus.duration_s <= np.float32(max_duration_s)
        yield _hears(corpus, short_enough), f"longer than {where}.max_duration_s"


def passing(corpus: Corpus, where: str, *, manifest: str | None, **filters: Any) -> BoolArray:
    """(Q,) the questions that pass all filters (see `asked_for`), of that manifest if one is named.

    Raises:
        ManifestError: an unknown task, dataset or manifest.
    """
    kept = np.ones(corpus.n_questions, bool)
    for questions, _ in asked_for(corpus, where, **filters):
        kept &= questions
    if manifest is not None:
        paths = [normpath(path) for path in corpus.manifests]
        number = _numbers("manifest", f"{where}.manifest", [normpath(manifest)], paths)
        kept &= np.repeat(corpus.clip_manifest == number[0], np.diff(corpus.first_question))
    return kept


def _hears(corpus: Corpus, clips: BoolArray) -> BoolArray:
    return hears_only(corpus, clips | ~np.asarray(corpus.has_audio))


def _numbers(kind: str, key: str, names: Sequence[str], valid: Sequence[str]) -> list[int]:
    for name in names:
        if name not in valid:
            raise ManifestError(unknown_name(f"{kind} in {key}", name, list(valid)))
    return [list(valid).index(name) for name in names]
