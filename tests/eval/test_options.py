"""Decoding among options: only what continues one of them may be said."""

from __future__ import annotations

import torch

from paltrain.eval.options import AmongOptions

EOS = 9
LIMIT = AmongOptions([[[1, 2, EOS], [1, 3, EOS], [4, EOS]], None], vocab_size=6, eos=EOS)


def allowed(row: int, *said: int) -> list[int]:
    return list(LIMIT(row, torch.tensor([0, *said])))


def test_each_token_continues_an_option() -> None:
    assert allowed(0) == [1, 4]
    assert allowed(0, 1) == [2, 3]
    assert allowed(0, 4) == [EOS]
    assert allowed(0, 1, 3) == [EOS]


def test_behind_an_option_only_the_end_follows() -> None:
    assert allowed(0, 4, EOS) == [EOS]


def test_a_question_without_options_may_be_answered_by_anything() -> None:
    assert allowed(1, 1) == [0, 1, 2, 3, 4, 5]
