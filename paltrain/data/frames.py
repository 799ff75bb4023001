"""How a clip's frames lie in a shard: as float16, or as int8 with one scale a frame.

    float16   npy of (n_frames, width) <f2
    int8      npy of (n_frames,) records: scale <f4, values (width,) int8

A record keeps scale and values together, so that a clip is one read and one checksum either way.
Quantisation is symmetric: scale = max|x| / 127, so frame = values * scale[:, None]; a frame of
zeros has scale 0. Whoever reads a shard as plain WebDataset does that product himself.

Costs of int8: half the bytes, an error of at most half a scale in each value, and a conversion of
about 0.7 ns a value while reading.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paltrain.errors import StoreError, unknown_name

FLOAT16, INT8 = "float16", "int8"
DTYPES = (FLOAT16, INT8)
MOST = 127  # of an int8 value; -128 is not used
LARGEST = float(np.finfo(np.float16).max)
VALUES_AT_ONCE = 1 << 17  # converted while they lie in the processor's cache

Float16Array = NDArray[np.float16]


def dtype_of(stamp: Mapping[str, Any]) -> str:
    """What a stamp says of the frames. Raises StoreError for what nobody can read."""
    dtype = str(stamp.get("dtype", FLOAT16))
    if dtype not in DTYPES:
        raise StoreError(unknown_name("dtype of a feature store", dtype, list(DTYPES)))
    return dtype


def frame_dtype(width: int, dtype: str) -> np.dtype[Any]:
    """One frame as it is stored; an array of n of them is what the npy file holds."""
    if dtype == INT8:
        return np.dtype([("scale", "<f4"), ("values", "i1", (width,))])
    return np.dtype(("<f2", (width,)))


def frame_bytes(width: int, dtype: str) -> int:
    """Bytes of one stored frame."""
    return frame_dtype(width, dtype).itemsize


def layout_of(shape: tuple[int, ...], stored: np.dtype[Any]) -> tuple[str, int, int] | None:
    """(dtype, n_frames, width) of a stored npy; None for one that holds no frames."""
    if len(shape) == 2 and stored == frame_dtype(1, FLOAT16).base:
        return FLOAT16, shape[0], shape[1]
    if len(shape) == 1 and stored.names == ("scale", "values"):
        width = int(np.prod(stored["values"].shape))
        if stored == frame_dtype(width, INT8):
            return INT8, shape[0], width
    return None


def fault_of(frames: NDArray[np.floating[Any]]) -> str | None:
    """Why frames cannot be stored, e.g. 'frame 3 holds nan'; None if they can."""
    peaks = np.abs(frames).max(axis=1, initial=0)
    bad = np.flatnonzero(~(peaks <= LARGEST))  # not a number, too
    if not len(bad):
        return None
    values = frames[bad[0]]
    value = values[~(np.abs(values) <= LARGEST)][0]
    return f"frame {bad[0]} holds {value:g}, and {LARGEST:g} is the most that float16 can say"


def pack_frames(frames: NDArray[np.floating[Any]], dtype: str) -> NDArray[Any]:
    """(n_frames, width) numbers without a fault, as they are stored."""
    if dtype == FLOAT16:
        return np.ascontiguousarray(frames, frame_dtype(1, FLOAT16).base)
    exact = np.asarray(frames, np.float32)
    packed = np.zeros(len(exact), frame_dtype(exact.shape[1], INT8))
    scale = np.abs(exact).max(axis=1, initial=0) / np.float32(MOST)
    steps = exact / np.where(scale > 0, scale, 1)[:, None]
    packed["scale"] = scale
    packed["values"] = np.clip(np.rint(steps), -MOST, MOST)
    return packed


class Unpacker(threading.local):
    """Turns int8 records into float16 frames; a thread's buffers are used again."""

    def __init__(self) -> None:
        self._record_bytes = np.empty(0, np.uint8)
        self._product = np.empty((0, 0), np.float32)
        self._sign = np.empty((0, 0), np.int16)  # of the same shape

    def records(self, n_frames: int, width: int) -> NDArray[Any]:
        """(n_frames,) records to read into, valid until the thread's next call."""
        dtype = frame_dtype(width, INT8)
        n_bytes = n_frames * dtype.itemsize
        if self._record_bytes.size < n_bytes:
            self._record_bytes = np.empty(n_bytes, np.uint8)
        return self._record_bytes[:n_bytes].view(dtype)

    def unpack(self, records: NDArray[Any], out: Float16Array) -> None:
        """out = values * scale, rounded to the nearest float16.

        numpy takes 4 times as long to turn float32 into float16, so the bits are moved here.
        Times 2**-112 the exponent of a float32 is that of the float16, and 13 bits further right
        so is the rest of it, all but the sign. What is less than float16's least normal number
        works out by itself: float32 has such numbers, too.

            float32   s eeeeeeee mmmmmmmmmmmmmmmmmmmmmmm      the first three e are 0
            float16             s   eeeee mmmmmmmmmm
        """
        width = out.shape[1]
        n_at_once = max(1, VALUES_AT_ONCE // width)
        if self._product.shape != (n_at_once, width):
            self._product = np.empty((n_at_once, width), np.float32)
            self._sign = np.empty((n_at_once, width), np.int16)
        scale = (records["scale"] * np.float32(2.0**-112))[:, None]
        for first in range(0, len(out), n_at_once):
            values = records["values"][first : first + n_at_once]
            product, sign = self._product[: len(values)], self._sign[: len(values)]
            bits, half = product.view(np.uint32), out[first : first + len(values)].view(np.uint16)
            np.copyto(product, values)
            np.multiply(product, scale[first : first + len(values)], out=product)
            np.add(bits, 1 << 12, out=bits)  # rounds
            np.right_shift(bits, 13, out=bits)
            np.copyto(half, bits, casting="unsafe")
            np.copyto(sign, values)
            np.bitwise_and(sign, -(1 << 15), out=sign)
            np.bitwise_or(half, sign.view(np.uint16), out=half)
