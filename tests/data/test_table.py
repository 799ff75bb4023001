"""A folder and a CSV become a manifest; unusable rows are set aside with their reason."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from paltrain.data.importers import table as layout
from paltrain.data.importers.aside import Aside
from paltrain.data.importers.collect import Choice, Found, Imported, import_clips
from paltrain.data.index import Corpus
from paltrain.data.manifest import read_manifest
from paltrain.errors import ManifestError
from tools import prepare_data


@pytest.fixture
def audio_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "my sounds"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        soundfile.write(folder / f"clip {number}.wav", 0.1 * rng.normal(size=8000), 8_000)
    soundfile.write(folder / "silence.flac", np.zeros(4000), 16_000)
    return folder


def run(tmp_path: Path, audio_dir: Path, table: str | bytes, **options: float) -> Imported:
    file = tmp_path / "questions.csv"
    file.write_bytes(table if isinstance(table, bytes) else table.encode())

    def read(aside: Aside, splits: Sequence[str]) -> Iterator[Found]:
        return layout.read(file, aside, splits, audio_dir=audio_dir, **options)

    return import_clips(
        read,
        dataset="mine",
        splits=layout.SPLITS,
        out=tmp_path / "out" / "mine",
        choice=Choice(decode=True),
    )


def test_a_table_becomes_a_manifest_whose_recordings_are_found(
    tmp_path: Path, audio_dir: Path
) -> None:
    table = (
        "audio,question,answer,task,options\n"
        'clip 0.wav,"Is it loud, or not?",yes,loud,yes|no\n'
        "clip 0.wav,Was ist das?,ein Gänseruf,,\n"
        "clip 1.wav,What is it?,noise,,\n"
    )
    imported = run(tmp_path, audio_dir, table)
    clips = list(read_manifest(imported.manifest))
    assert [[q.task for q in clip.questions] for clip in clips] == [["loud", "answer"], ["answer"]]
    assert clips[0].questions[0].options == ("yes", "no")
    assert clips[0].questions[1].answer == "ein Gänseruf"
    assert clips[0].duration_s == pytest.approx(1.0)
    corpus = Corpus.open([imported.manifest])
    assert all(corpus.audio_path(n).is_file() for n in range(corpus.n_clips))
    assert not imported.aside.entries


def test_an_answer_that_is_none_of_its_options_is_set_aside(
    tmp_path: Path, audio_dir: Path
) -> None:
    table = (
        "audio,question,answer,options\n"
        "clip 0.wav,Is it loud?,yes,yes|no\n"
        "clip 0.wav,Is it long?,perhaps,yes|no\n"
        "clip 1.wav,Is it loud?,Yes,yes|no\n"
    )
    imported = run(tmp_path, audio_dir, table)
    assert (imported.n_clips, imported.n_questions) == (1, 1)
    assert [(entry["line"], entry["kind"]) for entry in imported.aside.entries] == [
        (3, "answer not among the options"),
        (4, "answer not among the options"),
    ]
    said = "the answer 'perhaps' is none of the options yes | no: spell it as one"
    assert imported.aside.entries[0]["reason"] == said


def test_rows_that_cannot_be_used_are_set_aside_and_the_rest_goes_on(
    tmp_path: Path, audio_dir: Path
) -> None:
    (audio_dir / "empty.wav").touch()
    whole = (audio_dir / "clip 2.wav").read_bytes()
    (audio_dir / "cut.wav").write_bytes(whole[: len(whole) // 2])
    bad = np.full(100, np.nan)
    soundfile.write(audio_dir / "nan.wav", bad, 8_000, subtype="FLOAT")
    table = (
        "\n".join(
            [
                "audio,question,answer",
                "clip 0.wav,What?,a",
                "gone.wav,What?,a",
                "empty.wav,What?,a",
                "cut.wav,What?,a",
                "nan.wav,What?,a",
                "clip 1.wav,What?,",
                "clip 1.wav,What, really?,a",
                "silence.flac,What?,nothing",
            ]
        ).encode()
        + b"\nclip 2.wav,What?,caf\xe9\n"
    )
    imported = run(tmp_path, audio_dir, table)
    reasons = {
        entry["line"]: entry["reason"]
        for entry in map(
            json.loads, (tmp_path / "out/mine/rejected.jsonl").read_text().splitlines()
        )
    }
    for line, words in {
        3: "gone.wav is missing",
        4: "empty.wav is empty",
        5: "cut.wav is cut off",
        6: "nan.wav has 100 samples that are no numbers",
        7: "no answer",
        8: "4 fields for 3 columns",
        10: "not UTF-8",
    }.items():
        assert words in str(reasons.pop(line))
    assert not reasons
    clips = [clip.id for clip in read_manifest(imported.manifest)]
    assert clips == ["mine/clip 0.wav", "mine/silence.flac"]
    report = imported.report()
    assert "2 clips and 2 questions taken, 1 of the recordings silent" in report
    assert "  unreadable recording: 3\n    questions.csv:4: " in report


def test_without_a_split_column_whole_recordings_are_kept_for_the_test(
    tmp_path: Path, audio_dir: Path
) -> None:
    lines = [f"clip {n}.wav,What {k}?,a" for n in range(6) for k in range(2)]
    table = "\n".join(["audio,question,answer", *lines])
    clips = list(read_manifest(run(tmp_path, audio_dir, table, test_fraction=0.34).manifest))
    assert sorted(clip.split for clip in clips) == ["test"] * 2 + ["train"] * 4
    assert all(len(clip.questions) == 2 for clip in clips)


def test_a_recording_in_two_splits_stays_in_the_test(tmp_path: Path, audio_dir: Path) -> None:
    table = (
        "audio,question,answer,split\nclip 0.wav,a,b,train\nclip 0.wav,c,d,test\n"
        "clip 0.wav,e,f,\nclip 1.wav,a,b,dev\n"
    )
    imported = run(tmp_path, audio_dir, table)
    clips = list(read_manifest(imported.manifest))
    assert [clip.split for clip in clips] == ["test", "dev"]
    assert [question.answer for question in clips[0].questions] == ["d", "f"]
    (entry,) = imported.aside.entries
    assert (entry["line"], entry["kind"]) == (2, "in two splits")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("audio,question\nclip 0.wav,What?", "has no column answer: its first line must name"),
        ("audio,question,anwser\n", "unknown column 'anwser'.*did you mean 'answer'"),
        ("audio,question,answer\n", "because there is no line"),
        (
            "audio,question,answer\ngone.wav,What?,a\n",
            r"nothing of mine can be used.*gone\.wav is missing",
        ),
    ],
)
def test_a_table_that_gives_nothing_is_refused(
    tmp_path: Path, audio_dir: Path, table: str, message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        run(tmp_path, audio_dir, table)


def test_a_missing_folder_or_table_is_named(tmp_path: Path, audio_dir: Path) -> None:
    with pytest.raises(ManifestError, match="--audio-dir .*none is no folder"):
        run(tmp_path, tmp_path / "none", "audio,question,answer\n")
    with pytest.raises(ManifestError, match=r"--table .*q\.csv cannot be read: No such file"):
        list(layout.read(tmp_path / "q.csv", Aside(), (), audio_dir=audio_dir))


def test_the_tool_imports_a_table_with_the_options_of_all_layouts(
    tmp_path: Path, audio_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"clip {n}.wav,What?,a,{'dev' if n % 2 else 'train'}" for n in range(6)]
    (tmp_path / "q.csv").write_text("\n".join(["audio,question,answer,split", *rows]))
    words = ["--table", str(tmp_path / "q.csv"), "--audio-dir", str(audio_dir)]
    chosen = ["--splits", "dev", "--limit", "2", "--workers", "1", "--out", str(tmp_path / "out")]
    prepare_data.main(["table", *words, *chosen])
    said = capsys.readouterr().out
    assert "2 clips and 2 questions taken, 0 of the recordings silent; nothing set aside" in said
    assert "dev: 2 clips, 0.00 h, 2 questions (answer 2)" in said
    ids = [clip.id for clip in read_manifest(tmp_path / "out/manifest.jsonl")]
    assert ids == ["my sounds/clip 1.wav", "my sounds/clip 3.wav"]
