"""What the numbers are made to say, on results made up for it."""

from __future__ import annotations

import statistics

import pytest

from paltrain.ablation.build import Variant
from paltrain.ablation.report import accuracy_table, cost_table, figures, markdown
from paltrain.ablation.results import Costs, Results, Row, Share
from paltrain.ablation.sentences import Verdict, sentences, verdict

MADE = {"title": "T", "caption": "C", "command": "python tools/ablate.py x.yaml"}


def row(
    name: str, heard: dict[str, list[float]], *, costs: Costs | None = None, note: str | None = None
) -> Row:
    shares = {task: Share(dict(enumerate(values))) for task, values in heard.items()}
    return Row(Variant(name, name, {}, note), 3, shares, {}, costs or Costs())


def results(*rows: Row) -> Results:
    tasks = list(dict.fromkeys(task for each in rows for task in each.heard))
    return Results(
        rows, "plits", tasks, dict.fromkeys(tasks, 0.1), dict.fromkeys(tasks, 10), [], ["c"], None
    )


def test_a_share_has_the_mean_and_the_sample_standard_deviation():
    share = Share({0: 0.5, 1: 0.7, 2: 0.9})
    assert share.mean == pytest.approx(0.7)
    assert share.std == pytest.approx(statistics.stdev([0.5, 0.7, 0.9]))
    assert Share({0: 0.5}).std is None


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
def test_a_difference_counts_beyond_the_larger_spread(own, other, wanted):
    shares = (Share(dict(enumerate(values))) for values in (own, other))
    assert verdict(*shares) is wanted


def test_an_arm_is_told_task_by_task_where_it_loses_and_wins():
    plits = row("plits", {"which_sound": [0.95, 0.95], "how_many": [0.90, 0.914]})
    lal = row("lal", {"which_sound": [0.97, 0.97], "how_many": [0.87, 0.88]})
    (said,) = sentences(results(plits, lal))
    assert said == (
        "lal loses to plits on how_many (87.5 against 90.7, a difference of 3.2 points, seeds' "
        "standard deviation 1.0); it wins over plits on which_sound (97.0 against 95.0, a "
        "difference of 2.0 points, seeds' standard deviation 0.0)."
    )


def test_an_arm_that_hears_little_is_named_with_its_reason():
    plits = row("plits", {"which_sound": [0.9]})
    pal = row("pal", {"which_sound": [0.5]}, note="Its encoder is random.")
    said = sentences(results(plits, pal))
    assert said[-1] == (
        "pal answers 50.0 % of which_sound right, under 85 %; noted of it: Its encoder is random."
    )
    assert len(said) == 2


def test_what_is_not_there_is_a_dash_and_no_number():
    there = row("plits", {"which_sound": [0.9]}, costs=Costs(10, 20, 0.5, 2**20))
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
    plits = row("plits", {"a": [0.9]}, costs=Costs(1000, 2000, 0.5, 2 * 2**20))
    lal = row("lal", {"a": [0.9]}, costs=Costs(500, 2000, 0.25, 2**20))
    assert cost_table(results(plits, lal)).rows[1] == (
        *("lal", "500", "2,000", "250", "0.50 x", "1", "0.50 x"),
    )


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
