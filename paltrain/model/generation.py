"""What generation needs around `transformers`' own loop: prompts without their last tokens, answers
cut at the end.

The loop only ever decodes. The prompts but for each conversation's last text token are run once,
packed, with their shared beginnings shared; then every step, the first included, feeds one token a
conversation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import StoppingCriteria

from paltrain.batch import Batch
from paltrain.errors import ModelError


def without_last_tokens(batch: Batch) -> tuple[Batch, Tensor]:
    """The batch without the last text token of each leaf, and those tokens (B,), in the order of
    leaves."""
    leaves = batch.leaves
    if batch.is_clip[leaves].any() or not batch.n_tokens[leaves].all():
        raise ModelError(
            "a prompt ends in a clip: at least one text token must follow it, for only text has "
            "queries"
        )
    last = torch.from_numpy(np.cumsum(batch.n_tokens)[leaves] - 1)
    keep = torch.ones(len(batch.token_ids), dtype=torch.bool)
    keep[last] = False
    n_tokens = batch.n_tokens.copy()
    n_tokens[leaves] -= 1
    none = batch.target_rows[:0]
    prompts = replace(
        batch,
        token_ids=batch.token_ids[keep.to(batch.token_ids.device)],
        n_tokens=n_tokens,
        target_rows=none,
        target_ids=none,
        target_weights=batch.target_weights[:0],
    )
    return prompts, batch.token_ids[last.to(batch.token_ids.device)]


def check_room(lengths: NDArray[np.int64], n_positions: int | None) -> None:
    """lengths: (B,) positions that each prompt takes.

    Raises:
        ModelError: one takes more than the LLM has.
    """
    if n_positions is None or lengths.max(initial=0) <= n_positions:
        return
    raise ModelError(
        f"a prompt takes {lengths.max()} positions, text and audio tokens together, but the LLM "
        f"has {n_positions} (max_position_embeddings): ask less at a time, cut the recording into "
        "pieces, or use a model with fewer audio tokens a second"
    )


class LastPosition(StoppingCriteria):  # type: ignore[misc]
    """Ends each conversation whose last token would be beyond the LLM's positions.

    lengths: (B,) positions that the prompts take. `transformers` asks about B rows, or about
    several times as many: the beams of each conversation, next to each other.
    """

    def __init__(self, lengths: Tensor, n_positions: int) -> None:
        self._lengths, self._n_positions = lengths, n_positions

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        n_new = input_ids.shape[1] - 1  # the first is the prompt's last
        over: Tensor = self._lengths + n_new > self._n_positions
        return over.repeat_interleave(len(input_ids) // len(over))


def finished_answers(tokens: Tensor, eos_token_id: int) -> list[list[int]]:
    """tokens: (B, longest). Each row up to its first end token."""
    answers = []
    for row in tokens.tolist():
        answers.append(row[: row.index(eos_token_id)] if eos_token_id in row else row)
    return answers
