import fcntl
import json
import logging
import threading
from dataclasses import replace

import pytest
import yaml

from paltrain.config.schema import (
    CheckpointConfig,
    DataConfig,
    LaunchConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    RunIdentity,
    StageConfig,
    TrainConfig,
)
from paltrain.errors import ConfigError
from paltrain.run import _sole_owner, main
from paltrain.run_folder import RunFolder, check_same, differences, find_init_folder, prepare_run
from paltrain.status import FINISHED


@pytest.fixture
def config(tmp_path):
    return TrainConfig(
        run=RunIdentity(name="one", root=str(tmp_path / "runs")),
        model=ModelConfig(llm="somewhere"),
        data=DataConfig(manifests=["m.jsonl"]),
        stage=StageConfig(steps=3),
    )


def test_a_run_is_its_folder_with_the_resolved_config(config):
    folder = prepare_run(config, launch={"code_version": "abc"})
    assert folder.config.exists()
    assert json.loads(folder.launch.read_text()) == {"code_version": "abc"}


def test_the_same_config_again_goes_on_in_the_same_folder(config):
    folder = prepare_run(config)
    (folder.path / "metrics.jsonl").write_text("{}\n")
    assert prepare_run(config) == folder
    assert folder.metrics.exists()


def trained(config: TrainConfig) -> RunFolder:
    """The folder of a run that has come to a step."""
    folder = prepare_run(config)
    folder.metrics.write_text("{}\n")
    return folder


@pytest.mark.parametrize("evidence", ["metrics.jsonl", "checkpoints/step-00000001/x", "running"])
def test_a_run_that_never_trained_may_be_corrected(config, evidence, caplog):
    folder = prepare_run(replace(config, data=DataConfig(manifests=["mm.jsonl"])))
    folder.status.write("failed", error="no manifest mm.jsonl")
    folder.tokenizer.mkdir()
    (folder.tokenizer / "tokenizer.json").write_text("{}")
    folder.metrics.touch()
    folder.checkpoints.mkdir()
    with caplog.at_level(logging.INFO, logger="paltrain"):
        assert prepare_run(config) == folder
    assert "never trained: it takes over data.manifests: ['mm.jsonl'] -> ['m.jsonl']" in caplog.text
    assert "- m.jsonl" in folder.config.read_text()
    assert not folder.tokenizer.exists(), "it was trained on the texts of the former manifest"
    if evidence == "running":
        folder.status.write("running")
    else:
        (folder.path / evidence).parent.mkdir(exist_ok=True)
        (folder.path / evidence).write_text("{}\n")
    with pytest.raises(ConfigError, match=r"data.manifests: \['m.jsonl'\] -> \['n.jsonl'\]"):
        prepare_run(replace(config, data=DataConfig(manifests=["n.jsonl"])))


def test_a_changed_config_is_refused_listing_the_dotted_keys(config):
    trained(config)
    changed = replace(
        config,
        optimizer=OptimizerConfig(lr=0.5, lr_by_pattern={"ffn": 0.1}),
        stage=StageConfig(steps=4),
    )
    with pytest.raises(ConfigError) as caught:
        prepare_run(changed)
    message = str(caught.value)
    for part in (
        "optimizer.lr: 0.0001 -> 0.5",
        "optimizer.lr_by_pattern",
        "stage.steps: 3 -> 4",
        "run.fresh=true",
    ):
        assert part in message


def test_what_does_not_shape_the_result_may_change(config):
    prepare_run(config)
    folder = prepare_run(
        replace(
            config,
            launch=LaunchConfig(nodes=2),
            logging=LoggingConfig(every_steps=1, wandb=True),
            checkpoint=CheckpointConfig(every_steps=7, keep=5),
        )
    )
    assert "every_steps: 7" in folder.config.read_text()


def test_fresh_moves_the_old_folder_aside(config):
    folder = prepare_run(config)
    folder.metrics.write_text("{}\n")
    fresh = replace(config, run=replace(config.run, fresh=True), stage=StageConfig(steps=9))
    assert prepare_run(fresh) == folder
    assert not folder.metrics.exists()
    assert (folder.path.parent / "one.old-1" / "metrics.jsonl").exists()
    assert "fresh: false" in folder.config.read_text()
    prepare_run(fresh)
    assert (folder.path.parent / "one.old-2").exists()


def test_a_folder_that_is_no_run_is_left_alone(config):
    other = RunFolder.of(config).path
    other.mkdir(parents=True)
    (other / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="is no run"):
        prepare_run(config)
    assert (other / "thesis.tex").exists()


def test_differences_name_keys_that_came_and_went():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}) == [
        "a.c: 2 -> 'absent'",
        "a.d: 'absent' -> 3",
    ]


def test_how_data_are_brought_near_may_change_when_a_run_goes_on(config):
    folder = prepare_run(config)
    faster = replace(config.data, cache_dir="$TMPDIR/x", reader_threads=9, prefetch_steps=2)
    check_same(folder, replace(config, data=faster))
    with pytest.raises(ConfigError, match=r"data.window_shards: 16 -> 3"):
        check_same(folder, replace(config, data=replace(faster, window_shards=3)))


def test_a_run_of_an_earlier_version_lacks_keys_that_have_their_defaults(config):
    folder = prepare_run(config)
    saved = yaml.safe_load(folder.config.read_text())
    for key in ("mixture", "max_duration_s"):
        del saved["data"][key]
    folder.config.write_text(yaml.safe_dump(saved))
    check_same(folder, config)
    shorter = replace(config, data=replace(config.data, max_duration_s=9.0))
    with pytest.raises(ConfigError, match=r"data.max_duration_s: None -> 9.0"):
        check_same(folder, shorter)
    folder.config.write_text(yaml.safe_dump(saved | {"gone": {"since": 1}}))
    with pytest.raises(ConfigError, match=r"gone.since: 1 -> 'absent'"):
        check_same(folder, config)


def test_init_from_is_a_finished_runs_model(config):
    stage2 = replace(config, stage=StageConfig(init_from="one", steps=1))
    folder = prepare_run(config)
    folder.status.write("running", total_steps=3)
    folder.metrics.write_text("{}\n{}\n")
    with pytest.raises(ConfigError, match=r"'one' has not finished \(running at step 2 of 3\)"):
        find_init_folder(stage2)
    folder.status.write(FINISHED, step=3, total_steps=3)
    assert find_init_folder(stage2) == folder.model


def test_init_from_may_be_a_model_folder(config, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert find_init_folder(replace(config, stage=StageConfig(init_from=str(tmp_path)))) == tmp_path


def test_init_from_nowhere_says_what_to_run_first(config):
    with pytest.raises(ConfigError, match="launch the stage with run.name=none first"):
        find_init_folder(replace(config, stage=StageConfig(init_from="none")))
    assert find_init_folder(config) is None


def test_a_run_in_training_is_not_trained_twice(config, capfd):
    folder = prepare_run(config)
    with folder.lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(folder.path) == 2
    assert "is being trained by another process" in capfd.readouterr().err
    assert folder.status.read() == {}


def test_a_restart_waits_for_what_an_earlier_attempt_left_running(config):
    folder = prepare_run(config)
    held = folder.lock.open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    threading.Timer(1.5, held.close).start()
    with _sole_owner(folder, patience_s=30.0):
        assert held.closed
    fresh = replace(config, run=replace(config.run, fresh=True))
    with folder.lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="being trained"):
            prepare_run(fresh)
    assert folder.config.exists(), "a run that is being trained is not moved aside"
