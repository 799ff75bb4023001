"""Where everything of a packed batch lies: rows, positions, and which keys each run of rows may
look at.

A batch is a forest of pieces (`paltrain.batch`). Here every piece gets
  - rows: the places that have a query. Text tokens, and the audio tokens of PLITS streams;
  - positions: a clip behind k tokens owns k .. k + A - 1, its streams one after the other in config
    order, LAL streams first; what comes after starts at k + A. So text stands where it would stand
    under PLITS;
  - LAL keys: audio tokens that are looked at and never look.

    piece            text "a b"   clip (LAL 3, PLITS 2)      text "c d"
    row               0  1         .  .  .   2  3              4  5
    position          0  1         2  3  4   5  6              7  8
    LAL key           .  .         0  1  2   .  .              .  .

The rows are cut into segments for `varlen_attention`. A segment begins where plain causality ends:
at a clip with LAL keys, and at every branch of the tree. Keys are gathered from `[rows; LAL keys of
stream 1; stream 2; ...]` by one index, per set of streams that are present at a layer
(`attention_plan`):

    segment   rows      keys
    0         0 1       r0 r1
    1         2 3 4 5   r0 r1  a0 a1 a2  r2 r3 r4 r5

Everything here is integers on the host; a batch of a few hundred pieces costs a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from paltrain.batch import Batch, IntArray

Range = tuple[int, int]  # first and past-the-last


@dataclass(frozen=True)
class AttentionPlan:
    """The segments of rows for one set of LAL streams, or for one stream of cross-attention.

    cu_seqlens_q, cu_seqlens_k: (G + 1,) int32. key_index: (S,) int64 into `[rows; keys of the
    streams]` (cross-attention: into the stream's audio tokens), or None where the keys are just the
    rows. path_index, cu_path: the keys of every whole conversation (leaf), for the cache of
    generation, likewise. row_index: (Q,) the rows that have segments, None: all, in order.
    """

    cu_seqlens_q: IntArray
    cu_seqlens_k: IntArray
    key_index: IntArray | None
    path_index: IntArray
    cu_path: IntArray
    row_index: IntArray | None = None

    @property
    def max_seqlen_q(self) -> int:
        return int(np.diff(self.cu_seqlens_q).max(initial=0))

    @property
    def max_seqlen_k(self) -> int:
        return int(np.diff(self.cu_seqlens_k).max(initial=0))


class Layout:
    """Rows, positions and key plans of one batch.

    lal, plits, xattn: for each stream of that route, in config order, the audio tokens of every
    clip (C,). plits_sees_lal: whether the audio rows of PLITS streams look at LAL keys.
    Cross-attention happens beside the sequence: its audio has neither rows nor positions.

    n_rows: R. text_rows: (T,) the row of each text token. plits_rows: by stream, (A,) the row of
    each audio token. row_positions: (R,). lal_positions: by stream, (A,). end_positions: (P,) the
    position behind each piece.
    """

    def __init__(
        self,
        batch: Batch,
        *,
        lal: Mapping[str, IntArray],
        plits: Mapping[str, IntArray],
        xattn: Mapping[str, IntArray] | None = None,
        plits_sees_lal: bool = True,
    ) -> None:
        self.batch = batch
        self._lal, self._plits, self._xattn = dict(lal), dict(plits), dict(xattn or {})
        self._plits_sees_lal = plits_sees_lal
        self._clip_number = np.cumsum(batch.is_clip) - 1
        n_clips = batch.n_clips
        per_clip_lal = sum(self._lal.values(), np.zeros(n_clips, np.int64))
        per_clip_plits = sum(self._plits.values(), np.zeros(n_clips, np.int64))
        self._piece_rows = batch.n_tokens.copy()
        self._piece_rows[batch.is_clip] = per_clip_plits
        self._piece_silent = np.zeros_like(batch.n_tokens)  # positions without a row: LAL keys
        self._piece_silent[batch.is_clip] = per_clip_lal
        self.first_row = _starts(self._piece_rows)
        self.n_rows = int(self._piece_rows.sum())
        self._first_position = self._positions()

    def _positions(self) -> IntArray:
        first = np.zeros(len(self.batch.parent), np.int64)
        length = self._piece_rows + self._piece_silent
        for piece, parent in enumerate(self.batch.parent):
            if parent >= 0:
                first[piece] = first[parent] + length[parent]
        return first

    @property
    def end_positions(self) -> IntArray:
        return self._first_position + self._piece_rows + self._piece_silent

    @cached_property
    def row_positions(self) -> IntArray:
        return _ranges(self._first_position + self._piece_silent, self._piece_rows)

    @cached_property
    def text_rows(self) -> IntArray:
        is_text = ~self.batch.is_clip
        return _ranges(self.first_row[is_text], self._piece_rows[is_text])

    @cached_property
    def plits_rows(self) -> dict[str, IntArray]:
        start, rows = self.first_row[self.batch.is_clip], {}
        for name, n_tokens in self._plits.items():
            rows[name] = _ranges(start, n_tokens)
            start = start + n_tokens
        return rows

    @cached_property
    def lal_positions(self) -> dict[str, IntArray]:
        start, positions = self._first_position[self.batch.is_clip], {}
        for name, n_tokens in self._lal.items():
            positions[name] = _ranges(start, n_tokens)
            start = start + n_tokens
        return positions

    def positions_in_clip(self, stream: str) -> IntArray:
        """(A,) the place of each audio token of a cross-attended stream within its clip."""
        return _ranges(np.zeros_like(self._xattn[stream]), self._xattn[stream])

    def attention_plan(self, streams: Sequence[str], n_keys: Mapping[str, int]) -> AttentionPlan:
        """The segments at a layer where the LAL `streams` (config order) are present.

        n_keys: audio tokens of each stream in its tensor; at least the sum over clips (a stream
        without any audio in the batch brings a dummy token that no segment gathers).
        """
        offsets = np.cumsum([self.n_rows, *(n_keys[name] for name in streams)])
        keys = self._keys_of_pieces([self._lal[name] for name in streams], offsets[:-1])
        blind = bool(streams) and not self._plits_sees_lal
        segments = self._segments(keys, around_clips=blind)
        paths = _paths(self.batch.parent, keys, self._row_ranges)
        no_keys: list[list[Range]] = [[] for _ in keys]
        rows_only = _paths(self.batch.parent, no_keys, self._row_ranges) if blind else []
        looked_at = [
            self._seen_from(first, rows_only)
            if blind and self.batch.is_clip[first]
            else [*self._seen_from(first, paths), *keys[first]]
            for first, _ in segments
        ]
        plan = self._plan(
            [rows for _, rows in segments],
            [[*seen, rows] for seen, (_, rows) in zip(looked_at, segments, strict=True)],
            [paths[leaf] for leaf in self.batch.leaves],
        )
        assert plan.key_index is not None
        identical = not streams and np.array_equal(plan.key_index, np.arange(self.n_rows))
        return replace(plan, key_index=None) if identical else plan

    def cross_plan(self, stream: str) -> AttentionPlan:
        """The segments of the rows that hear `stream` by cross-attention: all clips before them,
        whole."""
        keys = self._keys_of_pieces([self._xattn[stream]], np.zeros(1, np.int64))
        heard = _paths(self.batch.parent, keys, [[] for _ in keys])
        segments = [each for each in self._segments(keys) if heard[each[0]]]
        rows = [rows for _, rows in segments]
        plan = self._plan(
            rows,
            [heard[first] for first, _ in segments],
            [heard[leaf] for leaf in self.batch.leaves],
        )
        return replace(plan, row_index=_flatten(rows))

    def _keys_of_pieces(
        self, n_tokens: Sequence[IntArray], offsets: Sequence[int] | IntArray
    ) -> list[list[Range]]:
        """By piece, where the audio keys of its clip lie. n_tokens: of each clip, by stream;
        offsets: where each stream's first key lies."""
        firsts = [
            offset + _starts(tokens) for offset, tokens in zip(offsets, n_tokens, strict=True)
        ]
        keys: list[list[Range]] = []
        for is_clip, clip in zip(self.batch.is_clip, self._clip_number, strict=True):
            streams = zip(firsts, n_tokens, strict=True) if is_clip else ()
            keys.append(
                [(int(f[clip]), int(f[clip] + n[clip])) for f, n in streams if int(n[clip])]
            )
        return keys

    def _seen_from(self, piece: int, paths: list[list[Range]]) -> list[Range]:
        parent = self.batch.parent[piece]
        return paths[parent] if parent >= 0 else []

    def _plan(
        self, rows: Sequence[Range], keys: Sequence[Sequence[Range]], paths: list[list[Range]]
    ) -> AttentionPlan:
        """rows, keys: of each segment. paths: the keys of each leaf."""
        return AttentionPlan(
            cu_seqlens_q=_running_total([_length([each]) for each in rows]),
            cu_seqlens_k=_running_total([_length(each) for each in keys]),
            key_index=_flatten([key for each in keys for key in each]),
            path_index=_flatten([key for path in paths for key in path]),
            cu_path=_running_total([_length(path) for path in paths]),
        )

    @cached_property
    def _row_ranges(self) -> list[list[Range]]:
        """By piece, its rows, if it has any."""
        bounds = zip(self.first_row.tolist(), self._piece_rows.tolist(), strict=True)
        return [[(first, first + n)] if n else [] for first, n in bounds]

    def _segments(
        self, keys: list[list[Range]], *, around_clips: bool = False
    ) -> list[tuple[int, Range]]:
        """(first piece, its rows) of each segment that has rows; rows in order, none left out.

        A piece goes on with the segment before it where plain causality does: no branch, no audio
        `keys` in between, nor (around_clips) a change between text and a clip's rows.
        """
        n_children = np.bincount(
            self.batch.parent[self.batch.parent >= 0], minlength=len(self.batch.parent)
        )
        segments: list[tuple[int, Range]] = []
        for piece, parent in enumerate(self.batch.parent):
            start = int(self.first_row[piece])
            stop = start + int(self._piece_rows[piece])
            goes_on = (
                parent >= 0
                and n_children[parent] == 1
                and parent == piece - 1
                and not keys[piece]
                and not (around_clips and self.batch.is_clip[[piece, parent]].any())
            )
            if goes_on:
                first, (begin, _) = segments[-1]
                segments[-1] = (first, (begin, stop))
            else:
                segments.append((piece, (start, stop)))
        return [segment for segment in segments if segment[1][0] < segment[1][1]]


def _paths(parent: IntArray, keys: list[list[Range]], rows: list[list[Range]]) -> list[list[Range]]:
    """By piece, the key ranges of its whole path from the root, itself included: the audio `keys`
    of each piece, then its `rows`."""
    paths: list[list[Range]] = []
    for piece, above in enumerate(parent):
        paths.append([*(paths[above] if above >= 0 else []), *keys[piece], *rows[piece]])
    return paths


def _starts(lengths: IntArray) -> IntArray:
    """Where each of consecutive runs begins."""
    return np.cumsum(lengths) - lengths


def _ranges(starts: IntArray, lengths: IntArray) -> IntArray:
    """start .. start + length - 1 of each run, end to end."""
    return np.repeat(starts - _starts(lengths), lengths) + np.arange(int(lengths.sum()))


def _length(ranges: Sequence[Range]) -> int:
    return sum(stop - start for start, stop in ranges)


def _flatten(ranges: Sequence[Range]) -> IntArray:
    bounds = np.array(ranges, np.int64).reshape(-1, 2)
    return _ranges(bounds[:, 0], bounds[:, 1] - bounds[:, 0])


def _running_total(lengths: Sequence[int]) -> IntArray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
