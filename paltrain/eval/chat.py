"""One question about some recordings, answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from paltrain.model.modeling import PalModel
from paltrain.model.processing import PalProcessor


def ask(
    model: PalModel,
    *,
    folder: Path,
    audio: Sequence[Path],
    text: str,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """The model's answer. folder: the exported model's, which holds its tokenizer and encoders.

    temperature: 0 is greedy. Raises AudioError for a recording that cannot be read.
    """
    processor = PalProcessor.from_pretrained(folder)
    batch = processor([text], [list(audio)]).to(model.device)
    torch.manual_seed(seed)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature}
    with torch.inference_mode():
        (tokens,) = model.generate_answers(
            batch,
            max_new_tokens=max_new_tokens,
            eos_token_id=processor.tokenizer.eos_token_id,
            **(sampling if temperature > 0 else {}),
        )
    return processor.decode(tokens)
