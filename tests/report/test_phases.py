"""Seconds by phase."""

from __future__ import annotations

from pathlib import Path

from paltrain.report.phases import PhaseCall, append_phase, read_phases


def test_a_phase_that_was_called_again_takes_the_sum_of_its_calls(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "phases.jsonl"
    append_phase(file, PhaseCall("LAL", "train", 60.0, 137))
    append_phase(file, PhaseCall("report", "report", 2.0, 0))
    append_phase(file, PhaseCall("LAL", "train", 40.5, 0))
    lal, report = read_phases(file)
    assert (lal.phase, lal.seconds, lal.n_calls, lal.finished) == ("LAL", 100.5, 2, True)
    assert (report.phase, report.n_calls) == ("report", 1)


def test_a_phase_whose_last_call_failed_is_not_finished(tmp_path: Path) -> None:
    append_phase(tmp_path / "p.jsonl", PhaseCall("LAL", "train", 60.0, 1))
    assert not read_phases(tmp_path / "p.jsonl")[0].finished


def test_a_torn_line_and_an_absent_file_are_no_phases(tmp_path: Path) -> None:
    assert read_phases(tmp_path / "none.jsonl") == []
    (tmp_path / "p.jsonl").write_text('{"phase": "LAL", "comm', encoding="utf-8")
    assert read_phases(tmp_path / "p.jsonl") == []
