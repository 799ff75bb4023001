"""Answers on disk: resumable, never torn, never mixed."""

from __future__ import annotations

from pathlib import Path

from paltrain.eval.records import OTHER_FILE, Answer, AnswerFile, EvalScores, read_answers

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
