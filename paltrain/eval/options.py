"""Keeps an answer among its question's options while it is decoded.

A question with options asks which of them: the answer is the option that greedy decoding reaches
when no other token may follow. So a deaf model guesses among the options and falls to chance, where
free decoding would let it name what it hears instead and fall below.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Choices = Sequence[Sequence[int]]  # token ids of each option, its end token included


class AmongOptions:
    """A `prefix_allowed_tokens_fn` of `transformers`' `generate`.

    choices: by row of the batch, the options' tokens, or None: anything may be said.
    """

    def __init__(self, choices: Sequence[Choices | None], *, vocab_size: int, eos: int) -> None:
        self._choices, self._eos = choices, eos
        self._anything = torch.arange(vocab_size)

    def __call__(self, row: int, input_ids: Tensor) -> list[int] | Tensor:
        """Tokens that may follow in `row`. input_ids: the prompt's last token, then what was
        said."""
        choices = self._choices[row]
        if choices is None:
            return self._anything
        said = input_ids[1:].tolist()
        n = len(said)
        return sorted({c[n] for c in choices if len(c) > n and list(c[:n]) == said}) or [self._eos]
