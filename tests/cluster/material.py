"""Small manifests, with and without sound, and runs on them: what a launch needs at least."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from paltrain.data.assignment import assign_shards
from paltrain.data.manifest import Clip, Question, write_manifest
from paltrain.data.shard_writer import claim_store, write_shard
from paltrain.data.shards import read_assignment, read_stamp

SOUNDS = ("a bell", "a siren", "a dog", "a cat", "a drum", "a flute")


def write_texts(folder: Path, *, n_clips: int = 60) -> Path:
    """Three questions a clip, a sixth of the clips in the test split."""
    draw = random.Random(0)
    clips = []
    for i in range(n_clips):
        questions = tuple(
            Question(
                id=f"c{i}/{j}",
                task="after",
                instruction=f"Which sound comes after {draw.choice(SOUNDS)}?",
                answer=draw.choice(SOUNDS),
            )
            for j in range(3)
        )
        split = "test" if i % 6 == 0 else "train"
        clips.append(Clip(f"c{i}", None, 0.0, "texts", split, questions))
    write_manifest(folder / "manifest.jsonl", clips)
    return folder / "manifest.jsonl"


TINY_LLM: dict[str, Any] = {
    "architecture": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "tokenizer_vocab_size": 320,
}


def write_config(folder: Path, **changes: dict[str, Any]) -> Path:
    """The YAML file of a run named `base` under folder/runs. changes: by section."""
    config: dict[str, dict[str, Any]] = {
        "run": {"name": "base", "root": str(folder / "runs")},
        "model": dict(TINY_LLM),
        "data": {
            "manifests": [str(folder / "manifest.jsonl")],
            "batch_questions": 16,
            "questions_per_visit": 2,
            "text_token_budget": 128,
        },
        "stage": {"steps": 80},
        "optimizer": {"lr": 3e-3, "warmup_steps": 5},
        "engine": {"timeout_s": 60.0, "param_persistence_threshold": 0},
        "checkpoint": {"every_steps": 25},
        "launch": {"processes_per_node": 2, "threads_per_process": 1},
    }
    for section, values in changes.items():
        config.setdefault(section, {}).update(values)
    path = folder / f"{config['run']['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_sounds(folder: Path, *, n_clips: int = 24, width: int = 8) -> Path:
    """A manifest of recordings with a feature store of frames that tell the answer."""
    draw, noise = random.Random(1), np.random.default_rng(1)
    sound_of = {f"s{i}": draw.randrange(len(SOUNDS)) for i in range(n_clips)}
    clips = [
        Clip(name, f"{name}.flac", 1.0, "sounds", "train", (question(name, SOUNDS[sound]),))
        for name, sound in sound_of.items()
    ]
    write_manifest(folder / "manifest.jsonl", clips)
    stamp = {
        "encoder": {"type": "made up", "options": {}},
        "weight_hash": "none",
        "sample_rate_hz": 16000,
        "frame_rate_hz": 25.0,
        "width": width,
        "dtype": "float16",
    }
    store = folder / "store"
    claim_store(store, stamp)
    for number, names in enumerate(assign_shards(store, list(sound_of), clips_per_shard=10)):
        frames = []
        for name in names:
            noisy = 0.1 * noise.normal(size=(draw.randint(3, 9), width))
            frames.append((name, (np.eye(width)[sound_of[name]] + noisy).astype(np.float16)))
        write_shard(store, number, frames)
    return store


def empty_store(store: Path, other: Path) -> Path:
    """A store like `store` of whose clips each was set aside: its shards are there, and empty."""
    names = [name for shard in read_assignment(store) for name in shard]
    claim_store(other, read_stamp(store))
    for number, _ in enumerate(assign_shards(other, names, clips_per_shard=10)):
        write_shard(other, number, [])
    return other


def question(name: str, answer: str) -> Question:
    return Question(f"{name}/0", "which_sound", "Which sound is heard?", answer)
