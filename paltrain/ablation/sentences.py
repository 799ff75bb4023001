"""What an ablation's numbers say, in plain sentences made from them and from nothing else.

Which differences count is `paltrain.ablation.verdicts`'s to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from paltrain.ablation.results import Results, Row, Share
from paltrain.ablation.verdicts import (
    Verdict,
    largest_over_questions,
    limit,
    limit_of_hearing,
    limit_to_chance,
    verdict,
)
from paltrain.errors import near_hint

NO_REASON = "no reason is given"


def sentences(results: Results) -> list[str]:
    """One for each row but the baseline's, one for each row that is not above chance somewhere, and
    one for each that stays under what is expected."""
    compared = (sentence for row in results.rows for sentence in _compared(row, results))
    not_above = (sentence for row in results.rows for sentence in _not_above(row, results))
    return [*compared, *not_above, *_under_expected(results)]


def rule(results: Results) -> str:
    """Which differences count, with the numbers of these results; empty without results."""
    tasks_of: dict[int, list[str]] = {}
    for task in results.tasks:
        n = max(row.heard[task].n_answers for row in results.rows if task in row.heard)
        tasks_of.setdefault(n, []).append(task)
    if not tasks_of:
        return ""
    points = "; ".join(
        f"{_percent(largest_over_questions(n))} points of {', '.join(tasks)} ({n:,} answers)"
        for n, tasks in tasks_of.items()
    )
    return (
        "A difference counts if it exceeds its limit, the larger one of what a t-test over the "
        "seeds asks for at 95 % (where there are several) and two standard errors of the "
        "difference of two shares of so many answers, questions x seeds. Of a row with all seeds "
        f"the second is at most {points}. Against chance and the deaf control it is the limit by "
        "itself. Of twenty pairs that are alike, about one exceeds its limit."
    )


def _compared(row: Row, results: Results) -> Iterator[str]:
    baseline = results.baseline_of(row)
    if baseline is None:
        return
    both = {
        task: (row.heard[task], baseline.heard[task])
        for task in results.tasks
        if task in row.heard and task in baseline.heard
    }
    if not both:
        yield f"{row.variant.name}: no results to hold against {baseline.variant.name}."
        return
    parts = [
        f"{each.value} {baseline.variant.name} on {told}"
        for each in Verdict
        if (told := _told(both, each))
    ]
    yield f"{row.variant.name} " + "; it ".join(parts) + "."


def _told(both: Mapping[str, tuple[Share, Share]], wanted: Verdict) -> str:
    return ", ".join(
        f"{task} ({_difference(own.mean, other.mean, limit(own, other))})"
        for task, (own, other) in both.items()
        if verdict(own, other) is wanted
    )


def _difference(own: float, other: float, needed: float, *, which: str = "") -> str:
    return (
        f"{_percent(own)} against {_percent(other)}{which}: {_percent(abs(own - other))} points, "
        f"limit {_percent(needed)}"
    )


def _not_above(row: Row, results: Results) -> Iterator[str]:
    """The tasks on which a row is not above both the deaf control and chance."""
    told = [
        f"{task} ({found})"
        for task in results.tasks
        if task in row.heard and (found := _level_not_exceeded(row, task, results.chance[task]))
    ]
    if told:
        yield f"{row.variant.name} is not above chance on {', '.join(told)}."


def _level_not_exceeded(row: Row, task: str, chance: float) -> str | None:
    heard, deaf = row.heard[task], row.deaf.get(task)
    if deaf is not None and heard.mean - deaf.mean <= (needed := limit_of_hearing(heard, deaf)):
        return _difference(heard.mean, deaf.mean, needed, which=" deaf")
    if heard.mean - chance <= (needed := limit_to_chance(heard, chance)):
        return _difference(heard.mean, chance, needed, which=" by chance")
    return None


def _under_expected(results: Results) -> Iterator[str]:
    for task, expected in results.expect.items():
        if results.tasks and task not in results.tasks:
            hint = near_hint(task, results.tasks)
            yield f"Nothing was asked of the task {task} that `expect` names{hint}."
        for row in results.rows:
            share = row.heard.get(task)
            if share is not None and share.mean < expected:
                yield (
                    f"{row.variant.name} answers {_percent(share.mean)} % of {task} right, under "
                    f"the {100 * expected:.4g} % expected: {_reason(row)}."
                )


def _reason(row: Row) -> str:
    reason = " ".join((row.variant.reason or "").split())
    return reason.removesuffix(".") or NO_REASON


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
