"""The cache of generation: each conversation is a row, and every layer knows how many keys each row
has.

Layers without audio hold fewer keys than those with it, which one mask for all layers could not
say. The rows are the ordinary ones of `transformers` (B, K, longest, H), filled from the left, so
beams reorder as usual.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from paltrain.batch import IntArray


class ConversationLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values: (B, K, longest, H), of which row b holds `lengths[b]`.

    lengths: (B,) int64, on the host, so that a step need not wait for the device to know them.
    """

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.lengths: IntArray = np.zeros(0, np.int64)

    @property
    def longest(self) -> int:
        """Keys of the longest row."""
        return int(self.lengths.max(initial=0))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def fill(self, k: Tensor, v: Tensor, lengths: IntArray) -> None:
        """Take packed keys and values (sum of lengths, K, H) of B conversations, lengths (B,)."""
        runs = lengths.tolist()
        self.keys, self.values = (
            torch.nn.utils.rnn.pad_sequence(list(x.split(runs)), batch_first=True).transpose(1, 2)
            for x in (k, v)
        )
        self.lengths = lengths
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append one token a row: (B, K, 1, H)."""
        if self.longest == self.keys.shape[2]:
            self.keys, self.values = (_grown(x) for x in (self.keys, self.values))
        rows, ends = self._put(np.arange(len(self.lengths))), self._put(self.lengths)
        self.keys[rows, :, ends] = key_states[:, :, 0]
        self.values[rows, :, ends] = value_states[:, :, 0]
        self.lengths = self.lengths + 1
        return self.keys, self.values

    def packed(self, rows: IntArray | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The keys and values of all (or those) rows end to end, (S, K, H), and their running total
        of lengths, (B + 1,) int32."""
        rows = np.arange(len(self.lengths)) if rows is None else rows
        lengths = self.lengths[rows]
        is_key = torch.arange(self.keys.shape[2], device=self.keys.device)
        is_key = is_key < self._put(lengths)[:, None]
        n_keys = int(lengths.sum())
        of, place = torch.nonzero_static(is_key, size=n_keys).unbind(1)
        of = self._put(rows).index_select(0, of)
        k, v = (x.transpose(1, 2)[of, place] for x in (self.keys, self.values))
        return k, v, self._put(np.concatenate([[0], lengths.cumsum()]).astype(np.int32))

    def _put(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.keys.device, non_blocking=True)

    def get_seq_length(self) -> int:
        return self.longest

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def select(self, rows: Tensor) -> None:
        """Keep `rows` (a repeated one becomes two conversations)."""
        rows = rows.to(self.keys.device)
        self.keys, self.values = self.keys[rows], self.values[rows]
        self.lengths = self.lengths[rows.cpu().numpy()]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.select(torch.arange(len(self.lengths)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.select(indices)


class ConversationCache(Cache):  # type: ignore[misc]
    """All layers' rows. next_positions: (B,) the position of each conversation's next token.

    cross: by name, the audio keys and values that a block of cross-attention looks at; they stay as
    they are while the conversations grow.
    """

    def __init__(self, n_layers: int, next_positions: Tensor) -> None:
        super().__init__(layers=[ConversationLayer() for _ in range(n_layers)])
        self.next_positions = next_positions
        self.cross: dict[str, ConversationLayer] = {}

    def fill_cross(self, name: str, k: Tensor, v: Tensor, lengths: IntArray) -> None:
        """Take the audio keys and values of B conversations for one block, as `fill` does."""
        self.cross[name] = ConversationLayer()
        self.cross[name].fill(k, v, lengths)

    def fill(self, layer: int, k: Tensor, v: Tensor, lengths: IntArray) -> None:
        self.layers[layer].fill(k, v, lengths)

    def advance(self) -> None:
        """A token was appended to every row."""
        self.next_positions = self.next_positions + 1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        for layer in self.cross.values():
            layer.reorder_cache(beam_idx)
        self.next_positions = self.next_positions[beam_idx.to(self.next_positions.device)]

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        for layer in self.cross.values():
            layer.batch_repeat_interleave(repeats)
        self.next_positions = self.next_positions.repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        for layer in self.cross.values():
            layer.batch_select_indices(indices)
        self.next_positions = self.next_positions[indices]


def _grown(x_BKLH: Tensor, room: int = 16) -> Tensor:
    return torch.nn.functional.pad(x_BKLH, (0, 0, 0, room))
