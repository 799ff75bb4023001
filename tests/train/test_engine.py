"""The engine on real gloo processes: one rank and two at once, each resuming from the other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.local import run_processes
from paltrain.config.schema import EngineConfig, TrainConfig
from paltrain.errors import ConfigError
from paltrain.train.engine import build_engine
from tests.train.engine_worker import SAVED_AT, STEPS

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What engine_worker.py wrote, by world size."""
    folder = tmp_path_factory.mktemp("engine")

    def command(world_size: int) -> list[str]:
        names = [f"{world_size}.json", f"from{world_size}", f"from{3 - world_size}"]
        paths = [str(folder / name) for name in names]
        return [sys.executable, "-m", "tests.train.engine_worker", *paths]

    environment = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}  # gloo, on any machine
    alone = subprocess.Popen(command(1), cwd=ROOT, env=os.environ | environment)
    try:
        code = run_processes(
            command(2),
            world_size=2,
            threads=1,
            log_folder=folder / "logs",
            environment=environment,
        )
        assert [code, alone.wait(60)] == [0, 0]
    finally:
        alone.kill()
    return {n: json.loads((folder / f"{n}.json").read_text()) for n in (1, 2)}


def test_two_ranks_and_one_equal_plain_pytorch(results):
    for world_size, key in [(1, "zero3"), (2, "zero3"), (2, "zero2"), (2, "zero0")]:
        result = results[world_size]
        losses, norms = result["plain"]
        assert len(losses) == STEPS
        assert result[key]["losses"] == pytest.approx(losses, rel=1e-5), (world_size, key)
        assert result[key]["norms"] == pytest.approx(norms, rel=1e-5), (world_size, key)


def test_the_gradient_norm_is_that_before_clipping(results):
    assert max(results[2]["zero3"]["norms"]) > 0.7


@pytest.mark.parametrize("key", ["zero3", "zero2", "zero0", "bf16_3", "bf16_1"])
def test_resuming_is_bitwise_at_the_same_world_size(results, key):
    result = results[2][key]
    assert result["after"] == [result["losses"][SAVED_AT:], result["norms"][SAVED_AT:]]
    assert result["same_weights"]
    assert result["n_weights"] == 22  # frozen ones and a buffer included
    assert result["n_applied"] == STEPS


@pytest.mark.parametrize("world_size", [1, 2])
def test_another_number_of_ranks_continues_the_curve(results, world_size):
    losses, norms = results[world_size]["from_other"]
    unbroken = results[3 - world_size]["zero3"]
    assert losses == pytest.approx(unbroken["losses"][SAVED_AT:], rel=1e-5)
    assert norms == pytest.approx(unbroken["norms"][SAVED_AT:], rel=1e-5)


def test_bfloat16_follows_float32_closely(results):
    losses, _ = results[2]["plain"]
    assert results[2]["bf16_3"]["losses"] == pytest.approx(losses, rel=2e-3)
    assert results[2]["bf16_1"]["losses"] == pytest.approx(losses, rel=2e-3)


@pytest.mark.parametrize("stage", [3, 2, 0])
def test_a_step_that_is_not_finite_leaves_no_trace(results, stage):
    skipping = results[2][f"skipping{stage}"]
    assert skipping["norm"] in ("nan", "inf")
    assert skipping["losses_True"] == skipping["losses_False"]
    assert skipping["applied_True"] == skipping["applied_False"] == 3


def test_an_unknown_engine_is_refused_by_name():
    config = TrainConfig(engine=EngineConfig(name="deepsped"))
    with pytest.raises(ConfigError, match="did you mean 'deepspeed'"):
        build_engine(config, None, [], None)
