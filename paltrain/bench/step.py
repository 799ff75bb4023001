"""The training step of LAL beside PLITS: time, peak memory and the FLOP bound, in one run.

Method: every arm is built first; after a warm-up they take turns, so that a slow moment of the
machine meets all of them; a time is the median over the rounds. Ratios are against the faster PLITS
arm (time) and the smaller one (memory). A step is forward + backward of a full fine-tune, connector
included, optimizer apart, 40 targets a conversation (half of its text where that is less).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from paltrain.bench.arms import ARMS, N_BEFORE, Arm, Workload, build_arms, build_batch
from paltrain.bench.flops import connector_flops, step_flops
from paltrain.bench.memory import MIB, how_counted, peak_bytes
from paltrain.bench.record import MEMORY_RATIO, STEP_RATIO, BenchRow
from paltrain.model.cost import DecoderShape

PLITS_ARMS = tuple(name for name in ARMS if name.startswith("plits"))


@dataclass(frozen=True)
class StepResult:
    """seconds: median step time by arm. memory: peak bytes beyond weights and gradients
    (`standing`) by arm. flops: by route."""

    work: Workload
    seconds: dict[str, float]
    memory: dict[str, int]
    standing: dict[str, int]
    flops: dict[str, int]

    @property
    def time_ratio(self) -> float:
        return min(self.seconds[name] for name in PLITS_ARMS) / self.seconds["lal"]

    @property
    def memory_ratio(self) -> float:
        return self.memory["lal"] / min(self.memory[name] for name in PLITS_ARMS)

    @property
    def flop_bound(self) -> float:
        return self.flops["plits"] / self.flops["lal"]


def measure_step(
    llm_config: Any,
    work: Workload,
    *,
    device: torch.device,
    dtype: torch.dtype,
    backend: str = "auto",
    n_rounds: int = 10,
    n_warmup: int = 2,
) -> StepResult:
    """All arms on one workload."""
    batch = build_batch(work, vocab_size=llm_config.vocab_size, dtype=dtype).to(device)
    arms = build_arms(llm_config, work, batch=batch, device=device, dtype=dtype, backend=backend)
    seconds = _time_in_turns(arms, device, n_rounds=n_rounds, n_warmup=n_warmup)
    memory = {
        arm.name: peak_bytes(arm.step, there_before=arm.held(batch), device=device) for arm in arms
    }
    standing = {arm.name: 2 * arm.weight_bytes for arm in arms}
    flops = {route: _flops(llm_config, work, route) for route in ("lal", "plits")}
    return StepResult(work, seconds, memory, standing, flops)


def rows_of(
    result: StepResult,
    *,
    device: torch.device,
    goal_ratio: float | None = None,
    goal_memory: float | None = None,
    suffix: str = "",
) -> list[BenchRow]:
    """The result as rows. Goals: the ratios to reach, if any. suffix: of the metrics' names."""
    work = result.work
    what = f"Na={work.n_audio}, Nt={work.n_text}, {work.n_conversations} conversations"
    bound_share = result.time_ratio / result.flop_bound
    counted = how_counted(device)
    rows = [
        BenchRow(
            STEP_RATIO,
            result.time_ratio,
            "x",
            f"faster PLITS; {what}; paper 2.9 to 3.475 (Llama-3.2-1B, Na=512, Nt=108)",
            f">= {goal_ratio:g}" if goal_ratio else None,
        ),
        BenchRow("step_flop_ratio_plits_over_lal", result.flop_bound, "x", what),
        BenchRow("step_time_share_of_flop_bound", bound_share, "1", what, ">= 0.7"),
        BenchRow(
            MEMORY_RATIO,
            result.memory_ratio,
            "1",
            f"smaller PLITS; beyond weights and gradients; {counted}",
            f"<= {goal_memory:g}" if goal_memory else None,
        ),
    ]
    rows += [BenchRow(f"step_time.{arm}", s, "s", what) for arm, s in result.seconds.items()]
    for arm, n_bytes in result.memory.items():
        whole = (n_bytes + result.standing[arm]) / MIB
        rows.append(BenchRow(f"peak_memory.{arm}", n_bytes / MIB, "MiB", counted))
        rows.append(BenchRow(f"peak_memory_whole.{arm}", whole, "MiB", "weights, gradients too"))
    return [replace(row, metric=row.metric + suffix) for row in rows]


def _time_in_turns(
    arms: Sequence[Arm], device: torch.device, *, n_rounds: int, n_warmup: int
) -> dict[str, float]:
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for round_ in range(n_warmup + n_rounds):
        for arm in arms:
            arm.zero_gradients()
            _wait_for(device)
            start = time.perf_counter()
            arm.step()
            _wait_for(device)
            if round_ >= n_warmup:
                seconds[arm.name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _flops(llm_config: Any, work: Workload, route: str) -> int:
    shape = DecoderShape.of(llm_config)
    connector = connector_flops(
        n_audio=work.n_audio,
        width=work.width,
        frame_stack=work.frame_stack,
        hidden=shape.width,
        model_width=shape.width,
    )
    return work.n_conversations * step_flops(
        shape,
        n_audio=work.n_audio,
        n_text=work.n_text,
        n_before=N_BEFORE,
        n_targets=work.n_targets,
        connector=connector,
        route=route,
    )
