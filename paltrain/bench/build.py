"""From a preset and the command line's choices to measured rows (a builder).

quickstart   the quickstart's own decoder, connector and encoder width; Na = 5 x Nt
llama-1b     Llama-3.2-1B's shapes with random weights, bf16 on a GPU; a grid of (Na, Nt)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from paltrain.bench.arms import MAX_TARGETS, N_BEFORE, Workload
from paltrain.bench.attention import measure_attention
from paltrain.bench.flops import LLAMA_1B, WHISPER_WIDTH
from paltrain.bench.record import BenchRow, describe_machine
from paltrain.bench.step import measure_step, rows_of
from paltrain.config.load import load_config
from paltrain.config.schema import FeaturesConfig, TrainConfig
from paltrain.encoders import build_encoder
from paltrain.errors import ConfigError

GRID = [(512, 108), (128, 108), (1500, 108), (512, 256), (1500, 512)]  # (Na, Nt)
PAPER_POINT = GRID[0]
GOALS = {PAPER_POINT: (4.0, 0.30), (1500, 108): (None, 0.22)}  # time ratio, memory ratio
QUICKSTART_POINT = (150, 30)
QUICKSTART_GOAL = 3.0
VOCABULARY = 1024  # of the quickstart's tokenizer, where its config does not say


@dataclass(frozen=True)
class BenchSettings:
    """The command line's choices; None takes the preset's."""

    preset: str = "quickstart"
    config: str = "configs/quickstart/lal_stage2.yaml"
    n_audio: int | None = None
    n_text: int | None = None
    n_conversations: int | None = None
    backend: str = "auto"
    n_rounds: int = 10
    threads: int | None = None


@dataclass(frozen=True)
class Subject:
    """What a preset stands for: a decoder's configuration and the workloads to run it on."""

    llm_config: Any
    workloads: Sequence[Workload]
    dtype: torch.dtype
    device: torch.device


def run_step(settings: BenchSettings) -> tuple[list[BenchRow], str]:
    """Rows of the step benchmark over the preset's workloads, and the machine."""
    subject = _subject(settings)
    rows: list[BenchRow] = []
    for work in subject.workloads:
        result = measure_step(
            subject.llm_config,
            work,
            device=subject.device,
            dtype=subject.dtype,
            backend=settings.backend,
            n_rounds=settings.n_rounds,
        )
        time_goal, memory_goal = _goals(settings.preset, work)
        suffix = "" if work is subject.workloads[0] else f"@na{work.n_audio},nt{work.n_text}"
        rows += rows_of(
            result,
            device=subject.device,
            goal_ratio=time_goal,
            goal_memory=memory_goal,
            suffix=suffix,
        )
    return rows, describe_machine(device=subject.device.type)


def run_attention(settings: BenchSettings) -> tuple[list[BenchRow], str]:
    """Rows of the attention benchmark over the preset's workloads, and the machine."""
    subject = _subject(settings)
    rows = [
        measure_attention(
            subject.llm_config,
            work,
            device=subject.device,
            dtype=subject.dtype,
            backend=settings.backend,
            n_rounds=settings.n_rounds,
        )
        for work in subject.workloads
    ]
    return rows, describe_machine(device=subject.device.type)


def _subject(settings: BenchSettings) -> Subject:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    if settings.preset == "llama-1b":
        config = AutoConfig.for_model("llama", **LLAMA_1B)
        works = _workloads(settings, GRID, n_conversations=8, width=WHISPER_WIDTH, frame_stack=1)
        dtype = torch.bfloat16 if on_gpu else torch.float32
        torch.set_num_threads(settings.threads or torch.get_num_threads())
        return Subject(config, works, dtype, device)
    train = load_config(TrainConfig, [Path(settings.config)], [])
    torch.set_num_threads(settings.threads or _threads_in_training(train))
    stream = next(iter(train.model.streams.values()), None)
    if stream is None:
        raise ConfigError(f"{settings.config} has no audio stream: name a run that listens")
    works = _workloads(
        settings,
        [QUICKSTART_POINT],
        n_conversations=train.data.batch_questions // 2,
        width=encoder_width(Path(settings.config)),
        frame_stack=stream.connector.frame_stack,
    )
    return Subject(decoder_of(Path(settings.config)), works, torch.float32, device)


def _threads_in_training(config: TrainConfig) -> int:
    """CPU threads that each process of the run has."""
    processes = config.launch.processes_per_node or 1
    return config.launch.threads_per_process or max(1, (os.cpu_count() or 1) // processes)


def _workloads(
    settings: BenchSettings,
    grid: Sequence[tuple[int, int]],
    *,
    n_conversations: int,
    width: int,
    frame_stack: int,
) -> list[Workload]:
    if settings.n_audio or settings.n_text:
        grid = [(settings.n_audio or grid[0][0], settings.n_text or grid[0][1])]
    if any(n_text < N_BEFORE + 2 for _, n_text in grid):
        raise ConfigError(
            f"--nt is {settings.n_text}: a conversation needs at least {N_BEFORE + 2} text tokens "
            f"({N_BEFORE} before the clip; at most {MAX_TARGETS} of the others are targets)"
        )
    n = settings.n_conversations or n_conversations
    return [Workload(n, n_audio, n_text, width, frame_stack) for n_audio, n_text in grid]


def decoder_of(config: Path) -> Any:
    """The decoder of `base.yaml` beside `config`, which the run starts from."""
    base = load_config(TrainConfig, [config.with_name("base.yaml")], [])
    fields = dict(base.model.architecture or {})
    fields.setdefault("vocab_size", base.model.tokenizer_vocab_size or VOCABULARY)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def encoder_width(config: Path) -> int:
    """The width of the first encoder in `features.yaml` beside `config`."""
    features = load_config(FeaturesConfig, [config.with_name("features.yaml")], [])
    encoder = next(iter(features.encoders.values()))
    return int(build_encoder(**encoder.arguments()).width)


def _goals(preset: str, work: Workload) -> tuple[float | None, float | None]:
    if preset == "quickstart":
        return (QUICKSTART_GOAL if work.n_audio >= 5 * work.n_text else None), None
    return GOALS.get((work.n_audio, work.n_text), (None, None))
