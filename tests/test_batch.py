"""The forest of pieces: what a token may be predicted by, shared rows, leaves and paths.

The forest of the tests, rows in brackets:

    0 text [0 1 2] -- 1 clip --+-- 2 text [3 4 5]
                               +-- 3 text [6 7]
    4 text [8 9] --- 5 text [10]
"""

import numpy as np
import pytest
import torch

from paltrain.batch import Batch, BatchBuilder, PackedFeatures, RenderedQuestion


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def mask(text: str) -> np.ndarray:
    return np.array([letter == "x" for letter in text])


def forest() -> BatchBuilder:
    builder = BatchBuilder()
    trunk = builder.add_text(ids(10, 11, 12))
    clip = builder.add_clip({"a": 4, "b": 2}, trunk)
    builder.add_text(ids(20, 21, 22), clip)
    builder.add_text(ids(30, 31), clip)
    other = builder.add_text(ids(40, 41))
    builder.add_text(ids(50), other)
    return builder


def targets(batch: Batch) -> list[tuple[int, int, float]]:
    columns = (batch.target_rows, batch.target_ids, batch.target_weights)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_texts_lie_end_to_end_and_clips_take_no_row():
    batch = forest().build()
    assert batch.token_ids.tolist() == [10, 11, 12, 20, 21, 22, 30, 31, 40, 41, 50]
    assert batch.n_tokens.tolist() == [3, 0, 3, 2, 2, 1]
    assert batch.is_clip.tolist() == [False, True, False, False, False, False]
    assert batch.n_clips == 1


def test_leaves_are_the_pieces_that_none_follows():
    assert forest().build().leaves.tolist() == [2, 3, 5]


def test_a_path_runs_from_the_root_to_the_piece():
    batch = forest().build()
    assert batch.path(3) == [0, 1, 3]
    assert batch.path(5) == [4, 5]
    assert batch.path(0) == [0]


def test_a_token_is_predicted_by_the_row_before_it():
    builder = forest()
    builder.add_targets(2, mask(".xx"))
    assert targets(builder.build()) == [(3, 21, 1.0), (4, 22, 1.0)]


def test_the_first_token_behind_a_clip_is_no_target_for_nothing_has_heard_the_clip():
    builder = forest()
    builder.add_targets(3, mask("xx"))
    assert targets(builder.build()) == [(6, 31, 1.0)]


def test_the_first_token_behind_text_is_predicted_by_the_parents_last_row():
    builder = forest()
    builder.add_targets(5, mask("x"))
    assert targets(builder.build()) == [(9, 50, 1.0)]


def test_the_first_token_of_a_conversation_is_no_target():
    builder = forest()
    builder.add_targets(4, mask("xx"))
    assert targets(builder.build()) == [(8, 41, 1.0)]


def test_questions_about_shared_text_share_its_last_row():
    builder = BatchBuilder()
    trunk = builder.add_text(ids(1, 2))
    for token in (7, 8):
        builder.add_targets(builder.add_text(ids(token), trunk), mask("x"))
    assert targets(builder.build()) == [(1, 7, 1.0), (1, 8, 1.0)]


def test_a_shared_prompt_weighs_as_often_as_it_has_questions():
    builder = forest()
    builder.add_targets(0, mask(".xx"), weight=2.0)
    assert targets(builder.build()) == [(0, 11, 2.0), (1, 12, 2.0)]


def test_an_empty_text_lets_the_row_before_it_predict():
    builder = BatchBuilder()
    empty = builder.add_text(ids(), builder.add_text(ids(1, 2)))
    builder.add_targets(builder.add_text(ids(3), empty), mask("x"))
    assert targets(builder.build()) == [(1, 3, 1.0)]


def test_clips_have_no_targets_and_no_unborn_parent():
    builder = forest()
    with pytest.raises(AssertionError, match="only text has targets"):
        builder.add_targets(1, mask("x"))
    with pytest.raises(AssertionError, match="already there"):
        builder.add_text(ids(1), parent=99)


def test_features_carry_the_frames_of_each_clip_and_0_where_a_clip_lacks_the_stream():
    builder = BatchBuilder()
    builder.add_clip({"a": 4}, builder.add_text(ids(1)))
    builder.add_clip({"a": 1, "b": 2}, builder.add_text(ids(2)))
    batch = builder.build({"a": torch.zeros(5, 3), "b": torch.zeros(2, 6)})
    assert {name: list(f.n_frames) for name, f in batch.features.items()} == {
        "a": [4, 1],
        "b": [0, 2],
    }


def test_moving_keeps_the_structure_and_moves_every_tensor():
    builder = forest()
    builder.add_targets(2, mask(".xx"))
    builder.add_id("q1")
    batch = builder.build({"a": torch.ones(4, 2)})
    moved = batch.to("meta")
    tensors = (moved.token_ids, moved.target_rows, moved.target_ids, moved.target_weights)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.features["a"].values.device.type == "meta"
    assert moved.parent is batch.parent
    assert moved.ids == ("q1",)
    assert isinstance(moved.features["a"], PackedFeatures)


def test_a_batch_without_text_or_targets_is_empty_and_typed():
    batch = BatchBuilder().build()
    assert batch.token_ids.dtype == batch.target_rows.dtype == torch.int64
    assert batch.target_weights.dtype == torch.float32
    assert batch.leaves.tolist() == []


def test_a_rendered_question_counts_its_trunk_branch_and_targets():
    question = RenderedQuestion(
        texts=(ids(1, 2), ids(3), ids(4, 5, 6)), targets=(mask(".."), mask("."), mask(".xx"))
    )
    assert question.n_clips == 2
    assert question.n_trunk_tokens == 3
    assert question.n_branch_tokens == 3
    assert question.n_target_tokens == 2
