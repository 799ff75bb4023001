"""Connectors: token counts, frame stacking at clip borders, clips packed or alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paltrain.batch import PackedFeatures
from paltrain.errors import ModelError
from paltrain.model.audio_tokens import n_audio_tokens
from paltrain.model.connectors import build_connector

RESAMPLER = {"type": "resampler", "n_latents": 4, "n_heads": 2, "n_layers": 2}
QUERIES = {"type": "summary", "summary_by": "queries", "n_summary": 5, "n_heads": 2, "n_layers": 1}
WINDOWS = {"type": "summary", "summary_by": "windows", "n_summary": 3, "hidden_width": None}


def mlp(frame_stack: int) -> dict[str, object]:
    return {"type": "mlp", "frame_stack": frame_stack, "hidden_width": None}


def features(*n_frames: int, width: int = 3) -> PackedFeatures:
    values = torch.randn(sum(n_frames), width, generator=torch.Generator().manual_seed(0))
    return PackedFeatures(values, np.array(n_frames, np.int64))


@pytest.mark.parametrize(
    ("connector", "expected"),
    [
        (mlp(1), [7, 0, 1]),
        (mlp(3), [3, 0, 1]),
        (RESAMPLER, [4, 0, 4]),
        (QUERIES, [5, 0, 5]),
        (WINDOWS, [3, 0, 3]),
    ],
)
def test_the_number_of_tokens_is_what_comes_out(connector: dict, expected: list[int]) -> None:
    assert n_audio_tokens(np.array([7, 0, 1]), connector).tolist() == expected
    out = build_connector(connector, width=3, model_width=8)(features(7, 0, 1))
    assert out.shape == (sum(expected), 8)


@pytest.mark.parametrize("connector", [mlp(1), mlp(3), RESAMPLER, QUERIES, WINDOWS])
def test_a_clip_alone_gives_the_tokens_it_gives_packed(connector: dict) -> None:
    torch.manual_seed(0)
    module = build_connector(connector, width=3, model_width=8)
    packed = features(7, 2, 5)
    tokens = n_audio_tokens(packed.n_frames, connector).tolist()
    outs = module(packed).split(tokens)
    for clip, out in zip(packed.values.split([7, 2, 5]), outs, strict=True):
        alone = module(PackedFeatures(clip, np.array([len(clip)], np.int64)))
        torch.testing.assert_close(out, alone, rtol=1e-5, atol=1e-6)


def test_a_summary_by_windows_says_the_means_of_equal_windows() -> None:
    torch.manual_seed(0)
    module = build_connector(WINDOWS, width=3, model_width=8)
    clip = features(7)
    rows = clip.values
    means = torch.stack([rows[0:3].mean(0), rows[2:5].mean(0), rows[4:7].mean(0)])
    expected = module.mlp(PackedFeatures(means, np.array([3])))
    torch.testing.assert_close(module(clip), expected)


def test_an_unknown_connector_lists_those_that_exist() -> None:
    with pytest.raises(ModelError, match="'mpl' .*valid: mlp, resampler, summary"):
        build_connector({"type": "mpl"}, width=3, model_width=8)


@pytest.mark.parametrize("connector", [RESAMPLER, QUERIES, WINDOWS])
def test_tokens_of_a_fixed_number_hear_the_order_of_frames(connector: dict) -> None:
    torch.manual_seed(0)
    module = build_connector(connector, width=3, model_width=8)
    clip = features(6)
    backwards = PackedFeatures(clip.values.flip(0), clip.n_frames)
    assert (module(clip) - module(backwards)).abs().max() > 1e-3
