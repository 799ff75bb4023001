"""Scoring and chance, on questions small enough to score by hand."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from paltrain.eval.records import Answer
from paltrain.eval.tasks import (
    Scoring,
    is_among,
    is_correct,
    normalise,
    score_by_task,
    token_f1,
    wilson_interval,
)


def answer(
    given: str,
    expected: str,
    *,
    task: str = "t",
    options: tuple[str, ...] | None = None,
    n: int = 0,
) -> Answer:
    return Answer(f"q{n}", "c", "c", task, "?", options, expected, (), given)


def test_normalising_drops_case_articles_and_punctuation_only() -> None:
    assert normalise("  The Bell,\nthen A siren. ") == "bell then siren"
    assert normalise("theatre") == "theatre"


def test_a_reference_counts_as_right() -> None:
    assert is_correct("A dog!", "dog")
    assert is_correct("hound", "dog", ["hound"])
    assert not is_correct("hound", "dog")
    assert not is_correct("", "dog")


def test_an_answer_outside_the_options_is_wrong_and_counted() -> None:
    options = ("bell", "siren")
    answers = [
        answer("The bell.", "bell", options=options),
        answer("siren", "bell", options=options),
        answer("a tuba", "bell", options=options),
        answer("", "siren", options=options),
    ]
    score = score_by_task(answers)["t"]
    assert score.scoring is Scoring.options
    assert (score.n, score.n_correct, score.accuracy) == (4, 1, 0.25)
    assert score.not_among_options == 0.5
    assert score.token_f1 is None
    assert not is_among("tuba", options)


def test_chance_of_varying_options_is_the_better_place_in_the_list() -> None:
    pairs = [(("a1", "b1"), 1), (("a2", "b2"), 1), (("a3", "b3"), 1), (("a4", "b4"), 0)]
    answers = [answer("", pair[place], options=pair) for pair, place in pairs]
    chance = score_by_task(answers)["t"].chance
    assert chance.accuracy == 0.75
    assert chance.policy == "always alternative 2"


def test_chance_of_fixed_answers_is_the_commonest_answer() -> None:
    answers = [answer("", text, options=("yes", "no")) for text in ["no", "No.", "yes"]]
    chance = score_by_task(answers)["t"].chance
    assert chance.accuracy == pytest.approx(2 / 3)
    assert chance.policy == "always 'no'"


def test_free_text_is_scored_exactly_and_by_token_f1() -> None:
    answers = [answer("a bell and a siren", "bell then siren"), answer("bell", "bell")]
    score = score_by_task(answers)["t"]
    assert score.scoring is Scoring.exact
    assert score.accuracy == 0.5
    assert score.token_f1 == pytest.approx((2 / 3 + 1) / 2)
    assert score.not_among_options is None
    assert token_f1("", "bell") == 0.0


def test_tasks_keep_the_order_in_which_they_appear() -> None:
    answers = [answer("", "x", task=task) for task in ["which", "how_many", "which"]]
    assert list(score_by_task(answers)) == ["which", "how_many"]


@pytest.mark.parametrize(("n_correct", "n"), [(0, 5), (3, 7), (90, 100), (400, 400)])
def test_interval_equals_scipys_wilson_interval(n_correct: int, n: int) -> None:
    theirs = binomtest(n_correct, n).proportion_ci(method="wilson")
    assert wilson_interval(n_correct, n) == pytest.approx((theirs.low, theirs.high))


def test_interval_of_nothing_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
