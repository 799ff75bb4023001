"""The order of an epoch: each question once, random but reproducible, local in its shards."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paltrain.data.order import VisitOrder, cut_into_visits, shuffle_within


def order_of(
    clip_sizes, *, questions_per_visit=1, shards=None, window_shards=2, seed=0
) -> VisitOrder:
    starts = np.concatenate([[0], np.cumsum(clip_sizes)]).astype(np.int32)
    return VisitOrder(
        np.arange(starts[-1], dtype=np.int32) * 3,  # corpus numbers with gaps
        clip_start=starts,
        shard=np.zeros(len(clip_sizes), int) if shards is None else np.asarray(shards),
        questions_per_visit=questions_per_visit,
        window_shards=window_shards,
        seed=seed,
    )


def visits_of(epoch) -> list[tuple[int, ...]]:
    questions, starts = epoch.between(0, epoch.n_visits)
    return [tuple(questions[a:b].tolist()) for a, b in itertools.pairwise(starts)]


@settings(max_examples=60, deadline=None)
@given(
    clip_sizes=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    questions_per_visit=st.integers(1, 5),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 5),
)
def test_every_question_comes_once_an_epoch_with_others_of_its_clip(
    clip_sizes, questions_per_visit, seed, epoch
):
    order = order_of(clip_sizes, questions_per_visit=questions_per_visit, seed=seed)
    visits = visits_of(order.epoch(epoch))
    assert sorted(q for visit in visits for q in visit) == order.questions.tolist()
    clip_of = np.repeat(np.arange(len(clip_sizes)), clip_sizes)
    for visit in visits:
        assert 1 <= len(visit) <= questions_per_visit
        assert len({clip_of[q // 3] for q in visit}) == 1


def test_an_epoch_is_a_function_of_seed_and_number():
    first = order_of([3] * 50, questions_per_visit=2, seed=7)
    again = order_of([3] * 50, questions_per_visit=2, seed=7)
    other = order_of([3] * 50, questions_per_visit=2, seed=8)
    assert visits_of(first.epoch(1)) == visits_of(again.epoch(1))
    assert visits_of(first.epoch(0)) != visits_of(first.epoch(1))
    assert visits_of(first.epoch(0)) != visits_of(other.epoch(0))


def test_the_order_does_not_change_between_releases():
    """A resumed run relies on it: a change here is a change of format."""
    order = order_of([2, 1, 3, 1], questions_per_visit=2, shards=[0, 0, 1, 2], seed=5)
    assert visits_of(order.epoch(0)) == [(3, 0), (6,), (18,), (12, 9), (15,)]


def test_questions_of_a_clip_change_their_company_between_epochs():
    order = order_of([6] * 20, questions_per_visit=2)
    company = [{frozenset(visit) for visit in visits_of(order.epoch(e))} for e in range(2)]
    assert len(company[0] & company[1]) < len(company[0]) / 2


def test_nearby_visits_lie_in_few_shards_and_are_shuffled_within_them():
    shards = np.repeat(np.arange(12), 100)
    order = order_of([1] * 1200, shards=shards, window_shards=3)
    shard_at = [shards[visit[0] // 3] for visit in visits_of(order.epoch(0))]
    windows = [shard_at[i : i + 300] for i in range(0, 1200, 300)]
    assert [len(set(window)) for window in windows] == [3, 3, 3, 3]
    for window in windows:
        changes = sum(a != b for a, b in itertools.pairwise(window))
        assert changes > 150  # about two thirds of 299 where three shards are mixed
    assert sorted(shard_at) == sorted(shards)


def test_any_stretch_of_an_epoch_equals_the_same_stretch_of_the_whole():
    epoch = order_of([1, 4, 2, 5, 3] * 10, questions_per_visit=3).epoch(2)
    whole = visits_of(epoch)
    questions, starts = epoch.between(7, 19)
    stretch = [tuple(questions[a:b].tolist()) for a, b in itertools.pairwise(starts)]
    assert stretch == whole[7:19]
    assert epoch.n_questions_before[7] == sum(map(len, whole[:7]))


def test_clips_may_have_visits_of_different_sizes():
    starts, clip = cut_into_visits(np.array([0, 5, 8], np.int32), np.array([2, 3]))
    assert starts.tolist() == [0, 2, 4, 5, 8]
    assert clip.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("n_groups", [1, 2, 7])
def test_shuffling_within_groups_is_even(n_groups):
    """Each item of a group is first of it equally often (chi-square below its 1e-6 quantile)."""
    size, rounds = 5, 2000
    group = np.repeat(np.arange(n_groups, dtype=np.int32), size)
    counts = np.zeros(n_groups * size)
    for key in range(rounds):
        permutation = shuffle_within(group, np.random.Philox(key=key))
        assert (group[permutation] == group).all()
        counts[permutation[::size]] += 1
    expected = rounds / size
    assert ((counts - expected) ** 2 / expected).reshape(n_groups, size).sum(1).max() < 35
