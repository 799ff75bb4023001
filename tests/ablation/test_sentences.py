"""What the numbers are made to say, on results made up for it."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paltrain.ablation.build import Variant
from paltrain.ablation.report import accuracy_table, cost_table, figures, markdown
from paltrain.ablation.results import Costs, Results, Row, Share
from paltrain.ablation.sentences import rule, sentences
from paltrain.ablation.verdicts import Verdict, limit, verdict

MADE = {"title": "T", "caption": "C", "command": "python tools/ablate.py x.yaml"}


N_QUESTIONS = 1000


def share(values: list[float], *, n_questions: int = N_QUESTIONS) -> Share:
    return Share(dict(enumerate(values)), n_questions * len(values))


def row(
    name: str,
    heard: dict[str, list[float]],
    *,
    deaf: dict[str, list[float]] | None = None,
    costs: Costs | None = None,
    reason: str | None = None,
) -> Row:
    shares, of_deaf = (
        {task: share(values) for task, values in each.items()} for each in (heard, deaf or {})
    )
    variant = Variant(name, name, {}, reason=reason)
    return Row(variant, 3, shares, of_deaf, costs or Costs())


def results(*rows: Row, **changes: Any) -> Results:
    tasks = list(dict.fromkeys(task for each in rows for task in each.heard))
    made = Results(
        rows, "plits", tasks, dict.fromkeys(tasks, 0.1), dict.fromkeys(tasks, 10), [], ["c"], None
    )
    return replace(made, **changes)


def test_a_share_has_the_mean_and_the_sample_standard_deviation():
    of_three = share([0.5, 0.7, 0.9])
    assert of_three.mean == pytest.approx(0.7)
    assert of_three.std == pytest.approx(statistics.stdev([0.5, 0.7, 0.9]))
    assert share([0.5]).std is None


@pytest.mark.parametrize(
    ("own", "other", "wanted"),
    [
        ([0.80, 0.82], [0.90, 0.92], Verdict.loses),
        ([0.90, 0.92], [0.80, 0.82], Verdict.wins),
        ([0.80, 0.90], [0.88, 0.89], Verdict.even),
        ([0.88, 0.89], [0.80, 0.90], Verdict.even),  # whichever of the two is the uncertain one
        ([0.5], [0.6], Verdict.loses),
        ([0.5], [0.5], Verdict.even),
    ],
)
def test_a_difference_counts_beyond_what_seeds_make(own, other, wanted):
    assert verdict(share(own), share(other)) is wanted


@pytest.mark.parametrize(
    ("own", "other", "n_questions", "wanted"),
    [
        ([0.50, 0.50], [0.67, 0.67], 18, Verdict.even),  # two seeds of 18 questions
        ([0.50, 0.50], [0.67, 0.67], 180, Verdict.loses),
        ([1.0], [0.0], 2, Verdict.even),  # a share of 0 or 1 is no certainty
        ([1.0], [0.0], 20, Verdict.wins),
    ],
)
def test_a_difference_counts_beyond_the_sampling_of_questions(own, other, n_questions, wanted):
    shares = (share(values, n_questions=n_questions) for values in (own, other))
    assert verdict(*shares) is wanted


def test_the_limit_over_questions_is_two_standard_errors_of_two_proportions():
    own, other = share([0.6], n_questions=100), share([0.4, 0.4], n_questions=150)
    p = (60 + 120) / 400
    error = math.sqrt(p * (1 - p) / 100 + p * (1 - p) / 300)
    assert limit(own, other) == pytest.approx(2 * error)


@pytest.mark.parametrize("n", [(2, 2), (3, 3), (1, 3), (3, 1)])
def test_the_limit_over_seeds_is_where_the_t_test_has_its_95_percent(n):
    stats = pytest.importorskip("scipy.stats")
    own, other = np.array([0.2, 0.5, 0.6])[: n[0]], np.array([0.3, 0.9, 0.5])[: n[1]]
    own = own - own.mean() + other.mean() + limit(share(list(own)), share(list(other)))
    if min(n) > 1:
        assert stats.ttest_ind(own, other).pvalue == pytest.approx(0.05, rel=0.02)
    else:  # the one value's spread is taken to be that of the others
        many, one = (own, other) if n[0] > 1 else (other, own)
        t = abs(many.mean() - one[0]) / (many.std(ddof=1) * math.sqrt(1 / len(many) + 1))
        assert 2 * stats.t.sf(t, len(many) - 1) == pytest.approx(0.05, rel=0.02)


def test_an_arm_is_told_task_by_task_where_it_loses_wins_and_neither():
    plits = row("plits", {"which_sound": [0.95, 0.95], "how_many": [0.90, 0.91], "when": [0.5]})
    lal = row("lal", {"which_sound": [0.97, 0.97], "how_many": [0.84, 0.85], "when": [0.52]})
    (said,) = sentences(results(plits, lal))
    assert said == (
        "lal loses to plits on how_many (84.5 against 90.5: 6.0 points, limit 3.0); it wins over "
        "plits on which_sound (97.0 against 95.0: 2.0 points, limit 1.2); it cannot be told from "
        "plits on when (52.0 against 50.0: 2.0 points, limit 4.5)."
    )


def test_the_rule_is_told_once_with_its_numbers():
    made = results(row("plits", {"a": [0.9, 0.9]}), row("lal", {"a": [0.8]}))
    assert "at most 3.2 points of a (2,000 answers)." in rule(made)
    assert markdown(made, **MADE).count("A difference counts if") == 1
    assert rule(results(row("plits", {}))) == ""


def test_a_row_that_is_not_above_chance_is_named_with_the_task():
    plits = row("plits", {"a": [0.52], "b": [0.5, 0.9]}, deaf={"a": [0.50], "b": [0.1, 0.1]})
    lal = row("lal", {"a": [0.9], "b": [0.11]})  # without a deaf control: against chance
    said = sentences(results(plits, lal))
    assert said[1:] == [  # seeds that differ hear all the same
        "plits is not above chance on a (52.0 against 50.0 deaf: 2.0 points, limit 4.5).",
        "lal is not above chance on b (11.0 against 10.0 by chance: 1.0 points, limit 1.9).",
    ]


def test_a_row_under_what_is_expected_is_named_with_its_reason():
    plits, lal = row("plits", {"which_sound": [0.9]}), row("lal", {"which_sound": [0.6]})
    pal = row("pal", {"which_sound": [0.713]}, reason="its encoder is\nrandom.")
    assert not any("expected" in each for each in sentences(results(plits, lal, pal)))
    said = sentences(results(plits, lal, pal, expect={"which_sound": 0.85}))
    assert said[2:] == [
        "lal answers 60.0 % of which_sound right, under the 85 % expected: no reason is given.",
        "pal answers 71.3 % of which_sound right, under the 85 % expected: its encoder is random.",
    ]


def test_an_expected_task_that_nobody_was_asked_is_told():
    said = sentences(results(row("plits", {"which_sound": [0.9]}), expect={"which_sond": 0.85}))
    assert said == [
        "Nothing was asked of the task which_sond that `expect` names (did you mean "
        "'which_sound'?)."
    ]


def test_what_is_not_there_is_a_dash_and_no_number():
    there = row("plits", {"which_sound": [0.9]}, costs=Costs(10, 20, 0.5, 1.0))
    gone = row("lal", {})
    made = results(there, gone)
    plits, lal, chance = accuracy_table(made).rows
    assert plits == ("plits", "1 of 3", "90.0", "90.0")
    assert lal == ("lal", "0 of 3", "-", "-")
    assert chance == ("chance", "", "10.0", "10.0")
    assert cost_table(made).rows[1] == ("lal", "-", "-", "-", "-", "-", "-")
    assert sentences(made) == ["lal: no results to hold against plits."]
    assert figures(made, **MADE)["rows"][1]["accuracy"] == {}


def test_costs_are_told_beside_the_baselines():
    plits = row("plits", {"a": [0.9]}, costs=Costs(1000, 2000, 0.5, 2.0))
    lal = row("lal", {"a": [0.9]}, costs=Costs(500, 2000, 0.25, 1.0))
    table = cost_table(results(plits, lal))
    assert table.header[4] == table.header[6] == "x plits"
    assert table.rows[1] == (*("lal", "500", "2,000", "250", "0.50", "1", "0.50"),)


def test_an_axis_of_the_baselines_arm_is_held_against_its_first_value():
    first, second = row("plits-all", {"a": [0.9]}), row("plits-none", {"a": [0.8]})
    rows = [
        Row(Variant(each.variant.name, "plits", {"k": n}), 1, each.heard, {}, Costs())
        for n, each in enumerate((first, second))
    ]
    made = results(*rows)
    assert made.baseline_of(rows[0]) is None
    assert made.baseline_of(rows[1]) is rows[0]


def test_the_text_has_title_caption_command_and_no_date():
    text = markdown(results(row("plits", {"a": [0.9]})), **MADE)
    assert text.startswith("# T\n\nC\n")
    assert "`python tools/ablate.py x.yaml`" in text
    assert "202" not in text
