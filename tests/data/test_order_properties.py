"""Order and plan of random corpora and mixtures: what must hold for all of them."""

import itertools
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from paltrain.data.lengths import COLUMNS
from paltrain.data.mixture import Part, mix
from paltrain.data.order import VisitOrder
from paltrain.data.packing import CostModel
from paltrain.data.plan import Planner, questions_that_fit
from paltrain.data.selection import Selector, shard_numbers
from paltrain.data.sizes import QuestionSizes, StreamCost, clip_sizes

TEXT_BUDGET, AUDIO_BUDGET, BATCH = 250, 300, 12


@dataclass(frozen=True)
class Work:
    """A corpus, its mixture, and how it is cut."""

    clip_sizes: list[int]
    clips_per_shard: int
    parts: list[Part]
    questions_per_visit: int
    window_shards: int
    seed: int

    @property
    def first_question(self):
        return np.concatenate([[0], np.cumsum(self.clip_sizes)]).astype(np.int64)

    @property
    def shard_of(self):
        return np.arange(len(self.clip_sizes)) // self.clips_per_shard

    @property
    def times(self) -> np.ndarray:
        return mix(self.parts, self.first_question)[0]


@st.composite
def works(draw) -> Work:
    clip_sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=25))
    n = sum(clip_sizes)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    parts = [
        Part(
            f"part{number}",
            rng.random(n) < draw(st.sampled_from([0.3, 0.7, 2.0])),
            weight=draw(st.sampled_from([0.3, 0.5, 1.0, 1.7, 2.5, 3.0])),
            max_questions=draw(st.sampled_from([None, None, 7])),
        )
        for number in range(draw(st.integers(1, 3)))
    ]
    parts[0].asked[:4] = True  # 30 % of fewer than two questions are none
    kept = [part for part in parts if round(part.weight * part.asked.sum()) > 1]
    return Work(
        clip_sizes,
        clips_per_shard=draw(st.integers(1, 6)),
        parts=kept or [Part("all", np.ones(n, bool))],
        questions_per_visit=draw(st.integers(1, 4)),
        window_shards=draw(st.integers(1, 4)),
        seed=draw(st.integers(0, 2**63)),
    )


def sizes_of(work: Work) -> QuestionSizes:
    rng = np.random.default_rng(work.seed % 1000)
    n = sum(work.clip_sizes)
    rows = np.zeros(n, COLUMNS)
    rows["trunk"], rows["trunk_key"] = 10, rng.integers(0, 2, n)
    rows["branch"] = rng.integers(5, 60, n)
    rows["target"] = rng.integers(1, 5, n)
    audio = rng.integers(0, 100, len(work.clip_sizes))
    clips = clip_sizes(len(audio), [(audio, audio, StreamCost())])
    return QuestionSizes(rows, work.first_question, clips)


def planner_of(work: Work) -> Planner:
    """As `build_plan` makes it, from arrays."""
    n = sum(work.clip_sizes)
    corpus = SimpleNamespace(first_question=work.first_question, n_questions=n)
    selected = Selector(corpus).selected(work.times)
    stream = SimpleNamespace(
        rows=np.arange(len(work.clip_sizes)), store=SimpleNamespace(shard_of=work.shard_of)
    )
    sizes = sizes_of(work)
    at_most = questions_that_fit(
        sizes,
        selected.questions,
        selected.clip_start,
        questions_per_visit=work.questions_per_visit,
        text_budget=TEXT_BUDGET,
        audio_budget=AUDIO_BUDGET,
        name=str,
    )
    order = VisitOrder(
        selected.questions,
        clip_start=selected.clip_start,
        shard=shard_numbers(selected, {"mel": stream}),
        questions_per_visit=at_most,
        window_shards=work.window_shards,
        seed=work.seed,
    )
    return Planner(
        order,
        sizes=sizes,
        batch_questions=BATCH,
        text_budget=TEXT_BUDGET,
        audio_budget=AUDIO_BUDGET,
        cost=CostModel(),
        fingerprint="a:1",
    )


def visits_of(planner: Planner, epoch: int) -> list[list[int]]:
    order = planner.order.epoch(epoch)
    questions, starts = order.between(0, order.n_visits)
    return [questions[a:b].tolist() for a, b in itertools.pairwise(starts)]


def steps_of(planner: Planner, *, world_size: int):
    state = planner.start()
    while state.epoch == 0:
        step = planner.step(state, world_size=world_size)
        yield step
        state = step.state_after


@settings(max_examples=60, deadline=None)
@given(works(), st.integers(0, 3))
def test_an_epoch_asks_every_question_as_often_as_the_mixture_says(work, epoch):
    asked = Counter(question for visit in visits_of(planner_of(work), epoch) for question in visit)
    assert asked == {q: n for q, n in enumerate(work.times.tolist()) if n}


@settings(max_examples=60, deadline=None)
@given(works(), st.integers(0, 3))
def test_a_visit_asks_different_questions_about_one_clip(work, epoch):
    clip_of = np.repeat(np.arange(len(work.clip_sizes)), work.clip_sizes)
    for visit in visits_of(planner_of(work), epoch):
        assert 1 <= len(visit) <= work.questions_per_visit
        assert len(set(visit)) == len(visit)
        assert len(set(clip_of[visit])) == 1


@settings(max_examples=60, deadline=None)
@given(works())
def test_an_epoch_can_be_cut_into_stretches_of_few_shards(work):
    clip_of = np.repeat(np.arange(len(work.clip_sizes)), work.clip_sizes)
    visits = visits_of(planner_of(work), 0)
    n_stretches, open_shards = 1, set()
    for visit in visits:
        open_shards.add(int(work.shard_of[clip_of[visit[0]]]))
        if len(open_shards) > work.window_shards:
            n_stretches, open_shards = n_stretches + 1, {int(work.shard_of[clip_of[visit[0]]])}
    layers = [work.times > n for n in range(int(work.times.max()))]
    n_shards = sum(len(np.unique(work.shard_of[clip_of[layer]])) for layer in layers)
    assert n_stretches <= -(-n_shards // work.window_shards)


@settings(max_examples=40, deadline=None)
@given(works())
def test_steps_are_the_same_for_every_number_of_ranks(work):
    planner = planner_of(work)
    alone = list(steps_of(planner, world_size=1))
    assert sum(step.n_questions for step in alone) == work.times.sum()
    for world_size in (2, 4, 8):
        for one, step in zip(alone, steps_of(planner, world_size=world_size), strict=True):
            assert step.visits == one.visits
            assert step.n_target_tokens == one.n_target_tokens
            assert step.state_after == one.state_after


@settings(max_examples=40, deadline=None)
@given(works(), st.sampled_from([1, 2, 4, 8]))
def test_ranks_share_a_step_in_equally_many_micro_batches_within_budgets(work, world_size):
    planner = planner_of(work)
    for step in steps_of(planner, world_size=world_size):
        ranks = [step.of_rank(rank) for rank in range(world_size)]
        assert len({len(rank) for rank in ranks}) == 1
        micro_batches = [visits for rank in ranks for visits in rank]
        dealt = Counter(visit for visits in micro_batches for visit in visits)
        assert dealt == Counter(step.visits)
        for visits in micro_batches:
            text, audio = tokens_of(planner.sizes, visits)
            assert text <= TEXT_BUDGET
            assert audio <= AUDIO_BUDGET


def tokens_of(sizes: QuestionSizes, visits) -> tuple[int, int]:
    """Text and audio tokens, counted question by question: a trunk and its clip once a visit."""
    text = audio = 0
    for visit in visits:
        trunks = {int(sizes.lengths["trunk_key"][q]) for q in visit.questions}
        text += sum(int(sizes.lengths["branch"][q]) for q in visit.questions) + 10 * len(trunks)
        audio += len(trunks) * int(sizes.clips["audio"][visit.clip])
    return text, audio


@settings(max_examples=60, deadline=None)
@given(works())
def test_parts_add_up_to_exact_numbers(work):
    total = np.zeros(sum(work.clip_sizes), int)
    for part in work.parts:
        alone, shares = mix([part], work.first_question)
        total += alone
        n = min(int(part.asked.sum()), part.max_questions or 10**9)
        whole = int(part.weight)
        n_more = round((part.weight - whole) * n)
        assert not alone[~part.asked].any()
        assert Counter(alone[alone > 0].tolist()) == Counter(
            [whole + 1] * n_more + [whole] * (n - n_more if whole else 0)
        )
        assert shares[part.name].n_asked == alone.sum() == whole * n + n_more
    assert total.tolist() == work.times.tolist()
