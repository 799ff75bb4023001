"""The preflight, on real files: every problem provoked, all of them in one report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.chain import read_chain
from cluster.job import Job
from cluster.preflight import child as child_module
from cluster.preflight.check import findings_of, report, require
from cluster.preflight.child import Child, key_of
from paltrain.cli import config_parser, parse_config_arguments
from paltrain.data.manifest import Clip, read_manifest, write_manifest
from paltrain.data.shards import shard_index_path, shard_path
from paltrain.encoders.logmel import LogMelEncoder
from paltrain.errors import ConfigError
from tests.cluster.material import (
    SOUNDS,
    empty_store,
    question,
    write_config,
    write_sounds,
    write_texts,
)
from tests.exported import export_tiny_model

ROOT = Path(__file__).resolve().parents[2]
FRESH = {"architecture": None, "tokenizer_vocab_size": None}  # of material's configuration


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained model with a tokenizer, in one file of weights."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    export_tiny_model(folder, LogMelEncoder(n_mels=8), SOUNDS)
    return folder


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A bare LLM with a tokenizer, its weights in several files."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from paltrain.model.tokenization import train_tokenizer

    folder = tmp_path_factory.mktemp("llm") / "llm"
    fields = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 320}
    config = AutoConfig.for_model("llama", **fields, **heads)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size="20KB")
    train_tokenizer(SOUNDS, vocab_size=320).save_pretrained(folder)
    return folder


def jobs(*words: Any, cluster: str = "local") -> list[Job]:
    parser = config_parser("test")
    parser.set_defaults(nodes=None, gpus_per_node=None, cluster=cluster)
    return read_chain(parse_config_arguments(parser, [str(word) for word in words]))


def problems_of(jobs: list[Job]) -> list[str]:
    """Everything found, a sentence each, behind the job's name."""
    return [f"{found.name}: {problem}" for found in findings_of(jobs) for problem in found.problems]


def only_problem(*words: Any) -> str:
    """The problem of a chain that has just one."""
    (problem,) = problems_of(jobs(*words))
    return problem


def hearing(folder: Path, store: Path, name: str, init_from: str | None, **changes: Any) -> Path:
    """The configuration of a run with a stream; by default a fresh LLM."""
    streams = {"mel": {"features": str(store), "connector": {"frame_stack": 2}}}
    model = {"streams": streams, **(FRESH if init_from else {}), **changes.pop("model", {})}
    stage = {**({"init_from": init_from} if init_from else {}), **changes.pop("stage", {})}
    return write_config(folder, run={"name": name}, model=model, stage=stage, **changes)


def write_evaluation(folder: Path, runs: list[Path], **changes: Any) -> Path:
    config = {
        "runs": [str(run) for run in runs],
        "manifests": [str(folder / "manifest.jsonl")],
        "split": "train",
        "launch": {"root": str(folder / "runs")},
        **changes,
    }
    path = folder / "evaluate.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_features(folder: Path, **changes: Any) -> Path:
    config = {
        "manifests": [str(folder / "manifest.jsonl")],
        "folder": str(folder),
        "encoders": {"made": {"type": "logmel"}},
        "launch": {"root": str(folder / "runs")},
        **changes,
    }
    path = folder / "features.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def good_chain(folder: Path) -> list[Path]:
    store = write_sounds(folder)
    return [
        write_config(folder),
        hearing(folder, store, "stage1", "base", stage={"trainable": ["connectors"]}),
        hearing(folder, store, "stage2", "stage1"),
        write_evaluation(folder, [folder / "runs" / "stage2"]),
    ]


# ---- a whole chain -------------------------------------------------------------------------------


def test_a_good_chain_says_what_was_looked_at(tmp_path, capsys):
    assert report(jobs(*good_chain(tmp_path))) == 0
    said = capsys.readouterr().out
    for part in (
        "split 'train' has 24 questions on 24 clips",
        "store has 3 shards with 24 clips, all 24 of split 'train' among them",
        "starts from the run base of this chain",
        "tokenizer: trained by the run itself",
        "engine.name=deepspeed can be imported",
        "1,600 of 30,432 parameters train",  # (16 + 1) * 32 + (32 + 1) * 32 of the connector
        "the run stage2 of this chain: streams mel",
        "room: the chain will write",
        "no problem in 4 jobs",
    ):
        assert part in said, part
    assert not (tmp_path / "runs").exists()


def test_many_problems_stand_in_one_report(tmp_path, capsys):
    """Each with its rule, the actual value and the remedy; a common one once."""
    store = write_sounds(tmp_path)
    shard_path(store, 1).unlink()
    data = {"manifests": [str(tmp_path / "manifest.jsonl"), str(tmp_path / "absent.jsonl")]}
    model = {"llm": "nobody/nothing", **FRESH, "attention_backend": "flash_attn"}
    other = {"llm": str(tmp_path / "no" / "such" / "folder")}
    chain = [
        hearing(tmp_path, store, "one", None, model=model, data=data),
        hearing(tmp_path, tmp_path / "no-store", "two", "nowhere", data=data),
        hearing(tmp_path, store, "three", None, model={**FRESH, **other}),
        write_evaluation(tmp_path, [tmp_path / "runs" / "unknown"], split="tests"),
    ]
    assert report(jobs(*chain)) == 2
    said = capsys.readouterr().out
    for part in (
        "absent.jsonl cannot be read: No such file or directory; tools/prepare_data.py makes one "
        "[two too]",
        "`hf download nobody/nothing`",
        "model.attention_backend=flash_attn cannot be used: the package flash-attn 2 is not in",
        "'nowhere' is neither a run in",
        "stream 'mel': no feature store in " + str(tmp_path / "no-store"),
        "there is no folder " + other["llm"],
        "stream 'mel': 10 of the 24 clips of split 'train' have no features in " + str(store),
        "1 of its 3 shards are not made (the first is number 1): run `python tools/precompute_",
        f"runs: there is no exported model in {tmp_path}/runs/unknown",
        "unknown split 'tests'",
        "problems in 4 jobs",
    ):
        assert part in said, part
    with pytest.raises(ConfigError, match=r"problems, nothing was submitted:\n  one \(training\):"):
        require(jobs(*chain))


def test_launch_with_check_loads_no_torch_and_starts_nothing(tmp_path):
    chain = [str(path) for path in good_chain(tmp_path)]
    program = (
        "import sys; from tools.launch import main\n"
        f"code = main(['--check', '--cluster', 'local', *{chain!r}])\n"
        "heavy = ('torch', 'transformers', 'deepspeed')\n"
        "print('loaded', [n for n in heavy if n in sys.modules], 'code', code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.splitlines()[-1] == "loaded [] code 0", done.stderr
    assert not (tmp_path / "runs").exists()


# ---- the child -----------------------------------------------------------------------------------


def test_the_child_is_asked_once_and_remembered(tmp_path):
    chain = jobs(*good_chain(tmp_path))
    findings_of(chain)
    started = time.monotonic()
    assert not problems_of(chain)
    assert time.monotonic() - started < 1.0  # importing torch alone takes longer
    assert child_module.fingerprint() in json.loads(child_module.cache_file().read_text())


def test_another_environment_asks_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said: list[dict[str, Any]] = []

    def n_started() -> int:
        child = Child({})
        child.ask({"what": "import", "name": "yaml"}, said.append)
        child.settle()
        return child.started

    assert [n_started(), n_started()] == [1, 0]
    package = tmp_path / "site" / "flash_attn-2.8.dist-info"
    package.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(package.parent))
    assert [n_started(), n_started()] == [1, 0]
    assert all(answer == {"answer": {"version": yaml.__version__}} for answer in said)


def test_a_bad_answer_is_not_kept_and_a_dying_child_blames_what_it_tried(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "deadly.py").write_text("import os; os._exit(7)")
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    said = {}
    for _ in range(2):
        child = Child(environment)
        for name in ("yaml", "absent_module", "deadly", "json"):
            question_ = {"what": "import", "name": name}
            child.ask(question_, lambda answer, name=name: said.__setitem__(name, answer))
        child.settle()
        assert child.started == 1
    assert "answer" in said["yaml"]
    assert "No module named 'absent_module'" in said["absent_module"]["error"]
    assert "ended with exit code 7" in said["deadly"]["error"]
    assert "not looked at" in said["json"]["error"]
    (kept,) = json.loads(child_module.cache_file().read_text()).values()
    assert list(kept) == [key_of({"what": "import", "name": "yaml"})]


# ---- data ----------------------------------------------------------------------------------------


def test_a_manifest_with_a_broken_line(tmp_path):
    write_texts(tmp_path)
    with (tmp_path / "manifest.jsonl").open("a") as file:
        file.write("{torn")
    assert "manifest.jsonl" in only_problem(write_config(tmp_path))


def test_a_split_and_a_task_that_do_not_exist(tmp_path):
    write_texts(tmp_path)
    config = write_config(tmp_path, data={"split": "trian", "tasks": ["afterr"]})
    problem = only_problem(config)
    assert "unknown split 'trian' (did you mean 'train'?)" in problem
    assert "unknown task 'afterr' (did you mean 'after'?)" in problem


def test_a_split_without_questions_of_the_task(tmp_path):
    clips = [
        Clip("a", None, 0.0, "d", "train", (question("a", "a bell"),)),
        Clip("b", None, 0.0, "d", "test", ()),
    ]
    write_manifest(tmp_path / "manifest.jsonl", clips)
    assert "no question of split 'test' is left" in only_problem(
        write_config(tmp_path, data={"split": "test"})
    )


@pytest.mark.parametrize(
    "data",
    [
        {"datasets": ["sounds"]},
        {"mixture": {"known": {"datasets": ["sounds"]}}},
        {"mixture": {"short": {"max_duration_s": 5.0}}},
    ],
)
def test_clips_that_are_not_asked_for_need_no_features(tmp_path, data):
    store = write_sounds(tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    music = Clip("long", "long.flac", 300.0, "music", "train", (question("long", "a tune"),))
    write_manifest(manifest, [*read_manifest(manifest), music])
    assert not problems_of(jobs(hearing(tmp_path, store, "one", None, data=data)))
    everything = hearing(tmp_path, store, "two", None)
    assert "(the first is 'long')" in only_problem(everything)


def test_a_mixture_of_what_is_not_there(tmp_path):
    write_texts(tmp_path)
    config = write_config(tmp_path, data={"mixture": {"speech": {"datasets": ["speach"]}}})
    assert "unknown dataset in data.mixture.speech.datasets 'speach'" in only_problem(config)


@pytest.mark.parametrize(
    ("mixture", "says"),
    [
        ({"all": {}, "tail": {"min_duration_s": 100}}, "data.mixture.tail selects no question"),
        ({"all": {}, "few": {"weight": 0.001}}, "data.mixture.few.weight=0.001 of 24 questions"),
        ({"all": {}, "lost": {"max_duration_s": 0.5}}, "data.mixture.lost selects no question"),
    ],
)
def test_a_part_that_asks_nothing_fails_the_check_as_it_fails_the_run(tmp_path, mixture, says):
    """The clip of the part `lost` was set aside when its features were made."""
    store = write_sounds(tmp_path)
    manifest = tmp_path / "manifest.jsonl"
    short = Clip("short", "short.flac", 0.4, "sounds", "train", (question("short", "a bell"),))
    write_manifest(manifest, [*read_manifest(manifest), short])
    entry = {"clip": "short", "reason": "too short"}
    (store / "rejected.jsonl").write_text(json.dumps(entry) + "\n")
    assert says in only_problem(hearing(tmp_path, store, "one", None, data={"mixture": mixture}))


def test_a_store_without_a_clip_leaves_no_question(tmp_path):
    store = write_sounds(tmp_path)
    none = empty_store(store, tmp_path / "none")
    said = "; ".join(problems_of(jobs(hearing(tmp_path, none, "one", None))))
    assert "no question of split 'train' is left to use, for none of their clips has" in said


def test_a_shard_without_its_index(tmp_path):
    store = write_sounds(tmp_path)
    shard_index_path(store, 2).unlink()
    problem = only_problem(hearing(tmp_path, store, "one", None))
    assert "shard-000002.tar has lost its index" in problem


def test_a_torn_shard(tmp_path):
    store = write_sounds(tmp_path)
    os.truncate(shard_path(store, 0), 2000)
    problem = only_problem(hearing(tmp_path, store, "one", None))
    assert "1 shard(s) of" in problem
    assert "shorter than their index says (shard-000000.tar)" in problem


def test_clips_set_aside_are_no_problem_but_clips_that_nobody_assigned_are(tmp_path):
    store = write_sounds(tmp_path)
    added = [
        Clip(name, f"{name}.flac", 1.0, "sounds", "train", (question(name, "a cat"),))
        for name in ("silent", "new")
    ]
    manifest = tmp_path / "manifest.jsonl"
    write_manifest(manifest, [*read_manifest(manifest), *added])
    line = json.dumps({"clip": "silent", "audio": "silent.flac", "reason": "empty"})
    (store / "rejected.000-of-002.jsonl").write_text(line + "\n")
    problem = only_problem(hearing(tmp_path, store, "one", None))
    assert "1 of the 26 clips of split 'train' have no features" in problem
    assert "beside 1 set aside (the first is 'new')" in problem
    assert f"manifests=[{manifest}]" in problem
    (store / "rejected.jsonl").write_text(json.dumps({"clip": "new", "reason": "empty"}) + "\n")
    assert not problems_of(jobs(hearing(tmp_path, store, "one", None)))


def test_a_store_that_grows_by_other_manifests_is_whole_for_this_one(tmp_path):
    store = write_sounds(tmp_path)
    with (store / "shards.jsonl").open("a") as file:
        file.write(json.dumps({"shard": 3, "clips": ["of another manifest"]}) + "\n")
    assert not problems_of(jobs(hearing(tmp_path, store, "one", None)))


def test_a_store_that_the_chain_makes_is_not_looked_for(tmp_path):
    write_sounds(tmp_path)
    for name in ("s0", "s12", "s23"):
        (tmp_path / f"{name}.flac").touch()
    (tmp_path / "more").mkdir()
    more = [Clip("m", "m.flac", 1.0, "more", "train", (question("m", "a cat"),))]
    write_manifest(tmp_path / "more" / "manifest.jsonl", more)
    features = write_features(tmp_path)
    train = hearing(tmp_path, tmp_path / "made", "one", None)
    (found, trained, _) = findings_of(jobs(features, train))
    assert not found.problems + trained.problems
    assert any(line.endswith(f"made by {found.name} of this chain") for line in trained.good)
    assert "34,016 of 34,016 parameters train" in trained.good  # by the width of log-mel, 64
    both = [str(tmp_path / "manifest.jsonl"), str(tmp_path / "more" / "manifest.jsonl")]
    wider = hearing(tmp_path, tmp_path / "made", "one", None, data={"manifests": both})
    assert f"but not for {both[1]}: name them" in only_problem(features, wider)
    assert "no feature store" in only_problem(train, features)  # too late


# ---- model ---------------------------------------------------------------------------------------


def test_a_good_model_is_whole_by_its_headers(tmp_path, llm):
    write_texts(tmp_path)
    chain = jobs(write_config(tmp_path, model={**FRESH, "llm": str(llm)}))
    found = findings_of(chain)[0]
    assert not found.problems
    assert any(f"starts from {llm}, whole by its headers" in line for line in found.good)
    assert any("tokens), template applied" in line for line in found.good)


def damage_nothing_there(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()


def damage_one_file_gone(folder: Path) -> None:
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def damage_cut_off(folder: Path) -> None:
    file = sorted(folder.glob("model-*.safetensors"))[0]
    os.truncate(file, file.stat().st_size - 1)


def damage_pointer_of_git(folder: Path) -> None:
    sorted(folder.glob("model-*.safetensors"))[0].write_text("version https://git-lfs.github.com")


def damage_tensor_lost(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    weights = json.loads(index.read_text())
    weights["weight_map"]["nobody.weight"] = next(iter(weights["weight_map"].values()))
    index.write_text(json.dumps(weights))


def damage_tokenizer_gone(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def damage_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": 3}')


def damage_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def damage_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


DAMAGES = {
    damage_nothing_there: "has no weights (model.safetensors",
    damage_one_file_gone: "safetensors is missing: copy or download it again",
    damage_cut_off: "is torn: by its header it has",
    damage_pointer_of_git: "is no safetensors file, or torn in its header",
    damage_tensor_lost: "lacks 1 tensors that model.safetensors.index.json places there",
    damage_tokenizer_gone: "has no tokenizer.json",
    damage_tokenizer: "tokenizer.json cannot be read",
    damage_template: "has no chat template",
    damage_config: "config.json cannot be read",
}


def test_damaged_model_folders(tmp_path, llm):
    write_texts(tmp_path)
    chain = []
    for damage in DAMAGES:
        folder = tmp_path / damage.__name__
        shutil.copytree(llm, folder)
        damage(folder)
        name = {"name": damage.__name__}
        chain.append(write_config(tmp_path, run=name, model={**FRESH, "llm": str(folder)}))
    problems = problems_of(jobs(*chain))
    assert len(problems) == len(DAMAGES)
    for problem, (damage, sentence) in zip(problems, DAMAGES.items(), strict=True):
        assert problem.startswith(f"{damage.__name__}: ")
        assert sentence in problem


def test_a_model_in_the_hub_cache_of_the_job(tmp_path, llm, monkeypatch):
    """The profile may move the cache, so this process's own does not count."""
    write_texts(tmp_path)
    snapshot = tmp_path / "hub" / "models--some--llm" / "snapshots" / "abc"
    shutil.copytree(llm, snapshot)
    (tmp_path / "hub" / "models--some--llm" / "refs").mkdir()
    (tmp_path / "hub" / "models--some--llm" / "refs" / "main").write_text("abc")
    profile = tmp_path / "here.yaml"
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    profile.write_text(yaml.safe_dump({"name": "here", "environment": environment}))
    config = write_config(tmp_path, model={**FRESH, "llm": "some/llm"})
    assert "`hf download some/llm`" in only_problem(config)
    assert not problems_of(jobs(config, cluster=str(profile)))


def test_what_trains_must_match_the_model_and_the_model_must_be_one(tmp_path):
    write_texts(tmp_path)
    chain = [
        write_config(tmp_path, run={"name": "typo"}, stage={"trainable": ["atention"]}),
        write_config(
            tmp_path, run={"name": "rate"}, optimizer={"lr_by_pattern": {"connectors": 0.1}}
        ),
        write_config(tmp_path, run={"name": "odd"}, model={"architecture": {"model_type": "lama"}}),
    ]
    typo, rate, odd = problems_of(jobs(*chain))
    assert "'atention' matches no parameter" in typo
    assert "optimizer.lr_by_pattern" in rate
    assert "the LLM's configuration makes no model" in odd


def test_the_model_was_trained_otherwise(tmp_path, trained):
    """Another form, and another encoder's features."""
    store = write_sounds(tmp_path)
    config = hearing(
        tmp_path,
        store,
        "one",
        str(trained),
        model={"streams": {"mel": {"features": str(store), "connector": {"frame_stack": 3}}}},
    )
    form, encoder = problems_of(jobs(config))
    assert "streams.mel.connector:" in form
    assert "'frame_stack': 2" in form
    assert "was made with another encoder than" in encoder
    assert "encoder.type: 'made up' != 'logmel'" in encoder


def test_the_run_to_start_from_has_another_root(tmp_path):
    """The name alone does not do: the run would be looked for in its own root."""
    write_texts(tmp_path)
    first = write_config(tmp_path)
    second = write_config(
        tmp_path,
        run={"name": "two", "root": str(tmp_path / "elsewhere")},
        model=FRESH,
        stage={"init_from": "base"},
    )
    assert "'base' is neither a run in" in only_problem(first, second)


# ---- environment, folders, room ------------------------------------------------------------------


def test_an_attention_backend_for_a_gpu_that_the_job_has_not(tmp_path):
    write_texts(tmp_path)
    config = write_config(tmp_path, model={"attention_backend": "torch"})
    problem = only_problem(config, "launch.processes_per_node=1")
    assert "model.attention_backend=torch cannot be used: it needs a CUDA device" in problem


def test_a_folder_that_is_something_else(tmp_path):
    write_texts(tmp_path)
    config = write_config(tmp_path)
    (tmp_path / "runs" / "base").mkdir(parents=True)
    (tmp_path / "runs" / "base" / "thesis.tex").touch()
    assert "exists, but is no run" in only_problem(config)
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "runs").touch()
    assert f"{tmp_path}/runs is a file: move it away" in only_problem(config)


def test_a_run_that_was_started_with_another_configuration(tmp_path):
    write_texts(tmp_path)
    config = write_config(tmp_path)
    folder = tmp_path / "runs" / "base"
    folder.mkdir(parents=True)
    shutil.copy(config, folder / "config.yaml")
    assert not problems_of(jobs(config, "optimizer.lr=1")), (
        "it never trained: the launch takes over"
    )
    (folder / "metrics.jsonl").write_text("{}\n")
    problem = only_problem(config, "optimizer.lr=1")
    assert "optimizer.lr: " in problem
    assert "run.fresh=true" in problem


def test_no_room_for_the_checkpoints(tmp_path):
    """A layer of 135 thousand million parameters: three checkpoints of them are 5 TB."""
    write_texts(tmp_path)
    wide = {"hidden_size": 2**16, "intermediate_size": 2**18, "num_hidden_layers": 2}
    problem = only_problem(write_config(tmp_path, model={"architecture": {
        "model_type": "llama", "num_attention_heads": 64, **wide}}))  # fmt: skip
    assert " free, but the chain will write 5." in problem
    assert " TB there: base 5." in problem
    assert "lower checkpoint.keep" in problem


# ---- features and evaluation ---------------------------------------------------------------------


def test_features_of_recordings_that_are_not_there_into_the_store_of_another(tmp_path):
    store = write_sounds(tmp_path)
    with (tmp_path / "manifest.jsonl").open() as file:
        first = file.readline()
    (tmp_path / "other.jsonl").write_text(first.replace('"s0', '"x0'))
    features = write_features(
        tmp_path,
        encoders={store.name: {"type": "logmel"}},
        manifests=[str(tmp_path / "other.jsonl")],
    )
    recordings, claim = problems_of(jobs(features))
    assert "holds features of another encoder" in claim
    assert "encoder.type: 'made up' != 'logmel'" in claim
    assert "none of 1 recordings looked for is there" in recordings


def test_an_encoder_that_does_not_exist_or_is_not_here(tmp_path):
    write_sounds(tmp_path)
    for name in range(24):
        (tmp_path / f"s{name}.flac").touch()
    typo = write_features(tmp_path, encoders={"made": {"type": "logmell"}})
    assert "unknown encoder type 'logmell' (did you mean 'logmel'?)" in only_problem(typo)
    options = write_features(tmp_path, encoders={"made": {"options": {"mels": 3}}})
    assert "'mels'" in only_problem(options)
    absent = write_features(tmp_path, encoders={"made": {"type": "whisper", "path": "no/whisper"}})
    assert "encoder 'whisper': no/whisper is neither a folder nor" in only_problem(absent)


def test_an_evaluation_of_a_bare_llm_and_of_a_store_by_another_encoder(tmp_path, llm, trained):
    store = write_sounds(tmp_path)
    run = tmp_path / "runs" / "good"
    shutil.copytree(trained, run / "model")
    config = write_evaluation(tmp_path, [llm, run], features={"mel": str(store)})
    bare, encoder = problems_of(jobs(config))
    assert f"runs: {llm} is a bare LLM" in bare
    assert f"{store} was made with another encoder than {run}/model was trained with" in encoder


def test_an_evaluation_that_does_not_know_its_features(tmp_path, trained):
    write_sounds(tmp_path)
    config = write_evaluation(tmp_path, [trained])
    assert "does not say where the features of stream 'mel' lie" in only_problem(config)
    config = write_evaluation(tmp_path, [trained], features={"meel": "x"})
    assert "features.meel: " in only_problem(config)


# ---- Slurm ---------------------------------------------------------------------------------------


def test_slurm_is_missing_and_all_else_is_said_too(tmp_path, monkeypatch):
    config = write_config(tmp_path, launch={"processes_per_node": None})
    monkeypatch.setenv("PATH", str(tmp_path))
    manifest, slurm = problems_of(jobs(config, cluster="slurm"))
    assert "cannot be read" in manifest
    assert "Slurm is not installed here" in slurm


def write_commands(folder: Path, sbatch: str) -> None:
    for name in ("sbatch", "srun", "scontrol", "squeue"):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{sbatch if name == 'sbatch' else 'exit 0'}\n")
        path.chmod(0o755)


def test_slurm_must_not_misread_the_folder_and_an_account_must_be_named(tmp_path, monkeypatch):
    write_texts(tmp_path)
    write_commands(tmp_path, "echo sbatch: Job 7 to start at 2026-01-01T00:00:00 >&2")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("PALTRAIN_ACCOUNT", raising=False)
    config = write_config(
        tmp_path, run={"root": str(tmp_path / "a\\b")}, launch={"processes_per_node": None}
    )
    folder, account = problems_of(jobs(config, cluster="leonardo"))
    assert "has a backslash in its path, which Slurm misreads: choose another run.root" in folder
    assert "export PALTRAIN_ACCOUNT=NAME" in account
    monkeypatch.setenv("PALTRAIN_ACCOUNT", "IscrB")
    found = findings_of(jobs(write_config(tmp_path), cluster="leonardo"))[0]
    start = "(Job 7 to start at 2026-01-01T00:00:00)"
    assert f"Slurm would take it for account IscrB {start}" in found.good


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_what_slurm_refuses_is_reported_for_each_job(tmp_path):
    write_texts(tmp_path)
    profile = {"name": "lab", "scheduler": "slurm", "gpus_per_node": 4, "cpus_per_node": 32}
    (tmp_path / "lab.yaml").write_text(yaml.safe_dump({**profile, "max_nodes": 64}))
    launch = {"processes_per_node": None, "time_min": 10}
    chain = [
        write_config(tmp_path, launch={**launch, "partition": "normal"}),
        write_config(tmp_path, run={"name": "two"}, launch={**launch, "partition": "nirvana"}),
        write_config(tmp_path, run={"name": "three"}, launch={**launch, "nodes": 9}),
    ]
    problems = problems_of(jobs(*chain, cluster=str(tmp_path / "lab.yaml")))
    assert [problem.partition(":")[0] for problem in problems] == ["two", "three"]
    assert "Slurm refuses the job 'two': " in problems[0]
    assert "nvalid partition" in problems[0]
    assert "node" in problems[1].lower()
    assert not subprocess.check_output(["squeue", "--noheader"], text=True)
