"""Writes what finished runs leave behind: metrics, configurations, answers, recordings."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import soundfile

from paltrain.bench.record import BenchRow, write_rows
from paltrain.eval.records import Answer, AnswerFile
from paltrain.files import write_json
from paltrain.report.phases import PhaseCall, append_phase

SOUNDS = ("bell", "siren", "chirp", "knock")
RATE_HZ = 16000


def write_run(
    folder: Path, *, route: str | None, n_steps: int, floor: float, step_s: float
) -> None:
    """A run's metrics and configuration; its loss falls from 4 towards `floor`."""
    folder.mkdir(parents=True)
    streams = f"{{logmel: {{route: {route}, features: f}}}}" if route else "{}"
    (folder / "config.yaml").write_text(f"model:\n  streams: {streams}\n", encoding="utf-8")
    noise = random.Random(n_steps)
    lines = []
    for step in range(1, n_steps + 1):
        loss = floor + (4 - floor) * math.exp(-4 * step / n_steps) + noise.gauss(0, 0.06)
        record = {"step": step, "loss": loss, "step_time_s": step_s, "peak_memory_gib": 0.9}
        lines.append(json.dumps(record) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")


def write_recordings(folder: Path, n: int) -> Path:
    """`n` short recordings of two tones, and their manifest."""
    (folder / "audio").mkdir(parents=True)
    lines = []
    for i in range(n):
        t = np.arange(RATE_HZ) / RATE_HZ
        tone = np.sin(2 * np.pi * (300 + 200 * i) * t * np.where(t < 0.5, 1.0, 2.0))
        soundfile.write(folder / "audio" / f"c{i}.flac", 0.3 * tone, RATE_HZ)
        lines.append(json.dumps(_clip(i)) + "\n")
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(lines), encoding="utf-8")
    return manifest


def write_evaluation(
    folder: Path, *, model: str, share_right: float, manifest: Path, shuffled: bool = False
) -> None:
    """Answers to every clip's questions, of which about `share_right` are right."""
    file = AnswerFile(folder, identity={"model": model})
    chooser = random.Random(f"{model}{shuffled}")
    answers = []
    for line in manifest.read_text(encoding="utf-8").splitlines():
        clip = json.loads(line)
        for q in clip["questions"]:
            wrong = [sound for sound in SOUNDS if sound != q["answer"]]
            given = q["answer"] if chooser.random() < share_right else chooser.choice(wrong)
            answers.append(
                Answer(
                    q["id"],
                    clip["id"],
                    clip["id"],
                    q["task"],
                    q["instruction"],
                    tuple(q["options"]) if q.get("options") else None,
                    q["answer"],
                    (),
                    given,
                )
            )
    file.append(answers)
    file.score(model=model, split="test", shuffled=shuffled, seconds=2.0, manifests=[str(manifest)])


def write_quickstart(root: Path, *, n_clips: int = 24) -> Path:
    """A whole quickstart's leavings; returns its folder of runs."""
    out = root / "runs"
    manifest = write_recordings(root / "data", n_clips)
    write_run(out / "base", route=None, n_steps=60, floor=0.9, step_s=0.1)
    for route, right, step_s in [("lal", 0.93, 0.2), ("plits", 0.85, 0.7)]:
        write_run(out / f"{route}_stage1", route=route, n_steps=40, floor=0.8, step_s=step_s)
        run = out / f"{route}_stage2"
        write_run(run, route=route, n_steps=120, floor=0.1, step_s=step_s)
        for shuffled, share in [(False, right), (True, 0.3)]:
            folder = run / "eval" / ("test-shuffled" if shuffled else "test")
            write_evaluation(
                folder, model=run.name, share_right=share, manifest=manifest, shuffled=shuffled
            )
        write_json(
            run / "eval" / "test" / "baseline.json",
            {"accuracy": {"which_sound": 0.61, "which_first": 0.55}},
        )
    write_rows(
        out / "bench.json",
        [
            BenchRow("step_time_ratio_plits_over_lal", 3.4, "x", "faster PLITS", ">= 3"),
            BenchRow("peak_memory_ratio_lal_over_plits", 0.31, "1", "smaller PLITS"),
            BenchRow("step_time.lal", 0.21, "s"),
            BenchRow("step_time.plits_packed", 0.8, "s"),
            BenchRow("step_time.plits_plain", 0.71, "s"),
            BenchRow("peak_memory.lal", 80.0, "MiB"),
            BenchRow("peak_memory.plits_packed", 290.0, "MiB"),
            BenchRow("peak_memory.plits_plain", 258.0, "MiB"),
        ],
        machine="a processor, 2 threads",
    )
    for phase, seconds in [("recordings", 31.5), ("LAL", 142.0), ("PLITS", 260.0), ("LAL", 4.0)]:
        call = PhaseCall(phase, f"python tools/{phase.lower()}.py", seconds, 0)
        append_phase(out / "phases.jsonl", call)
    return out


def _clip(i: int) -> dict[str, object]:
    first, second = SOUNDS[i % 4], SOUNDS[(i + 1) % 4]
    pair = [first, second] if i % 2 else [second, first]
    return {
        "id": f"scene-{i:04d}",
        "audio": f"audio/c{i}.flac",
        "duration_s": 1.0,
        "dataset": "tones",
        "split": "test",
        "questions": [
            {
                "id": f"{i}-which",
                "task": "which_sound",
                "instruction": "Which sound is heard?",
                "answer": first,
                "options": list(SOUNDS),
            },
            {
                "id": f"{i}-first",
                "task": "which_first",
                "instruction": f"Which came first, the {pair[0]} or the {pair[1]}?",
                "answer": first,
                "options": pair,
            },
            {
                "id": f"{i}-describe",
                "task": "describe",
                "instruction": "Describe what is heard.",
                "answer": f"a {first}, then a {second}",
            },
        ],
    }
