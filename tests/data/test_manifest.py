"""Manifests and their compiled index: round trip, numbering over several, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paltrain.data.index import Corpus
from paltrain.data.manifest import Clip, Question, read_manifest, write_manifest
from paltrain.errors import ManifestError


def question(name: str, task: str = "which_sound", **fields: object) -> Question:
    return Question(id=name, task=task, instruction="Which sound?", answer="ein Gänseruf", **fields)


def clips(prefix: str = "c", n: int = 3, split: str = "train") -> list[Clip]:
    return [
        Clip(
            id=f"{prefix}{number}",
            audio=f"audio/{prefix}{number}.flac" if number else None,
            duration_s=1.5 * number,
            dataset="mine",
            split=split,
            questions=tuple(
                question(f"{prefix}{number}/{q}", ("which_sound", "how_many")[q % 2])
                for q in range(number + 1)
            ),
        )
        for number in range(n)
    ]


def write_line(path: Path, **changes: object) -> Path:
    good = json.loads(path.read_text(encoding="utf-8").splitlines()[1])
    path.write_text(json.dumps({**good, **changes}) + "\n", encoding="utf-8")
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = clips()
    options = question("x", options=("a", "b"), references=("c",), turns=(("q", "a"), ("r", "b")))
    written.append(Clip("x.y/z ü", "a b.wav", 2.0, "mine", "test", (options,)))
    assert write_manifest(tmp_path / "m.jsonl", written) == 4
    assert list(read_manifest(tmp_path / "m.jsonl")) == written


def test_a_corpus_numbers_clips_and_questions_over_several_manifests(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.jsonl", clips("a", 3))
    write_manifest(tmp_path / "b.jsonl", clips("b", 2, split="test"))
    corpus = Corpus.open([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert (corpus.n_clips, corpus.n_questions) == (5, 9)
    assert corpus.clip_id_array.tolist() == ["a0", "a1", "a2", "b0", "b1"]
    assert corpus.first_question.tolist() == [0, 1, 3, 6, 7, 9]
    assert [corpus.splits[s] for s in corpus.clip_split] == ["train"] * 3 + ["test"] * 2
    assert corpus.has_audio.tolist() == [False, True, True, False, True]
    assert [corpus.clip(n).id for n in range(5)] == corpus.clip_id_array.tolist()
    for number in range(5):
        first = corpus.first_question[number]
        for at, each in enumerate(corpus.clip(number).questions, first):
            assert corpus.tasks[corpus.question_task[at]] == each.task
    assert corpus.audio_path(4) == tmp_path / "audio/b1.flac"
    assert corpus.clips_of(0) == ()
    assert corpus.clips_of(8) == (4,)


def test_further_clips_are_found_in_any_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.jsonl", clips("a", 2))
    both = Clip("pair", "p.wav", 1.0, "mine", "train", (question("p", clips=("a1", "a0")),))
    write_manifest(tmp_path / "b.jsonl", [both])
    corpus = Corpus.open([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert corpus.clips_of(3) == (2, 1, 0)
    with pytest.raises(ManifestError, match="names the further clip 'a1', which no manifest"):
        Corpus.open([tmp_path / "b.jsonl"]).clips_of(0)


def test_the_index_follows_the_text(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write_manifest(path, clips(n=2))
    before = Corpus.open([path])
    assert Corpus.open([path]).fingerprint == before.fingerprint
    write_manifest(path, clips(n=3))
    after = Corpus.open([path])
    assert after.n_clips == 3
    assert after.fingerprint != before.fingerprint
    np.testing.assert_array_equal(before.clip_id_array, ["c0", "c1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"questions": [{"id": "q", "task": "t", "instruction": "i"}]}, "missing answer"),
        ({"duration_s": -1}, "duration_s must be seconds from 0 on, is -1"),
        ({"duration_s": float("inf")}, "duration_s must be seconds from 0 on, is inf"),
        ({"duration_s": 10**400}, "duration_s must be seconds from 0 on, is 1000"),
        ({"duration_s": True}, "duration_s must be seconds from 0 on, is True"),
        ({"content": "0x12"}, "content must be 16 hex digits"),
        ({"id": "c\0"}, r"id must hold no NUL, is 'c\\x00'"),
        ({"split": "\ud83e"}, r"holds half a character \('\\ud83e', a surrogate alone\)"),
        ({"duratoin_s": 1}, r"unknown field 'duratoin_s' \(did you mean 'duration_s'"),
        ({"questions": "none"}, "questions must be a list"),
        ({"id": ""}, "id must be a text that is not empty"),
        (
            {"questions": [{"id": "q", "task": "t", "instruction": "i", "answer": " "}]},
            "answer must be a text that is not empty, is ' '",
        ),
    ],
)
def test_a_malformed_line_is_named_with_what_is_wrong(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    path = tmp_path / "m.jsonl"
    write_manifest(path, clips())
    with pytest.raises(ManifestError, match=f"m.jsonl:1: .*{message}"):
        Corpus.open([write_line(path, **changes)])


def test_all_malformed_lines_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    write_manifest(path, clips())
    path.write_text("{broken\n" + path.read_text(encoding="utf-8") + "[1]\n", encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        list(read_manifest(path))
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["1", "5"]


def test_a_clip_named_twice_is_refused_within_and_across_manifests(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a.jsonl", clips())
    write_manifest(tmp_path / "b.jsonl", clips()[1:])
    write_manifest(tmp_path / "twice.jsonl", clips() + clips()[:1])
    with pytest.raises(ManifestError, match=r"clip id 'c\d' stands in more than one manifest"):
        Corpus.open([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    with pytest.raises(ManifestError, match="clip id 'c0' stands there twice"):
        Corpus.open([tmp_path / "twice.jsonl"])


def test_a_missing_or_empty_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"No such file.*prepare_data\.py makes one"):
        Corpus.open([tmp_path / "none.jsonl"])
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ManifestError, match="has no clip"):
        Corpus.open([tmp_path / "empty.jsonl"])
