"""A tiny random model that listens to log-mel frames, exported as a run leaves it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from paltrain import PalModel, PalProcessor
from paltrain.encoders.base import AudioEncoder
from paltrain.model.tokenization import train_tokenizer


def export_tiny_model(
    folder: Path, encoder: AudioEncoder, texts: Sequence[str], **template: object
) -> None:
    """Write a LAL model of `encoder`'s features with a tokenizer trained on `texts`."""
    tokenizer = train_tokenizer(texts, vocab_size=320)
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "llama",
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    stream = {
        "route": "lal",
        "width": encoder.width,
        "connector": {"type": "mlp", "frame_stack": 2, "hidden_width": None},
        "layers": "all",
        "layer_projection": "shared",
        "encoder": {**encoder.provenance(), "dtype": "float16"},
    }
    model = PalModel.from_llm(llm, streams={"mel": stream}, template=template)
    model.save_pretrained(folder)
    PalProcessor(model.config, tokenizer).save_pretrained(folder)
