"""Packed LAL attention beside the bare kernel: what gathering keys and values costs.

    packed   gather keys and values of text and audio into the segments' order, then the kernel
    bare     the kernel alone, on keys and values that lie in that order already

Both forward and backward, one layer, in turns; the same backend.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paltrain.bench.arms import STREAM, Workload, build_batch
from paltrain.bench.record import BenchRow
from paltrain.model.cost import DecoderShape
from paltrain.model.layout import Layout
from paltrain.model.segments import DevicePlan

N_WARMUP = 3


def measure_attention(
    llm_config: Any,
    work: Workload,
    *,
    device: torch.device,
    dtype: torch.dtype,
    backend: str = "auto",
    n_rounds: int = 10,
) -> BenchRow:
    """Median bare time over median packed time: 1 would mean that gathering is free."""
    shape = DecoderShape.of(llm_config)
    batch = build_batch(work, vocab_size=llm_config.vocab_size, dtype=dtype)
    tokens = {STREAM: batch.features[STREAM].n_frames // work.frame_stack}
    layout = Layout(batch, lal=tokens, plits={})
    n_audio = int(tokens[STREAM].sum())
    plan = DevicePlan.of(layout.attention_plan((STREAM,), {STREAM: n_audio}), device)
    n_rows = len(batch.token_ids)

    def random(n: int, n_heads: int) -> Tensor:
        drawn = torch.randn(n, n_heads, shape.head_dim, device=device, dtype=dtype)
        return drawn.requires_grad_()

    q = random(n_rows, shape.n_heads)
    k, v = (random(n_rows + n_audio, shape.n_kv_heads) for _ in range(2))
    gathered_k, gathered_v = (_gather(x, plan).detach().requires_grad_() for x in (k, v))

    def kernel(keys: Tensor, values: Tensor) -> None:
        out = plan.segments.attend(q, keys, values, scale=shape.head_dim**-0.5, backend=backend)
        torch.autograd.backward(out, torch.ones_like(out))

    ways: dict[str, Callable[[], None]] = {
        "packed": lambda: kernel(_gather(k, plan), _gather(v, plan)),
        "bare": lambda: kernel(gathered_k, gathered_v),
    }
    seconds = _in_turns(ways, device, n_rounds)
    return BenchRow(
        "lal_attention_bare_over_packed_time",
        seconds["bare"] / seconds["packed"],
        "1",
        f"the bare kernel, {1e3 * seconds['bare']:.3g} ms; Na={work.n_audio}, Nt={work.n_text}, "
        f"{work.n_conversations} conversations",
        ">= 0.85",
    )


def _gather(x: Tensor, plan: DevicePlan) -> Tensor:
    return x if plan.key_index is None else x.index_select(0, plan.key_index)


def _in_turns(
    ways: dict[str, Callable[[], None]], device: torch.device, n_rounds: int
) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(N_WARMUP + n_rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if round_ >= N_WARMUP:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}
