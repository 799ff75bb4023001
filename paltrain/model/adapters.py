"""LoRA adapters of the LLM's products, by peft: LAL is no PEFT method, and combines with one.

LAL calls the LLM's own key and value projections, so their adapters work on audio as on text.
Parameters get peft's names (`...q_proj.base_layer.weight`, `...q_proj.lora_A.default.weight`), and
a stage's group `lora` names the adapters. B starts at zero: at first nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paltrain.errors import ModelError


def add(llm: nn.Module, lora: Mapping[str, Any]) -> None:
    """Put adapters into `llm`. lora: rank, alpha, target_modules (names of its layers' products).

    The head and the embeddings take none: they are tied in many LLMs, and an adapter of one would
    be lost when the other is saved.

    Raises:
        ModelError: a target that the LLM's layers have not, or that is no product.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = list(lora["target_modules"])
    linear = {
        name.rpartition(".")[2]
        for name, module in llm.named_modules()
        if ".layers." in name and isinstance(module, nn.Linear)
    }
    if unknown := [name for name in targets if name not in linear]:
        raise ModelError(
            f"model.lora.target_modules names {', '.join(unknown)}, which the LLM's layers have "
            f"not: choose among these: {', '.join(sorted(linear))}"
        )
    config = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=targets)
    inject_adapter_in_model(config, llm)


def merged(weights: Mapping[str, Tensor], lora: Mapping[str, Any]) -> dict[str, Tensor]:
    """The LLM's weights with its adapters added in, under the names of an LLM without adapters.

    Each sum is taken in float32 (or better) and rounded once to the weight's own dtype.
    """
    out = {}
    for name, value in weights.items():
        module, is_base, kind = name.rpartition(".base_layer.")
        a, b = (f"{module}.lora_{side}.default.weight" for side in "AB")
        if is_base and kind == "weight":
            a_RI, b_OR = (
                weights[side].to(torch.promote_types(value.dtype, torch.float32)) for side in (a, b)
            )
            value = (value + lora["alpha"] / lora["rank"] * b_OR @ a_RI).to(value.dtype)
        if ".lora_" not in name:
            out[f"{module}.{kind}" if is_base else name] = value
    return out
