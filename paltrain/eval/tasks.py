"""Scores answers by task, and says what could be scored without listening.

How a task is scored follows from its data, not from its name:

    options   every question of the task states alternatives; the answer must be one of them
    exact     otherwise; the answer must be the expected text or one of its references

Both compare texts normalised as SQuAD does (lower case, no punctuation, no articles, single spaces;
https://arxiv.org/abs/1606.05250). An option-scored answer that is none of the options is wrong and
is counted apart. Exact-scored tasks carry SQuAD's token F1 as well, since a long description that
is one word off is not worthless.

Chance is the best constant policy on the very questions that are scored: always the same text, or
always the first (second, ...) alternative, whichever scores best. Where the alternatives vary from
question to question ("the bell or the siren?") no fixed text does well, but "the first named" may.

Costs: pure Python, linear in the number of answers; no torch.
"""

from __future__ import annotations

import math
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

_ARTICLES = frozenset({"a", "an", "the"})
_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)
Z_95 = 1.959963984540054


class Scoring(Enum):
    exact = "exact"
    options = "options"


class Scorable(Protocol):
    """What scoring reads of an answered question."""

    @property
    def task(self) -> str: ...
    @property
    def options(self) -> Sequence[str] | None: ...
    @property
    def expected(self) -> str: ...
    @property
    def references(self) -> Sequence[str]: ...
    @property
    def given(self) -> str: ...


@dataclass(frozen=True)
class Chance:
    """The best constant policy and the share it answers right."""

    accuracy: float
    policy: str


@dataclass(frozen=True)
class TaskScore:
    """One task's result. Shares are in 0..1.

    interval: 95 % Wilson. not_among_options: share, only for option scoring. token_f1: mean, only
    for exact scoring.
    """

    task: str
    scoring: Scoring
    n: int
    n_correct: int
    accuracy: float
    interval: tuple[float, float]
    chance: Chance
    not_among_options: float | None = None
    token_f1: float | None = None


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, words one space apart.

    >>> normalise("The  Bell, then a siren.")
    'bell then siren'
    """
    words = text.lower().translate(_DROP_PUNCTUATION).split()
    return " ".join(word for word in words if word not in _ARTICLES)


def accepted(expected: str, references: Sequence[str]) -> set[str]:
    """The normalised texts that count as right."""
    return {normalise(text) for text in (expected, *references)}


def is_correct(given: str, expected: str, references: Sequence[str] = ()) -> bool:
    return normalise(given) in accepted(expected, references)


def is_among(given: str, options: Sequence[str]) -> bool:
    return normalise(given) in {normalise(option) for option in options}


def token_f1(given: str, expected: str) -> float:
    """SQuAD's F1 of the normalised words as bags: harmonic mean of precision and recall.

    >>> round(token_f1("a bell and a siren", "bell then siren"), 3)
    0.667
    """
    ours, theirs = normalise(given).split(), normalise(expected).split()
    if not ours or not theirs:
        return float(ours == theirs)
    n_common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * n_common / (len(ours) + len(theirs))


def wilson_interval(n_correct: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval (https://doi.org/10.2307/2276774) of a share; (0, 1) for
    n = 0."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = n_correct / n, Z_95**2
    centre = share + z2 / (2 * n)
    spread = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = (centre - spread) / (1 + z2 / n), (centre + spread) / (1 + z2 / n)
    return max(0.0, low), min(1.0, high)


def scoring_of(questions: Iterable[Scorable]) -> Scoring:
    """Options if every question has at least two alternatives, else exact."""
    return Scoring.options if all(len(q.options or ()) > 1 for q in questions) else Scoring.exact


def best_constant(questions: Sequence[Scorable]) -> Chance:
    """The constant policy that answers most of `questions` right; ties go to the simpler one."""
    texts: Counter[str] = Counter()
    places: Counter[int] = Counter()
    for question in questions:
        right = accepted(question.expected, question.references)
        texts.update(right)
        places.update(
            i for i, option in enumerate(question.options or ()) if normalise(option) in right
        )
    n = max(1, len(questions))
    text, n_text = texts.most_common(1)[0] if texts else ("", 0)
    place, n_place = places.most_common(1)[0] if places else (0, 0)
    if n_place > n_text and scoring_of(questions) is Scoring.options:
        return Chance(n_place / n, f"always alternative {place + 1}")
    return Chance(n_text / n, f"always '{text}'")


def score_task(task: str, answers: Sequence[Scorable]) -> TaskScore:
    """The score of one task's answers."""
    scoring = scoring_of(answers)
    n = len(answers)
    n_correct = sum(is_correct(a.given, a.expected, a.references) for a in answers)
    strays, f1 = None, None
    if scoring is Scoring.options:
        strays = sum(not is_among(a.given, a.options or ()) for a in answers) / max(1, n)
    else:
        f1 = sum(_best_f1(a) for a in answers) / max(1, n)
    return TaskScore(
        task=task,
        scoring=scoring,
        n=n,
        n_correct=n_correct,
        accuracy=n_correct / max(1, n),
        interval=wilson_interval(n_correct, n),
        chance=best_constant(answers),
        not_among_options=strays,
        token_f1=f1,
    )


def score_by_task(answers: Iterable[Scorable]) -> dict[str, TaskScore]:
    """Every task's score, in the order in which the tasks first appear."""
    by_task: dict[str, list[Scorable]] = {}
    for answer in answers:
        by_task.setdefault(answer.task, []).append(answer)
    return {task: score_task(task, of_task) for task, of_task in by_task.items()}


def _best_f1(answer: Scorable) -> float:
    return max(token_f1(answer.given, text) for text in (answer.expected, *answer.references))
