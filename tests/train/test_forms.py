"""Every form's own YAML, of both sizes, trains: what its stages name moves, the rest stays."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from paltrain.batch import Batch, BatchBuilder
from paltrain.config import TrainConfig, load_config
from paltrain.model.build import build_model
from paltrain.model.tokenization import load_tokenizer, train_tokenizer
from paltrain.train.export import export_model
from paltrain.train.stages import GROUPS, parameter_groups, set_trainable

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FORMS = (
    *("plits", "lal", "lal_frozen_ffn", "lal_delayed", "lal_ensemble", "pal", "pal_unified"),
    *("qformer_plits", "flamingo", "lora_plits", "lora_lal"),
)
N_LAYERS, N_STEPS = 6, 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLM with its tokenizer, deep enough for every form's layers."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(["what do you hear? a bell", "how many? two"], vocab_size=320)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def stage(form: str, number: int, folder: str, base: Path) -> TrainConfig:
    size = ["model.dtype=float32", "model.gradient_checkpointing=false"]
    words = [*size, f"model.llm={base}"] if not folder else []
    file = CONFIGS / folder / f"{form}_stage{number}.yaml"
    return load_config(TrainConfig, [file], words)


def stamps(config: TrainConfig) -> dict[str, dict[str, Any]]:
    return {
        name: {"width": 5 + len(Path(stream.features).name), "encoder": {"type": "logmel"}}
        for name, stream in config.model.streams.items()
    }


def batch_of(config: TrainConfig) -> Batch:
    """Two clips with a question each; equal answers to equal sounds."""
    generator = np.random.default_rng(0)
    builder, widths = BatchBuilder(), stamps(config)
    values: dict[str, list[Any]] = {name: [] for name in widths}
    for answer, n_frames in enumerate((9, 23)):
        clip = builder.add_clip(
            dict.fromkeys(widths, n_frames), builder.add_text(np.arange(20, 24))
        )
        ids = np.array([30, 31, 40 + answer, 50 + answer, 2])
        builder.add_targets(builder.add_text(ids, clip), np.arange(5) >= 2)
        for name, stamp in widths.items():
            values[name].append(generator.normal(size=(n_frames, stamp["width"])))
    return builder.build(
        {name: torch.from_numpy(np.concatenate(each)).float() for name, each in values.items()}
    )


def train(model: Any, config: TrainConfig) -> list[float]:
    """A few steps of AdamW on what the stage lets train; the losses."""
    set_trainable(model, config.stage.trainable)
    groups = parameter_groups(model, lr=3e-3, weight_decay=0.0, lr_by_pattern={})
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [parameters[name] for name in g.names], "lr": g.lr} for g in groups]
    )
    batch, losses = batch_of(config), []
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        loss = model(batch).loss_sum
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def is_named(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, p) for group in patterns for p in GROUPS.get(group, (group,)))


@pytest.mark.parametrize("folder", ["", "soundscapes"], ids=["real", "soundscapes"])
@pytest.mark.parametrize("form", FORMS)
def test_both_stages_of_a_form_train_what_they_name(
    form: str, folder: str, base: Path, tmp_path: Path
) -> None:
    start, tokenizer = base, load_tokenizer(str(base))
    for number in (1, 2):
        config = stage(form, number, folder, base)
        model = build_model(config, stamps(config), tokenizer=tokenizer, init_folder=start)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        losses = train(model, config)
        assert losses[-1] < losses[0]
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        named = {n for n in before if is_named(n, config.stage.trainable)}
        assert moved <= named
        assert len(moved) > 0.7 * len(named), sorted(named - moved)
        start = tmp_path / f"stage{number}"
        export_model(model, model.state_dict(), tokenizer, start)
