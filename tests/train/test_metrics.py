import json
import math

import torch

from paltrain.train.console import TrainingConsole, duration
from paltrain.train.loop import TokenFlops
from paltrain.train.metrics import MetricsLog, WandbCopy, peak_memory_gib, read_metrics


def test_records_are_readable_as_soon_as_they_are_written(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1, "loss": 0.5})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    log.close()


def test_what_is_not_finite_is_null_and_the_file_strict_json(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1, "loss": math.nan, "grad_norm": math.inf})
    log.close()
    line = (tmp_path / "metrics.jsonl").read_text()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(line, parse_constant=refuse) == {"step": 1, "loss": None, "grad_norm": None}


def test_resuming_cuts_back_to_the_checkpoint_and_forgets_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = MetricsLog(path, after_step=2)
    log.write({"step": 3, "again": True})
    log.close()
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_wandb_that_fails_is_never_fatal(tmp_path, caplog):
    copy = WandbCopy(tmp_path, name="n", project="p", mode="no such mode", config={})
    copy.write({"step": 1, "loss": 1.0})
    copy.close()
    assert "wandb is off" in caplog.text


def test_mfu_is_unknown_without_a_peak_and_a_share_with_one():
    step = {"n_text": 100, "n_audio": 50, "step_time_s": 2.0, "world_size": 4}
    assert TokenFlops(1e12, 1e12, None).mfu(**step) is None
    assert TokenFlops(2e12, 1e12, 100.0).mfu(**step) == (250e12) / (2 * 4 * 100e12)


def test_peak_memory_is_that_of_this_process():
    assert 0.05 < peak_memory_gib(torch.device("cpu")) < 64


def record(step: int) -> dict[str, float]:
    return {
        "step": step,
        "loss": 2.0,
        "lr": 1e-3,
        "step_time_s": 0.5,
        "questions_per_s": 128.0,
        "text_tokens_per_s": 4096.0,
        "audio_tokens_per_s": 2.5e6,
    }


def test_a_log_file_gets_the_first_the_last_and_every_nth_step(capsys):
    with TrainingConsole(name="run", total_steps=25, every_steps=10) as console:
        for step in range(1, 26):
            console.show(record(step))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("step ")[1].split("/")[0] for line in lines] == ["1", "10", "20", "25"]
    for part in ("loss 2.000", "128 questions/s", "4.1k text + 2.5M audio tokens/s", "ETA 0:08"):
        assert part in lines[1]


def test_other_ranks_say_nothing(capsys):
    with TrainingConsole(name="run", total_steps=1, every_steps=1, quiet=True) as console:
        console.show(record(1))
    assert capsys.readouterr().err == ""


def test_durations_read_as_clocks():
    assert [duration(s) for s in (75, 4000, 200000)] == ["1:15", "1:06:40", "2d 7:33:20"]
