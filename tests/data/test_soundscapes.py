"""Soundscapes: the same world for any number of workers, an honest exam, real recordings."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from paltrain.data.manifest import read_manifest
from paltrain.data.soundscapes.dataset import clip_of, write_soundscapes
from paltrain.data.soundscapes.events import EVENTS, RATE_HZ, make_event
from paltrain.data.soundscapes.scene import MIN_ONSET_GAP_S, draw_scene, record
from paltrain.errors import ManifestError

ROOT = Path(__file__).parents[2]
SCENES = [draw_scene(0, number) for number in range(600)]


@pytest.mark.parametrize("kind", EVENTS)
def test_every_event_is_a_sound_and_no_two_of_a_kind_are_the_same(kind: str) -> None:
    a, b = (make_event(kind, 0.8, np.random.default_rng(seed)) for seed in (1, 2))
    assert len(a) == len(b) == round(0.8 * RATE_HZ)
    assert np.isfinite(a).all()
    assert 0.5 < np.abs(a).max() <= 1.0
    assert np.abs(a - b).max() > 0.1


def test_scenes_have_one_to_three_different_events_some_overlapping() -> None:
    assert {len(scene.events) for scene in SCENES} == {1, 2, 3}
    overlapping = 0
    for scene in SCENES:
        kinds = [event.kind for event in scene.events]
        assert len(set(kinds)) == len(kinds)
        onsets = [event.onset_s for event in scene.events]
        assert np.all(np.diff(onsets) >= MIN_ONSET_GAP_S)
        ends = [event.onset_s + event.duration_s for event in scene.events]
        assert max(ends) <= scene.duration_s
        overlapping += any(end > onset for end, onset in zip(ends, onsets[1:], strict=False))
    assert 40 < overlapping < 300


def test_neither_level_nor_length_nor_kind_tells_what_came_first() -> None:
    pairs = [(s.events[0], s.events[-1]) for s in SCENES if len(s.events) > 1]
    for field in ("level_db", "duration_s"):
        first, last = (np.array([getattr(pair[i], field) for pair in pairs]) for i in (0, 1))
        spread = np.std(np.concatenate([first, last]))
        assert abs(first.mean() - last.mean()) < 0.15 * spread
    counts = [Counter(pair[i].kind for pair in pairs) for i in (0, 1)]
    for kind in EVENTS:
        assert abs(counts[0][kind] - counts[1][kind]) < 25


def test_questions_are_answered_by_the_scene() -> None:
    for number, scene in enumerate(SCENES):
        kinds = [event.kind for event in scene.events]
        clip = clip_of(number, seed=0)
        by_task = {question.task: question for question in clip.questions}
        assert by_task["how_many"].answer == ("one", "two", "three")[len(kinds) - 1]
        assert by_task["describe"].answer == ", then ".join(kinds)
        assert by_task["which_sound"].answer in kinds
        assert len(set(by_task["which_sound"].options) & set(kinds)) == 1 or len(kinds) == 1
        named = [kind for kind in EVENTS if kind in by_task["contains"].instruction]
        assert (by_task["contains"].answer == "yes") == any(kind in kinds for kind in named)
        for task, better in (("which_first", min), ("which_last", max)):
            if task in by_task:
                question = by_task[task]
                assert set(question.options) <= set(kinds)
                assert all(option in question.instruction for option in question.options)
                assert question.answer == better(question.options, key=kinds.index)


def test_no_constant_answer_and_no_place_in_the_question_is_right_more_than_by_chance() -> None:
    questions = [q for number in range(600) for q in clip_of(number, 0).questions]
    first = [q for q in questions if q.task == "which_first"]
    assert abs(np.mean([q.answer == q.options[0] for q in first]) - 0.5) < 0.08
    contains = [q.answer == "yes" for q in questions if q.task == "contains"]
    assert abs(np.mean(contains) - 0.5) < 0.08


def test_a_recording_is_loud_where_its_event_is() -> None:
    scene = next(scene for scene in SCENES if len(scene.events) == 1)
    samples = record(scene, seed=0)
    event = scene.events[0]
    inside = slice(round(event.onset_s * RATE_HZ), round((event.onset_s + 0.4) * RATE_HZ))
    before = samples[: inside.start]
    assert len(samples) == round(scene.duration_s * RATE_HZ)
    assert np.abs(samples).max() < 1
    assert samples[inside].std() > 2 * before.std()


def test_the_data_are_the_same_for_any_number_of_workers_and_a_rerun_makes_what_is_missing(
    tmp_path: Path,
) -> None:
    written = [
        write_soundscapes(tmp_path / str(workers), n_scenes=40, seed=3, workers=workers)
        for workers in (1, 2)
    ]
    files = [sorted((tmp_path / str(w) / "audio").iterdir()) for w in (1, 2)]
    assert [f.name for f in files[0]] == [f.name for f in files[1]]
    for a, b in zip(*files, strict=True):
        assert a.read_bytes() == b.read_bytes()
    assert written[0].manifest.read_bytes() == written[1].manifest.read_bytes()
    files[0][7].unlink()
    again = write_soundscapes(tmp_path / "1", n_scenes=40, seed=3, workers=1)
    assert again.n_made == 1
    assert files[0][7].read_bytes() == files[1][7].read_bytes()


def test_train_and_test_never_share_a_recording_and_the_manifest_says_what_is_there(
    tmp_path: Path,
) -> None:
    written = write_soundscapes(tmp_path, n_scenes=40, seed=1, workers=1)
    clips = list(read_manifest(written.manifest))
    assert Counter(clip.split for clip in clips) == {"train": 34, "test": 6}
    assert len({clip.audio for clip in clips}) == 40
    for clip in clips:
        info = soundfile.info(tmp_path / str(clip.audio))
        assert info.samplerate == RATE_HZ
        assert info.duration == pytest.approx(clip.duration_s, abs=1e-3)


def test_a_folder_made_with_other_parameters_is_refused(tmp_path: Path) -> None:
    write_soundscapes(tmp_path, n_scenes=2, seed=1, workers=1)
    with pytest.raises(ManifestError, match="choose another --out, or remove the folder"):
        write_soundscapes(tmp_path, n_scenes=2, seed=2, workers=1)


def test_a_full_disk_ends_in_one_line_and_keeps_what_is_finished(tmp_path: Path) -> None:
    """A limit on file size stands for the full disk."""
    write_soundscapes(tmp_path / "s", n_scenes=3, seed=0, workers=1)
    finished = sorted((tmp_path / "s" / "audio").iterdir())
    finished.pop().unlink()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))

    command = ["soundscapes", "--out", str(tmp_path / "s"), "--scenes", "3", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/prepare_data.py"), *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert done.returncode == 2
    assert "scene-000002.flac cannot be written: File too large; make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted((tmp_path / "s" / "audio").iterdir()) == finished
