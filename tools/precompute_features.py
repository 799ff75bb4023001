#!/usr/bin/env python
"""Compute an encoder's features of every recording, once, into WebDataset shards.

  python tools/precompute_features.py                                   the quickstart's data
  python tools/precompute_features.py configs/own_data/features.yaml
  python tools/precompute_features.py CONFIG encoder.type=whisper encoder.path=openai/whisper-small
  python tools/precompute_features.py CONFIG slice=3/64                 one of 64 array tasks

The same command again makes only what is missing. Recordings that cannot be read are set aside in
STORE/rejected.jsonl, with the reason, and stop nothing.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paltrain.cli import config_parser, load_merged, main_guard, parse_config_arguments
from paltrain.config.schema import FeaturesConfig
from paltrain.errors import ConfigError

DEFAULT_CONFIG = "configs/quickstart/features.yaml"


def main(argv: Sequence[str] | None = None) -> None:
    parser = config_parser(__doc__, default_configs=[DEFAULT_CONFIG])
    config = load_merged(FeaturesConfig, parse_config_arguments(parser, argv))
    from paltrain.data.index import Corpus
    from paltrain.data.precompute import precompute
    from paltrain.encoders import build_encoder

    slice_of = parse_slice(config.slice)
    corpus = Corpus.open(config.manifests)
    encoder = build_encoder(
        config.encoder.type,
        path=config.encoder.path,
        revision=config.encoder.revision,
        options=config.encoder.options,
    ).to(_device(config.device, config.encoder.type))
    print(
        f"{config.encoder.type}: {encoder.frame_rate_hz:g} frames of width {encoder.width} per "
        f"second of audio -> {config.store}"
    )
    started = time.monotonic()
    with _progress_bar() as bar:
        task = bar.add_task("features", total=int(corpus.has_audio.sum()), speed="")

        def show(n_clips: int, audio_s: float) -> None:
            speed = audio_s / (time.monotonic() - started)
            bar.update(task, completed=n_clips, speed=f"{speed:.0f} h of audio per hour")

        report = precompute(
            corpus,
            encoder,
            Path(config.store),
            clips_per_shard=config.clips_per_shard,
            batch_clips=config.batch_clips,
            workers=config.workers,
            slice_of=slice_of,
            progress=show,
        )
        bar.update(task, completed=report.n_clips)
    print(
        f"{report.n_clips} recordings: {report.n_there_before} there before, {report.n_encoded} "
        f"encoded ({report.audio_s / 3600:.2f} h, {report.n_bytes / 1e6:.0f} MB), of them "
        f"{report.n_silent} silent; {report.n_rejected} set aside"
        + (f" in {config.store}/rejected.jsonl" if report.n_rejected else "")
    )


def parse_slice(text: str | None) -> tuple[int, int]:
    """`3/64` -> (3, 64); None -> everything, (0, 1)."""
    if text is None:
        return (0, 1)
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise ConfigError(f"slice must be i/n with 0 <= i < n, e.g. 3/64, but is {text!r}")
    return int(match[1]), int(match[2])


def _device(device: str, encoder_type: str) -> str:
    """`auto`: the first CUDA device where there is one and the encoder has weights."""
    if device != "auto" or encoder_type == "logmel":
        return "cpu" if device == "auto" else device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )


if __name__ == "__main__":
    sys.exit(main_guard(main))
