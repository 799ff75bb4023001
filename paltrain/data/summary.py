"""What a run's data plan amounts to, for dry runs; torch-free. What cannot be known yet is None."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from paltrain.data.build import DataPlan
from paltrain.data.frames import frame_bytes
from paltrain.data.mixture import PartShare
from paltrain.data.plan import StepPlan
from paltrain.data.selection import further_clips
from paltrain.data.sizes import CLIP, QuestionSizes, further_sizes

VISITS_AT_ONCE = 100_000


@dataclass(frozen=True)
class PlanSummary:
    """One epoch, and the mean over its first steps.

    n_questions: with the mixture's repeats; n_different: without. left_out: questions not in use,
    by reason. mixture: by name, what each part is of an epoch. Tokens are of the whole epoch (the
    first): text needs the length table, audio also every stream's store. imbalance: dearest rank /
    mean rank.
    idle_share: time that ranks wait for the dearest micro-batch of the same number. padding_share:
    tokens of dummy micro-batches (sequences are packed, so there is no other padding).
    bytes_per_step: of features that all ranks together read; bytes_per_step_and_node: the node that
    reads most.
    """

    n_questions: int
    n_different: int
    n_clips: int
    n_visits: int
    steps_per_epoch: int
    left_out: Mapping[str, int]
    mixture: Mapping[str, PartShare]
    n_text_tokens: int | None
    n_target_tokens: int | None
    n_audio_tokens: int | None
    micro_batches_per_step: float | None
    imbalance: float | None
    idle_share: float | None
    padding_share: float | None
    bytes_per_step: float | None
    bytes_per_step_and_node: float | None


def plan_summary(
    plan: DataPlan,
    *,
    world_size: int,
    n_nodes: int = 1,
    n_steps: int = 8,
    audio_known: bool = True,
) -> PlanSummary:
    """Sum up `plan` for `world_size` ranks on `n_nodes`, from its first `n_steps` steps.

    audio_known: False where a configured stream's store is not there yet, so that it is not in
    `plan`.
    """
    tokens = _epoch_tokens(plan) if plan.planner.sizes else None
    steps = _first_steps(plan, world_size, n_steps) if tokens and audio_known else []
    sizes = _byte_sizes(plan) if steps else None
    read = [_bytes_by_node(sizes, step, n_nodes) for step in steps if sizes]
    return PlanSummary(
        n_questions=plan.planner.order.n_questions,
        n_different=len(np.unique(np.asarray(plan.planner.order.questions))),
        n_clips=plan.n_clips,
        n_visits=plan.planner.order.n_visits,
        steps_per_epoch=plan.planner.steps_per_epoch,
        left_out=plan.left_out,
        mixture=plan.mixture,
        n_text_tokens=tokens[0] if tokens else None,
        n_target_tokens=tokens[2] if tokens else None,
        n_audio_tokens=tokens[1] if tokens and audio_known else None,
        micro_batches_per_step=_mean([len(s.micro_batches[0]) for s in steps]),
        imbalance=_mean([s.balance.imbalance for s in steps]),
        idle_share=_mean([s.balance.idle_share for s in steps]),
        padding_share=_mean([padding_share(s) for s in steps]),
        bytes_per_step=_mean([sum(by_node) for by_node in read]),
        bytes_per_step_and_node=_mean([max(by_node) for by_node in read]),
    )


def padding_share(step: StepPlan) -> float:
    """Tokens that dummy micro-batches run (one each) among all tokens of the step."""
    return step.balance.n_dummies / max(
        step.n_text_tokens + step.n_audio_tokens + step.balance.n_dummies, 1
    )


def _bytes_by_node(sizes: QuestionSizes, step: StepPlan, n_nodes: int) -> list[float]:
    """Bytes of features that each node's ranks read for a step."""
    starts = np.cumsum([0, *(len(visit.questions) for visit in step.visits)])
    questions = np.fromiter(chain.from_iterable(v.questions for v in step.visits), np.int64)
    of_visit = sizes.of_visits(questions, starts).cost
    of_rank = [of_visit[list(chain.from_iterable(rank))].sum() for rank in step.micro_batches]
    nodes = np.array_split(np.array(of_rank), n_nodes)  # ranks of a node follow each other
    return [float(node.sum()) for node in nodes]


def _byte_sizes(plan: DataPlan) -> QuestionSizes:
    """Sizes that count a clip's stored bytes, of all streams, as its cost; all of a cut clip."""
    assert plan.planner.sizes is not None
    clips = np.zeros(plan.corpus.n_clips, CLIP)
    for stream in plan.streams.values():
        there = np.flatnonzero(stream.n_frames > 0)
        stored = np.asarray(stream.store.n_frames)[stream.rows[there]]
        clips["cost"][there] += stored * frame_bytes(stream.store.width, stream.store.dtype)
    further = further_sizes(clips, *further_clips(plan.corpus))
    return replace(plan.planner.sizes, clips=clips, further=further)


def _epoch_tokens(plan: DataPlan) -> tuple[int, int, int]:
    """Text, audio and target tokens of the first epoch."""
    sizes = plan.planner.sizes
    assert sizes is not None
    epoch = plan.planner.order.epoch(0)
    totals = np.zeros(3, np.int64)
    for first in range(0, epoch.n_visits, VISITS_AT_ONCE):
        last = min(first + VISITS_AT_ONCE, epoch.n_visits)
        visits = sizes.of_visits(*epoch.between(first, last))
        totals += (visits.text.sum(), visits.audio.sum(), visits.target.sum())
    return int(totals[0]), int(totals[1]), int(totals[2])


def _first_steps(plan: DataPlan, world_size: int, n_steps: int) -> list[StepPlan]:
    steps, state = [], plan.planner.start()
    for _ in range(min(n_steps, plan.planner.steps_per_epoch)):
        steps.append(plan.planner.step(state, world_size=world_size))
        state = steps[-1].state_after
    return steps


def _mean(values: list[float] | list[int]) -> float | None:
    return float(np.mean(values)) if values else None
