"""Whatever clips a manifest has, its compiled index says the same, for one manifest and several."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paltrain.data.index import Corpus
from paltrain.data.manifest import Clip, Question, read_manifest, write_manifest

LIMITS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(str.strip)
ODD_NAMES = st.sampled_from(["a b", "ü/1.wav", "鹅", "x\u2028y", "e\u0301", "'\"\\"])
NAMES = TEXTS.filter(lambda text: "\0" not in text) | ODD_NAMES
LISTS = st.none() | st.lists(TEXTS, min_size=1, max_size=3).map(tuple)
CONTENTS = st.none() | st.integers(1, 2**64 - 1).map(lambda value: f"{value:016x}")


@st.composite
def questions(draw: st.DrawFn, ids: list[str]) -> Question:
    """A question that may hear any of the clips `ids` as well."""
    turns = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3).map(tuple)
    further = st.lists(st.sampled_from(ids), min_size=1, max_size=3).map(tuple)
    return Question(
        id=draw(NAMES),
        task=draw(st.sampled_from(["which", "wie viele", "鹅"])),
        instruction=draw(TEXTS),
        answer=draw(TEXTS),
        options=draw(LISTS),
        turns=draw(st.none() | turns),
        labels=draw(LISTS),
        references=draw(LISTS),
        clips=draw(st.none() | further),
    )


@st.composite
def clips(draw: st.DrawFn, clip_id: str, ids: list[str]) -> Clip:
    """One of the clips `ids`, with a recording or text alone."""
    has_audio = draw(st.booleans())
    return Clip(
        id=clip_id,
        audio=draw(NAMES) if has_audio else None,
        duration_s=draw(st.floats(0, 1e5, width=32)) if has_audio else 0.0,
        dataset=draw(st.sampled_from(["d", "", "Gänse"])),
        split=draw(st.sampled_from(["train", "val", "test"])),
        questions=tuple(draw(st.lists(questions(ids), max_size=4))),
        content=draw(CONTENTS) if has_audio else None,
    )


@st.composite
def manifests(draw: st.DrawFn) -> list[list[Clip]]:
    """One to three manifests, no clip of them twice; questions hear clips of any."""
    ids = draw(st.lists(NAMES, min_size=1, max_size=8, unique=True))
    everything = [draw(clips(clip_id, ids)) for clip_id in ids]
    cuts = sorted(draw(st.sets(st.integers(1, max(len(ids) - 1, 1)), max_size=2)) - {len(ids)})
    return [
        everything[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True)
    ]


@LIMITS
@given(written=manifests())
def test_what_is_written_and_compiled_is_what_is_read(written: list[list[Clip]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(n) / "manifest.jsonl" for n in range(len(written))]
        for path, part in zip(paths, written, strict=True):
            assert write_manifest(path, part) == len(part)
            assert list(read_manifest(path)) == part
        for _ in ("compiled", "opened again"):
            check(Corpus.open(paths), [clip for part in written for clip in part])
        first = Corpus.open(paths).fingerprint
        changed = replace(written[-1][-1], split="another")
        write_manifest(paths[-1], [*written[-1][:-1], changed])
        again = Corpus.open(paths)
        check(again, [*(clip for part in written for clip in part)][:-1] + [changed])
        assert again.fingerprint != first


def check(corpus: Corpus, expected: list[Clip]) -> None:
    """Every array of the corpus against the clips themselves."""
    asked = [question for clip in expected for question in clip.questions]
    assert (corpus.n_clips, corpus.n_questions) == (len(expected), len(asked))
    assert [corpus.clip(number) for number in range(corpus.n_clips)] == expected
    assert corpus.clip_id_array.tolist() == [clip.id for clip in expected]
    assert corpus.has_audio.tolist() == [clip.audio is not None for clip in expected]
    assert corpus.duration_s.tolist() == [np.float32(clip.duration_s) for clip in expected]
    assert corpus.content.tolist() == [int(clip.content or "0", 16) for clip in expected]
    assert [corpus.splits[n] for n in corpus.clip_split] == [clip.split for clip in expected]
    assert [corpus.datasets[n] for n in corpus.clip_dataset] == [clip.dataset for clip in expected]
    assert [corpus.tasks[n] for n in corpus.question_task] == [q.task for q in asked]
    counts = [len(clip.questions) for clip in expected]
    assert np.diff(corpus.first_question).tolist() == counts
    assert corpus.first_question[0] == 0
    number_of = {clip.id: number for number, clip in enumerate(expected)}
    owners = [clip for clip in expected for _ in clip.questions]
    for number, (owner, question) in enumerate(zip(owners, asked, strict=True)):
        own = () if owner.audio is None else (number_of[owner.id],)
        further = tuple(number_of[clip] for clip in question.clips or ())
        assert corpus.clips_of(number) == own + further
