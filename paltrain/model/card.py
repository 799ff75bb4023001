"""The model card: a `README.md` in the model's folder that says what the model is.

Its facts are those of the folder's own `config.json` (streams with their encoders' stamps, a record
of every training stage) and the evaluations that it is given. No path of this machine gets in:
`portable` is applied where records are made, and once more here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from paltrain import __version__
from paltrain.markdown import ABSENT, markdown_table
from paltrain.model.audio_tokens import n_audio_tokens
from paltrain.model.configuration import PalConfig

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card.md.jinja")


@dataclass(frozen=True)
class CardEvaluation:
    """What one evaluation gave. table: Markdown. results: for the card's metadata."""

    title: str
    table: str
    results: Sequence[EvalResult] = ()


def write_card(
    folder: Path,
    config: PalConfig,
    *,
    name: str,
    n_parameters: int,
    dtype: str,
    evaluations: Sequence[CardEvaluation] = (),
) -> Path:
    """Write the card of the model in `folder`; returns its path. config: a `PalModel`'s, also of
    one without streams."""
    stages = list(config.stages)
    last: Mapping[str, Any] = stages[-1] if stages else {}
    card = ModelCard.from_template(
        _card_data(config, name, evaluations),
        template_path=str(TEMPLATE),
        name=name,
        streams=config.streams,
        llm=config.llm_config,
        base_llm=stages[0]["starts_from"] if stages else "an LLM that no record names",
        n_parameters=n_parameters,
        n_trained=last.get("n_trained"),
        lora=_plain(config.lora) if config.lora else None,
        dtype=dtype,
        version=__version__,
        code_version=last.get("code_version"),
        stages=stages,
        stream_table=markdown_table(STREAM_HEADER, stream_rows(config)),
        encoder_table=markdown_table(ENCODER_HEADER, _encoder_rows(config)),
        stage_table=markdown_table(STAGE_HEADER, map(_stage_row, stages)),
        evaluations=evaluations,
    )
    card.save(folder / CARD_FILE)
    return folder / CARD_FILE


STREAM_HEADER = (
    "stream",
    "features",
    "audio tokens",
    "route",
    "layers",
    "layer projection",
    "connector",
)
ENCODER_HEADER = ("stream", "encoder", "weights", "revision", "weight hash", "input", "stored as")
STAGE_HEADER = (
    *("stage", "starts from", "trains", "parameters trained", "steps", "questions a step"),
    *("epochs", "peak learning rate", "seed", "code"),
)


def stream_rows(config: PalConfig) -> list[tuple[str, ...]]:
    """A row of `STREAM_HEADER` for each stream."""
    return [
        (
            name,
            f"{_rate(spec):g} frames/s of width {spec['width']}" if _rate(spec) else ABSENT,
            audio_tokens_text(spec),
            str(spec["route"]),
            _plain(spec["layers"]) if spec["route"] != "plits" else ABSENT,
            str(spec["layer_projection"]) if spec["route"] == "lal" else ABSENT,
            _connector(spec["connector"]),
        )
        for name, spec in config.streams.items()
    ]


def audio_tokens_text(spec: Mapping[str, Any]) -> str:
    """How many audio tokens a stream's sound takes: '12.5 a second', or '64 a recording'."""
    frames = np.array([10.0, 1010.0]) * (_rate(spec) or 1.0)
    few, many = n_audio_tokens(frames.round().astype(np.int64), spec["connector"]).tolist()
    if few == many:
        return f"{few} a recording"
    rate = (many - few) / 1000
    return f"{rate:g} a second" if _rate(spec) else f"{rate:g} a frame"


def portable(path: str | Path) -> str:
    """A path without what is this machine's: as it is if relative (or a hub name), else its last
    part.

    >>> portable("data/clotho/manifest.jsonl"), portable("/elsewhere/whisper")
    ('data/clotho/manifest.jsonl', 'whisper')
    """
    text = str(path)
    return Path(text).name if Path(text).is_absolute() or text.startswith(("~", "$")) else text


def _card_data(
    config: PalConfig, name: str, evaluations: Sequence[CardEvaluation]
) -> ModelCardData:
    routes = sorted({str(spec["route"]) for spec in config.streams.values()})
    base = config.stages[0].get("base_model") if config.stages else None
    results = [result for evaluation in evaluations for result in evaluation.results]
    return ModelCardData(
        base_model=base,
        library_name="paltrain" if config.streams else "transformers",
        pipeline_tag="audio-text-to-text" if config.streams else "text-generation",
        tags=["audio", "paltrain", *routes] if config.streams else ["paltrain"],
        model_name=name,
        eval_results=results or None,
    )


def _encoder_rows(config: PalConfig) -> list[tuple[str, ...]]:
    return [_encoder_row(name, spec.get("encoder") or {}) for name, spec in config.streams.items()]


def _encoder_row(name: str, stamp: Mapping[str, Any]) -> tuple[str, ...]:
    encoder = stamp.get("encoder") or {}
    described = str(encoder.get("type", ABSENT))
    if encoder.get("options"):
        described += f" ({_plain(encoder['options'])})"
    if encoder.get("pool", 1) != 1:
        described += f", mean of {encoder['pool']} frames"
    path = encoder.get("path")
    rate = stamp.get("sample_rate_hz")
    return (
        name,
        described,
        portable(path) if path else ABSENT,
        str(encoder.get("revision") or ABSENT),
        str(stamp.get("weight_hash") or ABSENT),
        f"{rate} Hz" if rate else ABSENT,
        str(stamp.get("dtype", ABSENT)),
    )


def _stage_row(stage: Mapping[str, Any]) -> tuple[str, ...]:
    rate = f"{stage['lr']:g}"
    if stage.get("lr_by_pattern"):
        rate += f" ({_plain(stage['lr_by_pattern'])})"
    return (
        str(stage["name"]),
        str(stage["starts_from"]),
        ", ".join(stage["trains"]),
        f"{stage['n_trained']:,}",
        f"{stage['steps']:,}",
        f"{stage['questions_per_step']:,}",
        f"{stage['epochs']:.3g}",
        rate,
        str(stage["seed"]),
        str(stage["code_version"])[:12],
    )


def _connector(connector: Mapping[str, Any]) -> str:
    kind = str(connector["type"])
    if kind == "mlp":
        stack = connector["frame_stack"]
        return f"{kind} of {stack} frames" if stack > 1 else kind
    return kind


def _rate(spec: Mapping[str, Any]) -> float | None:
    return (spec.get("encoder") or {}).get("frame_rate_hz")


def _plain(value: Any) -> str:
    """Settings for readers: 'start 8', 'n_mels 80, fmax 8000', '0, 4, 8'."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)
