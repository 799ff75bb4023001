"""Questions that are longer than the LLM's positions, text and audio tokens together.

A decoder with rotary positions computes beyond those it was trained with, without a word, and
nothing it says there is worth anything. So training sets such questions aside, and counts them;
evaluation leaves them out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paltrain.data.order import Int64Array
from paltrain.data.selection import AudioTokens, StreamFeatures, further_clips

if TYPE_CHECKING:
    from paltrain.data.index import Corpus
    from paltrain.data.lengths import LengthTable


@dataclass(frozen=True)
class ContextLimit:
    """n_positions: that the LLM has. streams: whose audio tokens take some of them."""

    n_positions: int
    streams: Collection[str]

    @classmethod
    def of(cls, n_positions: int | None, streams: Collection[str]) -> ContextLimit | None:
        """n_positions: `max_position_embeddings`, None where the LLM does not say it."""
        return None if n_positions is None else cls(int(n_positions), streams)

    @property
    def reason(self) -> str:
        """Why a question is set aside."""
        return (
            f"longer than the LLM's {self.n_positions} positions, text and audio tokens together "
            "(fewer tokens a second, or data.max_audio_tokens and max_text_tokens with truncation)"
        )

    def positions_of_clips(
        self,
        n_clips: int,
        streams: Mapping[str, StreamFeatures],
        audio_tokens: Mapping[str, AudioTokens],
    ) -> Int64Array:
        """(C,) positions that the audio of each of C clips takes."""
        of_clip = np.zeros(n_clips, np.int64)
        for name in set(self.streams) & set(streams):
            of_clip += audio_tokens[name](streams[name].n_frames.astype(np.int64))
        return of_clip


def questions_within(
    limit: ContextLimit,
    corpus: Corpus,
    lengths: LengthTable,
    streams: Mapping[str, StreamFeatures],
    audio_tokens: Mapping[str, AudioTokens],
) -> NDArray[np.bool_]:
    """(Q,) questions whose last token still has a position."""
    of_clip = limit.positions_of_clips(corpus.n_clips, streams, audio_tokens)
    rows: NDArray[Any] = lengths.rows
    total = rows["trunk"].astype(np.int64) + rows["branch"]
    first_question: Int64Array = np.asarray(corpus.first_question)
    total += np.repeat(of_clip, np.diff(first_question))
    questions, further = further_clips(corpus)
    np.add.at(total, questions, of_clip[further])
    within: NDArray[np.bool_] = total <= limit.n_positions
    return within
