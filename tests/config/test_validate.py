"""Values that have the right type and still cannot work."""

from typing import Any

import pytest

from paltrain.config.load import load_config
from paltrain.config.schema import (
    DataConfig,
    EncoderConfig,
    EvalConfig,
    FeaturesConfig,
    ModelConfig,
    RunIdentity,
    StageConfig,
    TrainConfig,
)
from paltrain.config.validate import faults_of
from paltrain.errors import ConfigError

LEAST_FEATURES = ["manifests=[m]", "folder=f", "encoders.mel.type=logmel"]
LEAST = ["run.name=x", "model.llm=some/llm", "data.manifests=[m.jsonl]", "stage.steps=10"]


def message_of(*words: str, schema: type = TrainConfig, least: list[str] = LEAST) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(schema, [], [*least, *words])
    return str(caught.value)


def test_the_least_configurations_have_no_fault():
    train = TrainConfig(
        run=RunIdentity(name="x"),
        model=ModelConfig(llm="some/llm"),
        data=DataConfig(manifests=["m.jsonl"]),
        stage=StageConfig(steps=1),
    )
    features = FeaturesConfig(
        manifests=["m.jsonl"], folder="f", encoders={"logmel": EncoderConfig()}
    )
    evaluation = EvalConfig(runs=["r"], manifests=["m.jsonl"])
    assert [list(faults_of(config)) for config in (train, features, evaluation)] == [[], [], []]


@pytest.mark.parametrize(
    ("words", "key", "sentence"),
    [
        (["stage.epochs=1"], "stage", "exactly one of steps and epochs"),
        (["stage.steps=null"], "stage", "exactly one of steps and epochs"),
        (["stage.steps=0"], "stage.steps", "at least 1, is 0"),
        (["stage.trainable=[]"], "stage.trainable", "must not be empty"),
        (["stage.trainable=[encoder]"], "stage.trainable", "encoders cannot train"),
        (["stage.trainable=[connectors]"], "stage.trainable", "add a stream to model.streams"),
        (["model.llm=null"], "model", "names no LLM"),
        (["model.architecture={model_type: llama}"], "model.architecture", "drop one"),
        (
            ["model.attention_backend=flash"],
            "model.attention_backend",
            "did you mean 'flash_attn'?",
        ),
        (["run.name=a/b"], "run.name", "names a folder"),
        (["run.name=.."], "run.name", "names a folder"),
        (["optimizer.lr=0"], "optimizer.lr", "above 0"),
        (["optimizer.lr=.nan"], "optimizer.lr", "finite"),
        (["optimizer.betas=[0.9]"], "optimizer.betas", "two numbers"),
        (["optimizer.betas=[0.9, 1.0]"], "optimizer.betas", "below 1"),
        (["optimizer.min_lr_ratio=1.5"], "optimizer.min_lr_ratio", "between 0 and 1"),
        (["optimizer.warmup_steps=11"], "optimizer.warmup_steps", "must not exceed stage.steps=10"),
        (["optimizer.lr_by_pattern={head: -1}"], "optimizer.lr_by_pattern.head", "above 0, is -1"),
        (["engine.name=fsdp"], "engine.name", "unknown engine 'fsdp'"),
        (["engine.zero_stage=4"], "engine.zero_stage", "0, 1, 2 or 3"),
        (["logging.wandb_mode=of"], "logging.wandb_mode", "valid: offline, online, disabled"),
        (["data.manifests=[]"], "data.manifests", "must not be empty"),
        (["data.cache_dir=''"], "data.cache_dir", "must not be empty"),
        (["data.cache_gb=0"], "data.cache_gb", "above 0, is 0"),
        (["data.reader_threads=0"], "data.reader_threads", "at least 1, is 0"),
        (["data.questions_per_visit=300"], "data.questions_per_visit", "data.batch_questions=256"),
        (["data.max_text_tokens=5000"], "data.max_text_tokens", "raise the budget"),
        (["data.truncate_text=true"], "data.truncate_text", "set data.max_text_tokens"),
        (["data.truncate_audio=true"], "data.truncate_audio", "set data.max_audio_tokens"),
        (["data.datasets=[]"], "data.datasets", "must not be empty"),
        (["data.min_duration_s=-1"], "data.min_duration_s", "at least 0, is -1"),
        (
            ["data.min_duration_s=3", "data.max_duration_s=2"],
            "data.min_duration_s",
            "must not exceed data.max_duration_s=2, is 3",
        ),
        (["data.mixture={a: {weight: 0}}"], "data.mixture.a.weight", "above 0"),
        (["data.mixture={a: {weight: 1e9}}"], "data.mixture.a.weight", "max_questions caps"),
        (["data.mixture={a: {weight: .nan}}"], "data.mixture.a.weight", "at most 1000"),
        (["data.mixture={a: {max_questions: 0}}"], "data.mixture.a.max_questions", "at least 1"),
        (["data.mixture={a: {tasks: []}}"], "data.mixture.a.tasks", "must not be empty"),
        (["data.mixture={a: {manifest: n.jsonl}}"], "data.mixture.a.manifest", "valid: m.jsonl"),
        (
            ["data.mixture={a: {min_duration_s: 9, max_duration_s: 8.5}}"],
            "data.mixture.a.min_duration_s",
            "must not exceed data.mixture.a.max_duration_s=8.5, is 9",
        ),
        (["launch.processes_per_node=0"], "launch.processes_per_node", "at least 1"),
    ],
)
def test_a_value_that_cannot_work_is_named_with_its_remedy(words, key, sentence):
    message = message_of(*words)
    assert message.splitlines()[-1].strip().startswith(f"command line: {key}: ")
    assert sentence in message


@pytest.mark.parametrize(
    ("stream", "key", "sentence"),
    [
        ({"layers": "some"}, "layers", "is 'some'"),
        ({"layers": {"start": -1}}, "layers", "must be all"),
        ({"layers": {"end": 1}}, "layers", "must be all"),
        ({"layers": [1, 1]}, "layers", "different layer numbers"),
        ({"layers": [True]}, "layers", "must be all"),
        ({"layers": []}, "layers", "must be all"),
        ({"route": "plits", "layers": [1]}, "layers", "needs route: lal"),
        ({"route": "plits", "layer_projection": "mlp"}, "layer_projection", "needs route: lal"),
        ({"connector": {"frame_stack": 0}}, "connector.frame_stack", "at least 1"),
        (
            {"connector": {"type": "resampler", "hidden_width": 30}},
            "connector.hidden_width",
            "learned queries have the LLM's width: leave it out",
        ),
        (
            {"connector": {"type": "summary", "summary_by": "windows", "frame_stack": 2}},
            "connector.frame_stack",
            "needs type: mlp, is 2: set it to 1",
        ),
    ],
)
def test_a_stream_that_cannot_work_is_named_with_its_remedy(stream: dict[str, Any], key, sentence):
    message = message_of(f"model.streams.a={ {'features': 'f', **stream} }")
    assert message.startswith(f"command line: model.streams.a.{key}: ")
    assert sentence in message


@pytest.mark.parametrize("type_", ["resampler", "summary"])
def test_the_heads_of_learned_queries_divide_the_fresh_llms_width(type_):
    fresh = ["model.llm=null", "model.architecture={model_type: llama, hidden_size: 30}"]
    stream = {"features": "f", "connector": {"type": type_}}
    message = message_of(*fresh, "model.tokenizer=t", f"model.streams.a={stream}")
    assert message.startswith("command line: model.streams.a.connector.n_heads: ")
    assert "must divide the LLM's width 30, is 8: choose a divisor" in message


def test_means_over_windows_have_a_hidden_width_of_their_own():
    connector = {"type": "summary", "summary_by": "windows", "hidden_width": 30}
    words = [*LEAST, f"model.streams.a={ {'features': 'f', 'connector': connector} }"]
    config = load_config(TrainConfig, [], words)
    assert config.model.streams["a"].connector.hidden_width == 30


def test_a_streams_name_with_a_dot_is_refused():
    assert "model.streams.a.b: is part of parameter names" in message_of(
        "model.streams={a.b: {features: f}}"
    )


def test_a_fresh_llm_needs_a_tokenizer_and_trains_it_when_given_a_size():
    fresh = ["model.llm=null", "model.architecture={model_type: llama}"]
    assert "model.tokenizer: a fresh LLM needs one" in message_of(*fresh)
    assert "must be at least 300, is 5" in message_of(*fresh, "model.tokenizer_vocab_size=5")
    both = ["model.tokenizer_vocab_size=500", "model.tokenizer=t"]
    assert "drop one of the two" in message_of(*fresh, *both)
    load_config(TrainConfig, [], [*LEAST, *fresh, "model.tokenizer_vocab_size=500"])


@pytest.mark.parametrize("slice_", ["4/4", "1", "a/b", "-1/3"])
def test_a_slice_that_does_not_exist_is_refused(slice_):
    message = message_of(f"slice={slice_}", schema=FeaturesConfig, least=LEAST_FEATURES)
    assert "must be I/N with 0 <= I < N" in message


def test_a_device_that_does_not_exist_is_refused():
    message = message_of("devices=[cpu,gpu]", schema=FeaturesConfig, least=LEAST_FEATURES)
    assert "must be a list of devices: cpu, cuda or cuda:N" in message


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("only=[whispr]", "unknown encoder 'whispr'"),
        ("only=[]", "must not be empty"),
        ("encoders.a/b.type=logmel", "names a folder"),
        ("encoders.mel.pool=0", "must be at least 1"),
        ("encoders.mel.dtype=int4", "one of float16, int8"),
        ("batch_audio_s=0", "above 0"),
    ],
)
def test_encoders_that_cannot_be_are_refused(word, sentence):
    assert sentence in message_of(word, schema=FeaturesConfig, least=LEAST_FEATURES)


def test_features_without_an_encoder_are_refused():
    least = ["manifests=[m]", "folder=f"]
    assert "encoders: must not be empty" in message_of(schema=FeaturesConfig, least=least)


def test_an_evaluation_of_nothing_is_refused():
    message = message_of("runs=[]", schema=EvalConfig, least=["manifests=[m]"])
    assert message.startswith("command line: runs: must not be empty")


def test_a_parts_manifest_may_be_spelled_otherwise_than_in_the_manifests():
    words = ["data.manifests=[data/m.jsonl]", "data.mixture={a: {manifest: ./data//m.jsonl}}"]
    config = load_config(TrainConfig, [], [*LEAST, *words])
    assert config.data.mixture["a"].manifest == "./data//m.jsonl"
