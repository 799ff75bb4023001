"""A run's model as a folder of its own, verified by loading it again, with a card that has its
results."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from huggingface_hub import EvalResult

from paltrain.errors import ModelError
from paltrain.eval.records import BASELINE_FILE, IDENTITY_FILE, SCORES_FILE, EvalScores
from paltrain.eval.runs import RunToEvaluate, load_model, model_config, model_hash
from paltrain.eval.table import build_table
from paltrain.log import get_logger
from paltrain.model.adapters import merged
from paltrain.model.card import CardEvaluation, portable, write_card
from paltrain.model.modeling import PalModel
from paltrain.model.processing import PalProcessor

log = get_logger(__name__)


def export_model(
    run: str,
    *,
    out: Path,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    merge_adapters: bool = False,
) -> int:
    """Save model, tokenizer, template and card into `out`; returns the number of parameters.

    Written beside and renamed; what was read back must equal what was saved, bit by bit.

    max_shard_size: of a safetensors file, as '2GB'; a larger model has several. merge_adapters: add
    LoRA adapters into the weights; without, they stay beside them.

    Raises:
        ModelError: there is no finished model, or it is a bare LLM; `out` holds something already;
            it has no adapters to merge; `max_shard_size` is none; what was read back differs.
        IncompleteError: scores for its card cannot be read.
    """
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty: name a new folder, or remove it first")
    found = RunToEvaluate.find(run)
    model = load_model(found.model_folder, device="cpu")
    if merge_adapters:
        model = without_adapters(model)
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    beside = out.with_name(out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    _save(model, beside, max_shard_size)
    PalProcessor.from_pretrained(found.model_folder).tokenizer.save_pretrained(beside)
    _check_equal(model, load_model(beside, device="cpu"), beside)
    PalProcessor.from_pretrained(beside)
    _write_card(found, model, beside, dtype=str(model.dtype))
    if out.exists():
        out.rmdir()
    os.replace(beside, out)
    return sum(parameter.numel() for parameter in model.parameters())


def without_adapters(model: PalModel) -> PalModel:
    """The same model with its LoRA adapters added into the weights.

    Raises:
        ModelError: it has none.
    """
    if not model.config.lora:
        raise ModelError("the model has no adapters to merge: leave --merge-adapters out")
    config = copy.deepcopy(model.config)
    config.lora = None
    weights = merged(model.state_dict(), model.config.lora)
    plain: PalModel = PalModel.from_pretrained(
        None, config=config, state_dict=weights, dtype=model.dtype
    )
    return plain


def renew_card(run: str) -> Path:
    """Write the card of a run's model again, with what was evaluated since; returns its path.

    Raises:
        ModelError: there is no finished model, or it is a bare LLM.
        IncompleteError: scores cannot be read.
    """
    found = RunToEvaluate.find(run)
    with torch.device("meta"):  # its sizes alone
        model = PalModel(model_config(found.model_folder))
    return _write_card(found, model, found.model_folder, dtype=str(model.config.dtype))


def _save(model: PalModel, folder: Path, max_shard_size: str) -> None:
    try:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    except ValueError as error:
        raise ModelError(
            f"--max-shard-size is '{max_shard_size}': give a number with its unit, as 2GB or 500MB"
        ) from error


def _check_equal(saved: PalModel, loaded: PalModel, folder: Path) -> None:
    theirs = loaded.state_dict()
    different = [
        name for name, value in saved.state_dict().items() if not torch.equal(value, theirs[name])
    ]
    if different:
        raise ModelError(
            f"{folder} does not read back as saved ({', '.join(different[:5])}): is the disk "
            "sound? export again"
        )


def _write_card(found: RunToEvaluate, model: PalModel, folder: Path, *, dtype: str) -> Path:
    return write_card(
        folder,
        model.config,
        name=found.name,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=dtype.removeprefix("torch."),
        evaluations=card_evaluations(found),
    )


def card_evaluations(found: RunToEvaluate) -> list[CardEvaluation]:
    """The evaluations in RUN/eval of the model that is there now: by split, the deaf control
    beside."""
    by_data: dict[tuple[str, ...], list[Path]] = {}
    for folder in _evaluated(found):
        scores = EvalScores.load(folder)
        by_data.setdefault((scores.split, *scores.manifests), []).append(folder)
    return [_card_evaluation(folders) for folders in by_data.values()]


def _evaluated(found: RunToEvaluate) -> Iterator[Path]:
    files = sorted((found.folder / "eval").glob(f"*/{SCORES_FILE}"))
    here = model_hash(found.model_folder) if files else ""
    for folder in (file.parent for file in files):
        identity = folder / IDENTITY_FILE
        known = json.loads(identity.read_text(encoding="utf-8")) if identity.exists() else {}
        if known.get("model") == here:
            yield folder
        else:
            log.warning("%s is of another model than is here now: not on the card", folder)


def _card_evaluation(folders: Sequence[Path]) -> CardEvaluation:
    evaluations = [EvalScores.load(folder) for folder in folders]
    files = [folder / BASELINE_FILE for folder in folders if (folder / BASELINE_FILE).exists()]
    baseline = json.loads(files[0].read_text(encoding="utf-8"))["accuracy"] if files else None
    first = evaluations[0]
    manifests = ", ".join(f"`{portable(path)}`" for path in first.manifests)
    results = [r for e in evaluations if not e.shuffled for r in _results(e)]
    return CardEvaluation(
        title=f"Split `{first.split}` of {manifests}, {first.n_questions:,} questions",
        table=build_table(evaluations, baseline=baseline).to_markdown(),
        results=results,
    )


def _results(evaluation: EvalScores) -> list[EvalResult]:
    data = ", ".join(portable(path) for path in evaluation.manifests)
    return [
        EvalResult(
            task_type="audio-text-to-text",
            task_name=task,
            dataset_type=data,
            dataset_name=f"{data}, {task}",
            dataset_config=task,
            dataset_split=evaluation.split,
            metric_type="accuracy",
            metric_value=round(score.accuracy, 4),
        )
        for task, score in evaluation.by_task.items()
    ]
