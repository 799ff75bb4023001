"""How far the cost by which plans weigh visits is from the time that a step takes.

Method: a small decoder steps (forward and backward, one CPU thread) through micro-batches of random
lengths, in turns, several rounds; a micro-batch's time is its median of CPU time. `a + b * cost` is
fitted to half of them, least squares of the relative error, and judged by the other half: the mean
of |predicted / measured - 1|. Beside it the same with tokens (text + audio) in place of the cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from paltrain.batch import Batch
from paltrain.bench.arms import Workload, build_arms, build_uneven_batch, n_targets_of
from paltrain.bench.build import decoder_of
from paltrain.bench.planning import visits_of
from paltrain.bench.record import BenchRow
from paltrain.bench.timing import Times
from paltrain.data.packing import CostModel
from paltrain.model.cost import visit_costs

FloatArray = NDArray[np.float64]

ROUTES = {"lal": "lal", "plits": "plits_packed"}  # route -> arm
WIDTH = 64  # of the encoder's frames
CPU = torch.device("cpu")


@dataclass(frozen=True)
class CostWork:
    """n_audio, n_text: the range of a conversation's lengths, even on a logarithmic scale."""

    config: str = "configs/quickstart/lal_stage2.yaml"
    n_batches: int = 48
    n_rounds: int = 3
    n_conversations: tuple[int, int] = (1, 8)
    n_audio: tuple[int, int] = (25, 750)
    n_text: tuple[int, int] = (16, 200)


Lengths = list[tuple[int, int]]  # (audio tokens, text tokens) of a micro-batch's conversations


def measure_cost(work: CostWork) -> list[BenchRow]:
    """Both routes' errors, the cost's and the plain token count's."""
    llm_config = decoder_of(Path(work.config))
    micro_batches = random_lengths(work)
    rows = []
    with _one_thread():
        for route in ROUTES:
            model = _model(llm_config, route)
            seconds = _step_times(model, micro_batches, n_rounds=work.n_rounds)
            costs = CostModel.of(visit_costs(model.config.llm_config, model.config.streams))
            rows += _rows(route, micro_batches, costs, seconds)
    return rows


def random_lengths(work: CostWork) -> list[Lengths]:
    generator = np.random.Generator(np.random.Philox(0))

    def draw(bounds: tuple[int, int], n: int) -> list[int]:
        low, high = np.log(bounds[0]), np.log(bounds[1])
        return np.exp(generator.uniform(low, high, n)).astype(np.int64).tolist()  # type: ignore[no-any-return]

    counts = draw(work.n_conversations, work.n_batches)
    return [list(zip(draw(work.n_audio, n), draw(work.n_text, n), strict=True)) for n in counts]


def relative_error(cost: FloatArray, seconds: FloatArray) -> float:
    """Of `a + b * cost`, fitted to every second entry, on the others."""
    fitted, judged = slice(0, None, 2), slice(1, None, 2)
    terms = np.stack([np.ones_like(cost), cost], axis=1)
    weighted = terms[fitted] / seconds[fitted, None]
    line, *_ = np.linalg.lstsq(weighted, np.ones(len(weighted)), rcond=None)
    return float(np.abs(terms[judged] @ line / seconds[judged] - 1).mean())


def _rows(
    route: str, micro_batches: Sequence[Lengths], costs: CostModel, seconds: FloatArray
) -> list[BenchRow]:
    cost = np.array([_cost_of(lengths, costs) for lengths in micro_batches])
    tokens = np.array([float(np.sum(lengths)) for lengths in micro_batches])
    what = (
        f"{len(seconds)} micro-batches of {tokens.min():.0f} to {tokens.max():.0f} tokens, "
        f"{1e3 * seconds.min():.0f} to {1e3 * seconds.max():.0f} ms; fitted to half of them"
    )
    return [
        BenchRow(f"cost_model_error.{route}", relative_error(cost, seconds), "1", what),
        BenchRow(
            f"cost_model_error_tokens_alone.{route}", relative_error(tokens, seconds), "1", what
        ),
    ]


def _cost_of(lengths: Lengths, costs: CostModel) -> float:
    audio, text = np.array(lengths, np.int64).T
    targets = np.array([n_targets_of(n) for n in text.tolist()])
    return float(costs(visits_of(text, audio, costs, targets=targets)).sum())


def _model(llm_config: Any, route: str) -> Any:
    work = Workload(1, 10, 20, WIDTH)
    batch = _batch([(work.n_audio, work.n_text)], llm_config.vocab_size)
    (arm,) = build_arms(
        llm_config, work, batch=batch, device=CPU, dtype=torch.float32, names=(ROUTES[route],)
    )
    return arm.module


def _batch(lengths: Lengths, vocab_size: int) -> Batch:
    return build_uneven_batch(lengths, width=WIDTH, vocab_size=vocab_size, dtype=torch.float32)


def _step_times(model: Any, micro_batches: Sequence[Lengths], *, n_rounds: int) -> FloatArray:
    """Median seconds of each micro-batch's step."""
    vocab_size = model.config.llm_config.vocab_size
    steps = [partial(_step, model, _batch(each, vocab_size)) for each in micro_batches]
    times = [Times() for _ in steps]
    steps[-1]()  # whatever happens only once
    for _ in range(n_rounds):
        for step, of_step in zip(steps, times, strict=True):
            model.zero_grad(set_to_none=False)
            of_step.add(step)
    return np.array([each.median_s for each in times])


def _step(model: nn.Module, batch: Batch) -> None:
    torch.autograd.backward(model(batch).loss_sum)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
