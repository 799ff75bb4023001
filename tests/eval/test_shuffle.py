"""The deaf control's permutation."""

from __future__ import annotations

import numpy as np
import pytest

from paltrain.errors import ManifestError
from paltrain.eval.shuffle import derangement


@pytest.mark.parametrize("n", [2, 3, 50])
def test_no_clip_hears_itself_and_every_clip_is_heard_once(n: int) -> None:
    order = derangement(n, seed=3)
    assert sorted(order) == list(range(n))
    assert (order != np.arange(n)).all()


def test_the_seed_fixes_the_shuffle() -> None:
    assert (derangement(40, seed=1) == derangement(40, seed=1)).all()
    assert (derangement(40, seed=1) != derangement(40, seed=2)).any()


def test_three_clips_meet_both_derangements() -> None:
    assert {tuple(derangement(3, seed=seed)) for seed in range(20)} == {(1, 2, 0), (2, 0, 1)}


def test_one_clip_has_no_control() -> None:
    with pytest.raises(ManifestError, match="at least 2 clips with audio, but there is 1: leave"):
        derangement(1, seed=0)
