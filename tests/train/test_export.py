"""What a run leaves as its model: the card, and the records of all stages that led to it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from paltrain import PalModel
from paltrain.config.load import to_yaml
from paltrain.config.schema import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunIdentity,
    StageConfig,
    StreamConfig,
    TrainConfig,
)
from paltrain.model.card import portable
from paltrain.model.tokenization import train_tokenizer
from paltrain.train.export import export_model, stage_record
from tests.model.conftest import mixed_batch, pal, stream, tiny_llm
from tests.model.forms import LORA

TOKENIZER = train_tokenizer(["Which sound is heard?", "a bell"] * 9, vocab_size=300)


def config(name: str, **changes: Any) -> TrainConfig:
    made = TrainConfig(
        run=RunIdentity(name=name, seed=7),
        model=ModelConfig(llm="org/llm"),
        data=DataConfig(manifests=["data/a/manifest.jsonl", "/elsewhere/b.jsonl"]),
        stage=StageConfig(steps=20, trainable=["connectors"]),
        optimizer=OptimizerConfig(lr=2e-3),
    )
    return replace(made, **changes)


def record(of: TrainConfig, *, n_trained: int = 99) -> dict[str, Any]:
    plain = yaml.safe_load(to_yaml(of))
    return stage_record(
        plain,
        steps=20,
        questions_per_epoch=500,
        steps_per_epoch=8,
        n_trained=n_trained,
        code_version="abc1234",
    )


def export(model: Any, folder: Path, stage: dict[str, Any]) -> str:
    export_model(model, dict(model.state_dict()), TOKENIZER, folder, stage=stage)

    return (folder / "README.md").read_text()


def test_the_whole_chain_of_stages_travels_with_the_model(tmp_path: Path) -> None:
    base = config("base", model=ModelConfig(architecture={"model_type": "llama"}))
    card = export(pal(tiny_llm("llama"), {}), tmp_path / "base", record(base))
    assert "A language model without audio streams" in card
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "base")

    streams = {"a": stream("lal", encoder={"frame_rate_hz": 50.0})}
    heard = ModelConfig(streams={"a": StreamConfig(features="/scratch/me/whisper")})
    first = config("one", model=heard, stage=StageConfig(init_from="base", steps=20))
    export(PalModel.from_llm(llm, streams=streams), tmp_path / "one", record(first))
    again = config("two", model=heard, stage=StageConfig(init_from="/runs/of/me/one", steps=20))
    model = PalModel.from_pretrained(tmp_path / "one")
    for _ in range(2):  # a second export of the same stage adds nothing
        card = export(model, tmp_path / "two", record(again))

    stages = PalModel.from_pretrained(tmp_path / "two").config.stages
    assert [stage["name"] for stage in stages] == ["base", "one", "two"]
    assert [stage["starts_from"] for stage in stages] == ["a random llama", "base", "one"]
    for line in (
        r"\| base \| a random llama \| connectors \| 99 \| 20 \| 256 \| 2.5 \| 0.002 \| 7 \| abc",
        r"\| two \| one \| all \|",
        r"\| a \| 50 frames/s of width 6 \| 25 a second \| lal \| all \| shared \| mlp of 2 frames",
        r'split `train` of "data/a/manifest.jsonl", "b.jsonl", 500 questions an epoch',
        r"License\n\nNot stated by paltrain\. These weights started from a random llama",
    ):
        assert re.search(line, card), line
    for text in (card, json.dumps(stages)):
        assert not re.search(r"(?<![\w:.])/(elsewhere|scratch|runs|tmp)/", text)


def test_the_hubs_name_of_the_llm_is_on_the_card(tmp_path: Path) -> None:
    model = pal(tiny_llm("llama"), {"a": stream("lal")})
    export(model, tmp_path / "m", record(config("one")))
    data = ModelCard.load(tmp_path / "m" / "README.md").data
    assert data.base_model == "org/llm"
    assert data.library_name == "paltrain"
    assert data.license is None
    assert record(config("x", model=ModelConfig(llm=str(tmp_path))))["base_model"] is None


def test_a_bare_llm_has_its_adapters_added_in(tmp_path: Path) -> None:
    model = pal(tiny_llm("llama"), {}, lora=LORA)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_()
    batch = replace(mixed_batch(), features={})
    export(model, tmp_path / "m", record(config("one")))
    llm = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    torch.testing.assert_close(
        pal(llm, {}).text_logits(batch), model.text_logits(batch), rtol=1e-5, atol=1e-5
    )


def test_a_bare_llms_card_has_code_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = pal(tiny_llm("llama", vocab_size=len(TOKENIZER)), {})
    card = export(model, tmp_path / "m", record(config("one")))
    assert "## Results" not in card
    monkeypatch.chdir(tmp_path / "m")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("org/llm", "org/llm"),
        ("data/x/manifest.jsonl", "data/x/manifest.jsonl"),
        ("/elsewhere/whisper", "whisper"),
        ("~/whisper", "whisper"),
        ("$SCRATCH/features/mel", "mel"),
    ],
)
def test_paths_of_this_machine_are_not_shown(path: str, shown: str) -> None:
    assert portable(path) == shown
