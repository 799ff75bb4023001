#!/usr/bin/env python
"""Compute encoders' features of every recording, once, into WebDataset shards.

  python tools/precompute_features.py                                   the quickstart's data
  python tools/precompute_features.py configs/own_data/features.yaml
  python tools/precompute_features.py CONFIG only=[whisper] devices=[cuda:0]

Every recording is decoded once for all encoders of CONFIG, and encoded on every GPU of the node.
The same command again makes only what is missing. Recordings that cannot be read are set aside in
STORE/rejected.jsonl, with the reason, and stop nothing.

  python tools/precompute_features.py CONFIG --status                   done, missing, room for it

A job array shares the work: each of its tasks makes one slice, counted from 0, in any order and on
any machine, and a merge closes it. The merge loads no encoder; if a slice is incomplete it says
which, changes nothing and exits with code 2. In a Slurm array the slice is the task's by itself.

  python tools/precompute_features.py CONFIG --slice 3/64               one of 64 array tasks
  python tools/precompute_features.py CONFIG --merge 64                 all is there: join the lists

A store that is there can be looked at, checked and mended, without CONFIG. `verify` reads every
byte and exits with code 2 if anything is wrong. `repair` makes lost indexes again from the tars
and moves damaged shards to STORE/aside, so that the same command as before makes them again.

  python tools/precompute_features.py show STORE                        how far it is
  python tools/precompute_features.py verify STORE                      every fault, and its remedy
  python tools/precompute_features.py repair STORE
  python tools/precompute_features.py repair STORE --rejected           to try rejected ones again
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paltrain.cli import (
    add_slice_options,
    check_merge,
    config_parser,
    load_merged,
    main_guard,
    parse_config_arguments,
    progress_in,
    settle_slice,
    slice_command,
)
from paltrain.config.schema import FeaturesConfig
from paltrain.errors import ConfigError
from paltrain.slices import EVERYTHING, Slice, number_ranges, parse_slice

if TYPE_CHECKING:
    from paltrain.cli import Progress as Told
    from paltrain.data.makers import PrecomputeReport, Target

DEFAULT_CONFIG = "configs/quickstart/features.yaml"
STORE_COMMANDS = ("show", "verify", "repair")
GB = 1e9


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in STORE_COMMANDS:
        about_store(words)
        return
    parser = config_parser(__doc__, default_configs=[DEFAULT_CONFIG])
    add_slice_options(parser)
    parser.add_argument(
        "--status", action="store_true", help="print what is done and missing, and stop"
    )
    arguments = parse_config_arguments(parser, argv)
    settle_slice(arguments)
    config = load_merged(FeaturesConfig, arguments)
    check_merge(arguments, config.slice)
    if arguments.status:
        from cluster.feature_status import status_lines

        for line in status_lines(config):
            print(line)
        return
    with progress_in(arguments.heartbeat) as told:
        if arguments.merge is None:
            compute(config, told)
        else:
            command = slice_command("tools/precompute_features.py", arguments)
            merge(config, n_slices=arguments.merge, command=command, told=told)


def compute(config: FeaturesConfig, told: Told) -> None:
    """Make everything that is missing, or what of it is the slice's."""
    from paltrain.data.index import Corpus
    from paltrain.data.precompute import precompute

    slice_of = parse_slice(config.slice)
    corpus = Corpus.open(config.manifests)
    targets = build_targets(config)
    started = time.monotonic()
    with _progress_bar() as bar:
        n_encoders = len(targets)
        what = "recordings" if n_encoders == 1 else f"recordings x {n_encoders} encoders"
        task = bar.add_task(what, total=None, speed="")

        def show(done: int, total: int, audio_s: float) -> None:
            told(done, total)
            speed = audio_s / (time.monotonic() - started)
            bar.update(task, completed=done, total=total, speed=f"{speed:.0f} h of audio per hour")

        reports = precompute(
            corpus,
            list(targets.values()),
            clips_per_shard=config.clips_per_shard,
            batch_clips=config.batch_clips,
            batch_audio_s=config.batch_audio_s,
            workers=config.workers,
            slice_of=slice_of,
            progress=show,
        )
    for name, report in zip(targets, reports, strict=True):
        _print_report(name, report, config, slice_of)


def build_targets(config: FeaturesConfig) -> dict[str, Target]:
    """The stores to make by encoder name, each encoder on every device."""
    from paltrain.data.makers import Target
    from paltrain.encoders import build_encoder
    from paltrain.encoders.facts import frames_in_words

    devices = _devices(config)
    targets = {}
    for name, store in config.stores().items():
        chosen = config.encoders[name]
        encoder = build_encoder(**chosen.arguments())
        copies = [encoder, *(copy.deepcopy(encoder) for _ in devices[1:])]
        on_devices = [copied.to(device) for copied, device in zip(copies, devices, strict=True)]
        targets[name] = Target(Path(store), on_devices, chosen.dtype.value)
        print(
            f"{name}: {frames_in_words(encoder.provenance())}, on {', '.join(devices)} -> {store}"
        )
    return targets


def _print_report(
    name: str, report: PrecomputeReport, config: FeaturesConfig, slice_of: Slice
) -> None:
    from paltrain.data.rejected import rejected_path

    part = "" if slice_of == EVERYTHING else f", slice {config.slice}"
    set_aside = rejected_path(Path(config.stores()[name]), slice_of)
    print(
        f"{name}{part}: {report.n_clips} recordings: {report.n_there_before} there before, "
        f"{report.n_encoded} encoded ({report.audio_s / 3600:.2f} h, {report.n_bytes / 1e6:.0f} "
        f"MB), of them {report.n_silent} silent; {report.n_rejected} set aside"
        + (f" in {set_aside}" if report.n_rejected else "")
        + (f", {report.n_rejected_before} before" if report.n_rejected_before else "")
        + (f"; {report.n_waiting} wait for other manifests" if report.n_waiting else "")
    )


def merge(config: FeaturesConfig, *, n_slices: int, command: str, told: Told) -> None:
    """Join what the slices made, if all of them are whole."""
    from cluster.feature_status import check_encoders
    from paltrain.data.index import Corpus
    from paltrain.data.merge import merge_features

    check_encoders(config)
    corpus = Corpus.open(config.manifests)
    for name, store in config.stores().items():
        report = merge_features(
            corpus,
            Path(store),
            encoder_type=config.encoders[name].type,
            clips_per_shard=config.clips_per_shard,
            n_slices=n_slices,
            command=command,
        )
        told(report.n_clips, report.n_clips)
        print(
            f"{store} is whole: {report.n_encoded} of {report.n_clips} recordings have "
            f"features; {report.n_rejected} set aside"
            + (f" in {store}/rejected.jsonl" if report.n_rejected else "")
            + (f"; {report.n_duplicates} are copies of others" if report.n_duplicates else "")
            + f"; {report.n_shards} shards"
        )


def about_store(words: Sequence[str]) -> None:
    """`show`, `verify` or `repair` STORE."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=STORE_COMMANDS)
    parser.add_argument("store", type=Path, metavar="STORE", help="a folder of features")
    parser.add_argument(
        "--rejected",
        action="store_true",
        help="repair: move shards with rejected recordings aside, to try these again",
    )
    arguments = parser.parse_args(words)
    if arguments.rejected:
        if arguments.what != "repair":
            parser.error(f"--rejected goes with repair, not with {arguments.what}")
        try_rejected_again(arguments.store)
        return
    {"show": show, "verify": verify, "repair": repair}[arguments.what](arguments.store)


def show(store: Path) -> None:
    """What is there, and what is to come."""
    from paltrain.data.overview import overview

    seen = overview(store)
    missing = f"; missing: {number_ranges(seen.missing)}" if seen.missing else ""
    lost = f"; {seen.n_without_index} without an index: `repair`" if seen.n_without_index else ""
    copies = f"; {seen.n_duplicates} more are copies of others" if seen.n_duplicates else ""
    to_come = "an unknown size (no shard is there yet)"
    if seen.n_bytes_to_come is not None:
        short = seen.n_bytes_to_come > seen.n_bytes_free
        to_come = f"about {seen.n_bytes_to_come / GB:.3g} GB" + (" (NO ROOM)" if short else "")
    print(
        f"{store}: {seen.encoder}\n"
        f"  shards    {seen.n_shards_done} of {seen.n_shards} done{missing}{lost}\n"
        f"  clips     {seen.n_clips_done} of {seen.n_clips} have features, "
        f"{seen.n_rejected} were set aside{copies}\n"
        f"  space     {seen.n_bytes / GB:.3g} GB there, {to_come} to come, "
        f"{seen.n_bytes_free / GB:.3g} GB free"
    )


def verify(store: Path) -> None:
    """Raises StoreError with all findings, and what is not there."""
    from paltrain.data.verify import require_whole, verify_store

    with _progress_bar() as bar:
        findings = verify_store(store, progress=_shards_read(bar))
    print(require_whole(store, findings))


def repair(store: Path) -> None:
    """Raises StoreError with what could not be repaired."""
    from paltrain.data.repair import repair_store
    from paltrain.data.verify import report_of
    from paltrain.errors import StoreError

    with _progress_bar() as bar:
        report = repair_store(store, progress=_shards_read(bar))
    for deed in report.deeds or [f"{store}: nothing to repair"]:
        print(deed)
    if report.left:
        raise StoreError(f"not repaired, since it needs you: {report_of(store, report.left)}")


def try_rejected_again(store: Path) -> None:
    """Have the same command as before try the rejected recordings again."""
    from paltrain.data.repair import retry_rejected

    print(retry_rejected(store))


def _shards_read(bar: Progress) -> Callable[[int, int], None]:
    task = bar.add_task("shards", total=None, speed="")
    return lambda done, total: bar.update(task, completed=done, total=total)


def _devices(config: FeaturesConfig) -> list[str]:
    """As configured; else every GPU where an encoder has weights, and the CPU without one."""
    if config.devices is None and all(e.path is None for e in config.chosen().values()):
        return ["cpu"]
    import torch

    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    for device in config.devices or ():
        if device != "cpu" and device not in ["cuda", *gpus]:
            raise ConfigError(
                f"devices: there is no {device} here ({', '.join(gpus) or 'no GPU'}): name those "
                "that are, or leave it out"
            )
    return config.devices or gpus or ["cpu"]


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
