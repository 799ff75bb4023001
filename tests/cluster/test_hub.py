"""Hub names as folders of the local cache, laid out as the hub's own library does."""

from dataclasses import replace
from pathlib import Path

from cluster.hub import made_local
from cluster.profiles import Profile
from paltrain.config.schema import (
    EncoderConfig,
    EvalConfig,
    FeaturesConfig,
    ModelConfig,
    RunIdentity,
    TrainConfig,
)

NAME = "someone/some-llm"


def write_cache(hub: Path) -> Path:
    """A hub cache that holds one revision of NAME."""
    model = hub / "models--someone--some-llm"
    snapshot = model / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "tokenizer.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc123")
    return snapshot


def profile(tmp_path, *, offline=True) -> Profile:
    return Profile(offline=offline, environment={"HF_HOME": str(tmp_path)})


def training(name: str) -> TrainConfig:
    return TrainConfig(run=RunIdentity(name="r"), model=ModelConfig(llm=name, tokenizer=name))


def test_a_name_in_the_cache_becomes_its_folder_at_that_revision(tmp_path):
    snapshot = str(write_cache(tmp_path / "hub"))
    model = made_local(training(NAME), profile(tmp_path)).model
    assert (model.llm, model.tokenizer) == (snapshot, snapshot)
    features = FeaturesConfig(manifests=["m"], folder="f", encoders={"e": EncoderConfig(path=NAME)})
    assert made_local(features, profile(tmp_path)).encoders["e"].path == snapshot


def test_what_is_not_there_keeps_its_name(tmp_path):
    for name in (NAME, "runs/no/such/model", str(tmp_path)):
        assert made_local(training(name), profile(tmp_path)).model.llm == name


def test_where_nodes_reach_the_hub_names_stay(tmp_path):
    write_cache(tmp_path / "hub")
    assert made_local(training(NAME), profile(tmp_path, offline=False)).model.llm == NAME
    evaluation = EvalConfig(runs=["r"], manifests=["m"])
    assert made_local(evaluation, profile(tmp_path)) == replace(evaluation)
