"""CONTRIBUTING's worked examples, run as they stand there."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from paltrain.config import FeaturesConfig, load_config
from paltrain.data.manifest import Clip, Question, write_manifest
from paltrain.data.shards import FeatureStore
from paltrain.encoders import build_encoder
from paltrain.errors import ConfigError
from paltrain.model.families import FAMILIES
from tests.model.conftest import Forest, mixed_batch, pal, stream, tiny_llm
from tests.model.dense import conversation_logits
from tests.model.test_lal_properties import text_rows
from tools import precompute_features

TEXT = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every example, in a file of the name that its first line says, where it can be imported."""
    for block in blocks("python"):
        name = block.partition("\n")[0].removeprefix("# ")
        (tmp_path / name).write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_encoder_makes_a_feature_store(modules: Path) -> None:
    clips = []
    for number, seconds in enumerate((1.0, 2.35)):
        file = modules / f"{number}.wav"
        rate = 16_000
        samples = np.sin(np.arange(int(rate * seconds)) * 0.3) * 0.1 * (number + 1)
        soundfile.write(file, samples, rate)
        question = Question(id=f"q{number}", task="which", instruction="what?", answer="a tone")
        clips.append(
            Clip(
                id=f"clip{number}",
                audio=file.name,
                duration_s=seconds,
                dataset="tones",
                split="train",
                questions=(question,),
            )
        )
    write_manifest(modules / "manifest.jsonl", clips)
    config = {
        "manifests": [str(modules / "manifest.jsonl")],
        "folder": str(modules / "features"),
        **yaml.safe_load(blocks("yaml")[0]),
    }
    (modules / "features.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert load_config(FeaturesConfig, [modules / "features.yaml"]).chosen().keys() == {"loudness"}
    assert not precompute_features.main([str(modules / "features.yaml"), "workers=0"])
    store = FeatureStore.open(modules / "features" / "loudness")
    assert sorted(store.n_frames.tolist()) == [10, 24]
    assert store.stamp["encoder"]["type"] == "loudness:LoudnessEncoder"
    loud = {}
    for clip, row in zip(clips, store.rows_of(np.array([c.id for c in clips])), strict=True):
        out = np.empty((int(store.n_frames[row]), 2), np.float16)
        store.read_into(int(row), out)
        loud[clip.id] = float(out[:, 0].mean())
    assert loud["clip1"] - loud["clip0"] == pytest.approx(np.log(2), abs=0.02)


@pytest.mark.parametrize(
    ("named", "why"),
    [("nowhere:Encoder", "No module named 'nowhere'"), ("loudness:Loud", "no attribute 'Loud'")],
)
def test_an_encoder_that_cannot_be_imported_is_named(modules: Path, named: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"encoder type '{named}': .*{why}.*MODULE:CLASS"):
        build_encoder(named)


def test_the_family_listens_as_the_others_do(
    modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "olmo2", "olmo2:keys_and_values")
    llm = tiny_llm("olmo2", n_layers=1)
    lal, plits = (pal(copy.deepcopy(llm), {"a": stream(route)}) for route in ("lal", "plits"))
    batch = mixed_batch()
    torch.testing.assert_close(
        lal.text_logits(batch), plits.text_logits(batch), rtol=1e-6, atol=1e-6
    )
    deep = pal(tiny_llm("olmo2"), {"a": stream("lal"), "b": stream("plits")})
    batch = mixed_batch(("a", "b"))
    logits = deep.text_logits(batch)
    for leaf in batch.leaves:
        expected = conversation_logits(deep, batch, int(leaf))
        theirs = logits[text_rows(batch, int(leaf))]
        torch.testing.assert_close(theirs, expected, rtol=1e-6, atol=1e-6)
    forest = Forest()
    forest.text(7)
    alone = forest.build()
    expected = llm(alone.token_ids[None]).logits[0]
    torch.testing.assert_close(lal.text_logits(alone), expected, rtol=1e-6, atol=1e-6)
