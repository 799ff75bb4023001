"""Preflight of what a training run starts from: model, tokenizer, form, and what trains of it.

The parameters are counted by the child, which lays the model out without memory: by the code that
trains, so a pattern that matches nothing and a configuration that makes no model are found as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.job import Job
from cluster.preflight.chain import Chain, Findings, Stamp
from cluster.preflight.weights import (
    CONFIG,
    faults_of_weights,
    local_folder,
    read_json,
    size_of_weights,
)
from paltrain.config.schema import TrainConfig
from paltrain.data.shards import stamp_differences
from paltrain.model.build import (
    lora_of,
    stream_spec,
    template_fields,
    tokenizer_source,
)
from paltrain.model.form import form_differences
from paltrain.model.tokenization import tokenizer_hash
from paltrain.run_folder import find_init_folder

UNKNOWN_WIDTH = 1  # of a stream without a stamp: what trains can be looked up all the same
FORM_DEFAULTS: Mapping[str, Any] = {"streams": {}, "lora": None, "plits_sees_lal": True}
TOKENIZER_FILES = ("*.json", "*.jinja", "*.model")


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    llm: fields of the LLM's configuration. form: streams, lora and plits_sees_lal of the PalModel,
    None for a bare LLM. where: in words. folder: None where an earlier run of the chain makes it,
    or it is fresh.
    """

    llm: Mapping[str, Any]
    form: Mapping[str, Any] | None
    where: str
    folder: Path | None = None


def look_at_model(
    job: Job, stamps: Mapping[str, Stamp | None], chain: Chain, findings: Findings
) -> None:
    """Everything about the model. stamps: of the run's streams, as far as known."""
    assert isinstance(job.config, TrainConfig)
    start = findings.attempt(lambda: start_of(job, chain))
    if start is None:
        _look_at_tokenizer(job, None, chain, findings)
        return
    if start.folder is not None:
        _look_at_weights(start.folder, findings)
    elif start.where:
        findings.good.append(f"starts from {start.where}")
    if start.form:
        findings.problems += _other_form(job.config, start.form, start.where, stamps)
    _look_at_tokenizer(job, start, chain, findings)


def start_of(job: Job, chain: Chain) -> Start:
    """What the run starts from, without loading it.

    Raises:
        ConfigError, ModelError: it is not there.
    """
    config = job.config
    assert isinstance(config, TrainConfig)
    before = chain.starts_from(job)
    if before is not None:
        return _trained_by(before, chain)
    folder = find_init_folder(config)
    if folder is None and config.model.llm is None:
        return Start(dict(config.model.architecture or {}), None, "a fresh LLM")
    if folder is None:
        assert config.model.llm is not None
        folder = local_folder(config.model.llm, "model.llm", environment=job.environment)
    fields = read_json(folder / CONFIG)
    if fields.get("model_type") == "pal":
        form = {key: fields.get(key, default) for key, default in FORM_DEFAULTS.items()}
        return Start(fields["llm_config"], form, str(folder), folder)
    return Start(fields, None, str(folder), folder)


def _trained_by(before: Job, chain: Chain) -> Start:
    """The model that an earlier run of the chain will have exported."""
    assert isinstance(before.config, TrainConfig)
    stamps = chain.stamps.get(before.folder.name, {})
    return Start(
        llm_fields(before, start_of(before, chain)),
        form_of(before.config, stamps) if before.config.model.streams else None,
        f"the run {before.folder.name} of this chain",
    )


def llm_fields(job: Job, start: Start) -> Mapping[str, Any]:
    """The LLM's configuration; a fresh one has as many rows of embeddings as tokens, at most."""
    assert isinstance(job.config, TrainConfig)
    size = job.config.model.tokenizer_vocab_size
    if size is None or start.folder is not None or "vocab_size" in start.llm:
        return start.llm
    return {**start.llm, "vocab_size": size}


def stream_specs(
    config: TrainConfig, stamps: Mapping[str, Stamp | None]
) -> dict[str, Mapping[str, Any]]:
    """The run's streams as its model will keep them."""
    return {
        name: stream_spec(stream, stamps.get(name) or {"width": UNKNOWN_WIDTH})
        for name, stream in config.model.streams.items()
    }


def form_of(config: TrainConfig, stamps: Mapping[str, Stamp | None]) -> dict[str, Any]:
    """What `PalConfig` keeps of the run's form."""
    return {
        "streams": stream_specs(config, stamps),
        "lora": lora_of(config),
        "plits_sees_lal": config.model.plits_sees_lal,
    }


# ---- weights, form -------------------------------------------------------------------------------


def _look_at_weights(folder: Path, findings: Findings) -> None:
    faults = findings.attempt(lambda: list(faults_of_weights(folder)))
    if faults:
        findings.problems += faults
    elif faults is not None:
        gigabytes = size_of_weights(folder) / 1e9
        findings.good.append(f"starts from {folder}, whole by its headers ({gigabytes:.3g} GB)")


def _other_form(
    config: TrainConfig, form: Mapping[str, Any], where: str, stamps: Mapping[str, Stamp | None]
) -> Iterator[str]:
    """Where the trained model is of another form than the run's, or heard another encoder.

    form: of the trained model. As when the run starts (`paltrain.model.build`), only adapters may
    be new.
    """
    here = form_of(config, stamps)
    differences = form_differences(form, here, may_be_equal=_may_be_equal)
    if differences:
        yield (
            f"stage.init_from: the model of {where} is of another form than this run "
            f"({'; '.join(differences)}): start from one of the same form, or from a bare LLM"
        )
    for name, stream in config.model.streams.items():
        trained_on = form["streams"].get(name, {}).get("encoder")
        yield from other_encoder(name, stream.features, stamps.get(name), trained_on, where)


def _may_be_equal(there: Any, here: Any, name: str) -> bool:
    return there == here or (name.endswith(".width") and UNKNOWN_WIDTH in (there, here))


def other_encoder(
    name: str, store: str, stamp: Stamp | None, trained_on: Stamp | None, where: str
) -> Iterator[str]:
    """Where a store was made otherwise than the model's, as far as both stamps are known."""
    if not stamp or not trained_on or not ("weight_hash" in stamp and "weight_hash" in trained_on):
        return
    if differences := stamp_differences(stamp, trained_on):
        yield (
            f"stream '{name}': {store} was made with another encoder than {where} was trained with "
            f"({'; '.join(differences)}): name the right store"
        )


# ---- tokenizer -----------------------------------------------------------------------------------


def _look_at_tokenizer(job: Job, start: Start | None, chain: Chain, findings: Findings) -> None:
    """Its files and its template; the child lets it turn a question into tokens."""
    config = job.config
    assert isinstance(config, TrainConfig)
    template = findings.attempt(lambda: template_fields(config))
    before = chain.starts_from(job)
    if before is not None and not config.model.tokenizer:
        findings.good.append(f"tokenizer: that of the run {before.folder.name} of this chain")
        return
    source = tokenizer_source(config, start.folder if start and start.folder else None)
    if source is None and config.stage.init_from is None:
        findings.good.append("tokenizer: trained by the run itself")
        return
    if source is None or (start is None and not config.model.tokenizer):
        return  # the model that it would come from is not there
    key = "model.tokenizer" if config.model.tokenizer else "tokenizer"
    folder = findings.attempt(
        lambda: local_folder(source, key, environment=job.environment, file="tokenizer.json")
    )
    if folder is None or template is None:
        return
    if findings.attempt(lambda: tokenizer_hash(str(folder))) is None:
        return

    def tell(said: dict[str, Any]) -> None:
        if "error" in said:
            findings.problems.append(f"tokenizer {folder}: {said['error']}")
        else:
            n_tokens = said["answer"]["n_tokens"]
            findings.good.append(f"tokenizer: {folder} ({n_tokens} tokens), template applied")

    files = sorted({file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)})
    stats = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    fields = asdict(template)
    chain.child.ask(
        {"what": "tokenizer", "folder": str(folder), "template": fields, "files": stats}, tell
    )
