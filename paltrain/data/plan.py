"""The plan of every optimizer step: its visits, their micro-batches, and the loss's denominator.

    visits of an epoch   |v0 v1 v2 ...      |v57 v58 ...       |...          |     (order.py)
    questions before     0                  >= B               >= 2B         Q
                         step 0             step 1                   last step: what is left

Step k of an epoch is visits [b_k, b_k+1) where b_k is the first position with k * batch_questions
questions before it. Its visits are dealt out to ranks and micro-batches (packing.py) from plain
arrays: token counts from the length table, audio tokens from the stores' indexes. So every rank
computes the same plan without a word to the others, and only the dealing out knows of ranks: visits
and denominator are the same for every world size.

Costs: an epoch of 5.7 M questions under a second, its steps a few milliseconds each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paltrain.data.order import EpochOrder, Int32Array, Int64Array, VisitOrder
from paltrain.data.packing import Balance, CostModel, MicroBatches, balance, deal
from paltrain.data.sizes import QuestionSizes
from paltrain.errors import ManifestError, TrainingError


@dataclass(frozen=True)
class DataState:
    """Where a run stands in its data; independent of world size.

    visits_consumed: visits of `epoch` that are done. fingerprint: everything that fixes order and
    plan.
    """

    epoch: int
    visits_consumed: int
    seed: int
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataState:
        return cls(
            epoch=int(values["epoch"]),
            visits_consumed=int(values["visits_consumed"]),
            seed=int(values["seed"]),
            fingerprint=str(values["fingerprint"]),
        )


@dataclass(frozen=True)
class Visit:
    """A clip and the questions asked about it together, in corpus numbering."""

    clip: int
    questions: tuple[int, ...]


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step. Counts are of the whole step, all ranks together.

    visits: in order. micro_batches[rank][i]: numbers of visits; empty: a dummy.
    """

    visits: list[Visit]
    micro_batches: MicroBatches
    balance: Balance
    n_questions: int
    n_text_tokens: int
    n_audio_tokens: int
    n_target_tokens: int
    state_after: DataState

    def of_rank(self, rank: int) -> list[list[Visit]]:
        """The rank's micro-batches; each rank has equally many."""
        return [[self.visits[v] for v in visits] for visits in self.micro_batches[rank]]


class Planner:
    """Plans any step of any epoch. Without `sizes` it knows visits and steps, but no tokens."""

    def __init__(
        self,
        order: VisitOrder,
        *,
        sizes: QuestionSizes | None,
        batch_questions: int,
        text_budget: int,
        audio_budget: int,
        cost: CostModel,
        fingerprint: str,
    ) -> None:
        self.order = order
        self.sizes = sizes
        self.fingerprint = fingerprint
        self.batch_questions = batch_questions
        self._budgets = {"text_budget": text_budget, "audio_budget": audio_budget}
        self._cost = cost
        self._epoch: EpochOrder | None = None
        self._bounds = np.zeros(1, np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """One fewer where an epoch's last visit happens to complete the batch before the last."""
        return -(-self.order.n_questions // self.batch_questions)

    def start(self) -> DataState:
        """The state of a run that has seen nothing."""
        return DataState(0, 0, self.order.seed, self.fingerprint)

    def check(self, state: DataState) -> None:
        """Raises TrainingError if `state` belongs to another order."""
        if state.fingerprint != self.fingerprint:
            ours, theirs = self.fingerprint.split(), state.fingerprint.split()
            parts = [t.split(":")[0] for t, o in zip(theirs, ours, strict=False) if t != o]
            raise TrainingError(
                f"the checkpoint's data order is '{state.fingerprint}', this run's is "
                f"'{self.fingerprint}' (differs in {', '.join(parts) or 'form'}): restore what "
                "changed, or set run.fresh=true"
            )
        if state.seed != self.order.seed:
            raise TrainingError(
                f"the checkpoint's data order has seed {state.seed}, this run has "
                f"{self.order.seed}: set run.seed to it, or set run.fresh=true"
            )

    def step(self, state: DataState, *, world_size: int) -> StepPlan:
        """The step that follows `state`."""
        assert self.sizes is not None, "a plan needs a length table"
        epoch, first, last = self._locate(state)
        questions, starts = epoch.between(first, last)
        sizes = self.sizes.of_visits(questions, starts)
        cost = self._cost(sizes)
        dealt = deal(sizes.text, sizes.audio, cost, world_size=world_size, **self._budgets)
        done = last == epoch.n_visits
        return StepPlan(
            visits=self._visits(questions, starts),
            micro_batches=dealt,
            balance=balance(dealt, cost),
            n_questions=len(questions),
            n_text_tokens=int(sizes.text.sum()),
            n_audio_tokens=int(sizes.audio.sum()),
            n_target_tokens=int(sizes.target.sum()),
            state_after=DataState(
                state.epoch + done, 0 if done else last, state.seed, state.fingerprint
            ),
        )

    def _visits(self, questions: Int64Array, starts: Int64Array) -> list[Visit]:
        assert self.sizes is not None
        clips = self.sizes.clip_of(questions[starts[:-1]]).tolist()
        flat, bounds = questions.tolist(), starts.tolist()
        return [Visit(clip, tuple(flat[bounds[i] : bounds[i + 1]])) for i, clip in enumerate(clips)]

    def _locate(self, state: DataState) -> tuple[EpochOrder, int, int]:
        """The epoch, and the positions between which the step's visits lie."""
        if self._epoch is None or self._epoch.epoch != state.epoch:
            self._epoch = None  # never two in memory
            self._epoch = self.order.epoch(state.epoch)
            self._bounds = step_bounds(self._epoch.n_questions_before, self.batch_questions)
        step = int(np.searchsorted(self._bounds, state.visits_consumed))
        if step >= len(self._bounds) - 1 or self._bounds[step] != state.visits_consumed:
            raise TrainingError(
                f"no step begins after {state.visits_consumed} visits of epoch {state.epoch}: the "
                "checkpoint's data state is damaged; resume from an earlier one"
            )
        return self._epoch, int(self._bounds[step]), int(self._bounds[step + 1])


def step_bounds(n_questions_before: Int32Array, batch_questions: int) -> Int64Array:
    """(steps + 1,) positions between which the steps' visits lie.

    n_questions_before: (V + 1,). No visit may have more than `batch_questions` questions.
    """
    n_steps = -(-int(n_questions_before[-1]) // batch_questions)
    reached = np.arange(n_steps, dtype=np.int64) * batch_questions
    bounds = np.searchsorted(n_questions_before, reached.astype(n_questions_before.dtype))
    return np.unique(np.append(bounds, len(n_questions_before) - 1)).astype(np.int64)


def questions_that_fit(
    sizes: QuestionSizes,
    questions: Int32Array,
    clip_start: NDArray[np.integer],
    *,
    questions_per_visit: int,
    text_budget: int,
    audio_budget: int,
    name: Callable[[int], str],
) -> Int32Array:
    """(U,) questions a visit of each clip may have, so that any choice of them fits both budgets.

    questions: (Q,) in use, clip by clip; clip_start: (U + 1,). name: what messages call a
    question. Raises ManifestError for a question that fits no micro-batch even alone.
    """
    at = clip_start[:-1]
    lengths = sizes.lengths
    branch = np.maximum.reduceat(lengths["branch"][questions], at)
    key = lengths["trunk_key"][questions]
    shared = np.minimum.reduceat(key, at) == np.maximum.reduceat(key, at)
    trunk_of = lengths["trunk"][questions]
    trunk = np.maximum.reduceat(trunk_of, at)
    del key
    alone = np.maximum.reduceat(trunk_of + lengths["branch"][questions], at)
    del trunk_of
    audio = sizes.clips["audio"][sizes.clip_of(questions[at])].astype(np.int64)
    further, heard = sizes.more_heard_by(questions)
    if len(further):
        more = np.zeros(len(questions), np.int32)
        more[further] = heard["audio"]
        audio += np.maximum.reduceat(more, at)
    for kind, size, budget in (("text", alone, text_budget), ("audio", audio, audio_budget)):
        if len(size) and size.max() > budget:
            worst = int(size.argmax())
            longest, remedy = _longest(kind, sizes, questions[at[worst] : clip_start[worst + 1]])
            raise ManifestError(
                f"{name(longest)} takes up to {size[worst]} {kind} tokens, over "
                f"data.{kind}_token_budget={budget}: raise it, or {remedy}"
            )
    fit_shared = (text_budget - trunk) // np.maximum(branch, 1)
    fit_apart = np.minimum(
        text_budget // np.maximum(trunk + branch, 1), audio_budget // np.maximum(audio, 1)
    )
    fit = np.where(shared, fit_shared, fit_apart)
    return np.clip(fit, 1, questions_per_visit).astype(np.int32)


def _longest(kind: str, sizes: QuestionSizes, questions: Int32Array) -> tuple[int, str]:
    """Of the questions of a clip the one with most tokens, and what leaves it out."""
    lengths = sizes.lengths
    if kind == "text":
        of_each = lengths["trunk"][questions] + lengths["branch"][questions]
        return int(questions[of_each.argmax()]), "set data.max_text_tokens"
    further, heard = sizes.more_heard_by(questions)
    if not len(further):
        return int(questions[0]), "set data.max_audio_tokens"
    most = int(questions[further[heard["audio"].argmax()]])
    return most, (
        "set data.max_audio_tokens, which holds for each clip, or leave the question out: it hears "
        "several clips, and all of them count"
    )
