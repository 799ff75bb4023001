"""What data hands to the model: a packed micro-batch, written as a forest of pieces.

A piece is a run of text tokens or an audio clip, and stands behind its parent piece. What a text
piece can hear and read is itself (causally) and all its ancestors, whole. So one structure says
a plain conversation, several clips in one conversation, and several questions about one clip:

    piece  0  text "system ... user"     parent -1          0 ── 1 ──┬── 2
           1  clip                       parent  0                   └── 3
           2  text "which sound? bell"   parent  1
           3  text "how many? two"       parent  1          4
           4  text (another conversation) parent -1

The batch knows nothing of routes: how many positions a clip takes and whether it becomes rows
(PLITS) or only keys and values (LAL) is the model's business (`paltrain.model.layout`).

Notation: T text tokens of the batch, P pieces, C clips, F frames of all clips of one stream, W
width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class RenderedQuestion:
    """One question as tokens: `texts[0] clip texts[1] clip ... texts[-1]`.

    texts: n_clips + 1 int64 arrays. targets: bool arrays of the same shapes, True where the token
    is to be predicted. `texts[-1]` is the branch (instruction and answer), what precedes it the
    trunk, which questions about the same clips share.
    """

    texts: tuple[IntArray, ...]
    targets: tuple[NDArray[np.bool_], ...]

    @property
    def n_clips(self) -> int:
        return len(self.texts) - 1

    @property
    def n_trunk_tokens(self) -> int:
        return sum(len(text) for text in self.texts[:-1])

    @property
    def n_branch_tokens(self) -> int:
        return len(self.texts[-1])

    @property
    def n_target_tokens(self) -> int:
        return int(sum(mask.sum() for mask in self.targets))


@dataclass(frozen=True)
class PackedFeatures:
    """One stream's encoder features of all clips, end to end.

    values: (F, W) float16 or the model's dtype. n_frames: (C,) int64, 0 where a clip lacks the
    stream.
    """

    values: Tensor
    n_frames: IntArray


@dataclass(frozen=True)
class Batch:
    """A packed micro-batch.

    token_ids: (T,) int64. parent, n_tokens: (P,) int64; n_tokens is 0 for a clip. is_clip: (P,)
    bool; clips are numbered in piece order. features: by stream name. target_rows: (M,) index into
    token_ids of the row that predicts; target_ids: (M,) the token to predict; target_weights: (M,)
    float32. ids: one name per question, for messages.
    """

    token_ids: Tensor
    parent: IntArray
    n_tokens: IntArray
    is_clip: NDArray[np.bool_]
    features: Mapping[str, PackedFeatures]
    target_rows: Tensor
    target_ids: Tensor
    target_weights: Tensor
    ids: tuple[str, ...] = ()

    @property
    def n_clips(self) -> int:
        return int(self.is_clip.sum())

    @property
    def leaves(self) -> IntArray:
        """(L,) pieces that no piece follows: one per conversation, in piece order."""
        return np.setdiff1d(np.arange(len(self.parent)), self.parent)

    def path(self, piece: int) -> list[int]:
        """The pieces from the root to `piece`, both included."""
        path = [piece]
        while (piece := int(self.parent[piece])) >= 0:
            path.append(piece)
        return path[::-1]

    def to(self, device: torch.device | str) -> Batch:
        """Tensors moved to `device`; the structure stays on the host. What streams share is moved
        once."""
        shared = {id(f.values): f.values for f in self.features.values()}
        moved = {key: values.to(device, non_blocking=True) for key, values in shared.items()}
        return replace(
            self,
            token_ids=self.token_ids.to(device, non_blocking=True),
            target_rows=self.target_rows.to(device, non_blocking=True),
            target_ids=self.target_ids.to(device, non_blocking=True),
            target_weights=self.target_weights.to(device, non_blocking=True),
            features={
                name: replace(f, values=moved[id(f.values)]) for name, f in self.features.items()
            },
        )


@dataclass
class BatchBuilder:
    """Grows a forest piece by piece; `build` turns it into a `Batch`.

    Features are packed by the caller, in the order of `add_clip`, into one buffer a stream, so that
    a reader can fill it in place.
    """

    _text_of: dict[int, IntArray] = field(default_factory=dict)  # by piece
    _parent: list[int] = field(default_factory=list)
    _n_tokens: list[int] = field(default_factory=list)
    _is_clip: list[bool] = field(default_factory=list)
    _first_row: list[int] = field(default_factory=list)
    _n_frames: list[Mapping[str, int]] = field(default_factory=list)
    _targets: list[tuple[int, int, float]] = field(default_factory=list)
    _ids: list[str] = field(default_factory=list)
    _n_rows: int = 0

    def add_text(self, token_ids: IntArray, parent: int = -1) -> int:
        """Append text behind `parent` (-1: starts a conversation); returns the piece's number."""
        piece = self._add_piece(parent, n_tokens=len(token_ids), is_clip=False)
        self._text_of[piece] = np.asarray(token_ids, dtype=np.int64)
        self._n_rows += len(token_ids)
        return piece

    def add_clip(self, n_frames: Mapping[str, int], parent: int = -1) -> int:
        """Append a clip with `n_frames` frames by stream (an absent stream has none)."""
        self._n_frames.append(n_frames)
        return self._add_piece(parent, n_tokens=0, is_clip=True)

    def add_targets(self, piece: int, mask: NDArray[np.bool_], weight: float = 1.0) -> None:
        """Let the tokens of text `piece` where `mask` is True be predicted by the token before
        each.

        The first token of a piece is predicted by its parent's last text token; behind a clip
        nothing has heard the clip yet, so there it is no target and is left out.
        """
        assert not self._is_clip[piece], "only text has targets"
        first, ids = self._first_row[piece], self._text_of[piece]
        for offset in np.flatnonzero(mask):
            row = first + int(offset) - 1 if offset else self._last_row(self._parent[piece])
            if row is not None:
                self._targets.append((row, int(ids[offset]), weight))

    def add_id(self, name: str) -> None:
        """Name a question that the batch holds."""
        self._ids.append(name)

    def build(self, features: Mapping[str, Tensor] | None = None) -> Batch:
        """The batch; `features[stream]`: (F, W), the clips' frames end to end in `add_clip`
        order."""
        rows, ids, weights = zip(*self._targets, strict=True) if self._targets else ((), (), ())
        texts = [*self._text_of.values()] or [np.zeros(0, np.int64)]
        return Batch(
            token_ids=torch.from_numpy(np.concatenate(texts)),
            parent=np.array(self._parent, np.int64),
            n_tokens=np.array(self._n_tokens, np.int64),
            is_clip=np.array(self._is_clip, bool),
            features={
                name: PackedFeatures(
                    values, np.array([n.get(name, 0) for n in self._n_frames], np.int64)
                )
                for name, values in (features or {}).items()
            },
            target_rows=torch.tensor(rows, dtype=torch.int64),
            target_ids=torch.tensor(ids, dtype=torch.int64),
            target_weights=torch.tensor(weights, dtype=torch.float32),
            ids=tuple(self._ids),
        )

    def _add_piece(self, parent: int, *, n_tokens: int, is_clip: bool) -> int:
        assert parent < len(self._parent), "a piece stands behind one that is already there"
        self._parent.append(parent)
        self._n_tokens.append(n_tokens)
        self._is_clip.append(is_clip)
        self._first_row.append(self._n_rows)
        return len(self._parent) - 1

    def _last_row(self, piece: int) -> int | None:
        """The row of the last text token at or above `piece`, None behind a clip or at a root."""
        while piece >= 0 and not self._is_clip[piece]:
            if self._n_tokens[piece]:
                return self._first_row[piece] + self._n_tokens[piece] - 1
            piece = self._parent[piece]
        return None
