"""Answers on disk: resumable, never torn, never mixed."""

from __future__ import annotations

from pathlib import Path

import pytest

from paltrain.errors import IncompleteError
from paltrain.eval.records import (
    OTHER_FILE,
    Answer,
    AnswerFile,
    EvalScores,
    answers_elsewhere,
    numbers_of_slices,
    read_answers,
    slice_folder,
)

IDENTITY = {"model": "m1", "seed": 0}


def answer(n: int, *, given: str = "bell") -> Answer:
    return Answer(
        f"q{n}", f"c{n}", f"c{n}", "which", "?", ("bell", "siren"), "bell", ("ring",), given
    )


def test_answers_are_read_back_as_written(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path, identity=IDENTITY)
    file.append([answer(0), answer(1, given="größer")])
    assert list(read_answers(tmp_path)) == [answer(0), answer(1, given="größer")]
    assert '"correct": true' in file.path.read_text(encoding="utf-8")


def test_opening_again_drops_a_torn_line_and_goes_on(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path, identity=IDENTITY)
    file.append([answer(0), answer(1)])
    whole = file.path.read_bytes()
    file.path.write_bytes(whole[:-20])

    again = AnswerFile(tmp_path, identity=IDENTITY)
    assert again.answered == {("c0", "q0")}
    again.append([answer(1)])
    assert file.path.read_bytes() == whole


def test_answers_of_another_model_are_moved_aside(tmp_path: Path) -> None:
    first = AnswerFile(tmp_path, identity=IDENTITY)
    first.append([answer(0)])
    first.score(model="m", split="test", shuffled=False, seconds=1.0)

    second = AnswerFile(tmp_path, identity={"model": "m2", "seed": 0})
    assert second.answered == set()
    assert (tmp_path / OTHER_FILE).exists()
    assert not (tmp_path / "scores.json").exists()


def test_scores_survive_the_round_trip(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path, identity=IDENTITY)
    file.append([answer(0), answer(1, given="siren")])
    scores = file.score(model="m", split="test", shuffled=True, seconds=1.5)
    assert EvalScores.load(tmp_path) == scores
    assert scores.by_task["which"].accuracy == 0.5
    assert scores.n_questions == 2


def test_answers_of_slices_are_taken_over_once_and_put_in_order(tmp_path: Path) -> None:
    first = AnswerFile(slice_folder(tmp_path, (0, 2)), identity=IDENTITY)
    first.append([answer(2), answer(0)])
    second = AnswerFile(slice_folder(tmp_path, (1, 2)), identity=IDENTITY)
    second.append([answer(3), answer(1), answer(3, given="siren")])  # two processes at once
    other = AnswerFile(slice_folder(tmp_path, (0, 3)), identity={"model": "m2", "seed": 0})
    other.append([answer(4)])
    with second.path.open("a") as file:
        file.write('{"question_id": "q5", "clip_i')  # being written now
    assert numbers_of_slices(tmp_path, IDENTITY) == [2]
    known = answers_elsewhere(tmp_path, IDENTITY)
    assert sorted(known) == [(f"c{n}", f"q{n}") for n in range(4)]

    whole = AnswerFile(tmp_path, identity=IDENTITY)
    whole.append([answer(1, given="its own")])
    keys = [(f"c{n}", f"q{n}") for n in range(6)]
    whole.adopt(known, keys)
    whole.adopt(known, keys)
    assert whole.answered == set(known)
    whole.put_in_order(keys)
    assert list(read_answers(tmp_path)) == [
        answer(0),
        answer(1, given="its own"),
        answer(2),
        answer(3),
    ]


@pytest.mark.parametrize("content", ['{"model": "m", "by', '{"by_task": {}, "of": "later"}', "[]"])
def test_scores_that_are_torn_or_of_other_code_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(content, encoding="utf-8")
    with pytest.raises(IncompleteError, match="scores.json cannot be read .*evaluate again"):
        EvalScores.load(tmp_path)
