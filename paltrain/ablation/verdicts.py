"""Whether two shares of right answers differ by more than seeds and questions make them differ.

A difference counts where it exceeds its limit, the larger of

    over seeds        Student's t (95 %, pooled) x the standard error of the difference of the means
                      over seeds; nothing where neither share has two seeds
    over questions    two standard errors of the difference of two proportions of N and M answers
                      (questions x seeds), 2 sqrt(p (1 - p) (1 / N + 1 / M)), p: the right ones of
                      all N + M

Against chance and the deaf control, where the question is whether these very models hear and not
what their form does with other seeds, the second figure alone is the limit.

Of twenty pairs that are alike about one exceeds its limit, or fewer: that all rows answer the same
questions makes their difference surer than the second figure takes it to be.
"""

from __future__ import annotations

import math
from enum import Enum

from scipy.special import stdtrit

from paltrain.ablation.results import Share

STANDARD_ERRORS = 2.0
QUANTILE = 0.975  # of Student's t: 95 % stay between it and its negative


class Verdict(Enum):
    loses = "loses to"
    wins = "wins over"
    even = "cannot be told from"


def verdict(own: Share, other: Share) -> Verdict:
    """How a share of right answers stands to another."""
    difference = own.mean - other.mean
    if abs(difference) <= limit(own, other):
        return Verdict.even
    return Verdict.wins if difference > 0 else Verdict.loses


def limit(own: Share, other: Share) -> float:
    """The difference between two rows that must be exceeded to count."""
    return max(_over_seeds(own, other), limit_of_hearing(own, other))


def limit_of_hearing(own: Share, deaf: Share) -> float:
    """The same between the same models hearing and deaf."""
    n_own, n_deaf = own.n_answers, deaf.n_answers
    p = (own.mean * n_own + deaf.mean * n_deaf) / max(1, n_own + n_deaf)
    return _over_questions(p, n_own, n_deaf)


def limit_to_chance(own: Share, chance: float) -> float:
    """The same against a share that no sample of answers made."""
    return _over_questions(chance, own.n_answers)


def largest_over_questions(n_answers: int) -> float:
    """The second figure between two shares of so many answers each where it is largest: at 1/2."""
    return _over_questions(0.5, n_answers, n_answers)


def _over_seeds(own: Share, other: Share) -> float:
    numbers = [len(share.by_seed) for share in (own, other)]
    degrees = sum(numbers) - 2
    if degrees == 0:
        return 0.0
    squares = sum(
        (n - 1) * (share.std or 0.0) ** 2 for share, n in zip((own, other), numbers, strict=True)
    )
    error = math.sqrt(squares / degrees * sum(1 / n for n in numbers))
    return float(stdtrit(degrees, QUANTILE)) * error


def _over_questions(p: float, *n_answers: int) -> float:
    inverse = sum(1 / max(1, n) for n in n_answers)
    return STANDARD_ERRORS * math.sqrt(max(0.0, p * (1 - p)) * inverse)
