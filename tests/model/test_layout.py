"""Rows, positions and key plans at toy size, as they are drawn in `paltrain.model.layout`."""

from __future__ import annotations

import numpy as np

from paltrain.model.layout import Layout
from tests.model.conftest import Forest


def counts(*n: int) -> np.ndarray:
    return np.array(n, np.int64)


def test_one_question_about_one_clip_with_both_routes_is_laid_out_as_drawn() -> None:
    forest = Forest()
    forest.text(2, forest.clip(1, forest.text(2)))
    layout = Layout(forest.build(), lal={"a": counts(3)}, plits={"p": counts(2)})
    assert layout.n_rows == 6
    assert layout.row_positions.tolist() == [0, 1, 5, 6, 7, 8]
    assert layout.lal_positions["a"].tolist() == [2, 3, 4]
    assert layout.text_rows.tolist() == [0, 1, 4, 5]
    assert layout.plits_rows["p"].tolist() == [2, 3]
    plan = layout.attention_plan(("a",), {"a": 3})
    assert plan.cu_seqlens_q.tolist() == [0, 2, 6]
    assert plan.cu_seqlens_k.tolist() == [0, 2, 11]
    assert plan.key_index is not None
    assert plan.key_index.tolist() == [0, 1, 0, 1, 6, 7, 8, 2, 3, 4, 5]


def test_where_no_audio_is_present_the_segments_are_square_and_nothing_is_gathered() -> None:
    forest = Forest()
    forest.text(2, forest.clip(1, forest.text(2)))
    forest.text(3)
    plan = Layout(forest.build(), lal={"a": counts(3)}, plits={}).attention_plan((), {"a": 3})
    assert plan.key_index is None
    assert plan.cu_seqlens_q.tolist() == plan.cu_seqlens_k.tolist() == [0, 4, 7]


def test_questions_of_a_clip_share_its_keys_and_stand_at_the_same_positions() -> None:
    forest = Forest()
    clip = forest.clip(1, forest.text(2))
    forest.text(1, clip)
    forest.text(2, clip)
    layout = Layout(forest.build(), lal={"a": counts(2)}, plits={})
    assert layout.row_positions.tolist() == [0, 1, 4, 4, 5]
    plan = layout.attention_plan(("a",), {"a": 2})
    assert plan.key_index is not None
    assert plan.cu_seqlens_q.tolist() == [0, 2, 3, 5]
    assert plan.key_index.tolist() == [0, 1] + [0, 1, 5, 6, 2] + [0, 1, 5, 6, 3, 4]


def test_questions_of_a_clip_share_its_plits_rows() -> None:
    forest = Forest()
    clip = forest.clip(1, forest.text(1))
    forest.text(1, clip)
    forest.text(1, clip)
    layout = Layout(forest.build(), lal={}, plits={"p": counts(2)})
    plan = layout.attention_plan((), {"p": 2})
    assert layout.n_rows == 5
    assert plan.key_index is not None
    assert plan.cu_seqlens_q.tolist() == [0, 3, 4, 5]  # text and clip are one causal run
    assert plan.key_index.tolist() == [0, 1, 2] + [0, 1, 2, 3] + [0, 1, 2, 4]


def test_two_streams_of_a_clip_own_consecutive_positions_and_each_layer_set_its_own_keys() -> None:
    forest = Forest()
    forest.text(1, forest.clip(1, forest.text(1)))
    layout = Layout(forest.build(), lal={"a": counts(2), "b": counts(3)}, plits={})
    assert layout.lal_positions["a"].tolist() == [1, 2]
    assert layout.lal_positions["b"].tolist() == [3, 4, 5]
    assert layout.row_positions.tolist() == [0, 6]
    n_keys = {"a": 2, "b": 3}
    keys = {s: layout.attention_plan(s, n_keys).key_index for s in (("a",), ("b",), ("a", "b"))}
    assert {s: index.tolist() for s, index in keys.items() if index is not None} == {
        ("a",): [0, 0, 2, 3, 1],
        ("b",): [0, 0, 2, 3, 4, 1],
        ("a", "b"): [0, 0, 2, 3, 4, 5, 6, 1],
    }


def test_a_clip_without_frames_in_a_stream_takes_no_place() -> None:
    forest = Forest()
    forest.text(1, forest.clip(1, forest.text(1)))
    layout = Layout(forest.build(), lal={"a": counts(0)}, plits={})
    assert layout.row_positions.tolist() == [0, 1]
    plan = layout.attention_plan(("a",), {"a": 1})  # the dummy's key is there and gathered by none
    assert plan.key_index is not None
    assert plan.key_index.tolist() == [0, 1]
