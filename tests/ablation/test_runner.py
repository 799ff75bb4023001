"""What is said of a trial that failed."""

from __future__ import annotations

from pathlib import Path

from cluster.ablation.runner import TAIL_BYTES, last_words


def test_the_last_words_are_those_of_the_latest_command(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("$ python train\nerror: no space is left\n")
    assert last_words(log) == "error: no space is left"
    with log.open("a") as file:
        file.write("$ python train\nTraceback:\n  x = 1\nValueError: x\n\n")
    assert last_words(log) == "ValueError: x"
    with log.open("a") as file:
        file.write("$ python evaluate\nerror: no model\nending the other ranks\n")
    assert last_words(log) == "error: no model"
    with log.open("a") as file:
        file.write("$ python evaluate\n")
    assert last_words(log) == "it said nothing"


def test_last_words_behind_a_long_output_and_of_no_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("$ python train\n" + "step\n" * TAIL_BYTES + "error: diverged\n")
    assert last_words(log) == "error: diverged"
    assert last_words(tmp_path / "none") == "it said nothing"
