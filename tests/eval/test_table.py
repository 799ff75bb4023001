"""The evaluation's table, as text."""

from __future__ import annotations

import io

from rich.console import Console

from paltrain.eval.records import Answer, EvalScores
from paltrain.eval.table import build_table, strays
from paltrain.eval.tasks import score_by_task


def evaluation(model: str, givens: list[str], *, shuffled: bool = False) -> EvalScores:
    options = ("bell", "siren")
    answers = [
        Answer(f"q{i}", "c", "c", "which", "?", options, "bell", (), given)
        for i, given in enumerate(givens)
    ]
    return EvalScores(model, "test", shuffled, len(answers), 1.0, score_by_task(answers))


def test_each_model_stands_beside_its_deaf_control_baseline_and_chance() -> None:
    table = build_table(
        [
            evaluation("lal", ["bell"] * 4),
            evaluation("plits", ["bell", "bell", "siren", "siren"]),
            evaluation("lal", ["siren"] * 4, shuffled=True),
        ],
        baseline={"which": 0.6},
    )
    assert table.header == (
        "task",
        "questions",
        "lal",
        "lal, deaf",
        "plits",
        "average spectrum",
        "chance",
    )
    assert table.rows[0][0:3] == ("which", "4", "100.0 (51.0-100.0)")
    assert table.rows[0][-2:] == ("60.0", "100.0")
    assert "| which | 4 | 100.0 (51.0-100.0) |" in table.to_markdown()


def test_what_is_not_there_reads_as_a_dash() -> None:
    other = evaluation("plits", ["bell"])
    lacking = EvalScores("lal", "test", False, 0, 0.0, {})
    table = build_table([lacking, other], baseline={"elsewhere": 0.5})
    assert table.rows[0][2] == "-"
    assert table.rows[0][4] == "-"


def test_the_table_prints_and_strays_are_named() -> None:
    out = io.StringIO()
    lost = evaluation("lal", ["tuba", "bell"])
    build_table([lost]).print(Console(file=out, width=100))
    assert "which" in out.getvalue()
    assert strays([lost]) == ["lal, which: 50.0 % of answers not among the options"]
