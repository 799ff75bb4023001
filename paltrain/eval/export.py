"""A run's model as a folder of its own, verified by loading it again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from paltrain.errors import ModelError
from paltrain.eval.runs import RunToEvaluate, load_model
from paltrain.model.modeling import PalModel
from paltrain.model.processing import PalProcessor


def export_model(run: str, *, out: Path, dtype: str | None = None) -> int:
    """Save model, tokenizer and template into `out`; returns the number of parameters.

    Written beside and renamed; what was read back must equal what was saved, bit by bit.

    Raises:
        ModelError: there is no finished model, or `out` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty: name a new folder, or remove it first")
    folder = RunToEvaluate.find(run).model_folder
    model = load_model(folder, device="cpu")
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    beside = out.with_name(out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    PalProcessor.from_pretrained(folder).tokenizer.save_pretrained(beside)
    _check_equal(model, load_model(beside, device="cpu"), beside)
    PalProcessor.from_pretrained(beside)
    if out.exists():
        out.rmdir()
    os.replace(beside, out)
    return sum(parameter.numel() for parameter in model.parameters())


def _check_equal(saved: PalModel, loaded: PalModel, folder: Path) -> None:
    theirs = loaded.state_dict()
    different = [
        name for name, value in saved.state_dict().items() if not torch.equal(value, theirs[name])
    ]
    if different:
        raise ModelError(f"{folder} does not read back as saved: {', '.join(different[:5])}")
