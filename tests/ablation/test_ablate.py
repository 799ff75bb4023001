"""tools/ablate.py as a user calls it: real trials of four steps, on this machine."""

from __future__ import annotations

import json
import os
import shlex
import signal
import statistics
import time
from pathlib import Path

import psutil
import pytest

from paltrain.bench.record import read_rows
from tests.ablation.material import SEEDS, call, stages_of, start, write_ablation

pytestmark = pytest.mark.long
N_STAGES = {"plits": 1, "lal": 2}
ARMS = tuple(N_STAGES)


@pytest.fixture(scope="module")
def history(world):
    """Two arms of two seeds beside one that fails; then the same command again."""
    broken = {"stages": stages_of(world, "lal"), "set": ["stage.init_from=models/none"]}
    arms = arms_of(world)
    config = write_ablation(
        world, arms={**arms, "broken": {**broken, "note": "Nothing to start from."}}
    )
    first = call("ablate", config)
    report = world / "runs" / "forms" / "report.md"
    text = report.read_text()
    mtimes = {run: (run / "status.json").stat().st_mtime_ns for run in runs_of(world)}
    again = call("ablate", config)
    return {
        "world": world, "config": config, "first": first, "text": text, "mtimes": mtimes,
        "again": again, "text_again": report.read_text(),
        "figures": json.loads(report.with_suffix(".json").read_text()),
    }  # fmt: skip


def arms_of(world: Path) -> dict[str, dict[str, list[str]]]:
    """PLITS of one stage, LAL of two: each stage costs seconds."""
    return {arm: {"stages": stages_of(world, arm)[: N_STAGES[arm]]} for arm in ARMS}


def last_run(world: Path, arm: str, seed: int) -> Path:
    return world / "runs" / "forms" / f"{arm}-seed{seed}" / f"{arm}_stage{N_STAGES[arm]}"


def runs_of(world: Path) -> list[Path]:
    return [last_run(world, arm, seed) for arm in ARMS for seed in SEEDS]


@pytest.mark.distributed
def test_a_failing_arm_is_named_with_its_log_and_stops_no_other(history):
    code, said = history["first"]
    assert code == 1, said
    assert "broken-seed0: failed with exit code 2" in said
    log = history["world"] / "runs" / "forms" / "broken-seed1" / "log.txt"
    assert f"(log: {log})" in said
    assert "models/none" in log.read_text()
    for run in runs_of(history["world"]):
        assert json.loads((run / "status.json").read_text())["state"] == "finished"


@pytest.mark.distributed
def test_each_trial_has_a_line_when_it_starts_and_one_when_it_ends(history):
    lines = history["first"][1].splitlines()
    for trial in ("plits-seed0", "plits-seed1", "lal-seed0", "lal-seed1"):
        own = [line for line in lines if f"] {trial}: " in line]
        assert len(own) == 2
        assert "started" in own[0]
        assert "which_sound" in own[1]


@pytest.mark.distributed
def test_the_table_has_the_mean_and_the_spread_of_the_seeds_scores(history):
    for arm in ARMS:
        row = next(row for row in history["figures"]["rows"] if row["name"] == arm)
        for key, suffix in (("accuracy", ""), ("deaf", "-shuffled")):
            for task, share in row[key].items():
                values = [score(history["world"], arm, seed, suffix, task) for seed in SEEDS]
                assert share["by_seed"] == dict(zip(map(str, SEEDS), values, strict=True))
                assert share["mean"] == pytest.approx(sum(values) / len(values))
                assert share["std"] == pytest.approx(statistics.stdev(values))
        cells = [f"{100 * row['accuracy'][t]['mean']:.1f} ±" for t in row["accuracy"]]
        line = next(line for line in history["text"].splitlines() if line.startswith(f"| {arm} "))
        assert all(cell in line for cell in cells)


def score(world: Path, arm: str, seed: int, suffix: str, task: str) -> float:
    """A task's share of right answers, counted from the answers themselves."""
    run = last_run(world, arm, seed)
    lines = (run / "eval" / f"test{suffix}" / "answers.jsonl").read_text().splitlines()
    own = [answer for answer in map(json.loads, lines) if answer["task"] == task]
    return sum(answer["correct"] for answer in own) / len(own)


@pytest.mark.distributed
def test_what_is_missing_is_a_dash_and_is_named(history):
    line = next(line for line in history["text"].splitlines() if line.startswith("| broken "))
    assert set(line.replace("|", " ").split()) == {"broken", "0", "of", "2", "-"}
    assert "Not there yet: broken-seed0, broken-seed1." in history["text"]
    assert "broken: Nothing to start from." in history["text"]
    assert history["figures"]["missing_trials"] == ["broken-seed0", "broken-seed1"]


@pytest.mark.distributed
def test_steps_of_all_arms_are_timed_and_their_parameters_counted(history):
    rows, _ = read_rows(history["world"] / "runs" / "forms" / "forms.json")
    values = {row.metric: row.value for row in rows}
    for arm in ARMS:
        assert values[f"step_time.{arm}"] > 0
        assert values[f"peak_memory.{arm}"] > 0
    assert values["n_trained.lal"] == values["n_parameters.lal"]  # its stage 2 trains all
    width, stack, mels = 32, 8, 8  # stage 1 trains the connector: two linear layers with biases
    connector = stack * mels * width + width + width * width + width
    assert values["n_trained.plits"] == connector < values["n_parameters.plits"]
    by_name = {row["name"]: row for row in history["figures"]["rows"]}
    assert by_name["lal"]["step_time_s"] == values["step_time.lal"]
    assert by_name["lal"]["memory_mib"] == values["peak_memory.lal"]
    assert by_name["broken"]["step_time_s"] is None


@pytest.mark.distributed
def test_the_same_command_again_does_nothing_twice_and_gives_the_same_text(history):
    code, said = history["again"]
    assert code == 1
    assert "4 of 6 trials are done already" in said
    assert "timing a step" not in said
    assert history["text_again"] == history["text"]
    for run, before in history["mtimes"].items():
        assert (run / "status.json").stat().st_mtime_ns == before


@pytest.mark.distributed
def test_a_merge_wants_every_trial_and_names_the_slices_that_lack_some(history):
    before = history["text"]
    code, said = call("ablate", history["config"], "--merge", 4)
    assert code == 2
    assert "a merge needs every slice whole; incomplete: 2 of 4" in said
    assert "slice 0 lacks 1 of 2 trials" in said  # plits-seed0, broken-seed0
    assert "slice 1 lacks 1 of 2 trials" in said
    assert (history["world"] / "runs" / "forms" / "report.md").read_text() == before
    whole = write_ablation(history["world"], arms=arms_of(history["world"]))
    code, said = call("ablate", whole, "--merge", 4, f"report={history['world'] / 'merged'}")
    assert code == 0, said
    assert "| lal | 2 |" in (history["world"] / "merged.md").read_text()


@pytest.mark.distributed
def test_results_of_another_configuration_and_torn_scores_count_as_missing(history, tmp_path):
    """What lies in a trial's folder is never shown beside a configuration that it is not of."""
    world = history["world"]
    arms = {**arms_of(world), "lal": {**arms_of(world)["lal"], "set": ["optimizer.lr=0.5"]}}
    launch = {"root": str(world / "runs"), "name": "forms"}
    changed = write_ablation(world, "changed", arms=arms, launch=launch)
    report = tmp_path / "report"
    code, said = call("ablate", changed, "--table", f"report={report}")
    assert code == 0, said
    assert "without results, a dash in the table: lal-seed0, lal-seed1" in said
    scores = last_run(world, "plits", 0) / "eval" / "test" / "scores.json"
    whole = scores.read_bytes()
    scores.write_bytes(whole[:200])
    try:
        code, said = call("ablate", changed, "--table", f"report={report}")
    finally:
        scores.write_bytes(whole)
    assert code == 0, said
    assert f"{scores} cannot be read" in said
    assert "plits-seed0, lal-seed0, lal-seed1" in said


def test_list_shows_each_trials_commands_and_writes_nothing(world):
    config = write_ablation(world, "listed")
    code, said = call("ablate", config, "--list")
    assert code == 0
    folder = world / "runs" / "listed"
    for trial in ("plits-seed0", "lal-seed1"):
        assert f"# {trial}: not started" in said
        assert f"run.root={folder}/{trial}" in said
    assert not folder.exists()
    chain = [line for line in said.splitlines() if f"run.root={folder}/lal-seed1" in line]
    code, said = call("launch", "--cluster", "slurm", "--dry-run", *shlex.split(chain[0])[2:])
    assert code == 0
    assert f"{folder}/lal-seed1/lal_stage1" in said


def test_a_table_of_nothing_is_an_error_and_writes_nothing(world):
    config = write_ablation(world, "empty")
    code, said = call("ablate", config, "--table")
    assert code == 2
    assert "error: there is no result yet" in said
    assert f"run them first: python tools/ablate.py {config}" in said
    assert not (world / "runs" / "empty").exists()


@pytest.mark.distributed
def test_ctrl_c_ends_all_that_was_started(history):
    world = history["world"]  # with the base that all start from
    config = write_ablation(world, "stopped", seeds=[7, 8], prepare=[])
    process = start("ablate", config, "--heartbeat", world / "stopped.json")
    ours = psutil.Process(process.pid)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while len(children) < 4 and time.monotonic() < deadline:  # two launchers, a rank each
        children = ours.children(recursive=True)
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=90)
    assert process.returncode == 130, out
    assert "interrupted: the same command goes on from here" in out
    assert len(children) >= 4, out
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert json.loads((world / "stopped.json").read_text())["state"] == "stopped"
