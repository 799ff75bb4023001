"""The trained model as an ordinary folder: weights, configuration, tokenizer.

A run without audio streams exports the bare LLM, which any `transformers` code loads; with streams
a `PalModel`. The folder appears whole, by rename.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from paltrain.errors import CheckpointError

LLM_PREFIX = "llm."


def export_model(model: Any, weights: Mapping[str, Tensor], tokenizer: Any, folder: Path) -> None:
    """Write `folder`. model: a `PalModel`, perhaps sharded. weights: the full ones.

    Raises CheckpointError if it cannot be written.
    """
    if not model.config.streams:
        model = model.llm
        weights = {name.removeprefix(LLM_PREFIX): value for name, value in weights.items()}
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial, state_dict=dict(weights))
        tokenizer.save_pretrained(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"cannot export the model to {folder}: {error}; the last checkpoint is unharmed: "
            "make room and launch the run again"
        ) from error
