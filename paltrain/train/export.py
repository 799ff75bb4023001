"""The trained model as an ordinary folder: weights, configuration, tokenizer, model card.

A run without audio streams exports the bare LLM, which any `transformers` code loads; with streams
a `PalModel`. The folder appears whole, by rename. A `PalModel`'s adapters are saved beside the
weights that they change; a bare LLM has no place for them, so they are added in.

Every stage adds its own record to those of the stages that it started from. They travel in
`config.json` (`stages`, in a bare LLM's `paltrain_stages`) and hold no path of this machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from paltrain.errors import CheckpointError
from paltrain.model.adapters import merged
from paltrain.model.card import portable, write_card
from paltrain.model.configuration import STAGES_OF_LLM

LLM_PREFIX = "llm."


def export_model(
    model: Any,
    weights: Mapping[str, Tensor],
    tokenizer: Any,
    folder: Path,
    *,
    stage: Mapping[str, Any] | None = None,
) -> None:
    """Write `folder`. model: a `PalModel`, perhaps sharded. weights: the full ones. stage: the
    `stage_record` of the run.

    Raises CheckpointError if it cannot be written.
    """
    config = model.config
    if stage is not None and config.stages[-1:] != [stage]:
        config.stages = [*config.stages, dict(stage)]
    n_parameters = sum(weights[name].numel() for name, _ in model.named_parameters())
    if not config.streams:
        model, weights = model.llm, merged(weights, config.lora) if config.lora else weights
        setattr(model.config, STAGES_OF_LLM, config.stages)
        weights = {name.removeprefix(LLM_PREFIX): value for name, value in weights.items()}
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial, state_dict=dict(weights))
        tokenizer.save_pretrained(partial)
        write_card(
            partial,
            config,
            name=stage["name"] if stage else folder.name,
            n_parameters=n_parameters,
            dtype=str(next(iter(weights.values())).dtype).removeprefix("torch."),
        )
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"cannot export the model to {folder}: {error}; the last checkpoint is unharmed: "
            "make room and launch the run again"
        ) from error


def stage_record(
    config: Mapping[str, Any],
    *,
    steps: int,
    steps_per_epoch: int,
    questions_per_epoch: int,
    n_trained: int,
    code_version: str,
) -> dict[str, Any]:
    """What a model keeps of the stage that trained it, plain JSON. config: the run's, resolved."""
    model, data, stage, optimizer = (config[k] for k in ("model", "data", "stage", "optimizer"))
    batch = data["batch_questions"]
    return {
        "name": config["run"]["name"],
        **_start(model, stage),
        "trains": list(stage["trainable"]),
        "n_trained": n_trained,
        "steps": steps,
        "questions_per_step": batch,
        "epochs": round(steps / steps_per_epoch, 4),
        "lr": optimizer["lr"],
        "lr_by_pattern": dict(optimizer["lr_by_pattern"]),
        "seed": config["run"]["seed"],
        "data": {
            "manifests": [portable(path) for path in data["manifests"]],
            "split": data["split"],
            "tasks": data["tasks"],
            "mixture": _mixture(data["mixture"]),
            "questions_per_epoch": questions_per_epoch,
            "features": {
                name: portable(stream["features"]) for name, stream in model["streams"].items()
            },
        },
        "code_version": code_version,
    }


def _start(model: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, str | None]:
    """starts_from: for readers. base_model: the hub's name of the LLM, where it has one."""
    if stage["init_from"]:
        return {"starts_from": portable(stage["init_from"]), "base_model": None}
    if model["llm"]:
        is_local = Path(model["llm"]).exists() or model["llm"].count("/") != 1
        return {
            "starts_from": portable(model["llm"]),
            "base_model": None if is_local else model["llm"],
        }
    return {"starts_from": f"a random {model['architecture']['model_type']}", "base_model": None}


def _mixture(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each part's settings that say something, its manifest by a portable path."""
    return {
        name: {
            key: portable(value) if key == "manifest" else value
            for key, value in part.items()
            if value is not None
        }
        for name, part in parts.items()
    }
