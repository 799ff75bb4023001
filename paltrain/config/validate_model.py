"""What a schema's types cannot say of the LLM, its streams and their connectors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from paltrain.config.report import Fault, KeyPath, show
from paltrain.config.rules import AT_LEAST_ONE, Rule, look, one_of
from paltrain.config.schema import (
    ConnectorConfig,
    ConnectorType,
    LayerProjection,
    ModelConfig,
    Route,
    StreamConfig,
    SummaryBy,
    TrainConfig,
)

ATTENTION_BACKENDS = ["auto", "flash_attn", "torch", "sdpa"]
MIN_VOCABULARY = 300  # 256 bytes, the special tokens and some merges
STREAM_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def faults_of_model(config: TrainConfig) -> Iterator[Fault]:
    model, path = config.model, ("model",)
    if not (model.llm or model.architecture or config.stage.init_from):
        yield Fault(
            path,
            "names no LLM: set model.llm (a folder or hub name), model.architecture (a fresh one) "
            "or stage.init_from (a finished run)",
        )
    if model.llm and model.architecture:
        sentence = "a fresh LLM and model.llm exclude each other: drop one"
        yield Fault((*path, "architecture"), sentence)
    if model.architecture is not None and "model_type" not in model.architecture:
        yield Fault((*path, "architecture"), "must say its model_type, e.g. model_type: llama")
    yield from one_of(
        (*path, "attention_backend"),
        "attention backend",
        model.attention_backend,
        ATTENTION_BACKENDS,
    )
    yield from _tokenizer(config)


def _tokenizer(config: TrainConfig) -> Iterator[Fault]:
    model, size = config.model, config.model.tokenizer_vocab_size
    if size is not None and size < MIN_VOCABULARY:
        yield Fault(
            ("model", "tokenizer_vocab_size"), f"must be at least {MIN_VOCABULARY}, is {size}"
        )
    if size is not None and model.tokenizer is not None:
        yield Fault(
            ("model", "tokenizer_vocab_size"),
            "trains a tokenizer, and model.tokenizer names a ready one: drop one of the two",
        )
    has_one = model.llm or model.tokenizer or size or config.stage.init_from
    if model.architecture and not has_one:
        yield Fault(
            ("model", "tokenizer"),
            "a fresh LLM needs one: name it, or train it with model.tokenizer_vocab_size=1024",
        )


def faults_of_stream(model: ModelConfig, name: str, stream: StreamConfig) -> Iterator[Fault]:
    path = ("model", "streams", name)
    if not STREAM_NAME.fullmatch(name):
        yield Fault(
            path, "is part of parameter names: letters, digits and '_' only, no dot; rename it"
        )
    if not _are_layers(stream.layers):
        yield Fault(
            (*path, "layers"),
            "must be all, {start: k} with k of at least 0, {every: n} with n of at least 1, both "
            f"of these, or a list of different layer numbers, is {show(stream.layers)}",
        )
    if stream.route is Route.plits and stream.layers != "all":
        yield Fault(
            (*path, "layers"), "a choice of layers needs route: lal or xattn (plits passes all)"
        )
    if stream.route is not Route.lal and stream.layer_projection is not LayerProjection.shared:
        yield Fault((*path, "layer_projection"), "a map for each layer needs route: lal")
    yield from _connector(model, stream.connector, (*path, "connector"))


def _are_layers(layers: Any) -> bool:
    def is_layer(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    if isinstance(layers, Mapping):
        every = layers.get("every", 1)
        known = bool(layers) and set(layers) <= {"start", "every"}
        return known and is_layer(layers.get("start", 0)) and is_layer(every) and every >= 1
    if isinstance(layers, list):
        distinct = len(set(map(repr, layers))) == len(layers)
        return bool(layers) and all(map(is_layer, layers)) and distinct
    return bool(layers == "all")


CONNECTOR_RULES: Mapping[str, Rule] = {
    "frame_stack": AT_LEAST_ONE,
    "hidden_width": AT_LEAST_ONE,
    "n_latents": AT_LEAST_ONE,
    "n_summary": AT_LEAST_ONE,
    "n_heads": AT_LEAST_ONE,
    "n_layers": AT_LEAST_ONE,
}


def _connector(model: ModelConfig, connector: ConnectorConfig, path: KeyPath) -> Iterator[Fault]:
    yield from look(connector, CONNECTOR_RULES, path)
    width = (model.architecture or {}).get("hidden_size")
    by_latents = connector.type is ConnectorType.resampler or (
        connector.type is ConnectorType.summary and connector.summary_by is SummaryBy.queries
    )
    if by_latents and isinstance(width, int):
        n_heads = connector.n_heads
        if n_heads >= 1 and width % n_heads:
            sentence = f"must divide the LLM's width {width}, is {n_heads}: choose a divisor"
            yield Fault((*path, "n_heads"), sentence)
    if connector.type is not ConnectorType.mlp and connector.frame_stack > 1:
        sentence = f"needs type: mlp, is {connector.frame_stack}: set it to 1"
        yield Fault((*path, "frame_stack"), sentence)
    if by_latents and connector.hidden_width is not None:
        sentence = (
            f"needs type: mlp or summary_by: windows, is {connector.hidden_width}; learned queries "
            "have the LLM's width: leave it out"
        )
        yield Fault((*path, "hidden_width"), sentence)
