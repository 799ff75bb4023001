"""What the encoders' tests share: sounds, and small random models saved as `transformers` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from paltrain.encoders.weights import hash_of
from tests.whisper import save_tiny_whisper

Noise = Callable[[float, int], np.ndarray]


@pytest.fixture
def noise() -> Noise:
    """(duration_s, rate_hz) -> samples; the same in every run."""
    rng = np.random.default_rng(0)
    return lambda duration_s, rate_hz: (0.1 * rng.normal(size=round(duration_s * rate_hz))).astype(
        np.float32
    )


def saved(model: Any, extract: Any, folder: Path) -> Path:
    """A folder as a hub would hold it, its weights no longer what a fresh model has."""
    generator = torch.Generator().manual_seed(0)
    before = hash_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    assert hash_of(model) != before
    model.save_pretrained(folder)
    extract.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_whisper(tmp_path_factory.mktemp("whisper"))
