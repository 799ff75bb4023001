"""Tiny random decoders of every family, streams, and packed batches for the properties of LAL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from paltrain.batch import Batch, BatchBuilder
from paltrain.model.modeling import PalModel

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
VOCAB, WIDTH = 97, 6


def tiny_llm(family: str, *, n_layers: int = 3, seed: int = 0, **changes: Any) -> Any:
    """A random float64 decoder of `family`, D = 32."""
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": n_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **changes,
        },
    )
    torch.manual_seed(seed)
    llm = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():  # sharper than at initialisation, so that a wrong key changes the logits
        for name, parameter in llm.named_parameters():
            if "proj" in name:
                parameter.mul_(5)
            elif "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return llm


def stream(route: str, **changes: Any) -> dict[str, Any]:
    """One stream of width WIDTH with a frame-stacking MLP connector."""
    return {
        "route": route,
        "width": WIDTH,
        "connector": {"type": "mlp", "frame_stack": 2, "hidden_width": None},
        "layers": "all",
        "layer_projection": "shared",
        **changes,
    }


def pal(llm: Any, streams: Mapping[str, Any], **options: Any) -> PalModel:
    """A float64 PalModel with connectors large enough to matter."""
    torch.manual_seed(1)
    model = PalModel.from_llm(llm, streams=streams, dtype=torch.float64, **options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("streams.") or ".lora_" in name:
                parameter.normal_(std=0.5)
    return model


def pal_of(llm: Any, form: Mapping[str, Any]) -> PalModel:
    """The same of a form in `tests.model.forms`."""
    options = {key: value for key, value in form.items() if key != "streams"}
    model = pal(llm, form["streams"], **options)
    return model.requires_grad_(True)  # peft freezes what adapters stand beside


class Forest:
    """Grows a batch with random tokens and features; every answer token is a target."""

    def __init__(self, seed: int = 0, streams: tuple[str, ...] = ("a",)) -> None:
        self.rng = np.random.default_rng(seed)
        self.streams = streams
        self.builder = BatchBuilder()
        self.values: dict[str, list[np.ndarray]] = {name: [] for name in streams}

    def text(self, n_tokens: int, parent: int = -1) -> int:
        piece = self.builder.add_text(self.rng.integers(3, VOCAB, n_tokens), parent)
        self.builder.add_targets(piece, np.arange(n_tokens) > 0)
        return piece

    def clip(self, n_frames: int, parent: int, **of_stream: int) -> int:
        """A clip with n_frames in every stream but those that say otherwise."""
        frames = {name: of_stream.get(name, n_frames) for name in self.streams}
        for name, n in frames.items():
            self.values[name].append(self.rng.normal(size=(n, WIDTH)))
        return self.builder.add_clip(frames, parent)

    def build(self) -> Batch:
        features = {
            name: torch.from_numpy(np.concatenate(values))
            for name, values in self.values.items()
            if values
        }
        return self.builder.build(features)


def mixed_batch(streams: tuple[str, ...] = ("a",), seed: int = 0) -> Batch:
    """Questions sharing a clip, one of them going on with a second clip, text alone, a clip at
    the start, a clip behind a clip."""
    forest = Forest(seed, streams)
    trunk = forest.text(5)
    clip = forest.clip(7, trunk)
    forest.text(4, clip)
    second = forest.text(6, clip)
    forest.text(3, forest.clip(4, second))
    forest.text(8)
    forest.text(4, forest.clip(9, forest.text(1)))
    forest.text(3, forest.clip(4, forest.clip(5, forest.text(2))))
    return forest.build()


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)
