"""Questions that are longer than the LLM's positions, text and audio tokens together.

A decoder with rotary positions computes beyond those it was trained with, without a word, and
nothing it says there is worth anything. So such questions are set aside, and counted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paltrain.data.selection import AudioTokens, StreamFeatures, further_clips

if TYPE_CHECKING:
    from paltrain.data.index import Corpus
    from paltrain.data.lengths import LengthTable

BESIDE_THE_SEQUENCE = ("xattn",)  # routes whose audio tokens take no positions


@dataclass(frozen=True)
class ContextLimit:
    """n_positions: that the LLM has. streams: whose audio tokens take some of them."""

    n_positions: int
    streams: Collection[str]

    @classmethod
    def of(cls, n_positions: int | None, routes: Mapping[str, str]) -> ContextLimit | None:
        """n_positions: `max_position_embeddings`, None where the LLM does not say it. routes: of
        the streams, by name."""
        if n_positions is None:
            return None
        return cls(int(n_positions), [n for n, r in routes.items() if r not in BESIDE_THE_SEQUENCE])

    @property
    def reason(self) -> str:
        """Why a question is set aside."""
        return (
            f"longer than the LLM's {self.n_positions} positions, text and audio tokens together "
            "(fewer tokens a second, or data.max_audio_tokens and max_text_tokens with truncation)"
        )


def questions_within(
    limit: ContextLimit,
    corpus: Corpus,
    lengths: LengthTable,
    streams: Mapping[str, StreamFeatures],
    audio_tokens: Mapping[str, AudioTokens],
) -> NDArray[np.bool_]:
    """(Q,) questions whose last token still has a position."""
    of_clip = np.zeros(corpus.n_clips, np.int64)
    for name in set(limit.streams) & set(streams):
        of_clip += audio_tokens[name](streams[name].n_frames.astype(np.int64))
    rows: NDArray[Any] = lengths.rows
    total = rows["trunk"].astype(np.int64) + rows["branch"]
    first_question: NDArray[np.int64] = np.asarray(corpus.first_question)
    total += np.repeat(of_clip, np.diff(first_question))
    questions, further = further_clips(corpus)
    np.add.at(total, questions, of_clip[further])
    within: NDArray[np.bool_] = total <= limit.n_positions
    return within
