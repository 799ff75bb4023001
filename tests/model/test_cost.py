"""What plans weigh visits by equals what torch counts, for every route, connector and choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from paltrain.errors import ModelError
from paltrain.model.cost import DecoderShape, connector_flops, visit_costs
from tests.model.conftest import WIDTH, Forest, pal, stream, tiny_llm

RESAMPLER = {"type": "resampler", "n_latents": 5, "n_heads": 4, "n_layers": 2}
STREAMS: dict[str, dict[str, Any]] = {
    "plits": stream("plits"),
    "lal": stream("lal"),
    "lal_late": stream("lal", layers={"start": 1}),
    "lal_linear": stream("lal", layers=[0, 2], layer_projection="linear"),
    "lal_mlp": stream("lal", layer_projection="mlp"),
    "lal_wide": stream("lal", connector={"type": "mlp", "frame_stack": 3, "hidden_width": 20}),
}


def counted(model: Any, batch: Any) -> int:
    """FLOPs of matrix products in a forward pass; attention's own are another operation."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch)
    by_operation = counter.get_flop_counts()["Global"]
    return sum(n for operation, n in by_operation.items() if "mm" in str(operation))


@pytest.mark.parametrize("name", STREAMS)
def test_tokens_cost_what_torch_counts(name: str, family: str) -> None:
    model = pal(tiny_llm(family), {"a": STREAMS[name]})
    forest = Forest()
    for n_frames, n_text in ((6, 4), (12, 9)):
        forest.text(n_text, forest.clip(n_frames, forest.text(3)))
    batch = forest.build()
    costs = visit_costs(model.config.llm_config, model.config.streams)
    n_tokens = model.n_audio_tokens(np.array([6, 12]), "a").sum()
    audio = costs["streams"]["a"]
    expected = (
        costs["text"] * len(batch.token_ids)
        + costs["target"] * len(batch.target_ids)
        + audio["token"] * n_tokens
        + audio["frame"] * 18
    )
    assert counted(model, batch) == expected


@pytest.mark.parametrize(
    ("name", "rows", "keys"),
    [("plits", 1, 0), ("lal", 0, 1), ("lal_late", 0, 2 / 3), ("lal_linear", 0, 2 / 3)],
)
def test_audio_is_looked_at_in_the_layers_that_take_it(name: str, rows: float, keys: float) -> None:
    config = tiny_llm("llama").config
    costs = visit_costs(config, {"a": STREAMS[name]})["streams"]["a"]
    assert (costs["rows"], costs["keys"]) == pytest.approx((rows, keys))


def test_a_pair_costs_what_the_dense_scores_do() -> None:
    shape = DecoderShape.of(tiny_llm("llama").config)
    q, k = torch.zeros(4, 1, 8), torch.zeros(4, 1, 8)  # heads, one query and one key
    with FlopCounterMode(display=False) as counter:
        scores = q @ k.transpose(1, 2)
        _ = scores @ k
    assert shape.pair_flops == 3 * counter.get_total_flops()


def test_a_resampler_costs_by_latents_and_by_frames() -> None:
    model = pal(tiny_llm("llama"), {"a": stream("lal", connector=RESAMPLER)})
    forest = Forest()
    forest.text(4, forest.clip(40, forest.text(2)))
    features = forest.build().features["a"]
    with FlopCounterMode(display=False) as counter:
        model.streams["a"].connector.train()(features)
    token, frame = connector_flops(RESAMPLER, width=WIDTH, model_width=32)
    scores = 2 * 5 * 40 * 32  # of a layer; its weighted values as many, and torch counts neither
    assert counter.get_total_flops() + RESAMPLER["n_layers"] * 2 * scores == token * 5 + frame * 40


def test_blocks_of_cross_attention_cost_what_torch_counts(family: str) -> None:
    """Of text that has heard the clip; what stands before it passes them by, and counts all the
    same."""
    model = pal(tiny_llm(family), {"a": stream("xattn", layers={"every": 2})})
    forest = Forest()
    forest.text(9, forest.clip(12, -1))
    batch = forest.build()
    costs = visit_costs(model.config.llm_config, model.config.streams)
    audio = costs["streams"]["a"]
    expected = costs["text"] * 9 + costs["target"] * len(batch.target_ids) + audio["token"] * 6
    assert counted(model, batch) == expected
    assert (audio["rows"], audio["keys"]) == pytest.approx((0, 2 / 3))


@pytest.mark.parametrize("by", ["queries", "windows"])
def test_a_summary_costs_as_its_connector_does(by: str) -> None:
    summary = {"type": "summary", "n_summary": 5, "summary_by": by, "n_heads": 4, "n_layers": 2}
    like = RESAMPLER if by == "queries" else {"type": "mlp", "frame_stack": 1}
    costs = [connector_flops(c, width=WIDTH, model_width=32) for c in (summary, like)]
    assert costs[0] == costs[1]


def test_the_sizes_may_be_plain_fields_and_a_missing_one_is_named() -> None:
    config = tiny_llm("qwen2").config
    assert DecoderShape.of(config.to_dict()) == DecoderShape.of(config)
    fields = {k: v for k, v in config.to_dict().items() if k != "intermediate_size"}
    with pytest.raises(ModelError, match="has no intermediate_size"):
        DecoderShape.of(fields)
    with pytest.raises(ModelError, match=r"intermediate_size as one number, is \[16, 32\]"):
        DecoderShape.of(fields | {"intermediate_size": [16, 32]})
