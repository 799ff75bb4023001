"""A world small enough to train in: sound scenes, their features' configuration, stages, arms."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from paltrain.data.soundscapes.dataset import write_soundscapes
from tests.cluster.material import TINY_LLM

ROOT = Path(__file__).resolve().parents[2]
N_SCENES = 40
SEEDS = [0, 1]


def write_world(folder: Path) -> None:
    """Everything that an ablation needs, but for what its `prepare` makes."""
    write_soundscapes(folder / "scenes", n_scenes=N_SCENES, seed=0, workers=1)
    manifest = str(folder / "scenes" / "manifest.jsonl")
    encoder = {"type": "logmel", "options": {"n_mels": 8}}
    save(
        folder / "features.yaml",
        {
            "manifests": [manifest],
            "folder": str(folder / "features"),
            "encoders": {"logmel": encoder},
            "workers": 0,
            "launch": {"root": str(folder / "jobs")},
        },
    )
    save(folder / "evaluate.yaml", {"runs": ["later"], "manifests": [manifest]})
    common = {
        "data": {"manifests": [manifest], "batch_questions": 16, "questions_per_visit": 4},
        "optimizer": {"lr": 3e-3},
        "engine": {"zero_stage": 0},
        "launch": {"processes_per_node": 1},
    }
    save(folder / "base.yaml", {**common, **_base(folder)})
    for route in ("lal", "plits"):
        for number, trainable in ((1, "connectors"), (2, "all")):
            stage = _stage(folder, route, number, trainable)
            save(folder / f"{route}_stage{number}.yaml", {**common, **stage})


def write_ablation(folder: Path, name: str = "forms", **changes: Any) -> Path:
    """FOLDER/NAME.yaml: LAL beside PLITS, with two seeds each. changes: of its keys."""
    values: dict[str, Any] = {
        "prepare": [str(folder / "base.yaml"), str(folder / "features.yaml")],
        "arms": {arm: {"stages": stages_of(folder, arm)} for arm in ("plits", "lal")},
        "seeds": SEEDS,
        "evaluate": str(folder / "evaluate.yaml"),
        "baseline_arm": "plits",
        "title": "Two forms",
        "parallel": 2,
        "launch": {"root": str(folder / "runs"), "name": name},
    }
    return save(folder / f"{name}.yaml", {**values, **changes})


def stages_of(folder: Path, arm: str) -> list[str]:
    return [str(folder / f"{arm}_stage{number}.yaml") for number in (1, 2)]


def save(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def start(tool: str, *words: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, f"tools/{tool}.py", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # What a shell starts with `&` ignores it, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def call(tool: str, *words: Any) -> tuple[int, str]:
    """Exit code and output of a tool."""
    process = start(tool, *words)
    out, _ = process.communicate(timeout=240)
    return process.returncode, out


def _base(folder: Path) -> dict[str, Any]:
    return {
        "run": {"name": "base", "root": str(folder / "start")},
        "model": TINY_LLM,
        "stage": {"steps": 3},
    }


def _stage(folder: Path, route: str, number: int, trainable: str) -> dict[str, Any]:
    stream = {"features": str(folder / "features" / "logmel"), "route": route}
    return {
        "run": {"name": f"{route}_stage{number}", "root": str(folder / "start")},
        "model": {"streams": {"logmel": {**stream, "connector": {"frame_stack": 8}}}},
        "stage": {
            "init_from": "base" if number == 1 else f"{route}_stage1",
            "trainable": [trainable],
            "steps": 2 * number,
        },
    }
