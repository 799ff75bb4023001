from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from paltrain.config import FeaturesConfig, TrainConfig, load_config, save_config, to_yaml
from paltrain.config.schema import Dtype, LayerProjection, Route, StreamConfig
from paltrain.errors import ConfigError

LEAST: dict[str, Any] = {
    "run": {"name": "least"},
    "model": {"llm": "some/llm"},
    "data": {"manifests": ["m.jsonl"]},
    "stage": {"steps": 10},
}


def write(path: Path, values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values, sort_keys=False))
    return path


def least(tmp_path: Path) -> Path:
    return write(tmp_path / "least.yaml", LEAST)


def faults(*paths: Path, overrides: list[str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(TrainConfig, paths, overrides or [])
    return str(caught.value)


def test_defaults_come_from_the_dataclass_and_choices_from_the_file(tmp_path):
    config = load_config(TrainConfig, [least(tmp_path)])
    assert config.stage.steps == 10
    assert config.optimizer.lr == TrainConfig().optimizer.lr
    assert config.model.dtype is Dtype.float32


def test_streams_come_back_as_stream_configs(tmp_path):
    streams = {"whisper": {"features": "f", "route": "plits"}, "clap": {"features": "g"}}
    file = write(tmp_path / "streams.yaml", {"model": {"streams": streams}})
    config = load_config(TrainConfig, [least(tmp_path), file])
    assert list(config.model.streams) == ["whisper", "clap"]
    assert all(isinstance(stream, StreamConfig) for stream in config.model.streams.values())
    assert config.model.streams["whisper"].route is Route.plits
    assert config.model.streams["clap"].layer_projection is LayerProjection.shared


@pytest.mark.parametrize("layers", ["all", {"start": 2}, [0, 3]])
def test_layers_take_each_of_their_forms_and_a_child_replaces_the_parents_form(tmp_path, layers):
    parent = {"model": {"streams": {"a": {"features": "f", "layers": {"start": 7}}}}}
    child = {"model": {"streams": {"a": {"layers": layers}}}}
    paths = [least(tmp_path), write(tmp_path / "p.yaml", parent), write(tmp_path / "c.yaml", child)]
    assert load_config(TrainConfig, paths).model.streams["a"].layers == layers


def test_parents_are_relative_to_their_file_and_merge_in_order(tmp_path):
    write(tmp_path / "shared" / "one.yaml", {**LEAST, "optimizer": {"lr": 1.0, "eps": 0.5}})
    write(tmp_path / "shared" / "two.yaml", {"optimizer": {"lr": 2.0, "betas": [0.1, 0.2]}})
    child = {"extends": ["../shared/one.yaml", "../shared/two.yaml"], "optimizer": {"eps": 0.25}}
    optimizer = load_config(TrainConfig, [write(tmp_path / "run" / "c.yaml", child)]).optimizer
    assert (optimizer.lr, optimizer.eps, optimizer.betas) == (2.0, 0.25, [0.1, 0.2])


def test_a_parent_may_be_reached_by_two_ways(tmp_path):
    write(tmp_path / "root.yaml", LEAST)
    write(tmp_path / "left.yaml", {"extends": "root.yaml", "stage": {"steps": 3}})
    write(tmp_path / "right.yaml", {"extends": "root.yaml"})
    both = write(tmp_path / "both.yaml", {"extends": ["right.yaml", "left.yaml"]})
    assert load_config(TrainConfig, [both]).stage.steps == 3


def test_parents_in_a_circle_are_refused_and_the_chain_is_named(tmp_path):
    write(tmp_path / "a.yaml", {"extends": "b.yaml"})
    write(tmp_path / "b.yaml", {"extends": "a.yaml"})
    message = faults(tmp_path / "a.yaml")
    chain = " -> ".join(str(tmp_path / name) for name in ("a.yaml", "b.yaml", "a.yaml"))
    assert f"{tmp_path / 'b.yaml'}: extends: goes in a circle: {chain}" in message


def test_a_missing_parent_is_named_with_its_child_and_the_nearest_file(tmp_path):
    write(tmp_path / "common.yaml", LEAST)
    message = faults(write(tmp_path / "c.yaml", {"extends": "comon.yaml"}))
    assert f"{tmp_path / 'c.yaml'}: extends: there is no file {tmp_path / 'comon.yaml'}" in message
    assert "did you mean 'common.yaml'?" in message


def test_the_command_line_comes_last_and_its_values_are_yaml(tmp_path):
    words = [
        "optimizer.lr=1e-3",
        "stage.trainable=[connectors, 'llm.*.q_proj.*']",
        "data.tasks=null",
    ]
    words += ["model.streams.a.features=f", "model.streams.a.layers={start: 1}"]
    words += ["optimizer.lr_by_pattern={'llm.*': 1e-5}"]
    config = load_config(TrainConfig, [least(tmp_path)], words)
    assert config.optimizer.lr == 1e-3
    assert config.stage.trainable == ["connectors", "llm.*.q_proj.*"]
    assert config.model.streams["a"].layers == {"start": 1}
    assert config.optimizer.lr_by_pattern == {"llm.*": 1e-5}


def test_the_environment_can_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH_OF_TEST", "/scratch")
    config = load_config(
        TrainConfig, [least(tmp_path)], ["run.root=${oc.env:SCRATCH_OF_TEST}/runs"]
    )
    assert config.run.root == "/scratch/runs"


def test_a_variable_that_is_not_set_is_named(tmp_path):
    message = faults(least(tmp_path), overrides=["run.root=${oc.env:NOT_SET_AT_ALL}/runs"])
    assert "NOT_SET_AT_ALL" in message
    assert message.startswith("command line: run.root:")


def test_an_unknown_key_names_its_file_its_path_and_the_nearest_valid_key(tmp_path):
    file = write(tmp_path / "typo.yaml", {"optimizer": {"weight_decy": 0.1}})
    message = faults(least(tmp_path), file)
    assert message.startswith(f"{file}: optimizer.weight_decy: unknown key")
    assert "did you mean 'weight_decay'?" in message
    assert "set to 0.1" in message


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("stage.steps=many", "must be a whole number, or null, is 'many'"),
        ("stage.steps=2.5", "must be a whole number, or null, is 2.5"),
        ("optimizer.lr=fast", "must be a number, is 'fast'"),
        ("data.truncate_text=perhaps", "must be true or false, is 'perhaps'"),
        ("data.manifests=m.jsonl", "must be a list, each text, is 'm.jsonl'"),
        ("run.root=yes", "must be text, is True"),
        ("model=llama", "must be a mapping"),
        ("model.dtype=bfloat", "must be one of float32, bfloat16, is 'bfloat' (did you mean"),
    ],
)
def test_a_wrong_type_says_what_is_expected_and_what_is_there(tmp_path, word, expected):
    message = faults(least(tmp_path), overrides=[word])
    assert message.startswith(f"command line: {word.partition('=')[0]}: ")
    assert expected in message


def test_all_faults_stand_in_one_report_each_with_its_source(tmp_path):
    parent = write(tmp_path / "parent.yaml", {"optimizer": {"betas": [0.9]}, "modle": {}})
    child = {"extends": "parent.yaml", "stage": {"steps": "many"}, "model": {"llm": "x"}}
    file = write(tmp_path / "child.yaml", child)
    message = faults(file, overrides=["logging.every_steps=0", "seed"])
    lines = [line.strip() for line in message.splitlines()]
    assert lines[0] == f"7 faults in {file}:"
    assert len(lines) == 8
    for start in (
        f"{parent}: modle: unknown key (did you mean 'model'?)",
        f"{file}: stage.steps: must be a whole number",
        "command line: 'seed' must be key=value",
        f"{file}: run.name: must be said",
        f"{file}: data.manifests: must be said",
        f"{parent}: optimizer.betas: must be two numbers",
        "command line: logging.every_steps: must be at least 1, is 0",
    ):
        assert any(line.startswith(start) for line in lines), (start, message)


def test_what_must_be_said_of_a_stream_is_asked_for_by_its_file(tmp_path):
    file = write(tmp_path / "s.yaml", {"model": {"streams": {"a": {"route": "lal"}}}})
    assert faults(least(tmp_path), file).startswith(
        f"{file}: model.streams.a.features: must be said"
    )


def test_two_streams_of_one_name_are_refused_with_the_place_of_the_second(tmp_path):
    streams = "model:\n  streams:\n    mel: {features: a}\n    mel: {features: b}\n"
    said = faults(least(tmp_path), write(tmp_path / "twice.yaml", streams))
    assert f"{tmp_path / 'twice.yaml'}: is not valid YAML: " in said
    assert "found duplicate key mel" in said
    assert "line 4" in said


@pytest.mark.parametrize("text", ["a: [1", "a: 1\na: 2", "- a list", "just words"])
def test_a_file_that_is_no_mapping_is_named(tmp_path, text):
    file = write(tmp_path / "broken.yaml", text)
    assert f"{file}: " in faults(least(tmp_path), file)


def test_a_missing_file_is_named(tmp_path):
    file = tmp_path / "no.yaml"
    assert faults(file) == f"{file}: there is no file {file}"


def test_a_missing_file_hides_no_typo_in_the_others(tmp_path):
    message = faults(tmp_path / "no.yaml", write(tmp_path / "typo.yaml", {"seed": 1}))
    assert "there is no file" in message
    assert "typo.yaml: seed: unknown key" in message


def test_saving_and_loading_gives_the_same_configuration(tmp_path):
    words = ["model.streams.a={features: f, layers: [1, 2], route: lal}", "optimizer.lr=3e-4"]
    words += ["model.architecture={model_type: llama, hidden_size: 8}", "model.llm=null"]
    words += ["model.tokenizer_vocab_size=512"]
    config = load_config(TrainConfig, [least(tmp_path)], words)
    save_config(config, tmp_path / "run" / "config.yaml")
    assert load_config(TrainConfig, [tmp_path / "run" / "config.yaml"]) == config
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    assert "extends" not in to_yaml(config)


def test_any_dataclass_is_a_schema_and_brings_its_own_check(tmp_path):
    from paltrain.config.report import Fault

    @dataclass
    class Profile:
        partition: str = "batch"
        gpus: int = 4
        env: dict[str, str] = field(default_factory=dict)

    file = write(tmp_path / "profile.yaml", {"env": {"A.B": "x"}, "gpus": 0})
    assert load_config(Profile, [file], check=lambda _: []).env == {"A.B": "x"}
    with pytest.raises(ConfigError, match=r"profile\.yaml: gpus: must be positive"):
        load_config(Profile, [file], check=lambda _: [Fault(("gpus",), "must be positive")])


def test_features_have_their_own_schema(tmp_path):
    file = write(
        tmp_path / "f.yaml", {"manifests": ["m.jsonl"], "folder": "features", "encoders": {"x": {}}}
    )
    config = load_config(FeaturesConfig, [file], ["encoders.x.options.n_mels=64", "slice=3/64"])
    assert config.encoders["x"].options == {"n_mels": 64}
    assert config.stores() == {"x": "features/x"}
    assert config.slice == "3/64"
