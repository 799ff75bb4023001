"""Stored frames: int8 with a scale a frame, what float16 can say, and what it costs."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from paltrain.data.frames import (
    DTYPES,
    FLOAT16,
    INT8,
    VALUES_AT_ONCE,
    Unpacker,
    dtype_of,
    fault_of,
    frame_bytes,
    frame_dtype,
    layout_of,
    pack_frames,
)
from paltrain.errors import StoreError


def random_frames(n: int = 150, width: int = 24, *, largest: float = 3.0) -> np.ndarray:
    frames = np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)
    return frames * np.float32(largest / np.abs(frames).max())


def unpacked(records: np.ndarray, width: int) -> np.ndarray:
    out = np.full((len(records), width), 7, np.float16)
    Unpacker().unpack(records, out)
    return out


def test_int8_is_off_by_half_a_step_at_most() -> None:
    frames = random_frames()
    records = pack_frames(frames, INT8)
    step = np.abs(frames).max(axis=1) / 127
    np.testing.assert_allclose(records["scale"], step, rtol=1e-6)
    rounding = np.abs(frames) / 2048  # of float16
    error = np.abs(unpacked(records, 24).astype(np.float32) - frames)
    assert (error <= 0.5001 * step[:, None] + rounding).all()
    assert np.abs(records["values"]).max(axis=1).tolist() == [127] * len(frames)


@pytest.mark.parametrize("largest", [65504.0, 300.0, 1.0, 1e-2, 1e-4, 1e-6])
def test_unpacking_is_the_product_rounded_to_float16(largest: float) -> None:
    """One unit off where it lies between two, all the way down to what float16 can only hint at."""
    records = pack_frames(random_frames(largest=largest), INT8)
    exact = records["values"] * records["scale"][:, None].astype(np.float64)
    expected = exact.astype(np.float16)
    got = unpacked(records, 24)
    off = got != expected
    assert off.mean() < 0.01
    assert np.abs(got.view(np.int16) - expected.view(np.int16)).max() <= 1
    unit = np.spacing(np.abs(expected[off])).astype(np.float64)
    np.testing.assert_allclose(np.abs(exact[off] - expected[off]), unit / 2, rtol=0.02)


@pytest.mark.parametrize("width", [1, 6000, VALUES_AT_ONCE + 1])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_any_number_of_frames_is_unpacked(width: int, more: int) -> None:
    n = 2 * max(1, VALUES_AT_ONCE // width) + more
    frames = random_frames(n, width)
    np.testing.assert_allclose(unpacked(pack_frames(frames, INT8), width), frames, atol=0.02)


def test_frames_of_zeros_and_of_one_sign_stay_so() -> None:
    frames = random_frames(3, 4)
    frames[1] = 0
    frames[2] = -2
    got = unpacked(pack_frames(frames, INT8), 4)
    assert not got[1].any()
    assert got[2].tolist() == [-2.0] * 4


def test_one_unpacker_serves_several_threads_and_widths() -> None:
    unpacker, wrong = Unpacker(), []

    def read(width: int) -> None:
        frames = random_frames(90, width)
        packed = pack_frames(frames, INT8)
        expected = unpacked(packed, width)
        for _ in range(50):
            records = unpacker.records(90, width)
            records[:] = packed
            out = np.empty((90, width), np.float16)
            unpacker.unpack(records, out)
            wrong.append(not np.array_equal(out, expected))

    threads = [threading.Thread(target=read, args=(width,)) for width in (3, 8, 8, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 200
    assert not any(wrong)


@pytest.mark.parametrize(
    ("value", "says"),
    [(np.nan, "frame 2 holds nan"), (np.inf, "holds inf"), (-7e4, "holds -70000, and 65504 is")],
)
def test_what_float16_cannot_say_is_named(value: float, says: str) -> None:
    frames = random_frames(5, 4)
    assert fault_of(frames) is None
    assert fault_of(np.zeros((0, 4), np.float32)) is None
    frames[2, 1] = value
    assert says in str(fault_of(frames))
    frames[2, 1] = 65504
    assert fault_of(frames) is None


def test_the_bytes_of_a_frame() -> None:
    assert [frame_bytes(768, dtype) for dtype in DTYPES] == [1536, 772]
    for dtype in DTYPES:
        packed = pack_frames(random_frames(10, 6), dtype)
        assert packed.nbytes == 10 * frame_bytes(6, dtype)
        assert packed.dtype == frame_dtype(6, dtype).base
        assert layout_of(packed.shape, packed.dtype) == (dtype, 10, 6)


@pytest.mark.parametrize(
    "strange",
    [
        np.zeros((3, 4), np.float32),
        np.zeros(3, np.float16),
        np.zeros((2, 3, 4), np.float16),
        np.zeros((3, 4), frame_dtype(4, INT8)),
        np.zeros(3, [("scale", "<f4"), ("values", "i2", (4,))]),
    ],
)
def test_an_array_that_holds_no_frames_has_no_layout(strange: np.ndarray) -> None:
    assert layout_of(strange.shape, strange.dtype) is None


def test_a_stamp_says_which_and_an_old_one_means_float16() -> None:
    assert dtype_of({}) == FLOAT16
    assert dtype_of({"dtype": "int8"}) == INT8
    with pytest.raises(StoreError, match=r"'int4' \(did you mean 'int8'\?\); valid: float16, int8"):
        dtype_of({"dtype": "int4"})
