"""From configuration to model, tokenizer and template (a builder: it reads config objects).

A run starts from one of three: a fresh LLM (`model.architecture`), a pretrained one (`model.llm`),
or a finished run's `model/` folder (`stage.init_from`), which is a bare LLM where that run had no
streams, else a PalModel.
Importing this needs no torch: dry runs ask for tokenizer and template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paltrain.config.schema import StreamConfig, TrainConfig
from paltrain.errors import ConfigError, ModelError
from paltrain.model.audio_tokens import n_audio_tokens
from paltrain.model.form import form_differences
from paltrain.model.tokenization import TemplateFields, load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    import torch

    from paltrain.model.modeling import PalModel
    from paltrain.model.template import ChatTemplate


def build_tokenizer(config: TrainConfig, *, texts: Iterable[str] | None = None) -> Any:
    """The run's tokenizer. texts: what a fresh one is trained on (`model.tokenizer_vocab_size`).

    Raises:
        ConfigError: none is named, and none is to be trained.
        ModelError: the one that is named cannot be loaded.
    """
    source = tokenizer_source(config)
    if source is not None:
        return load_tokenizer(source)
    if config.model.tokenizer_vocab_size is None or texts is None:
        raise ConfigError(
            "a fresh LLM (model.architecture) has no tokenizer: set model.tokenizer to a folder "
            "or hub name, or model.tokenizer_vocab_size to train one on the manifests' text"
        )
    return train_tokenizer(texts, vocab_size=config.model.tokenizer_vocab_size)


def tokenizer_source(config: TrainConfig, init_folder: Path | None = None) -> str | None:
    """Folder or hub name of the run's tokenizer, None where one is trained."""
    if config.model.tokenizer:
        return config.model.tokenizer
    return str(init_folder) if init_folder else config.model.llm


def template_fields(config: TrainConfig) -> TemplateFields:
    """How questions become text in this run.

    Raises:
        ConfigError: `template.chat_template` cannot be read.
    """
    template, source = config.template, config.template.chat_template
    return TemplateFields(
        system=template.system,
        chat_template=_read_template(source) if source else None,
        date_string=template.date_string,
        loss_on_prompt=template.loss_on_prompt,
        max_text_tokens=config.data.max_text_tokens,
        truncate_text=config.data.truncate_text,
    )


def audio_token_counts(config: TrainConfig) -> dict[str, Callable[[Any], Any]]:
    """By stream, from frames of clips to the tokens they take."""
    counts: dict[str, Callable[[Any], Any]] = {}
    for name, stream in config.model.streams.items():
        fields = _plain(asdict(stream.connector))
        counts[name] = partial(n_audio_tokens, connector=fields)
    return counts


def build_template(config: TrainConfig, tokenizer: Any) -> ChatTemplate:
    from paltrain.model.template import ChatTemplate

    return ChatTemplate(tokenizer, template_fields(config))


def build_model(
    config: TrainConfig,
    stamps: Mapping[str, Mapping[str, Any]],
    *,
    tokenizer: Any,
    init_folder: Path | None = None,
) -> PalModel:
    """The run's model, on the CPU (or partitioned, where the engine has prepared `transformers` for
    that).

    stamps: by stream, the `store.json` of its features. init_folder: a finished run's model.

    Raises:
        ModelError: what it starts from is missing, or is a model of another form.
    """
    import torch

    from paltrain.model.modeling import PalModel

    dtype = getattr(torch, config.model.dtype.value)
    streams = {
        name: stream_spec(stream, stamps[name]) for name, stream in config.model.streams.items()
    }
    form: dict[str, Any] = {
        "streams": streams,
        "lora": lora_of(config),
        "plits_sees_lal": config.model.plits_sees_lal,
    }
    if init_folder is not None and _is_pal(init_folder):
        model = _load_same_form(init_folder, form, dtype)
    else:
        model = PalModel.from_llm(_llm(config, init_folder, tokenizer, dtype), dtype=dtype, **form)
    model.config.attention_backend = config.model.attention_backend
    model.config.template = asdict(template_fields(config))
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def stream_spec(stream: StreamConfig, stamp: Mapping[str, Any]) -> dict[str, Any]:
    """A stream as `PalConfig` keeps it: plain values, and the encoder's stamp."""
    return {
        "route": stream.route.value,
        "width": int(stamp["width"]),
        "connector": _plain(asdict(stream.connector)),
        "layers": stream.layers,
        "layer_projection": stream.layer_projection.value,
        "encoder": dict(stamp),
    }


def lora_of(config: TrainConfig) -> dict[str, Any] | None:
    """The adapters as `PalConfig` keeps them."""
    return asdict(config.model.lora) if config.model.lora.rank else None


def _llm(config: TrainConfig, init_folder: Path | None, tokenizer: Any, dtype: torch.dtype) -> Any:
    if init_folder is not None:
        return str(init_folder)
    if config.model.llm is not None:
        return config.model.llm
    fields = dict(config.model.architecture or {})
    fields.setdefault("vocab_size", len(tokenizer))
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        fields.setdefault(token, getattr(tokenizer, token))
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise ConfigError("model.architecture has no model_type: name the family, e.g. llama")
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields), dtype=dtype)


def _load_same_form(folder: Path, form: Mapping[str, Any], dtype: torch.dtype) -> PalModel:
    """The PalModel in `folder`, which must be of this run's form; only adapters may be new here.

    form: streams, lora and plits_sees_lal, as `PalConfig` keeps them.
    """
    from paltrain.model.modeling import PalModel

    saved = PalModel.config_class.from_pretrained(folder)
    differences = form_differences(saved.to_dict(), form)
    if differences:
        raise ModelError(
            f"the model in {folder} is of another form than this run; start from one of the same "
            "form, or from a bare LLM:\n  " + "\n  ".join(differences)
        )
    model: PalModel = PalModel.from_pretrained(folder, dtype=dtype)
    if saved.lora is None and form["lora"]:
        model.add_adapters(form["lora"])
    return model


def _is_pal(folder: Path) -> bool:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"no model in {folder} (config.json is missing): finish that run first")
    is_pal: bool = json.loads(file.read_text(encoding="utf-8")).get("model_type") == "pal"
    return is_pal


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"template.chat_template: {path} cannot be read ({error.strerror}): name a jinja file "
            "that can be read"
        ) from error


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.value if isinstance(value, Enum) else value for key, value in values.items()}
