"""tools/launch.py as a user calls it: on text alone, with ZeRO-3 on two gloo processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from paltrain.train.metrics import read_metrics
from tests.cluster.material import write_config, write_sounds, write_texts

ROOT = Path(__file__).resolve().parents[2]
CURVE = ("step", "loss", "grad_norm", "lr", "epoch")


def launch(*words: Any, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start it, on this machine unless the words name a cluster."""
    if "--cluster" not in words:
        words = ("--cluster", "local", *words)
    ours = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "tools/launch.py", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **ours, **(environment or {})},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def said(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a launch that ends."""
    out, _ = process.communicate(timeout=120)
    return process.returncode, out


def wait_for_step(metrics: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while len(read_metrics(metrics)) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run does not come on"
        time.sleep(0.02)


def curve(metrics: Path) -> list[tuple[Any, ...]]:
    return [tuple(record[key] for key in CURVE) for record in read_metrics(metrics)]


@pytest.fixture(scope="module")
def started():
    """Starts processes that do not outlive the module's tests."""
    processes: list[subprocess.Popen[str]] = []

    def start(process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()


@pytest.fixture(scope="module")
def history(tmp_path_factory, started):
    """A run that is killed, goes on, is told to stop; and a copy that one process finishes."""
    folder = tmp_path_factory.mktemp("launch")
    write_texts(folder)
    config = write_config(folder)
    run = folder / "runs" / "base"
    metrics = run / "metrics.jsonl"

    first = started(launch(config))
    wait_for_step(metrics, 38, first)
    ranks = psutil.Process(first.pid).children()
    os.kill(max(rank.pid for rank in ranks), signal.SIGKILL)
    killed = said(first)
    until_killed = curve(metrics)
    (run / "checkpoints" / "step-00000099.partial").mkdir()
    copy = folder / "alone" / "base"
    shutil.copytree(run, copy)

    alone = started(subprocess.Popen([sys.executable, "-m", "paltrain.run", str(copy)], cwd=ROOT))
    second = started(launch(config, "logging.every_steps=1"))
    wait_for_step(metrics, 60, second)
    second.send_signal(signal.SIGTERM)
    stopped = said(second)
    return {
        "folder": folder,
        "config": config,
        "run": run,
        "killed": killed,
        "until_killed": until_killed,
        "stopped": stopped,
        "resumed": curve(metrics),
        "alone": alone.wait(120),
        "alone_curve": curve(copy / "metrics.jsonl"),
    }


@pytest.mark.distributed
def test_killing_a_rank_ends_the_run_saying_so(history):
    code, out = history["killed"]
    assert code == 128 + signal.SIGKILL
    assert "was killed by signal 9" in out
    assert "failed with exit code 137" in out
    assert len(history["until_killed"]) >= 38


@pytest.mark.distributed
def test_the_same_command_again_continues_the_curve_bitwise(history):
    before, after = history["until_killed"], history["resumed"]
    assert len(after) >= 60
    assert [step for step, *_ in after] == list(range(1, len(after) + 1))
    assert after[: len(before)] == before  # steps 26 on were trained twice
    assert not (history["run"] / "checkpoints" / "step-00000099.partial").exists()


@pytest.mark.distributed
def test_told_to_stop_it_saves_and_ends_with_85(history):
    code, out = history["stopped"]
    assert code == 85, out
    assert "the same command goes on" in out
    assert "going on from" in out
    status = json.loads((history["run"] / "status.json").read_text())
    assert (status["state"], status["step"]) == ("stopped", len(history["resumed"]))
    latest = (history["run"] / "checkpoints" / "latest").read_text().strip()
    assert latest == f"step-{status['step']:08d}"


@pytest.mark.distributed
def test_one_process_goes_on_from_two_with_the_same_curve(history):
    assert history["alone"] == 0
    alone, two = history["alone_curve"], history["resumed"]
    assert len(alone) == 80
    for here, there in zip(alone, two, strict=False):
        assert here == pytest.approx(there, rel=1e-5)


@pytest.mark.distributed
def test_a_finished_run_exports_a_model_that_transformers_loads(history):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = history["folder"] / "alone" / "base" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert not list(folder.parent.glob("*.partial"))


@pytest.mark.distributed
def test_a_finished_run_says_so_and_is_left_alone(history):
    root = history["folder"] / "alone"
    frozen = root / "base" / "config.yaml"
    frozen.write_text(frozen.read_text().replace(str(history["run"].parent), str(root)))
    before = (root / "base" / "status.json").stat().st_mtime_ns
    code, out = said(launch(history["config"], f"run.root={root}"))
    assert code == 0
    assert "base: finished already" in out
    assert (root / "base" / "status.json").stat().st_mtime_ns == before


@pytest.mark.distributed
def test_a_checkpoint_from_another_config_is_refused(history):
    code, out = said(launch(history["config"], "optimizer.lr=1", "model.tokenizer_vocab_size=400"))
    assert code == 2
    assert "optimizer.lr: 0.003 -> 1.0" in out
    assert "model.tokenizer_vocab_size: 320 -> 400" in out


@pytest.mark.distributed
def test_metrics_have_a_line_a_step_with_units(history):
    last = read_metrics(history["run"] / "metrics.jsonl")[-1]
    assert set(last) >= {
        "questions_per_s",
        "text_tokens_per_s",
        "audio_tokens_per_s",
        "step_time_s",
        "data_wait_share",
        "padding_share",
        "rank_imbalance",
        "mfu",
        "peak_tflops",
        "peak_memory_gib",
    }
    assert last["mfu"] is None
    assert 0 <= last["data_wait_share"] < 1


@pytest.mark.distributed
def test_a_run_with_a_stream_trains_though_a_rank_has_nothing_to_do(tmp_path):
    from paltrain import PalModel

    store = write_sounds(tmp_path)
    stream = {"features": str(store), "route": "lal", "connector": {"frame_stack": 2}}
    config = write_config(
        tmp_path,
        run={"name": "hears"},
        model={"streams": {"mel": stream}},
        data={"batch_questions": 1, "questions_per_visit": 1, "audio_token_budget": 64},
        stage={"steps": 3, "trainable": ["connectors", "attention"]},
        optimizer={"warmup_steps": 0},
    )
    code, out = said(launch(config))
    assert code == 0, out
    records = read_metrics(tmp_path / "runs" / "hears" / "metrics.jsonl")
    assert len(records) == 3
    assert all(r["audio_tokens_per_s"] > 0 and r["padding_share"] > 0 for r in records)
    model = PalModel.from_pretrained(tmp_path / "runs" / "hears" / "model")
    assert model.config.streams["mel"]["encoder"]["width"] == 8
    plan = said(launch("--dry-run", config))[1]
    assert "of 24 'train' clips with audio 0 lack features" in plan
    assert "audio tokens" in plan
    assert "unknown" not in plan


def test_a_chain_stops_at_the_first_failure_and_names_it(tmp_path):
    write_texts(tmp_path)
    good = write_config(tmp_path, stage={"init_from": "nowhere"}, run={"name": "first"})
    later = write_config(tmp_path, run={"name": "second"})
    code, out = said(launch(good, later))
    assert code == 2
    assert "'nowhere' is neither a run" in out
    assert not (tmp_path / "runs" / "second").exists()


def test_two_runs_of_a_chain_need_two_names(tmp_path):
    config = write_config(tmp_path)
    code, out = said(launch(config, config))
    assert code == 2
    assert "share the folder" in out


def test_a_dry_run_prints_the_plan_and_writes_no_run(tmp_path):
    write_texts(tmp_path)
    first = write_config(tmp_path)
    stream = {"mel": {"features": str(tmp_path / "no-store"), "route": "lal"}}
    second = write_config(
        tmp_path,
        run={"name": "next"},
        model={"streams": stream, "architecture": None, "tokenizer_vocab_size": None},
        stage={"init_from": "base"},
    )
    code, out = said(launch("--dry-run", first, second))
    assert code == 0, out
    for part in (
        "job 1 of 2: base",
        "world size           2",
        "-m paltrain.run",
        "MASTER_ADDR=127.0.0.1",
        "questions          150 asked an epoch, 150 different, about 50 clips",
        "80 (8.00 epochs of 10 steps)",
        "text tokens, target tokens",
        "unknown: the tokenizer is trained by the run itself",
        "text only",
        "the run base of this chain",
        "unknown: no feature store",
        "tools/precompute_features.py",
    ):
        assert part in out, part
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_for_a_cluster_prints_the_sbatch_text_without_slurm_or_account(tmp_path):
    config = write_config(tmp_path, launch={"processes_per_node": None})
    code, out = said(launch("--dry-run", "--nodes", 8, "--cluster", "leonardo", config))
    assert code == 0, out
    assert "#SBATCH --nodes=8" in out
    assert "account              unknown: the profile 'leonardo' needs an account" in out
    assert "world size           32 (8 node(s) x 4 process(es)" in out
    assert "step plan            unknown: no manifest" in out


@pytest.mark.parametrize(
    "words",
    [
        ["--cluster", "auto", "--nodes", "8"],
        ["--cluster", "local", "--nodes", "8"],
        ["--cluster", "slurm", "--nodes", "8"],
    ],
)
def test_a_real_launch_without_slurm_is_refused_before_anything_is_written(tmp_path, words):
    write_texts(tmp_path)
    config = write_config(tmp_path)
    (tmp_path / "bin").mkdir()
    code, out = said(launch(*words, config, environment={"PATH": str(tmp_path / "bin")}))
    assert code == 2
    assert "Slurm is" in out
    assert not (tmp_path / "runs").exists()


def test_launching_loads_no_torch(tmp_path):
    write_texts(tmp_path)
    config = write_config(tmp_path)
    program = (
        "import sys; from tools.launch import main\n"
        f"code = main(['--cluster', 'leonardo', '--dry-run', {str(config)!r}])\n"
        "loaded = [n for n in ('torch', 'transformers', 'deepspeed') if n in sys.modules]\n"
        "print('loaded', loaded, 'code', code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "loaded [] code 0", done.stderr
