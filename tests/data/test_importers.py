"""What importers share: lines become clips, unusable ones are set aside, the rest goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import xxhash

from paltrain.data.importers import ask, folder, youtube
from paltrain.data.importers.aside import Aside
from paltrain.data.importers.collect import Choice, Found, Imported, import_clips
from paltrain.data.importers.recordings import AudioFolder, content_of
from paltrain.data.index import Corpus
from paltrain.data.manifest import Clip, read_manifest
from paltrain.errors import ManifestError
from tools import prepare_data

SPLITS = ("train", "val", "test")


def sound(path: Path, *, seed: int = 0, seconds: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = 0.1 * np.random.default_rng(seed).normal(size=round(8000 * seconds))
    soundfile.write(path, noise, 8_000)
    return path


def gather(out: Path, *found: Found, **choice) -> Imported:
    def read(aside: Aside, splits: Sequence[str]) -> Iterator[Found]:
        yield from found

    return import_clips(read, dataset="d", splits=SPLITS, out=out, choice=Choice(**choice))


def line(audio: Path, answer: str, *, split: str = "train", number: int = 1, **fields) -> Found:
    draft = ask.Draft("t", "What?", answer, **fields)
    return Found(audio.name, audio, split, (draft,), "table.csv", number)


def clips_of(imported: Imported) -> list[Clip]:
    corpus = Corpus.open([imported.manifest])
    assert all(corpus.audio_path(n).is_file() for n in range(corpus.n_clips))
    return list(read_manifest(imported.manifest))


def rejected(out: Path) -> list[dict]:
    file = out / "rejected.jsonl"
    return [json.loads(text) for text in file.read_text().splitlines()] if file.exists() else []


def test_lines_about_one_recording_become_one_clip_and_ask_each_question_once(tmp_path):
    a = sound(tmp_path / "a.wav")
    out = tmp_path / "out"
    imported = gather(out, line(a, "x"), line(a, "y"), line(a, "x"))
    (clip,) = clips_of(imported)
    assert clip.id == "d/a.wav"
    assert clip.duration_s == pytest.approx(0.5)
    assert [(q.id, q.answer) for q in clip.questions] == [
        ("d/a.wav/t-1", "x"),
        ("d/a.wav/t-2", "y"),
    ]
    assert imported.report() == "1 clips and 2 questions taken; nothing set aside"


def test_a_closed_question_with_two_answers_keeps_the_first(tmp_path):
    a = sound(tmp_path / "a.wav")
    both = [line(a, x, number=n, options=("x", "y")) for n, x in enumerate("xyx", 1)]
    (clip,) = clips_of(gather(tmp_path / "out", *both))
    assert [q.answer for q in clip.questions] == ["x"]
    (entry,) = rejected(tmp_path / "out")
    assert (entry["kind"], entry["line"]) == ("contradiction", 2)
    assert "'y', but 'x' was said before" in entry["reason"]


def test_missing_and_unreadable_recordings_are_set_aside_with_their_lines(tmp_path):
    good = sound(tmp_path / "good.wav")
    (tmp_path / "text.wav").write_text("no audio")
    found = [
        line(tmp_path / "gone.wav", "x", number=2),
        line(tmp_path / "text.wav", "x", number=3),
        line(good, "x", number=4),
    ]
    imported = gather(tmp_path / "out", *found)
    assert len(clips_of(imported)) == 1
    entries = rejected(tmp_path / "out")
    assert [(e["line"], e["kind"]) for e in entries] == [
        (2, "missing file"),
        (3, "unreadable recording"),
    ]
    assert entries[0]["reason"] == f"{tmp_path / 'gone.wav'} is missing"
    assert imported.report().splitlines()[:4] == [
        "1 clips and 1 questions taken",
        f"set aside in {tmp_path / 'out' / 'rejected.jsonl'}:",
        "  missing file: 1",
        f"    table.csv:2: {tmp_path / 'gone.wav'} is missing",
    ]


def test_the_same_bytes_under_two_names_become_one_clip_with_the_questions_of_both(tmp_path):
    a, b, other = (
        sound(tmp_path / f"{name}.wav", seed=name == "other") for name in ("a", "b", "other")
    )
    imported = gather(tmp_path / "out", line(a, "x"), line(b, "y", number=2), line(other, "z"))
    clips = clips_of(imported)
    assert [(c.id, [q.answer for q in c.questions]) for c in clips] == [
        ("d/a.wav", ["x", "y"]),
        ("d/other.wav", ["z"]),
    ]
    (entry,) = rejected(tmp_path / "out")
    assert (entry["kind"], entry["line"]) == ("duplicate", 2)
    assert entry["reason"].startswith("b.wav is the same recording as a.wav, which has the quest")
    kept = gather(tmp_path / "out", line(a, "x"), line(b, "y"), dedupe=False)
    assert len(clips_of(kept)) == 2
    assert not rejected(tmp_path / "out")


def test_a_duplicate_of_a_test_recording_is_taken_out_of_training(tmp_path):
    a, b = sound(tmp_path / "a.wav"), sound(tmp_path / "b.wav")
    out = tmp_path / "out"
    (clip,) = clips_of(gather(out, line(a, "x"), line(b, "y", split="test")))
    assert (clip.id, clip.split, [q.answer for q in clip.questions]) == ("d/b.wav", "test", ["y"])
    assert "of split test: its 1 questions are left out" in rejected(out)[0]["reason"]
    (clip,) = clips_of(gather(out, line(a, "x"), line(a, "y", split="test", number=2)))
    assert (clip.split, [q.answer for q in clip.questions]) == ("test", ["y"])
    assert rejected(out)[0]["kind"] == "in two splits"


def test_contents_stand_in_the_manifest_and_tell_files_apart_to_the_last_byte(tmp_path):
    whole = sound(tmp_path / "a.wav", seconds=200).read_bytes()
    assert len(whole) > 3 * (1 << 20)
    others = {"b": whole, "c": whole[:-1] + b"x", "d": whole[:-2]}
    for name, content in others.items():
        (tmp_path / f"{name}.wav").write_bytes(content)
    found = [line(tmp_path / f"{name}.wav", name) for name in "abc"]
    clips = clips_of(gather(tmp_path / "out", *found))
    assert [clip.id for clip in clips] == ["d/a.wav", "d/c.wav"]
    assert [clip.content for clip in clips] == [
        xxhash.xxh3_64_hexdigest(content) for content in (whole, others["c"])
    ]
    assert content_of(tmp_path / "d.wav") == xxhash.xxh3_64_hexdigest(others["d"])
    corpus = Corpus.open([tmp_path / "out/manifest.jsonl"])
    assert corpus.content.tolist() == [int(clip.content, 16) for clip in clips]
    (clip, *_) = clips_of(gather(tmp_path / "out", *found, dedupe=False))
    assert clip.content is None


def test_decoding_finds_what_is_cut_off_and_counts_silence(tmp_path):
    good, cut, silent = sound(tmp_path / "a.flac"), tmp_path / "cut.flac", tmp_path / "silent.wav"
    cut.write_bytes(good.read_bytes()[:-400])
    soundfile.write(silent, np.zeros(800), 8_000)
    found = [line(path, "x", number=n) for n, path in enumerate((good, cut, silent), 1)]
    assert len(clips_of(gather(tmp_path / "out", *found))) == 3
    imported = gather(tmp_path / "out", *found, decode=True)
    assert [clip.duration_s for clip in clips_of(imported)] == [0.5, 0.1]
    assert "2 clips and 2 questions taken, 1 of the recordings silent" in imported.report()
    (entry,) = rejected(tmp_path / "out")
    assert (entry["line"], entry["kind"]) == (2, "unreadable recording")


def test_names_that_are_no_text_or_too_long_are_set_aside(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    sound(data / "dog" / "gänse.wav")
    latin = data / "dog" / os.fsdecode(b"g\xe4nse.wav")
    latin.write_bytes((data / "dog" / "gänse.wav").read_bytes())
    (data / os.fsdecode(b"k\xe4fer")).mkdir()
    (data / os.fsdecode(b"k\xe4fer") / "1.wav").write_bytes(latin.read_bytes())
    words = ["--data", str(data), "--out", str(out), "--workers", "1"]
    prepare_data.main(["folder", *words])
    assert "its name, or its folder's, is no UTF-8" in capsys.readouterr().out
    assert sorted(entry["file"] for entry in rejected(out)) == [
        "dog/g\\udce4nse.wav",
        "k\\udce4fer/1.wav",
    ]
    found = [line(latin, "x"), line(tmp_path / ("n" * 300 + ".wav"), "x"), line(tmp_path, "x")]
    imported = gather(out, *found, line(data / "dog/gänse.wav", "x"), limit=9)
    assert len(clips_of(imported)) == 1
    kinds = [entry["kind"] for entry in rejected(out)]
    assert kinds == ["unreadable recording", "missing file", "unreadable recording"]


def test_limit_takes_the_first_clips_of_each_split_that_are_there(tmp_path):
    found = [line(tmp_path / "gone.wav", "x")]
    for n in range(6):
        audio = sound(tmp_path / f"{n}.wav", seed=n)
        found.append(line(audio, "x", split="test" if n % 2 else "train"))
    clips = clips_of(gather(tmp_path / "out", *found, limit=2))
    assert [clip.id for clip in clips] == ["d/0.wav", "d/1.wav", "d/2.wav", "d/3.wav"]


def test_splits_choose_and_unknown_ones_are_named(tmp_path):
    found = line(sound(tmp_path / "a.wav"), "x"), line(sound(tmp_path / "b.wav"), "y", split="test")
    (clip,) = clips_of(gather(tmp_path / "out", *found, splits=("train",)))
    assert clip.id == "d/a.wav"
    with pytest.raises(ManifestError, match=r"unknown split 'tset' \(did you mean 'test'"):
        gather(tmp_path / "out", *found, splits=("tset",))


def test_where_nothing_can_be_used_the_first_reason_is_told(tmp_path):
    gone = line(tmp_path / "gone.wav", "x")
    with pytest.raises(
        ManifestError, match=r"nothing of d can be used; the first .*gone\.wav is mi"
    ):
        gather(tmp_path / "out", gone)
    assert rejected(tmp_path / "out")
    with pytest.raises(ManifestError, match="because there is no line"):
        gather(tmp_path / "out")


@pytest.mark.slow
def test_several_processes_find_what_one_finds(tmp_path):
    found = [line(sound(tmp_path / f"{n}.wav", seed=n // 2), "x", number=n) for n in range(140)]
    found.append(line(tmp_path / "gone.wav", "x"))
    seen = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        seen.append((clips_of(gather(out, *found, workers=workers)), rejected(out)))
    assert seen[0] == seen[1]
    assert len(seen[0][0]) == 70


def test_a_name_in_several_folders_is_chosen_by_the_split_or_set_aside(tmp_path):
    for folder_name in ("train", "other"):
        sound(tmp_path / folder_name / "abc.wav")
    sound(tmp_path / "train" / "abc.flac")
    sound(tmp_path / ".hidden" / "abc.wav")
    aside, audio = Aside(), AudioFolder(tmp_path)
    common = {"clip": "abc_30", "aside": aside, "file": "t.csv", "line": 3}
    names = youtube.names_of("abc", "30", None) + youtube.names_of("abc", None, None)
    assert youtube.choose(audio, names, near="train", **common) == tmp_path / "train" / "abc.wav"
    assert youtube.choose(audio, names, near="val", **common) is None
    assert youtube.choose(audio, ["none"], near="val", **common) is None
    assert [entry["kind"] for entry in aside.entries] == ["ambiguous file name", "missing file"]
    assert "abc_30 may be any of " in str(aside.entries[0]["reason"])


def test_a_plain_folder_gives_labels_by_sub_folder(tmp_path):
    data = tmp_path / "data"
    for n in range(10):
        sound(data / "glass_breaking" / f"{n}.wav", seed=n)
        sound(data / "dog" / "deeper" / f"{n}.flac", seed=100 + n)
    sound(data / "stray.wav", seed=500)
    (data / "dog" / "notes.txt").write_text("no recording")
    (data / "dog" / "broken.mp3").write_bytes(b"")

    def read(aside: Aside, splits: Sequence[str]) -> Iterator[Found]:
        return folder.read(data, aside, splits, test_fraction=0.2)

    out = tmp_path / "out"
    imported = import_clips(read, dataset="data", splits=folder.SPLITS, out=out, choice=Choice())
    clips = clips_of(imported)
    tested = [clip for clip in clips if clip.split == "test"]
    assert len(clips) == 20
    assert sorted(c.questions[0].answer for c in tested) == ["dog"] * 2 + ["glass breaking"] * 2
    assert clips[0].questions[0].options == ("dog", "glass breaking")
    assert [(e["file"], e["kind"]) for e in rejected(out)] == [
        ("stray.wav", "empty label or text"),
        ("dog/broken.mp3", "unreadable recording"),
    ]
    again = import_clips(read, dataset="data", splits=folder.SPLITS, out=out, choice=Choice())
    assert clips_of(again) == clips


def test_folders_named_as_splits_are_splits(tmp_path):
    data = tmp_path / "data"
    for n, split in enumerate(("train", "Validation", "test")):
        sound(data / split / "dog" / "1.wav", seed=n)
    found = list(folder.read(data, Aside(), SPLITS))
    assert {f.split: f.clip for f in found} == {
        "train": "train/dog/1.wav",
        "val": "Validation/dog/1.wav",
        "test": "test/dog/1.wav",
    }
    with pytest.raises(ManifestError, match=r"--data .*none is no folder"):
        list(folder.read(tmp_path / "none", Aside(), SPLITS))


def test_the_tool_imports_and_reports(tmp_path, capsys):
    for n in range(4):
        sound(tmp_path / "data" / ("dog" if n % 2 else "cat") / f"{n}.wav", seed=n)
    words = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--workers", "1"]
    prepare_data.main(["folder", *words, "--splits", "train", "--limit", "1"])
    said = capsys.readouterr().out
    assert "1 clips and 1 questions taken; nothing set aside" in said
    assert "train: 1 clips, 0.00 h, 1 questions (classification 1)" in said


@pytest.mark.parametrize(
    "layout",
    [
        "table",
        "folder",
        "openaqa",
        "audioset",
        "audiocaps",
        "clotho",
        "esc50",
        "vocalsound",
        "fsd50k",
        "dcase2017",
    ],
)
def test_help_shows_the_layout_and_an_example(layout, capsys):
    with pytest.raises(SystemExit, match="0"):
        prepare_data.main([layout, "--help"])
    said = capsys.readouterr().out
    option = "--table" if layout == "table" else "--data"
    assert f"python tools/prepare_data.py {layout} {option} " in said
    assert "http" in said or layout in ("folder", "table")
    for shared in ("--splits", "--limit", "--workers", "--no-dedupe", "--decode"):
        assert shared in said
