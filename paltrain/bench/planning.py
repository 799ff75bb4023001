"""Order and plan of a large corpus from synthetic arrays, and how evenly steps are dealt out.

Arrays as the trainer has them: a length table, where each clip's questions start, audio tokens and
shard of each clip. Times are medians of CPU time. Memory is what numpy and Python allocate at the
peak of building (`tracemalloc`) and those arrays, but for the length table, a mapped file.
"""

from __future__ import annotations

import statistics
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paltrain.bench.flops import LLAMA_1B, WHISPER_WIDTH
from paltrain.bench.record import BenchRow
from paltrain.bench.timing import Times, times_of
from paltrain.data.lengths import COLUMNS
from paltrain.data.order import Int64Array, VisitOrder
from paltrain.data.packing import CostModel, balance, deal
from paltrain.data.plan import DataState, Planner, questions_that_fit, step_bounds
from paltrain.data.sizes import QuestionSizes, StreamCost, VisitSizes, clip_sizes
from paltrain.model.cost import visit_costs

MB = 1e6
QUESTIONS_PER_VISIT = 4
BATCH_QUESTIONS = 256
WINDOW_SHARDS = 16
TEXT_BUDGET, AUDIO_BUDGET = 4096, 32768
STREAM = "audio"
FIXED_AUDIO = 250  # tokens of ten seconds at 25 a second
FINGERPRINT = "synthetic:0"


@dataclass(frozen=True)
class PlanWork:
    """A corpus, and what is asked of it. n_draws: positions, or steps, that are measured."""

    n_clips: int = 1_500_000
    n_questions: int = 5_700_000
    clips_per_shard: int = 512
    n_ranks: int = 32
    n_visits: tuple[int, int] = (256, 2048)
    n_draws: int = 20


@dataclass(frozen=True)
class Arrays:
    """sizes: tokens. questions, clip_start, shard: as `VisitOrder` takes them."""

    sizes: QuestionSizes
    questions: NDArray[np.int32]
    clip_start: NDArray[np.int32]
    shard: NDArray[np.int32]

    @property
    def n_bytes(self) -> int:
        """Without the length table."""
        sizes = (self.sizes.first_question, self.sizes.clips)
        own = (self.questions, self.clip_start, self.shard)
        return sum(array.nbytes for array in (*sizes, *own))


def synthetic_arrays(work: PlanWork) -> Arrays:
    """At least one question a clip, the others anywhere; audio as `variable_audio`."""
    generator = np.random.Generator(np.random.Philox(0))
    further = generator.integers(0, work.n_clips, work.n_questions - work.n_clips)
    n_asked = 1 + np.bincount(further, minlength=work.n_clips)
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(n_asked)]).astype(np.int64)
    rows = np.zeros(work.n_questions, COLUMNS)
    rows["trunk"] = 20
    rows["branch"] = generator.integers(20, 120, work.n_questions)
    rows["target"] = generator.integers(1, 20, work.n_questions)
    rows["trunk_key"] = 1
    audio = variable_audio(work.n_clips, generator)
    clips = clip_sizes(work.n_clips, [(audio, audio, COST.streams[STREAM])])
    return Arrays(
        QuestionSizes(rows, first, clips),
        np.arange(work.n_questions, dtype=np.int32),
        first.astype(np.int32),
        (np.arange(work.n_clips) // work.clips_per_shard).astype(np.int32),
    )


def variable_audio(n: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Tokens of clips whose median is 7 s, at most 60 s, at 25 a second."""
    seconds = np.minimum(generator.lognormal(2, 0.7, n), 60)
    return np.asarray(25 * seconds, np.int64)


def fixed_audio(n: int, generator: np.random.Generator) -> NDArray[np.int64]:
    return np.full(n, FIXED_AUDIO, np.int64)


def long_tailed_audio(n: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """The same median, up to ten minutes."""
    seconds = np.minimum(generator.lognormal(2, 1.1, n), 600)
    return np.asarray(25 * seconds, np.int64)


def cost_of(route: str) -> CostModel:
    """Of Llama-3.2-1B that hears one encoder by `route`."""
    spec = {
        "route": route,
        "width": WHISPER_WIDTH,
        "connector": {"type": "mlp", "frame_stack": 1},
        "layers": "all",
        "layer_projection": "shared",
    }
    return CostModel.of(visit_costs(LLAMA_1B, {STREAM: spec}))


COST = cost_of("lal")
STRAINED = CostModel(text=1.0, pair=1e-3, streams={STREAM: StreamCost()})  # attention weighs more
KINDS = {
    "fixed": (fixed_audio, COST),
    "variable": (variable_audio, COST),
    "plits": (variable_audio, cost_of("plits")),
    "long_tail": (long_tailed_audio, STRAINED),
}


def build_planner(arrays: Arrays, *, batch_questions: int) -> Planner:
    """Visits, order and planner, as `data/build.py` makes them."""
    at_most = questions_that_fit(
        arrays.sizes,
        arrays.questions,
        arrays.clip_start,
        questions_per_visit=QUESTIONS_PER_VISIT,
        text_budget=TEXT_BUDGET,
        audio_budget=AUDIO_BUDGET,
        name=str,
    )
    order = VisitOrder(
        arrays.questions,
        clip_start=arrays.clip_start,
        shard=arrays.shard,
        questions_per_visit=at_most,
        window_shards=WINDOW_SHARDS,
        seed=0,
    )
    return planner_of(order, arrays.sizes, batch_questions=batch_questions)


def planner_of(order: VisitOrder, sizes: QuestionSizes, *, batch_questions: int) -> Planner:
    return Planner(
        order,
        sizes=sizes,
        batch_questions=batch_questions,
        text_budget=TEXT_BUDGET,
        audio_budget=AUDIO_BUDGET,
        cost=COST,
        fingerprint=FINGERPRINT,
    )


def measure_planning(work: PlanWork, *, n_rounds: int) -> list[BenchRow]:
    """Building, memory, seeking, and planning a step."""
    arrays = synthetic_arrays(work)
    what = f"{work.n_questions / 1e6:g} M questions on {work.n_clips / 1e6:g} M clips"

    def build() -> Planner:
        planner = build_planner(arrays, batch_questions=BATCH_QUESTIONS)
        planner.step(planner.start(), world_size=work.n_ranks)
        return planner

    building = times_of(build, n=n_rounds)
    peak, held = _allocated(build)
    order = build().order
    n_wide = max(work.n_visits)
    batch = round(n_wide * order.n_questions / order.n_visits)
    seek, seek_visits = _at_random_steps(order, arrays, work, batch_questions=BATCH_QUESTIONS)
    plan, plan_visits = _at_random_steps(order, arrays, work, batch_questions=batch)
    resume = planner_of(order, arrays.sizes, batch_questions=BATCH_QUESTIONS)
    resuming = times_of(lambda: resume.step(resume.start(), world_size=work.n_ranks))
    built = f"{what}; visits, an epoch's order, the first step; {building.told()}"
    anywhere = f"at {work.n_draws} random places, dealt out to {work.n_ranks} ranks"
    return [
        BenchRow("plan_build_time", building.median_s, "s", built, "< 5"),
        BenchRow(
            "plan_memory_peak",
            (peak + arrays.n_bytes) / MB,
            "MB",
            f"allocated while building; {(held + arrays.n_bytes) / MB:.0f} MB once built; a mapped "
            f"length table of {arrays.sizes.lengths.nbytes / MB:.0f} MB not counted",
            "< 300",
        ),
        BenchRow(
            "plan_seek_time",
            1e3 * seek.median_s,
            "ms",
            f"and the step planned, {seek_visits:.0f} visits, {anywhere}; "
            + seek.told(per_s=1e3, unit="ms"),
            "< 10",
        ),
        BenchRow(
            "plan_resume_time",
            resuming.median_s,
            "s",
            f"the first step of a process: an epoch's order, too; {resuming.told()}",
        ),
        BenchRow(
            "plan_step_time",
            1e3 * plan.median_s,
            "ms",
            f"{plan_visits:.0f} visits, {anywhere}; " + plan.told(per_s=1e3, unit="ms"),
            "< 10",
        ),
    ]


def _at_random_steps(
    order: VisitOrder, arrays: Arrays, work: PlanWork, *, batch_questions: int
) -> tuple[Times, float]:
    """Times of planning steps anywhere in an epoch whose order is there, and their visits."""
    planner = planner_of(order, arrays.sizes, batch_questions=batch_questions)
    planner.step(planner.start(), world_size=1)
    bounds = step_bounds(order.epoch(0).n_questions_before, batch_questions)
    generator = np.random.Generator(np.random.Philox(3))
    times, n_visits = Times(), []
    for step in generator.integers(0, max(1, len(bounds) - 2), work.n_draws).tolist():
        state = DataState(0, int(bounds[step]), order.seed, FINGERPRINT)
        times.add(partial(planner.step, state, world_size=work.n_ranks))
        n_visits.append(int(bounds[step + 1] - bounds[step]))
    return times, statistics.fmean(n_visits)


def _allocated(build: Callable[[], Any]) -> tuple[int, int]:
    """Bytes at the peak of `build`, and those that its result holds."""
    tracemalloc.start()
    built = build()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del built
    return peak, held


def measure_imbalance(work: PlanWork) -> list[BenchRow]:
    """Dearest rank over mean rank of steps, beside visits split at random."""
    rows = []
    for n_visits in work.n_visits:
        for kind in KINDS:
            drawn = [_imbalance(work, n_visits, kind=kind, seed=n) for n in range(work.n_draws)]
            dealt, split, least = ([*each] for each in zip(*drawn, strict=True))
            name = f"{kind}@{n_visits}"
            what = f"{work.n_ranks} ranks, median of {work.n_draws} steps; worst"
            rows.append(
                BenchRow(
                    f"cost_imbalance.{name}",
                    statistics.median(dealt),
                    "max/mean",
                    f"{what} {max(dealt):.4g}, where the dearest visit alone forces "
                    f"{least[dealt.index(max(dealt))]:.3g}; random split "
                    f"{statistics.median(split):.3g}",
                    "<= 1.01" if n_visits >= 1024 else "<= 1.03",
                )
            )
            rows.append(
                BenchRow(
                    f"cost_imbalance_random_split.{name}",
                    statistics.median(split),
                    "max/mean",
                    f"{what} {max(split):.3g}",
                )
            )
    return rows


def visits_of(
    text: Int64Array, audio: Int64Array, cost: CostModel, *, targets: Int64Array | None = None
) -> VisitSizes:
    """Visits of so many tokens each."""
    clips = clip_sizes(len(audio), [(audio, audio, cost.streams[STREAM])])
    return VisitSizes(
        text=text,
        target=np.zeros_like(text) if targets is None else targets,
        audio=audio,
        rows=clips["rows"].astype(np.int64),
        keys=clips["keys"].astype(np.float64),
        cost=clips["cost"].astype(np.float64),
    )


def _imbalance(
    work: PlanWork, n_visits: int, *, kind: str, seed: int
) -> tuple[float, float, float]:
    """Of one step: as dealt out, as split at random, and what no dealing can be below."""
    generator = np.random.Generator(np.random.Philox(seed))
    text = generator.integers(30, 200, n_visits)
    draw, model = KINDS[kind]
    audio = draw(n_visits, generator)
    cost = model(visits_of(text, audio, model))
    micro_batches = deal(
        text,
        audio,
        cost,
        world_size=work.n_ranks,
        text_budget=TEXT_BUDGET,
        audio_budget=AUDIO_BUDGET,
    )
    parts = np.array_split(generator.permutation(cost), work.n_ranks)
    sums = np.array([part.sum() for part in parts])
    least = max(1.0, float(cost.max() / sums.mean()))
    return balance(micro_batches, cost).imbalance, float(sums.max() / sums.mean()), least
