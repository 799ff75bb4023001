"""Deals a step's visits out to ranks: equally many micro-batches, even in cost, within budgets.

Longest processing time first: the dearest visit goes to the rank with the least to do so far, there
into the micro-batch with the least to do that has room for it. What does not fit anywhere makes all
ranks start again with one micro-batch more. In the end the dearest rank swaps visits with cheaper
ones as long as that lowers the maximum.

            micro-batch 0   micro-batch 1        ranks march in step (ZeRO-3 gathers each layer
    rank 0  [v7 v2]         [v4]                 together), so a rank's micro-batches stand dearest
    rank 1  [v0]            [v5 v1]              first: the n-th costs about the same everywhere
    rank 2  [v3]            []   <- dummy

Every rank computes the same answer from the same arrays. Costs: 2048 visits in a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paltrain.data.sizes import StreamCost, VisitSizes

EVEN_ENOUGH = 1.002  # dearest rank / mean rank at which swapping ends
MAX_SWAPS = 64
TEXT_COST = 1024.0
SWAP_PARTNERS = 4  # cheapest ranks that the dearest one tries to swap with

MicroBatches = list[list[list[int]]]  # [rank][micro-batch] -> numbers of visits


@dataclass(frozen=True)
class CostModel:
    """Cost of a visit of T text tokens, M targets, P audio rows (PLITS) and K audio keys (LAL):

        text * T + target * M + (its clips by themselves) + pair * ((T + P) * K + (T + P)^2 / 2)

    In any unit; the model's builder knows it in FLOPs (`paltrain.model.cost`). streams: by name.
    """

    text: float = 1.0
    target: float = 0.0
    pair: float = 0.0
    streams: Mapping[str, StreamCost] = field(default_factory=dict)

    @classmethod
    def of(cls, costs: Mapping[str, Any]) -> CostModel:
        """From plain numbers: text, target and pair, and by stream the fields of `StreamCost`."""
        streams = {name: StreamCost(**cost) for name, cost in costs["streams"].items()}
        return cls(costs["text"], costs["target"], costs["pair"], streams)

    def __call__(self, sizes: VisitSizes) -> NDArray[np.float64]:
        """(n,) whole numbers, `TEXT_COST` for a text token: they add up alike in any order."""
        rows = sizes.text + sizes.rows
        pairs = rows * sizes.keys + rows * rows / 2
        cost = self.text * sizes.text + self.target * sizes.target + sizes.cost + self.pair * pairs
        return np.rint(cost * (TEXT_COST / self.text))


@dataclass(frozen=True)
class Balance:
    """How evenly a step is dealt out.

    imbalance: dearest rank / mean rank. idle_share: of all ranks' time in lockstep, the part spent
    waiting for the dearest micro-batch of the same number. n_dummies: micro-batches without a
    visit.
    """

    imbalance: float
    idle_share: float
    n_dummies: int


def deal(
    text: NDArray[np.int64],
    audio: NDArray[np.int64],
    cost: NDArray[np.float64],
    *,
    world_size: int,
    text_budget: int,
    audio_budget: int,
) -> MicroBatches:
    """Micro-batches of every rank; alone, each visit must fit both budgets."""
    assert len(text) == 0 or (text.max() <= text_budget and audio.max() <= audio_budget)
    dearest_first = np.argsort(-cost, kind="stable")
    visits = list(
        zip(
            *(a[dearest_first].tolist() for a in (text, audio, cost)),
            dearest_first.tolist(),
            strict=True,
        )
    )
    n_micro = _fewest(text, audio, world_size, text_budget, audio_budget)
    while True:
        if dealt := _try(visits, world_size, n_micro, text_budget, audio_budget):
            _swap_until_even(dealt, (text, audio), cost, (text_budget, audio_budget))
            return dealt
        n_micro += max(1, n_micro // 16)


def balance(micro_batches: MicroBatches, cost: NDArray[np.float64]) -> Balance:
    """How evenly `micro_batches` spread `cost`, that of each visit."""
    costs = np.array([[cost[visits].sum() for visits in rank] for rank in micro_batches])
    mean = costs.sum() / len(costs)
    lockstep = costs.max(axis=0).sum()
    return Balance(
        imbalance=float(costs.sum(axis=1).max() / mean) if mean else 1.0,
        idle_share=float(1 - mean / lockstep) if lockstep else 0.0,
        n_dummies=sum(not visits for rank in micro_batches for visits in rank),
    )


def _swap_until_even(
    micro_batches: MicroBatches,
    sizes: tuple[NDArray[np.int64], ...],
    cost: NDArray[np.float64],
    budgets: tuple[int, ...],
) -> None:
    """Swap single visits of the dearest rank and a cheap one, in place, while it helps."""
    loads = np.array([sum(cost[visits].sum() for visits in rank) for rank in micro_batches])
    for _ in range(MAX_SWAPS if len(loads) > 1 else 0):
        heavy = int(loads.argmax())
        if loads[heavy] <= EVEN_ENOUGH * loads.mean():
            return
        for light in loads.argsort(kind="stable")[:SWAP_PARTNERS].tolist():
            gap = loads[heavy] - loads[light]
            moved = _swap(micro_batches[heavy], micro_batches[light], sizes, cost, budgets, gap)
            if moved:
                loads[heavy] -= moved
                loads[light] += moved
                break
        else:
            return


def _swap(
    heavy: list[list[int]],
    light: list[list[int]],
    sizes: tuple[NDArray[np.int64], ...],
    cost: NDArray[np.float64],
    budgets: tuple[int, ...],
    gap: float,
) -> float:
    """Exchange the pair that brings two ranks nearest together; returns the cost moved, or 0."""
    give, give_to = _flat(heavy)
    take, take_from = _flat(light)
    if not len(give) or not len(take):
        return 0.0
    moved = cost[give][:, None] - cost[take][None, :]
    gain = np.minimum(moved, gap - moved)
    for size, budget in zip(sizes, budgets, strict=True):
        more = size[give][:, None] - size[take][None, :]
        left_heavy = np.array([budget - size[visits].sum() for visits in heavy])
        left_light = np.array([budget - size[visits].sum() for visits in light])
        gain[(more > left_light[take_from][None, :]) | (-more > left_heavy[give_to][:, None])] = 0
    a, b = np.unravel_index(int(gain.argmax()), gain.shape)
    if gain[a, b] <= 1e-9 * gap:
        return 0.0
    heavy[give_to[a]].remove(int(give[a]))
    heavy[give_to[a]].append(int(take[b]))
    light[take_from[b]].remove(int(take[b]))
    light[take_from[b]].append(int(give[a]))
    return float(moved[a, b])


def _flat(rank: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A rank's visits, and the micro-batch in which each is."""
    number = [n for n, visits in enumerate(rank) for _ in visits]
    return np.array([v for visits in rank for v in visits], np.int64), np.array(number, np.int64)


def _fewest(
    text: NDArray[np.int64],
    audio: NDArray[np.int64],
    world_size: int,
    text_budget: int,
    audio_budget: int,
) -> int:
    """A lower bound of the micro-batches a rank needs: by the sums, and by what can't share one."""
    bounds = [1]
    for size, budget in ((text, text_budget), (audio, audio_budget)):
        if budget:
            bounds.append(-(-int(size.sum()) // (budget * world_size)))
            bounds.append(-(-int((2 * size > budget).sum()) // world_size))
    return max(bounds)


def _try(
    visits: list[tuple[int, int, float, int]],
    world_size: int,
    n_micro: int,
    text_budget: int,
    audio_budget: int,
) -> MicroBatches | None:
    """Deal with `n_micro` micro-batches a rank; None if a visit finds no room."""
    loads: list[tuple[float, int]] = [(0.0, rank) for rank in range(world_size)]
    least = (min((v[0] for v in visits), default=0), min((v[1] for v in visits), default=0))
    ranks = [_Rank(n_micro, text_budget, audio_budget, least) for _ in range(world_size)]
    for text, audio, cost, visit in visits:
        passed = []
        while loads:
            load, rank = heappop(loads)
            if ranks[rank].take(text, audio, cost, visit):
                passed.append((load + cost, rank))
                break
            if ranks[rank].is_open:
                passed.append((load, rank))
        else:
            return None
        for entry in passed:
            heappush(loads, entry)
    return [rank.dearest_first() for rank in ranks]


class _Rank:
    """One rank's micro-batches: a heap by cost; what has no room for `least` is closed."""

    def __init__(
        self, n_micro: int, text_budget: int, audio_budget: int, least: tuple[int, int]
    ) -> None:
        self._open = [(0.0, number) for number in range(n_micro)]
        self._closed: list[tuple[float, int]] = []
        self._least_text, self._least_audio = least
        self._text_left = [text_budget] * n_micro
        self._audio_left = [audio_budget] * n_micro
        self._visits: list[list[int]] = [[] for _ in range(n_micro)]

    @property
    def is_open(self) -> bool:
        return bool(self._open)

    def take(self, text: int, audio: int, cost: float, visit: int) -> bool:
        """Put the visit into the cheapest micro-batch with room; False if there is none."""
        passed: list[tuple[float, int]] = []
        taken = False
        while self._open and not taken:
            load, number = heappop(self._open)
            if text <= self._text_left[number] and audio <= self._audio_left[number]:
                self._text_left[number] -= text
                self._audio_left[number] -= audio
                self._visits[number].append(visit)
                load, taken = load + cost, True
            has_room = (
                self._text_left[number] >= self._least_text
                and self._audio_left[number] >= self._least_audio
            )
            (passed if has_room else self._closed).append((load, number))
        for entry in passed:
            heappush(self._open, entry)
        return taken

    def dearest_first(self) -> list[list[int]]:
        by_cost = sorted(self._open + self._closed, key=lambda entry: (-entry[0], entry[1]))
        return [self._visits[number] for _, number in by_cost]
