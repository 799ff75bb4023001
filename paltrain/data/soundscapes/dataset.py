"""Writes soundscapes: flac recordings, their manifest, and what they were made with.

Every scene depends on (seed, number) alone, so the data are the same for any number of workers, and
a rerun makes only what is missing. Files appear by rename. 4000 scenes are about 200 MB.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import soundfile

from paltrain.data.manifest import Clip, write_manifest
from paltrain.data.soundscapes.events import RATE_HZ
from paltrain.data.soundscapes.questions import ask
from paltrain.data.soundscapes.scene import draw_scene, record
from paltrain.errors import ManifestError

FORMAT = 1  # changes when the same seed gives other scenes
TEST_EVERY, TEST_SCENES = 20, 3  # of 20 scenes 3 are for the test
CHUNK = 25


@dataclass(frozen=True)
class Written:
    """What `write_soundscapes` did. n_made: recordings that were not there before."""

    manifest: Path
    n_scenes: int
    n_made: int


def write_soundscapes(
    out: Path,
    *,
    n_scenes: int,
    seed: int,
    workers: int,
    progress: Callable[[int], None] | None = None,
) -> Written:
    """Write scenes 0 .. n_scenes - 1 and their manifest; `progress` is told the scenes done so far.

    Raises:
        ManifestError: the folder holds soundscapes made with other parameters, or the disk is full.
    """
    _claim(out, {"format": FORMAT, "seed": seed, "scenes": n_scenes})
    (out / "audio").mkdir(exist_ok=True)
    missing = [n for n in range(n_scenes) if not (out / _audio(n)).exists()]
    done = n_scenes - len(missing)
    if progress:
        progress(done)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for n_made in pool.map(partial(_make, out, seed), _chunks(missing)):
            done += n_made
            if progress:
                progress(done)
    manifest = out / "manifest.jsonl"
    if missing or not manifest.exists():
        write_manifest(manifest, (clip_of(number, seed) for number in range(n_scenes)))
    return Written(manifest, n_scenes, len(missing))


def clip_of(number: int, seed: int) -> Clip:
    """A scene's line of the manifest."""
    scene = draw_scene(seed, number)
    clip_id = f"scene-{number:06d}"
    return Clip(
        id=clip_id,
        audio=_audio(number),
        duration_s=scene.duration_s,
        dataset="soundscapes",
        split="test" if number % TEST_EVERY < TEST_SCENES else "train",
        questions=ask(scene, seed, clip_id),
    )


def _audio(number: int) -> str:
    return f"audio/scene-{number:06d}.flac"


def _chunks(numbers: list[int]) -> list[list[int]]:
    return [numbers[at : at + CHUNK] for at in range(0, len(numbers), CHUNK)]


def _make(out: Path, seed: int, numbers: list[int]) -> int:
    for number in numbers:
        path = out / _audio(number)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        flac = BytesIO()
        samples = record(draw_scene(seed, number), seed)
        soundfile.write(flac, samples, RATE_HZ, format="FLAC", subtype="PCM_16")
        try:
            beside.write_bytes(flac.getvalue())
            os.replace(beside, path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise ManifestError(
                f"{path} cannot be written: {error.strerror}; make room and run the same command "
                "again: finished recordings are kept"
            ) from error
    return len(numbers)


def _claim(out: Path, parameters: dict[str, int]) -> None:
    """Note what the folder is made with; refuse one made otherwise."""
    file = out / "soundscapes.json"
    if file.exists():
        made_with = json.loads(file.read_text(encoding="utf-8"))
        if made_with != parameters:
            raise ManifestError(
                f"{out} holds soundscapes made with {made_with}, not {parameters}: choose another "
                "--out, or remove the folder"
            )
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(parameters), encoding="utf-8")
