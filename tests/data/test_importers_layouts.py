"""Each public layout, made small as it is downloaded, becomes a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile

from paltrain.data.importers import (
    audiocaps,
    audioset,
    clotho,
    dcase2017,
    esc50,
    fsd50k,
    openaqa,
    vocalsound,
)
from paltrain.data.importers.collect import Choice, Imported, import_clips
from paltrain.data.index import Corpus
from paltrain.data.manifest import Clip, Question, read_manifest
from paltrain.errors import ManifestError


def sounds(root: Path, *names: str) -> None:
    """Recordings below `root`, no two alike."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = 0.1 * np.random.default_rng([*name.encode()]).normal(size=2000)
        soundfile.write(path, noise, 8_000)


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")


def run(layout: ModuleType, root: Path, *, splits: tuple[str, ...] | None = None, **options: Any):
    out = (root.parent if root.is_file() else root) / "out"
    return import_clips(
        partial(layout.read, root, **options),
        dataset=layout.DATASET,
        splits=layout.SPLITS,
        out=out,
        choice=Choice(splits),
    )


def clips_of(imported: Imported) -> dict[str, Clip]:
    corpus = Corpus.open([imported.manifest])
    assert all(corpus.audio_path(n).is_file() for n in range(corpus.n_clips))
    return {clip.id: clip for clip in read_manifest(imported.manifest)}


def asked(clip: Clip) -> list[Question]:
    return list(clip.questions)


def aside(imported: Imported) -> list[tuple[Any, ...]]:
    file = imported.manifest.with_name("rejected.jsonl")
    entries = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return [(e["file"], e.get("line"), e["kind"]) for e in entries]


def reasons(imported: Imported) -> str:
    return imported.manifest.with_name("rejected.jsonl").read_text()


def test_esc50_has_one_fold_as_test(tmp_path):
    sounds(tmp_path, "audio/1-100032-A-0.wav", "audio/2-1-A-1.wav", "audio/5-9-A-0.wav")
    write(
        tmp_path,
        {
            "meta/esc50.csv": "filename,fold,target,category,esc10,src_file,take\n"
            "1-100032-A-0.wav,1,0,dog,True,100032,A\n"
            "2-1-A-1.wav,2,20,crying_baby,False,1,A\n"
            "5-9-A-0.wav,5,0,dog,True,9,A\n"
            "5-10-A-0.wav,5,0,dog,True,10,A\n"
            "5-11-A-0.wav,9,0,dog,True,11,A\n"
            "5-12-A-0.wav,5\n"
            "5-13-A-0.wav,5,0,,True,13,A\n"
        },
    )
    imported = run(esc50, tmp_path)
    clips = clips_of(imported)
    assert {name: clip.split for name, clip in clips.items()} == {
        "esc50/1-100032-A-0.wav": "train",
        "esc50/2-1-A-1.wav": "train",
        "esc50/5-9-A-0.wav": "test",
    }
    (question,) = asked(clips["esc50/2-1-A-1.wav"])
    assert (question.task, question.answer) == ("classification", "crying baby")
    assert question.options == ("crying baby", "dog")
    table = "meta/esc50.csv"
    assert aside(imported) == [
        (table, 7, "broken line"),
        (table, 6, "broken line"),
        (table, 8, "empty label or text"),
        (table, 5, "missing file"),
    ]
    assert "fold must be 1 to 5, is '9'" in reasons(imported)
    assert clips_of(run(esc50, tmp_path, test_fold=1))["esc50/5-9-A-0.wav"].split == "train"
    only = clips_of(run(esc50, tmp_path, splits=("test",)))
    assert set(only) == {"esc50/5-9-A-0.wav"}


def test_clotho_keeps_captions_and_names_that_begin_with_a_space(tmp_path):
    sounds(
        tmp_path,
        "clotho_audio_development/ Ambience Birds.wav",
        "development/rain.wav",
        "clotho_audio_evaluation/stream.wav",
    )
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    write(
        tmp_path,
        {
            "clotho_captions_development.csv": header
            + ' Ambience Birds.wav,Birds.,"Birds, many.",More birds.,Birds again.,Five.\n'
            " rain.wav,It rains.,,,,\n"
            "silent.wav,,,,,\n"
            "gone.wav,a,b,c,d,e\n"
            "broken.wav,a\n",
            "clotho_captions_evaluation.csv": header + "stream.wav,a,b,c,d,e\n",
        },
    )
    imported = run(clotho, tmp_path)
    clips = clips_of(imported)
    birds = asked(clips["clotho/development/ Ambience Birds.wav"])
    assert [q.answer for q in birds] == [
        "Birds.",
        "Birds, many.",
        "More birds.",
        "Birds again.",
        "Five.",
    ]
    assert {q.task for q in birds} == {"describe"}
    assert len(birds[0].references or ()) == 4
    assert "clotho/development/ rain.wav" in clips
    (stream,) = asked(clips["clotho/evaluation/stream.wav"])
    assert (stream.answer, stream.references) == ("a", ("b", "c", "d", "e"))
    assert clips["clotho/evaluation/stream.wav"].split == "test"
    table = "clotho_captions_development.csv"
    assert aside(imported) == [
        (table, 4, "empty label or text"),
        (table, 6, "broken line"),
        (table, 5, "missing file"),
    ]
    with pytest.raises(
        ManifestError, match=r"has no clotho_captions_validation\.csv: --data names"
    ):
        run(clotho, tmp_path, splits=("val",))


def test_audiocaps_joins_the_captions_of_a_clip(tmp_path):
    header = "audiocap_id,youtube_id,start_time,caption\n"
    write(
        tmp_path,
        {
            "train.csv": header
            + "91139,r1nicOVtvkQ,130,A woman talks nearby as water pours\n"
            + "58146,UDGBjjwyaqE,20,Multiple clanging sounds\n"
            + "58147,UDGBjjwyaqF,20,\n"
            + "58148,UDGBjjwyaqG,soon,What?\n",
            "test.csv": header
            + "103549,7fmOlUlwoNg,20,Constant rattling noise\n"
            + "103541,7fmOlUlwoNg,20,A rattle\n"
            + "103548,6BJ455B1aAs,0,A rocket\n",
        },
    )
    audio = tmp_path / "wavs"
    sounds(audio, "r1nicOVtvkQ_130.flac", "test/103541.wav", "Y6BJ455B1aAs.wav")
    imported = run(audiocaps, tmp_path, audio_dir=audio)
    clips = clips_of(imported)
    assert {name: clip.split for name, clip in clips.items()} == {
        "audiocaps/r1nicOVtvkQ_130": "train",
        "audiocaps/7fmOlUlwoNg_20": "test",
        "audiocaps/6BJ455B1aAs_0": "test",
    }
    (rattle,) = asked(clips["audiocaps/7fmOlUlwoNg_20"])
    assert (rattle.answer, rattle.references) == ("Constant rattling noise", ("A rattle",))
    assert aside(imported) == [
        ("train.csv", 4, "empty label or text"),
        ("train.csv", 5, "empty label or text"),
        ("train.csv", 3, "missing file"),
    ]
    assert "UDGBjjwyaqE_20 has no recording below" in reasons(imported)


@pytest.fixture
def audioset_folder(tmp_path):
    comments = "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=3\n"
    comments += "# YTID, start_seconds, end_seconds, positive_labels\n"
    write(
        tmp_path,
        {
            "balanced_train_segments.csv": comments
            + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
            + 'gone, 30.000, 40.000, "/m/09x0r"\n'
            + 'odd, 30.000, 40.000, "/m/none"\n'
            + 'short, 30.000, "/m/09x0r"\n'
            + 'late, later, 40.000, "/m/09x0r"\n',
            "unbalanced_train_segments.csv": comments + 'more, 0.000, 10.000, "/m/09x0r"\n',
            "eval_segments.csv": comments + 'test1, 20.000, 30.000, "/m/09x0r"\n',
            "audioset_train_strong.tsv": "segment_id\tstart_time_seconds\tend_time_seconds\tlabel\n"
            "--PJHxphWEs_30000\t4.0\t5.0\t/t/dd00088\n"
            "--PJHxphWEs_30000\t0.5\t1.0\t/m/053hz1\n"
            "nothing\t0.5\t1.0\t/m/053hz1\n",
            "class_labels_indices.csv": "index,mid,display_name\n0,/m/09x0r,Speech\n"
            '1,/t/dd00088,"Chuckle, chortle"\n',
            "ontology.json": json.dumps([{"id": "/m/053hz1", "name": "Cheering", "child_ids": []}]),
        },
    )
    sounds(tmp_path, "audio/Y--PJHxphWEs_30.000_40.000.wav", "audio/test1.flac", "audio/more.mp3")
    return tmp_path


def test_audioset_20k_has_tags_by_their_names(audioset_folder):
    imported = run(audioset, audioset_folder)
    clips = clips_of(imported)
    assert {name: clip.split for name, clip in clips.items()} == {
        "audioset/--PJHxphWEs_30000": "train",
        "audioset/test1_20000": "test",
    }
    (question,) = asked(clips["audioset/--PJHxphWEs_30000"])
    assert (question.task, question.answer) == ("tags", "Chuckle, chortle; Speech")
    assert question.labels == ("Chuckle, chortle", "Speech")
    table = "balanced_train_segments.csv"
    assert aside(imported) == [
        (table, 5, "missing file"),
        (table, 6, "empty label or text"),
        (table, 7, "broken line"),
        (table, 8, "broken line"),
    ]
    assert "odd_30000 has no label with a known name: /m/none" in reasons(imported)


def test_audioset_2m_and_strong_labels_are_further_parts(audioset_folder):
    parts = ("balanced", "unbalanced", "strong_train")
    imported = run(audioset, audioset_folder, parts=parts)
    clips = clips_of(imported)
    assert set(clips) == {"audioset/--PJHxphWEs_30000", "audioset/more_0"}
    _, strong, first = asked(clips["audioset/--PJHxphWEs_30000"])
    assert (strong.task, strong.labels) == ("tags_strong", ("Cheering", "Chuckle, chortle"))
    assert (first.task, first.answer) == ("which_first", "Cheering")
    assert ("audioset_train_strong.tsv", 4, "broken line") in aside(imported)
    with pytest.raises(ManifestError, match=r"unknown part 'balance' \(did you mean 'balanced'"):
        run(audioset, audioset_folder, parts=("balance",))
    with pytest.raises(ManifestError, match="of balanced none is in split test"):
        run(audioset, audioset_folder, parts=("balanced",), splits=("test",))
    (audioset_folder / "ontology.json").write_text('{"id": 3}')
    with pytest.raises(ManifestError, match=r"ontology\.json must be a list of"):
        run(audioset, audioset_folder)
    for name in ("class_labels_indices.csv", "ontology.json"):
        (audioset_folder / name).unlink()
    with pytest.raises(ManifestError, match=r"has none of class_labels_indices\.csv, ontology"):
        run(audioset, audioset_folder)


def test_vocalsound_takes_file_names_and_its_own_splits(tmp_path):
    sounds(
        tmp_path, *(f"audio_16k/{n}.wav" for n in ("f0003_0_cough", "m0004_0_sniff", "f5_0_sigh"))
    )

    def entry(name: str, label: str) -> dict[str, str]:
        return {"wav": f"/theirs/vocalsound/audio_16k/{name}.wav", "labels": label}

    cough, sniff, sigh = "/m/01b_21", "/m/07ppn3j", "/m/07plz5l"
    training = [entry("f0003_0_cough", cough), entry("gone", sigh), entry("x", "/m/0"), {"wav": 3}]
    files = {
        "tr": training,
        "val": [entry("m0004_0_sniff", sniff)],
        "te": [entry("f5_0_sigh", sigh)],
    }
    write(
        tmp_path,
        {
            **{f"datafiles/{n}.json": json.dumps({"data": data}) for n, data in files.items()},
            "class_labels_indices_vs.csv": "index,mid,display_name\n"
            f'1,{sigh},"Sigh"\n2,{cough},"Cough"\n5,{sniff},"Sniff"\n',
        },
    )
    imported = run(vocalsound, tmp_path)
    clips = clips_of(imported)
    assert {name: clip.split for name, clip in clips.items()} == {
        "vocalsound/f0003_0_cough.wav": "train",
        "vocalsound/m0004_0_sniff.wav": "val",
        "vocalsound/f5_0_sigh.wav": "test",
    }
    (question,) = asked(clips["vocalsound/f0003_0_cough.wav"])
    assert question.instruction == "Which of these sounds is heard: sigh, cough or sniff?"
    assert (question.answer, question.options) == ("cough", ("sigh", "cough", "sniff"))
    assert aside(imported) == [
        ("datafiles/tr.json", 3, "empty label or text"),
        ("datafiles/tr.json", 4, "broken line"),
        ("datafiles/tr.json", 2, "missing file"),
    ]
    (tmp_path / "datafiles/te.json").write_text("[]")
    with pytest.raises(ManifestError, match=r"te\.json must be \{\"data\": \[...\]\}"):
        run(vocalsound, tmp_path)
    (tmp_path / "datafiles/te.json").write_text('{"data": [')
    with pytest.raises(ManifestError, match=r"te\.json is no JSON"):
        run(vocalsound, tmp_path)


def test_fsd50k_keeps_its_split_of_dev_and_eval(tmp_path):
    truth = "FSD50K.ground_truth"
    write(
        tmp_path,
        {
            f"{truth}/dev.csv": "fname,labels,mids,split\n"
            '64760,"Electric_guitar,Guitar","/m/02sgy,/m/0342h",train\n'
            "345111,Guitar,/m/0342h,val\n"
            "1,Guitar,/m/0342h,train\n"
            '2,,"",train\n'
            "3,Lute,/m/x,train\n"
            "4,Guitar,/m/0342h,dev\n"
            "5,Guitar,Music,/m/0342h,train\n",
            f"{truth}/eval.csv": "fname,labels,mids\n37199,Guitar,/m/0342h\n",
            f"{truth}/vocabulary.csv": "69,Electric_guitar,/m/02sgy\n85,Guitar,/m/0342h\n",
        },
    )
    sounds(
        tmp_path,
        "FSD50K.dev_audio/64760.wav",
        "FSD50K.dev_audio/345111.wav",
        "FSD50K.eval_audio/37199.wav",
    )
    imported = run(fsd50k, tmp_path)
    clips = clips_of(imported)
    assert {name: clip.split for name, clip in clips.items()} == {
        "fsd50k/FSD50K.dev_audio/64760.wav": "train",
        "fsd50k/FSD50K.dev_audio/345111.wav": "val",
        "fsd50k/FSD50K.eval_audio/37199.wav": "test",
    }
    (question,) = asked(clips["fsd50k/FSD50K.dev_audio/64760.wav"])
    assert (question.task, question.answer) == ("tags", "Electric guitar; Guitar")
    assert [(line, kind) for _, line, kind in aside(imported)] == [
        (5, "empty label or text"),
        (6, "empty label or text"),
        (7, "broken line"),
        (8, "broken line"),
        (4, "missing file"),
    ]
    assert "3: vocabulary.csv lacks Lute" in reasons(imported)


@pytest.mark.parametrize("where", ["groundtruth_release/", ""])
def test_dcase2017_joins_the_labels_of_a_clip(tmp_path, where):
    def weak(part: str) -> str:
        return f"{where}groundtruth_weak_label_{part}_set.csv"

    write(
        tmp_path,
        {
            weak("training"): "a-b_20.000_30.000.wav\t20.000\t30.000\tTrain horn\n"
            "a-b_20.000_30.000.wav\t20.000\t30.000\tAir horn, truck horn\n"
            "gone_0.000_10.000.wav\t0.000\t10.000\tBus\n"
            "broken.wav\tBus\n"
            "empty.wav\t0.000\t10.000\t\n",
            weak("testing"): "-c_0.000_10.000.wav\t0.000\t10.000\tCar\r\n",
            weak("evaluation"): "d_0.000_10.000.wav\t0.000\t10.000\tTrain\r\n",
        },
    )
    sounds(
        tmp_path,
        "training/Ya-b_20.000_30.000.wav",
        "testing/Y-c_0.000_10.000.wav",
        "evaluation/Yd_0.000_10.000.wav",
    )
    imported = run(dcase2017, tmp_path)
    clips = clips_of(imported)
    assert {name: clip.split for name, clip in clips.items()} == {
        "dcase2017/a-b_20.000_30.000": "train",
        "dcase2017/-c_0.000_10.000": "test",
        "dcase2017/d_0.000_10.000": "evaluation",
    }
    (question,) = asked(clips["dcase2017/a-b_20.000_30.000"])
    assert question.labels == ("Air horn, truck horn", "Train horn")
    assert question.answer == "Air horn, truck horn; Train horn"
    assert [(line, kind) for _, line, kind in aside(imported)] == [
        (4, "broken line"),
        (5, "empty label or text"),
        (3, "missing file"),
    ]


def entry(audio_id: str, **fields: Any) -> dict[str, Any]:
    base = {"instruction": "What?", "input": "", "output": "A dog.", "audio_id": audio_id}
    return {**base, "dataset": "as_strong_train", "task": "open-ended question", **fields}


def test_openaqa_finds_recordings_by_map_path_and_name(tmp_path):
    sounds(
        tmp_path,
        "here/LZq4Neh-oWU.flac",
        "moved/x/a.wav",
        "all/clotho/dev/1.wav",
        "all/fsd50k/dev/1.wav",
        "all/p/twice.wav",
        "all/q/twice.wav",
    )
    theirs = "/data/sls/theirs"
    entries = [
        entry("here/LZq4Neh-oWU.flac"),
        entry(
            "here/LZq4Neh-oWU.flac", instruction="Closed-ended question: Which?", task="cla_label"
        ),
        entry(f"{theirs}/x/a.wav", dataset=None, task=None, input="I am so sad"),
        entry("/elsewhere/clotho/dev/1.flac", task="caption"),
        entry("/elsewhere/gone.flac"),
        entry("/elsewhere/r/twice.flac"),
        entry("here/LZq4Neh-oWU.flac", output=" "),
        {"instruction": "What?", "output": "A dog."},
        entry("here/LZq4Neh-oWU.flac", output="A \ud83e."),
        entry(f"/elsewhere/{'long' * 100}.flac"),
    ]
    file = tmp_path / "openaqa.json"
    file.write_text(json.dumps(entries, indent=1))
    moved = [(theirs, str(tmp_path / "moved"))]
    imported = run(openaqa, file, audio_dir=tmp_path / "all", moved=moved)
    clips = clips_of(imported)
    assert set(clips) == {
        "openaqa/here/LZq4Neh-oWU.flac",
        "openaqa/data/sls/theirs/x/a.wav",
        "openaqa/elsewhere/clotho/dev/1.flac",
    }
    both = asked(clips["openaqa/here/LZq4Neh-oWU.flac"])
    assert [(q.task, q.instruction) for q in both] == [
        ("open_ended", "What?"),
        ("classification", "Closed-ended question: Which?"),
    ]
    assert clips["openaqa/here/LZq4Neh-oWU.flac"].dataset == "as_strong_train"
    spoken = clips["openaqa/data/sls/theirs/x/a.wav"]
    assert (spoken.dataset, asked(spoken)[0].instruction) == ("openaqa", "I am so sad\nWhat?")
    assert str(clips["openaqa/elsewhere/clotho/dev/1.flac"].audio).endswith("clotho/dev/1.wav")
    assert [(line, kind) for _, line, kind in aside(imported)] == [
        (5, "missing file"),
        (6, "ambiguous file name"),
        (7, "empty label or text"),
        (8, "broken line"),
        (9, "broken line"),
        (10, "missing file"),
    ]
    assert "name its folder with --audio-dir or --map" in reasons(imported)


def test_openaqa_says_when_the_download_is_not_whole(tmp_path):
    sounds(tmp_path, "a.wav")
    file = tmp_path / "openaqa.json"
    file.write_text(json.dumps([entry("a.wav"), entry("a.wav")])[:-20])
    with pytest.raises(ManifestError, match=r"openaqa\.json breaks off, or is no JSON, at '\{"):
        run(openaqa, file)
    with pytest.raises(ManifestError, match=r"none\.json cannot be read"):
        run(openaqa, tmp_path / "none.json")
