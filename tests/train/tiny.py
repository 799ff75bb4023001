"""A tiny Llama on text, and batches for it: what the engine's tests train."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

VOCABULARY = 64


@dataclass
class Output:
    loss_sum: Tensor


class TinyModel(nn.Module):
    """`model(ids)`: the summed next-token cross-entropy of (rows, length) ids; has a buffer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=33,  # odd sizes: no world size divides the tensors
            intermediate_size=47,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=3,
            head_dim=10,
            tie_word_embeddings=False,
        )
        self.llm = LlamaForCausalLM(config)
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.float32))
        self.to(dtype)

    def forward(self, ids: Tensor) -> Output:
        self.n_seen += 1
        logits = self.llm(ids).logits.float()
        loss = nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"
        )
        return Output(loss)


def micro_batches(step: int, n: int) -> list[Tensor]:
    """`n` micro-batches of a step's 12 rows (global, in order), each (12 / n, 9)."""
    rows = torch.from_numpy(np.random.default_rng(step).integers(0, VOCABULARY, (12, 9)))
    return list(rows.chunk(n))
