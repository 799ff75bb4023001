"""From a configuration to trials: names, overrides, axes that do not apply, and bad input."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.ablation.children import Share
from cluster.ablation.commands import commands_of
from cluster.ablation.listing import commands_to_give
from cluster.chain import read_chain
from paltrain.ablation.build import Plan, plan_of
from paltrain.ablation.knowledge import Known, place_of
from paltrain.cli import config_parser, parse_config_arguments
from paltrain.config.load import load_config
from paltrain.config.schema import AblationConfig, TrainConfig
from paltrain.errors import ConfigError
from tests.ablation.material import call, save, stages_of, write_ablation
from tools.ablate import command_of, parse

LAYERS = "model.streams.logmel.layers"


def planned(world: Path, **changes: Any) -> Plan:
    path = write_ablation(world, "planned", **changes)
    return plan_of(load_config(AblationConfig, [path]), name="planned")


def test_a_trial_is_an_arm_a_value_of_each_axis_and_a_seed(world):
    arms = {"lal": {"stages": stages_of(world, "lal")}}
    axes = {LAYERS: ["all", {"start": 1}, [0]], "data.questions_per_visit": [2, 4]}
    plan = planned(world, arms=arms, axes=axes, baseline_arm=None)
    names = [trial.name for trial in plan.trials]
    assert len(names) == len(set(names)) == 3 * 2 * 2
    assert names[0] == "lal-all-questions_per_visit2-seed0"
    assert "lal-start1-questions_per_visit4-seed1" in names
    assert "lal-layers0-questions_per_visit2-seed0" in names
    trial = next(t for t in plan.trials if t.name == "lal-start1-questions_per_visit4-seed1")
    for stage in trial.stages:
        assert stage.model.streams["logmel"].layers == {"start": 1}
        assert stage.data.questions_per_visit == 4
        assert stage.run.seed == 1
        assert stage.run.root == str(world / "runs" / "planned" / trial.name)
    assert trial.evaluation.runs == [str(trial.last.path)]


def test_a_trial_stands_alone_but_for_what_was_prepared(world):
    first, second = planned(world).trials[0].stages
    assert first.stage.init_from == str(world / "start" / "base" / "model")
    assert second.stage.init_from == first.run.name


def test_set_words_go_to_the_stages_that_have_a_place_for_them(world):
    bare = save(world / "bare.yaml", {"extends": "base.yaml", "run": {"name": "bare"}})
    stages = [str(bare), *stages_of(world, "lal")]
    words = ["optimizer.lr=0.5", "model.streams.logmel.connector.frame_stack=2"]
    plan = planned(world, arms={"lal": {"stages": stages, "set": words}}, baseline_arm=None)
    first, second, _ = plan.trials[0].stages
    assert first.optimizer.lr == second.optimizer.lr == 0.5
    assert not first.model.streams
    assert second.model.streams["logmel"].connector.frame_stack == 2


def test_settings_of_all_arms_come_before_an_arms_own_and_the_axes(world):
    text = save(world / "alone.yaml", {"extends": "base.yaml", "run": {"name": "alone"}})
    arms = {
        "lal": {"stages": stages_of(world, "lal"), "set": ["optimizer.lr=0.5"]},
        "text": {"stages": [str(text)]},
    }
    words = ["optimizer.lr=0.25", f"{LAYERS}=[0]", "stage.steps=9"]
    axes = {"stage.steps": [7]}
    plan = planned(world, arms=arms, axes=axes, set=words, baseline_arm="lal", seeds=[0])
    (lal, text_alone) = (trial.stages[-1] for trial in plan.trials)
    assert (lal.optimizer.lr, text_alone.optimizer.lr) == (0.5, 0.25)
    assert lal.model.streams["logmel"].layers == [0]
    assert lal.stage.steps == text_alone.stage.steps == 7
    assert plan.remarks == (f"text has no place for {LAYERS}: that setting is left out for it",)


def test_an_ablation_lies_in_a_folder_of_ablations_where_none_is_said(world):
    path = write_ablation(world, "rootless", launch={"name": "x"})
    assert load_config(AblationConfig, [path]).launch.root == "runs/ablations"


@pytest.mark.parametrize("arm_name", ["lal", "plain"])
def test_the_commands_of_a_trial_make_the_very_trial(world, arm_name):
    arms = {
        "lal": {"stages": stages_of(world, "lal"), "set": ["optimizer.lr=1e-05"]},
        "plain": {"stages": [str(world / "base.yaml")], "set": ["stage.steps=2"]},
    }
    layers = {LAYERS: [{"start": 1}, [0]]} if arm_name == "lal" else {}
    axes = {**layers, "optimizer.betas": [[0.9, 0.5]]}
    path = write_ablation(world, "told", arms={arm_name: arms[arm_name]}, axes=axes,
                          baseline_arm=None, seeds=[3])  # fmt: skip
    config = load_config(AblationConfig, [path])
    for trial in plan_of(config, name="told").trials:
        lines = commands_to_give(trial, config)
        assert len(lines) == (3 if arm_name == "lal" else 1)  # LAL's first stage starts elsewhere
        arguments = parse_config_arguments(
            config_parser(None), [word for line in lines for word in shlex.split(line)[2:]]
        )
        assert arguments.configs == [
            *map(Path, config.arms[arm_name].stages),
            world / "evaluate.yaml",
        ]
        made = [each for line in lines for each in chain_configs(line)]
        assert made[:-1] == list(trial.stages)
        evaluation = made[-1]
        assert Path(evaluation.launch.root) == trial.folder
        assert replace(evaluation, launch=trial.evaluation.launch) == trial.evaluation


def chain_configs(line: str) -> list[Any]:
    """What `tools/launch.py` reads of a command."""
    words = [*shlex.split(line)[2:], "--cluster", "local"]
    parser = config_parser(None)
    parser.add_argument("--cluster")
    parser.set_defaults(nodes=None, gpus_per_node=None)
    return [job.config for job in read_chain(parse_config_arguments(parser, words))]


def test_an_axis_of_a_stream_that_an_arm_lacks_is_left_out_for_it_and_said(world):
    text = save(world / "text.yaml", {"extends": "base.yaml", "run": {"name": "text"}})
    arms = {"lal": {"stages": stages_of(world, "lal")}, "text": {"stages": [str(text)]}}
    plan = planned(world, arms=arms, axes={LAYERS: ["all", [1]]}, baseline_arm="lal")
    assert [variant.name for variant in plan.variants] == ["lal-all", "lal-layers1", "text"]
    assert not plan.trials_of(plan.variants[2])[0].stages[0].model.streams
    assert plan.remarks == (f"text has no place for {LAYERS}: that axis is left out for it",)


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("model.streams.logmel.layers", Known.yes),
        ("model.streams.sslam.layers", Known.absent),
        ("model.streams.sslam.layer", Known.no),
        ("model.stream.logmel.layers", Known.no),
        ("optimizer.lr_by_pattern.connectors", Known.yes),
        ("model.architecture.hidden_size", Known.yes),
        ("stage.steps", Known.yes),
        ("stage.steps.more", Known.no),
        ("extends", Known.no),
    ],
)
def test_a_key_is_known_absent_or_wrong(world, key, known):
    assert place_of(load_config(TrainConfig, [world / "lal_stage1.yaml"]), key).known is known


def arm(world: Path, **changes: Any) -> dict[str, Any]:
    return {"plits": {"stages": stages_of(world, "plits"), **changes}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": {}}, "arms: must not be empty"),
        ({"arms": {"plits": {"stages": []}}}, "arms.plits.stages: must not be empty"),
        (
            {"arms": {"plits": {"stages": ["gone.yaml"]}}},
            "\n  arms.plits.stages: gone.yaml: there is no file gone.yaml",
        ),
        ({"set": ["optimizer.lr=0"]}, "\n  set: 'optimizer.lr=0': optimizer.lr: must be a"),
        ({"arms": {"a/b": {"stages": ["x.yaml"]}}, "baseline_arm": None}, "names folders"),
        ({"evaluate": "gone.yaml"}, "evaluate: "),
        ({"seeds": []}, "seeds: must not be empty"),
        ({"seeds": [1, 2, 1]}, "must be different, but 1 stands there twice"),
        ({"seeds": [-1]}, "one is -1"),
        ({"axes": {LAYERS: []}}, "must have at least one value"),
        ({"axes": {LAYERS: ["all", "all"]}}, "'all' stands there twice"),
        (
            {"axes": {"model.steams.logmel.layers": ["all"]}},
            "model has no key 'steams' (did you mean 'streams'?); valid there: ",
        ),
        (
            {"axes": {"model.streams.logmle.layers": ["all"]}},
            "no arm has a stream 'logmle' (did you mean 'logmel'?); streams: logmel",
        ),
        ({"axes": {"stage.steps.more": [1]}}, "stage.steps is a value and has no key 'more'"),
        (
            {"set": ["optimzer.lr=1"]},
            "set: 'optimzer.lr=1': a training run has no key 'optimzer' (did you mean",
        ),
        ({"set": ["model.streams.mel.route=lal"]}, "no arm has a stream 'mel' (did you mean"),
        ({"set": ["run.seed=3"]}, "set: run.seed is the ablation's own"),
        ({"expect": {"which_sound": 85}}, "expect.which_sound: must lie between 0 and 1, is 85"),
        ({"axes": {"run.seed": [1]}}, "seeds has the seeds"),
        ({"baseline_arm": "plit"}, "did you mean 'plits'?"),
        ({"parallel": 0}, "parallel: must be at least 1"),
    ],
)
def test_bad_input_is_one_clear_error(world, changes, said):
    with pytest.raises(ConfigError) as caught:
        planned(world, **changes)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimizer.rl=1"], "optimizer has no key 'rl'; valid there: lr, "),
        (["model.streams.mel.route=lal"], "arm plits has no stream 'mel'"),
        (["run.seed=3"], "the ablation's own"),
        (["optimizer.lr"], "must be key=value"),
        (["optimizer.lr=fast"], "arms.plits.set: 'optimizer.lr=fast': optimizer.lr: must be"),
    ],
)
def test_a_bad_set_word_is_named_with_its_arm(world, words, said):
    with pytest.raises(ConfigError) as caught:
        planned(world, arms=arm(world, set=words))
    assert said in str(caught.value)
    assert "arms.plits" in str(caught.value)


def test_stages_of_one_name_would_share_a_folder(world):
    with pytest.raises(ConfigError, match=r"same run\.name"):
        planned(world, arms={"plits": {"stages": stages_of(world, "plits")[:1] * 2}})


def test_arms_whose_trials_would_share_a_folder_are_refused(world):
    stages = {"stages": stages_of(world, "lal")}
    plain = {"stages": [str(save(world / "t.yaml", {"extends": "base.yaml"}))]}
    with pytest.raises(ConfigError, match="share the folder"):
        planned(
            world,
            arms={"lal": stages, "lal-all": plain},
            axes={LAYERS: ["all"]},
            baseline_arm=None,
        )
    with pytest.raises(ConfigError, match=r"share the folder .*: give the axes values that differ"):
        planned(world, axes={"data.cache_dir": ["/a b", "/a,b"]})


def test_a_bad_value_of_an_axis_is_told_once_by_its_axis(world):
    axes = {"optimizer.lr": ["fast", 0.5], "stage.steps": [4, 5], LAYERS: ["all", [0, 0]]}
    with pytest.raises(ConfigError) as caught:
        planned(world, axes=axes)
    lr, layers = str(caught.value).splitlines()[1:]
    assert lr == "  axes.optimizer.lr: must be a number, is 'fast'"
    assert layers.startswith(f"  axes.{LAYERS}: must be all, ")


def test_the_command_of_a_table_can_be_pasted():
    words = ["my config.yaml", "seeds=[0,1]", "slice=0/2"]
    assert command_of(parse(words)) == "python tools/ablate.py 'my config.yaml' 'seeds=[0,1]'"


def test_all_faults_are_told_at_once_before_anything_is_written(world):
    arms = {"a": {"stages": ["gone.yaml"]}, "b": arm(world, set=["no.key=1"])["plits"]}
    path = write_ablation(world, "faulty", arms=arms, baseline_arm=None, evaluate="neither.yaml")
    code, said = call("ablate", path)
    assert code == 2
    assert all(part in said for part in ("gone.yaml", "no.key", "neither.yaml"))
    assert "Traceback" not in said
    assert not (world / "runs" / "faulty").exists()
    assert "neither.yaml" in call("launch", "--cluster", "slurm", "--dry-run", path)[1]


def test_the_baselines_arm_is_the_first_where_none_is_said(world):
    assert planned(world, baseline_arm=None).baseline_arm == "plits"
    assert replace(planned(world), baseline_arm="lal").baseline_arm == "lal"


@pytest.mark.parametrize(
    ("processes", "share", "threads"),
    [
        (1, Share(8, None), 8),
        (2, Share(8, None), 4),
        (2, Share(1, None), 1),
        (None, Share(8, None), 8),
        (None, Share(8, "0,1"), 4),  # a process for each device
    ],
)
def test_the_processes_of_a_trial_divide_its_share_of_the_threads(world, processes, share, threads):
    arms = {"lal": {"stages": stages_of(world, "lal")}}
    words = [f"launch.processes_per_node={'null' if processes is None else processes}"]
    trial, *_ = planned(world, arms=arms, set=words, baseline_arm=None).trials
    launch, _ = commands_of(trial, share)
    assert launch[-1] == f"launch.threads_per_process={threads}"


def test_a_stage_that_says_its_threads_keeps_them(world):
    arms = {"lal": {"stages": stages_of(world, "lal")}}
    words = ["launch.threads_per_process=3"]
    trial, *_ = planned(world, arms=arms, set=words, baseline_arm=None).trials
    launch, _ = commands_of(trial, Share(8, None))
    assert not any("threads_per_process" in word for word in launch)


def test_devices_are_dealt_out_and_shared_where_there_are_too_few():
    shares = [Share.of(slot, 2, cores=8, devices=["0", "1", "2"]) for slot in range(2)]
    assert shares == [Share(4, "0,2"), Share(4, "1")]
    assert [share.n_devices for share in shares] == [2, 1]
    assert Share.of(2, 3, cores=2, devices=["5"]) == Share(1, "5")
    assert Share.of(0, 1, cores=2, devices=[]).environment == {"OMP_NUM_THREADS": "2"}
