"""The step benchmark: its arms compute the same, and what it counts can be counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from paltrain.bench.arms import STREAM, Arm, Workload, build_arms, build_batch
from paltrain.bench.attention import measure_attention
from paltrain.bench.flops import attention_flops, connector_flops, linear_flops
from paltrain.bench.memory import LiveTensors, peak_bytes
from paltrain.bench.record import MEMORY_RATIO, STEP_RATIO, read_rows, write_rows
from paltrain.bench.step import measure_step, rows_of
from paltrain.model.cost import DecoderShape

CPU = torch.device("cpu")
WORK = Workload(n_conversations=3, n_audio=60, n_text=24, width=16, frame_stack=2)


@pytest.fixture(scope="module")
def llm_config() -> Any:
    return AutoConfig.for_model(
        "llama",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
    )


@pytest.fixture(scope="module")
def arms(llm_config: Any) -> dict[str, Arm]:
    batch = build_batch(WORK, vocab_size=50, dtype=torch.float32)
    built = build_arms(llm_config, WORK, batch=batch, device=CPU, dtype=torch.float32)
    return {arm.name: arm for arm in built}


def test_packed_and_plain_plits_compute_the_same_step(arms: dict[str, Arm]) -> None:
    packed, plain = arms["plits_packed"], arms["plits_plain"]
    weights = packed.module.state_dict()
    plain.module.load_state_dict(
        {
            name.replace(f"streams.{STREAM}.connector.", "connector."): value
            for name, value in weights.items()
        }
    )
    for arm in (packed, plain):
        arm.zero_gradients()
    assert float(packed.step()) == pytest.approx(float(plain.step()), rel=1e-5)
    theirs = plain.module.llm.model.layers[0].self_attn.k_proj.weight.grad
    ours = packed.module.llm.model.layers[0].self_attn.k_proj.weight.grad
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("arm", "route"), [("lal", "lal"), ("plits_plain", "plits")])
def test_counted_flops_equal_what_torch_counts(
    arms: dict[str, Arm], llm_config: Any, arm: str, route: str
) -> None:
    with FlopCounterMode(display=False) as counter:
        arms[arm].step()
    by_operation = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in by_operation.items() if "mm" in str(op))
    forward = connector_flops(
        n_audio=WORK.n_audio, width=WORK.width, frame_stack=2, hidden=32, model_width=32
    )
    shape = DecoderShape.of(llm_config)
    forward += linear_flops(
        shape, n_audio=WORK.n_audio, n_text=WORK.n_text, n_targets=WORK.n_targets, route=route
    )
    into_features = 2 * WORK.n_audio * WORK.width * 2 * 32  # frames need no gradient
    assert products == pytest.approx(WORK.n_conversations * (3 * forward - into_features), rel=1e-6)


def test_attention_pairs_are_those_of_the_mask() -> None:
    shape = DecoderShape(1, 4, 1, 1, 1, 4, 4)
    n_before, n_text, n_audio = 2, 5, 3
    order = ["text"] * n_before + ["audio"] * n_audio + ["text"] * (n_text - n_before)
    pairs = {"lal": 0, "plits": 0}
    for i, query in enumerate(order):
        for _ in order[: i + 1]:
            pairs["plits"] += 1
            pairs["lal"] += query == "text"
    for route, n in pairs.items():
        counted = attention_flops(
            shape, n_audio=n_audio, n_text=n_text, n_before=n_before, route=route
        )
        assert counted == 4 * n


def test_llama_1b_bound_is_the_published_one() -> None:
    shape = DecoderShape(16, 2048, 32, 8, 64, 8192, 128256)
    flops = {
        route: linear_flops(shape, n_audio=512, n_text=108, n_targets=40, route=route)
        + attention_flops(shape, n_audio=512, n_text=108, n_before=8, route=route)
        for route in ("lal", "plits")
    }
    assert flops["plits"] / flops["lal"] == pytest.approx(4.6, abs=0.05)


def test_live_tensors_counts_what_is_held_at_once() -> None:
    before = torch.zeros(1000)

    def step() -> Tensor:
        first = before + 1  # 4000 bytes
        second = first * 2  # 8000 at once
        del first
        before.add_(1)
        return second[:10].view(2, 5) + 1  # 40 more

    with LiveTensors() as counter:
        counter.ignore([before])
        kept = step()
        assert counter.live == 40
    assert counter.peak == 8000
    assert kept.shape == (2, 5)
    assert peak_bytes(step, there_before=[before], device=CPU) == 8000


def test_lal_holds_less_than_plits_and_the_count_repeats(arms: dict[str, Arm]) -> None:
    batch = build_batch(WORK, vocab_size=50, dtype=torch.float32)
    held = {}
    for name, arm in arms.items():
        counts = [peak_bytes(arm.step, there_before=arm.held(batch), device=CPU) for _ in range(2)]
        assert counts[0] == counts[1]
        held[name] = counts[0]
    assert held["lal"] < 0.6 * min(held["plits_packed"], held["plits_plain"])


def test_measured_rows_survive_the_file(llm_config: Any, tmp_path: Any) -> None:
    result = measure_step(llm_config, WORK, device=CPU, dtype=torch.float32, n_rounds=2)
    rows = rows_of(result, device=CPU, goal_ratio=3.0)
    write_rows(tmp_path / "out" / "bench.json", rows, machine="m")
    again, machine = read_rows(tmp_path / "out" / "bench.json")
    assert (again, machine) == (rows, "m")
    named = {row.metric: row for row in rows}
    assert named[STEP_RATIO].value == result.time_ratio > 0
    assert named[STEP_RATIO].goal == ">= 3"
    assert 0 < named[MEMORY_RATIO].value < 1
    assert {"step_time.lal", "peak_memory.lal", "step_time.plits_plain"} <= set(named)


def test_attention_is_compared_with_its_bare_kernel(llm_config: Any) -> None:
    row = measure_attention(llm_config, WORK, device=CPU, dtype=torch.float32, n_rounds=3)
    assert 0.1 < row.value < 3
    assert "bare kernel" in str(row.reference)
