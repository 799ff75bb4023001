"""Evaluation end to end: a model on disk, real recordings, their store, answers and scores."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from paltrain import PalModel, PalProcessor
from paltrain.config.schema import EvalConfig
from paltrain.data.index import Corpus
from paltrain.data.shards import FeatureStore
from paltrain.errors import ManifestError, ModelError, StoreError
from paltrain.eval.build import evaluate_all, merge_slices, plan_evaluations
from paltrain.eval.questions import choose_questions
from tests.eval.conftest import N_SCENES
from tools import chat, export


def config(world: Path, out: Path, **changes: object) -> EvalConfig:
    return EvalConfig(
        **{
            "runs": [str(world / "run")],
            "manifests": [str(world / "scenes/manifest.jsonl")],
            "features": {"mel": str(world / "features")},
            "batch_questions": 8,
            "max_new_tokens": 12,
            "out": str(out),
            **changes,
        }
    )


def answers(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_every_test_question_is_answered_once_and_scored(world: Path, tmp_path: Path) -> None:
    done = evaluate_all(config(world, tmp_path), with_control=True, with_baseline=True)
    corpus = Corpus.open([world / "scenes/manifest.jsonl"])
    asked = [
        question.id
        for number in range(N_SCENES)
        if (clip := corpus.clip(number)).split == "test"
        for question in clip.questions
    ]
    heard, shuffled = (answers(folder) for folder in done.folders)
    for lines in (heard, shuffled):
        assert sorted(line["question_id"] for line in lines) == sorted(asked)
    assert all(line["heard_clip_id"] == line["clip_id"] for line in heard)
    assert all(line["given"] in line["options"] for line in heard + shuffled if line["options"])
    assert all(line["heard_clip_id"] != line["clip_id"] for line in shuffled)
    assert done.baseline is not None
    assert 0 <= done.baseline["how_many"] <= 1
    assert done.evaluations[0].by_task["how_many"].n == 6


def test_the_split_that_the_average_spectrum_is_fitted_on_is_not_scored_by_it(
    world: Path, tmp_path: Path
) -> None:
    settings = config(world, tmp_path, split="train", max_questions=3)
    assert evaluate_all(settings, with_control=False, with_baseline=True).baseline is None


def test_questions_that_cannot_be_chosen_say_which_word_chooses_others(
    world: Path, tmp_path: Path
) -> None:
    def refused(**changes: Any) -> str:
        with pytest.raises(ManifestError) as caught:
            plan_evaluations(config(world, tmp_path, **changes), with_control=False)
        return str(caught.value)

    assert "unknown split 'tests' (did you mean 'test'?); valid: " in refused(split="tests")
    assert refused(split="tests").endswith("; choose by split=...")
    assert "unknown task 'describes' (did you" in refused(tasks=["describes"])
    assert refused(tasks=["describes"]).endswith("; choose by tasks=[...]")

    corpus = Corpus.open([world / "scenes/manifest.jsonl"])
    lacking: Any = SimpleNamespace(name="mel", rows=np.full(corpus.n_clips, -1))
    with pytest.raises(ManifestError, match="left to ask: .* choose another split or further ta"):
        choose_questions(
            corpus, split="test", tasks=None, streams=[lacking], max_questions=None, seed=0
        )


def test_an_interrupted_evaluation_goes_on_and_gives_the_same_answers(
    world: Path, tmp_path: Path
) -> None:
    (folder,) = evaluate_all(
        config(world, tmp_path), with_control=False, with_baseline=False
    ).folders
    whole = answers(folder)
    lines = (folder / "answers.jsonl").read_text().splitlines(keepends=True)
    (folder / "answers.jsonl").write_text("".join(lines[:9]) + lines[9][:20])
    evaluate_all(config(world, tmp_path), with_control=False, with_baseline=False)

    def key(line: dict) -> str:
        return line["question_id"]

    assert sorted(answers(folder), key=key) == sorted(whole, key=key)


def test_questions_beyond_the_llms_positions_are_left_out_and_the_others_answered(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(world, tmp_path / "all", tasks=["describe"])
    (folder,) = evaluate_all(settings, with_control=False, with_baseline=False).folders
    whole = {line["question_id"]: line["given"] for line in answers(folder)}
    template = PalProcessor.from_pretrained(world / "run" / "model").template
    store = FeatureStore.open(world / "features")
    corpus, lengths = Corpus.open([world / "scenes/manifest.jsonl"]), {}
    for number in range(N_SCENES):
        clip = corpus.clip(number)
        (row,) = store.rows_of(np.array([clip.id]))
        for question in clip.questions:
            text = template.render([(question.instruction, None)], 1).texts
            n_audio = -(-int(store.n_frames[row]) // 2)
            lengths[question.id] = sum(map(len, text)) + n_audio + 1
    n_positions = int(np.median([lengths[question] for question in whole]))
    fitting = {question for question in whole if lengths[question] <= n_positions}
    assert 0 < len(fitting) < len(whole)

    run = tmp_path / "short"
    shutil.copytree(world / "run", run)
    saved = run / "model" / "config.json"
    fields = json.loads(saved.read_text())
    fields["llm_config"]["max_position_embeddings"] = n_positions
    saved.write_text(json.dumps(fields))
    settings = replace(settings, runs=[str(run)], out=str(tmp_path / "fitting"))
    (folder,) = evaluate_all(settings, with_control=False, with_baseline=False).folders
    assert {line["question_id"] for line in answers(folder)} == fitting
    n_left_out = len(whole) - len(fitting)
    assert caplog.text.count(f"beyond the LLM's {n_positions} positions") == n_left_out
    assert f"{n_left_out} of {len(whole)} questions were left out" in caplog.text
    merged = merge_slices(
        settings, n_slices=1, command="I", with_control=False, with_baseline=False
    )  # nothing is lacking
    assert merged.evaluations[0].by_task["describe"].n == len(fitting)


def test_batching_does_not_change_the_answers(world: Path, tmp_path: Path) -> None:
    given = []
    for size in (1, 8):
        settings = config(world, tmp_path / str(size), batch_questions=size)
        (folder,) = evaluate_all(settings, with_control=False, with_baseline=False).folders
        given.append({line["question_id"]: line["given"] for line in answers(folder)})
    assert given[0] == given[1]


def test_options_may_be_lifted(world: Path, tmp_path: Path) -> None:
    settings = config(world, tmp_path, among_options=False)
    (folder,) = evaluate_all(settings, with_control=False, with_baseline=False).folders
    given = [line["given"] in line["options"] for line in answers(folder) if line["options"]]
    assert not all(given)  # a random model rambles


def test_what_cannot_be_evaluated_says_why(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no exported model in .*: name a run that has finished"):
        evaluate_all(
            config(world, tmp_path, runs=[str(tmp_path)]), with_control=False, with_baseline=False
        )
    shutil.copytree(world / "features", tmp_path / "other")
    stamp = json.loads((tmp_path / "other/store.json").read_text())
    (tmp_path / "other/store.json").write_text(json.dumps({**stamp, "frame_rate_hz": 25.0}))
    settings = config(world, tmp_path, features={"mel": str(tmp_path / "other")})
    with pytest.raises(StoreError, match=r"another encoder .*frame_rate_hz: 25\.0 != 50\.0"):
        evaluate_all(settings, with_control=False, with_baseline=False)


def test_chat_answers_about_a_recording_and_about_none(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = world / "scenes/audio/scene-000000.flac"
    chat.main([str(world / "run"), "--audio", str(recording), "--ask", "Which sound is heard?"])
    chat.main([str(world / "run"), "--ask", "Hello?", "--max-new-tokens", "2"])
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_export_writes_a_folder_that_loads_elsewhere(world: Path, tmp_path: Path) -> None:
    export.main([str(world / "run"), "--out", str(tmp_path / "out")])
    model = PalModel.from_pretrained(tmp_path / "out")
    original = PalModel.from_pretrained(world / "run/model")
    for (name, a), b in zip(model.named_parameters(), original.parameters(), strict=True):
        assert torch.equal(a, b), name
    recording = world / "scenes/audio/scene-000000.flac"
    batch = PalProcessor.from_pretrained(tmp_path / "out")(text="What?", audio=recording)
    assert batch.n_clips == 1
