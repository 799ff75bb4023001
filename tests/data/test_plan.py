"""Step plans: budgets hold, ranks are even, and nothing but the dealing out knows of ranks."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paltrain.data.lengths import COLUMNS
from paltrain.data.order import VisitOrder
from paltrain.data.packing import CostModel, balance, deal
from paltrain.data.plan import DataState, Planner, questions_that_fit, step_bounds
from paltrain.data.sizes import QuestionSizes, StreamCost, VisitSizes, clip_sizes, further_sizes
from paltrain.errors import ManifestError, TrainingError

TEXT_BUDGET, AUDIO_BUDGET = 300, 400


def sizes_of(clip_sizes, *, seed=0, trunk=10, shared=True) -> QuestionSizes:
    rng = np.random.default_rng(seed)
    n = sum(clip_sizes)
    rows = np.zeros(n, COLUMNS)
    rows["trunk"] = trunk
    rows["branch"] = rng.integers(5, 60, n)
    rows["target"] = rng.integers(1, 5, n)
    rows["trunk_key"] = 1 if shared else np.arange(n)
    first = np.concatenate([[0], np.cumsum(clip_sizes)]).astype(np.int64)
    return QuestionSizes(rows, first, clips_of(rng.integers(0, 100, len(clip_sizes))))


def clips_of(audio, cost=StreamCost()):  # noqa: B008 - it is frozen
    return clip_sizes(len(audio), [(audio, audio, cost)])


def visits_of(text, audio, cost=StreamCost()) -> VisitSizes:  # noqa: B008
    """Visits of one question each."""
    rows = np.zeros(len(text), COLUMNS)
    rows["branch"] = text
    numbers = np.arange(len(text) + 1)
    return QuestionSizes(rows, numbers, clips_of(audio, cost)).of_visits(numbers[:-1], numbers)


def planner_of(
    clip_sizes, *, questions_per_visit=2, batch_questions=16, seed=0, **sizes
) -> Planner:
    sizes = sizes_of(clip_sizes, **sizes)
    questions = np.arange(sum(clip_sizes), dtype=np.int32)
    starts = sizes.first_question.astype(np.int32)
    at_most = questions_that_fit(
        sizes,
        questions,
        starts,
        questions_per_visit=questions_per_visit,
        text_budget=TEXT_BUDGET,
        audio_budget=AUDIO_BUDGET,
        name=str,
    )
    order = VisitOrder(
        questions,
        clip_start=starts,
        shard=np.zeros(len(clip_sizes), int),
        questions_per_visit=at_most,
        window_shards=1,
        seed=seed,
    )
    return Planner(
        order,
        sizes=sizes,
        batch_questions=batch_questions,
        text_budget=TEXT_BUDGET,
        audio_budget=AUDIO_BUDGET,
        cost=CostModel(),
        fingerprint="a:1 b:2",
    )


def steps_of(planner, *, world_size=1):
    """All steps of the first epoch."""
    state, steps = planner.start(), []
    while state.epoch == 0:
        steps.append(planner.step(state, world_size=world_size))
        state = steps[-1].state_after
    return steps


clips = st.lists(st.integers(1, 6), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(clips, st.integers(1, 4), st.integers(4, 20))
def test_global_batches_are_the_same_for_every_world_size(clip_sizes, questions_per_visit, batch):
    planner = planner_of(clip_sizes, questions_per_visit=questions_per_visit, batch_questions=batch)
    alone = steps_of(planner)
    for world_size in (2, 4, 8):
        for one, many in zip(alone, steps_of(planner, world_size=world_size), strict=True):
            assert many.visits == one.visits
            assert many.n_target_tokens == one.n_target_tokens
            assert many.state_after == one.state_after
            dealt = [v for rank in range(world_size) for mb in many.of_rank(rank) for v in mb]
            assert sorted(dealt, key=str) == sorted(one.visits, key=str)


@settings(max_examples=40, deadline=None)
@given(clips, st.integers(1, 4), st.integers(1, 8), st.booleans())
def test_an_epoch_holds_each_question_once_within_budgets(
    clip_sizes, questions_per_visit, world_size, shared
):
    planner = planner_of(clip_sizes, questions_per_visit=questions_per_visit, shared=shared)
    seen = []
    for step in steps_of(planner, world_size=world_size):
        ranks = [step.of_rank(rank) for rank in range(world_size)]
        assert len({len(rank) for rank in ranks}) == 1
        for micro_batch in (mb for rank in ranks for mb in rank):
            text, audio = counted_by_hand(planner.sizes, micro_batch)
            assert text <= TEXT_BUDGET
            assert audio <= AUDIO_BUDGET
        assert step.n_questions == sum(len(visit.questions) for visit in step.visits)
        seen += [q for visit in step.visits for q in visit.questions]
    assert sorted(seen) == list(range(sum(clip_sizes)))


def counted_by_hand(sizes, visits) -> tuple[int, int]:
    """Text and audio tokens of some visits: a trunk and its clip once a visit and key."""
    text = audio = 0
    for visit in visits:
        trunks = {int(sizes.lengths["trunk_key"][q]) for q in visit.questions}
        text += sum(int(sizes.lengths["branch"][q]) for q in visit.questions)
        text += len(trunks) * int(sizes.lengths["trunk"][visit.questions[0]])
        audio += len(trunks) * int(sizes.clips["audio"][visit.clip])
    return text, audio


def test_a_step_ends_with_the_visit_that_reaches_the_batch():
    before = np.array([0, 3, 6, 9, 12, 13], np.int32)
    assert step_bounds(before, 4).tolist() == [0, 2, 3, 4, 5]
    assert step_bounds(before, 12).tolist() == [0, 4, 5]
    assert step_bounds(before[:-1], 11).tolist() == [0, 4]  # the last visit completes both


def test_steps_of_an_epoch_hold_batch_questions_up_to_one_visit():
    planner = planner_of([3] * 50, questions_per_visit=3, batch_questions=16)
    counts = [step.n_questions for step in steps_of(planner)]
    assert planner.steps_per_epoch - 1 <= len(counts) <= planner.steps_per_epoch == -(-150 // 16)
    assert all(abs(a - 16 * (i + 1)) < 3 for i, a in enumerate(np.cumsum(counts)[:-1]))


def test_the_next_epoch_follows_the_last_step():
    planner = planner_of([2] * 20, batch_questions=16)
    last = steps_of(planner)[-1]
    assert last.state_after == DataState(1, 0, 0, "a:1 b:2")
    following = planner.step(last.state_after, world_size=1)
    assert following.visits != steps_of(planner)[0].visits


def test_the_denominator_is_all_targets_of_the_step():
    planner = planner_of([2] * 20)
    for step in steps_of(planner, world_size=4):
        questions = [q for visit in step.visits for q in visit.questions]
        assert step.n_target_tokens == planner.sizes.lengths["target"][questions].sum()


def test_ranks_without_a_visit_get_dummies():
    planner = planner_of([1, 1, 1])
    step = planner.step(planner.start(), world_size=8)
    filled = [bool(mb) for rank in range(8) for mb in step.of_rank(rank)]
    assert (len(filled), sum(filled), step.balance.n_dummies) == (8, 3, 5)


def test_a_visit_takes_fewer_questions_where_all_would_not_fit():
    sizes = sizes_of([8])
    sizes.lengths["branch"][:] = 90
    fit = questions_that_fit(
        sizes,
        np.arange(8, dtype=np.int32),
        np.array([0, 8]),
        questions_per_visit=8,
        text_budget=300,
        audio_budget=400,
        name=str,
    )
    assert fit.tolist() == [3]  # 10 + 3 * 90 <= 300


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("branch", 291, "question 2 takes up to 301 text tokens, over data.text_token_budget=300"),
        ("audio", 401, "question 2 takes up to 401 audio tokens, over data.audio_token_budget=400"),
    ],
)
def test_a_question_over_a_budget_is_refused_before_training(column, value, says):
    sizes = sizes_of([1, 1, 1])
    target = sizes.clips[column] if column == "audio" else sizes.lengths[column]
    target[2] = value
    with pytest.raises(ManifestError, match=says):
        questions_that_fit(
            sizes,
            np.arange(3, dtype=np.int32),
            np.arange(4),
            questions_per_visit=1,
            text_budget=300,
            audio_budget=400,
            name=lambda number: f"question {number}",
        )


def test_a_question_of_clips_that_are_too_long_together_may_be_left_out():
    sizes = sizes_of([2, 1])
    clips = clips_of(np.array([100, 301]))
    sizes = replace(sizes, clips=clips, further=further_sizes(clips, np.array([1]), np.array([1])))
    with pytest.raises(ManifestError, match="question 1 takes up to 401 .*, or leave the question"):
        questions_that_fit(
            sizes,
            np.arange(3, dtype=np.int32),
            np.array([0, 2, 3]),
            questions_per_visit=1,
            text_budget=300,
            audio_budget=400,
            name=lambda number: f"question {number}",
        )


def test_a_state_of_another_order_is_refused_by_what_differs():
    planner = planner_of([2] * 4)
    with pytest.raises(TrainingError, match="differs in b"):
        planner.check(DataState(0, 0, 0, "a:1 b:3"))
    with pytest.raises(TrainingError, match="seed 9"):
        planner.check(DataState(0, 0, 9, "a:1 b:2"))
    with pytest.raises(TrainingError, match="no step begins after 1 visits"):
        planner.step(DataState(0, 1, 0, "a:1 b:2"), world_size=1)


def test_a_state_survives_json():
    state = DataState(3, 17, 5, "a:1")
    assert DataState.from_dict(state.to_dict()) == state


@pytest.mark.parametrize(("n_visits", "at_most"), [(256, 1.03), (1024, 1.01), (2048, 1.01)])
def test_thirty_two_ranks_are_even_on_variable_audio(n_visits, at_most):
    rng = np.random.default_rng(0)
    for _ in range(5):
        text = rng.integers(30, 200, n_visits)
        audio = (np.minimum(rng.lognormal(2, 0.7, n_visits), 60) * 25).astype(np.int64)
        cost = CostModel(1.0, pair=1e-4)(visits_of(text, audio))
        dealt = deal(text, audio, cost, world_size=32, text_budget=4096, audio_budget=32768)
        assert balance(dealt, cost).imbalance <= at_most


def test_a_visit_costs_by_its_route():
    """A question of 10 + 20 tokens, 5 targets, about a clip of 40 tokens in 80 frames."""
    rows = np.zeros(2, COLUMNS)
    rows["trunk"], rows["branch"], rows["target"] = 10, 20, 5
    numbers = np.array([0, 2])
    cost = {"text": 4.0, "target": 2.0, "pair": 0.5}
    streams = {
        "lal": {"token": 1.0, "frame": 0.25, "rows": 0.0, "keys": 0.5},
        "plits": {"token": 6.0, "frame": 0.0, "rows": 1.0, "keys": 0.0},
    }
    model = CostModel.of({**cost, "streams": streams})
    for name, own, pairs in (
        ("lal", 1 * 40 + 0.25 * 80, 50 * 20 + 50**2 / 2),
        ("plits", 6 * 40, 90**2 / 2),
    ):
        clips = clip_sizes(1, [(np.array([40]), np.array([80]), model.streams[name])])
        sizes = QuestionSizes(rows, numbers, clips).of_visits(np.arange(2), numbers)
        assert (sizes.text, sizes.target, sizes.audio) == (50, 10, 40)  # the trunk counts once
        expected = 4 * 50 + 2 * 10 + own + 0.5 * pairs
        assert model(sizes) == 1024 * expected / 4


def test_further_clips_are_heard_with_a_question_and_their_cost_counts():
    audio = np.array([10, 20, 40])
    clips = clips_of(audio)
    sizes = QuestionSizes(
        np.zeros(4, COLUMNS),
        np.array([0, 2, 3, 4]),
        clips,
        further_sizes(clips, np.array([1, 3, 3]), np.array([2, 0, 1])),
    )
    heard = sizes.heard_by(np.array([3, 0, 1, 1, 2]))
    assert heard["audio"].tolist() == [70, 10, 50, 50, 20]
    assert heard["cost"].tolist() == [17.5, 2.5, 12.5, 12.5, 5.0]
    fit = questions_that_fit(
        sizes,
        np.arange(4, dtype=np.int32),
        np.array([0, 2, 3, 4]),
        questions_per_visit=1,
        text_budget=1,
        audio_budget=70,
        name=str,
    )
    assert fit.tolist() == [1, 1, 1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 100)), min_size=1, max_size=60),
    st.integers(1, 5),
)
def test_dealing_keeps_tight_budgets(visits, world_size):
    text, audio = np.array(visits).T
    dealt = deal(
        text,
        audio,
        CostModel()(visits_of(text, audio)),
        world_size=world_size,
        text_budget=100,
        audio_budget=100,
    )
    assert sorted(v for rank in dealt for mb in rank for v in mb) == list(range(len(visits)))
    for micro_batch in (mb for rank in dealt for mb in rank):
        assert text[micro_batch].sum() <= 100
        assert audio[micro_batch].sum() <= 100


def test_balance_says_what_uneven_ranks_cost():
    cost = np.array([3.0, 1.0, 1.0, 1.0])
    uneven = balance([[[0], [1]], [[2], [3]]], cost)
    assert uneven.imbalance == pytest.approx(4 / 3)
    assert uneven.idle_share == pytest.approx(1 - 3 / 4)
