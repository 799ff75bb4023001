"""A small world to evaluate in: sound scenes, their features, and a random model that listens."""

from __future__ import annotations

from pathlib import Path

import pytest

from paltrain.data.index import Corpus
from paltrain.data.makers import Target
from paltrain.data.precompute import precompute
from paltrain.data.soundscapes.dataset import write_soundscapes
from paltrain.encoders import build_encoder
from tests.exported import export_tiny_model

N_SCENES = 40


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """soundscapes, features/ (log-mel of 8 bands) and model/ (random, listening to them)."""
    folder = tmp_path_factory.mktemp("world")
    written = write_soundscapes(folder / "scenes", n_scenes=N_SCENES, seed=0, workers=1)
    corpus = Corpus.open([written.manifest])
    encoder = build_encoder("logmel", options={"n_mels": 8})
    targets = [Target(folder / "features", [encoder])]
    precompute(corpus, targets, clips_per_shard=16, batch_clips=8, workers=0)
    texts = [q.instruction + q.answer for n in range(N_SCENES) for q in corpus.clip(n).questions]
    export_tiny_model(folder / "run" / "model", encoder, texts)
    return folder
