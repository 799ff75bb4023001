"""An evaluation in slices, merged: the bytes of one in one piece, nothing lost, no model loaded."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paltrain.eval.build
from paltrain.config.schema import EvalConfig
from paltrain.data.index import Corpus
from paltrain.data.manifest import Clip, Question, write_manifest
from paltrain.errors import IncompleteError
from paltrain.eval.build import Evaluated, evaluate_all, evaluate_slice, merge_slices
from paltrain.eval.questions import MOST_TOGETHER, by_clip, keys_of, slice_numbers
from paltrain.status import StatusFile
from tests.eval.test_evaluation import answers, config
from tools import evaluate


def make_slice(settings: EvalConfig, number: int, n: int, **options: Any) -> list[tuple[int, int]]:
    """(questions, answered before) of each evaluation."""
    settings.slice = f"{number}/{n}"
    done = evaluate_slice(settings, with_control=True, **options)
    return [(part.n_questions, part.n_there_before) for part in done]


def merge(settings: EvalConfig, n: int) -> Evaluated:
    settings.slice = None
    return merge_slices(
        settings, n_slices=n, command=f"make slice=I/{n}", with_control=True, with_baseline=True
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(paltrain.eval.build, "load_model", refuse)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluated]:
    """Two runs, hearing and deaf, in one piece: the folder and what came back."""
    shutil.copytree(world / "run", world / "other")
    out = tmp_path_factory.mktemp("whole")
    done = evaluate_all(two_runs(world, out), with_control=True, with_baseline=True)
    return out, done


def two_runs(world: Path, out: Path, **changes: object) -> EvalConfig:
    return config(world, out, runs=[str(world / "run"), str(world / "other")], **changes)


def assert_the_same(merged: Evaluated, out: Path, whole: tuple[Path, Evaluated]) -> None:
    folder, done = whole
    assert merged.baseline == done.baseline
    for one, other in zip(merged.evaluations, done.evaluations, strict=True):
        assert {**vars(one), "seconds": 0} == {**vars(other), "seconds": 0}
    for expected in done.folders:
        place = out / expected.relative_to(folder)
        for name in ("answers.jsonl", "answers.of.json"):
            assert (place / name).read_bytes() == (expected / name).read_bytes()
        assert (place / "scores.json").exists()
        if not place.name.endswith("shuffled"):
            assert (place / "baseline.json").read_text() == (expected / "baseline.json").read_text()


def test_merged_slices_are_what_one_process_gives(
    world: Path, tmp_path: Path, whole: tuple[Path, Evaluated], request: pytest.FixtureRequest
) -> None:
    settings = two_runs(world, tmp_path)
    sizes = [make_slice(settings, number, 3) for number in (2, 0, 1)]
    assert sum(n for size in sizes for n, _ in size) == 4 * len(answers(whole[1].folders[0]))
    assert not (tmp_path / "run/eval/test/answers.jsonl").exists()
    request.getfixturevalue("no_model")
    assert_the_same(merge(settings, 3), tmp_path, whole)
    assert_the_same(merge(settings, 3), tmp_path, whole)
    again = evaluate_all(settings, with_control=True, with_baseline=True)
    assert_the_same(again, tmp_path, whole)


def test_an_incomplete_merge_names_the_slices_and_changes_nothing(
    world: Path, tmp_path: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = two_runs(world, tmp_path)
    with pytest.raises(IncompleteError, match="incomplete: 3 of 3"):
        merge(settings, 3)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    make_slice(settings, 1, 3)
    torn = tmp_path / "other/eval/test-shuffled/slice-001-of-003/answers.jsonl"
    torn.write_bytes(torn.read_bytes()[:-9])
    old = tmp_path / "run/eval/test"  # an evaluation of another model, whole
    for name, text in {"answers.jsonl": "", "answers.of.json": "{}", "scores.json": "{}"}.items():
        (old / name).write_text(text)
    before = files_of(tmp_path)
    with pytest.raises(IncompleteError) as caught:
        merge(settings, 3)
    assert files_of(tmp_path) == before
    assert str(caught.value).splitlines() == [
        "a merge needs every slice whole; incomplete: 3 of 3",
        "  slice 0 lacks 40 of 40 questions",
        "  slice 1 lacks 1 of 48 questions",
        "  slice 2 lacks 40 of 40 questions",
        "Nothing was changed. Make what is missing, I being 0-2, and merge again:",
        "  make slice=I/3",
    ]
    with pytest.raises(IncompleteError, match="There are answers of slices of 3, too. They count"):
        merge(settings, 2)


def test_answers_count_wherever_they_lie(
    world: Path, tmp_path: Path, whole: tuple[Path, Evaluated]
) -> None:
    settings = two_runs(world, tmp_path)
    first = make_slice(settings, 0, 3)
    assert [before for _, before in first] == [0, 0, 0, 0]
    assert all(n == before for n, before in make_slice(settings, 0, 3))  # again: nothing to do
    second = [make_slice(settings, number, 2) for number in (0, 1)]
    reused = np.sum([[before for _, before in part] for part in second], axis=0)
    assert reused.tolist() == [n for n, _ in first]
    assert_the_same(merge(settings, 2), tmp_path, whole)
    shutil.rmtree(tmp_path / "run/eval/test/slice-000-of-003")
    assert_the_same(merge(settings, 7), tmp_path, whole)


def test_answers_of_other_decoding_are_not_mixed_in(world: Path, tmp_path: Path) -> None:
    settings = two_runs(world, tmp_path)
    make_slice(settings, 0, 2)
    settings = two_runs(world, tmp_path, max_new_tokens=2)
    assert [before for _, before in make_slice(settings, 1, 2)] == [0] * 4
    with pytest.raises(IncompleteError, match="incomplete: 1 of 2\n  slice 0 lacks 56 of 56"):
        merge(settings, 2)
    make_slice(settings, 0, 2)
    merge(settings, 2)
    slice_folder = tmp_path / "run/eval/test/slice-000-of-002"
    assert (slice_folder / "answers.other.jsonl").exists()


def test_sigterm_loses_at_most_a_batch(
    world: Path,
    tmp_path: Path,
    whole: tuple[Path, Evaluated],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The signal comes when the first batch of the second of four evaluations is written."""
    file = tmp_path / "config.yaml"
    file.write_text(
        f"runs: [{world / 'run'}, {world / 'other'}]\nfeatures: {{mel: {world / 'features'}}}\n"
        f"manifests: [{world / 'scenes/manifest.jsonl'}]\nout: {tmp_path / 'out'}\n"
        "batch_questions: 8\nmax_new_tokens: 12\n"
    )
    words = [str(file), "--with-control", "--device", "cpu"]
    status = ["--heartbeat", str(tmp_path / "status.json")]
    assert len(answers(whole[1].folders[0])) == 32
    n_mine = 14  # of the 32
    with monkeypatch.context() as patched:
        patched.setattr(
            StatusFile,
            "beat",
            lambda self, done, total: (
                os.kill(os.getpid(), signal.SIGTERM) if done == n_mine + 8 else None
            ),
        )
        with pytest.raises(SystemExit) as ended:
            evaluate.main([*words, "slice=0/2", *status])
    assert ended.value.code == 143
    told = json.loads((tmp_path / "status.json").read_text())
    assert (told["state"], told["done"], told["total"]) == ("stopped", n_mine + 8, 4 * n_mine)
    deaf = tmp_path / "out/run/eval/test-shuffled/slice-000-of-002"
    assert len(answers(deaf)) == 8
    with pytest.raises(IncompleteError, match=rf"slice 0 lacks {3 * n_mine - 8} of {4 * n_mine} "):
        evaluate.main([*words, "--merge", "2"])
    capsys.readouterr()
    for number in (0, 1):
        evaluate.main([*words, f"slice={number}/2", *status])
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"
    shown = capsys.readouterr().out
    assert f"slice 0/2 of run: {n_mine} questions, {n_mine} answered before -> " in shown
    assert f"slice 0/2 of run, deaf control: {n_mine} questions, 8 answered before -> " in shown
    evaluate.main([*words, "--merge", "2", *status])
    shown = capsys.readouterr().out
    assert "average spectrum" in shown
    assert "other, deaf" in shown
    told = json.loads((tmp_path / "status.json").read_text())
    assert (told["state"], told["done"]) == ("finished", 4 * 32)
    for expected in whole[1].folders:
        made = tmp_path / "out" / expected.relative_to(whole[0])
        assert (made / "answers.jsonl").read_bytes() == (expected / "answers.jsonl").read_bytes()


def test_a_question_that_cannot_be_asked_is_not_missing(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The model's template takes no more text than some questions have."""
    shutil.copytree(world / "run", tmp_path / "run")
    file = tmp_path / "run/model/config.json"
    fields = json.loads(file.read_text())
    fields["template"]["max_text_tokens"] = 30
    file.write_text(json.dumps(fields))
    settings = config(world, tmp_path / "out", runs=[str(tmp_path / "run")])
    for number in range(2):
        make_slice(settings, number, 2)
    done = merge(settings, 2)
    assert 0 < done.evaluations[0].n_questions < 32
    assert "is left out" in caplog.text


def corpus_of(folder: Path, sizes: list[int]) -> Corpus:
    clips = [
        Clip(
            f"c{number}",
            f"{number}.flac",
            1.0,
            "d",
            "test",
            tuple(Question(f"q{k}", "t", "What?", "a") for k in range(size)),
        )
        for number, size in enumerate(sizes)
    ]
    write_manifest(folder / "manifest.jsonl", clips)
    return Corpus.open([folder / "manifest.jsonl"])


def test_slices_are_near_equal_and_keep_a_clips_questions_together(tmp_path: Path) -> None:
    sizes = [1 + (7 * number) % 11 for number in range(300)]
    corpus = corpus_of(tmp_path, sizes)
    questions = np.flatnonzero(
        np.arange(corpus.n_questions) % 5
    )  # a sample, as max_questions takes
    numbers = slice_numbers(corpus, questions, 16)
    counts = np.bincount(numbers, minlength=16)
    assert counts.sum() == len(questions)
    assert np.ptp(counts) <= max(sizes)
    slice_of_question = dict(zip(questions.tolist(), numbers.tolist(), strict=True))
    for _, of_clip in by_clip(corpus, questions.tolist()):
        assert len({slice_of_question[number] for number in of_clip}) == 1


def test_a_clip_with_very_many_questions_is_shared(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, [1000, 1, 1])
    numbers = slice_numbers(corpus, np.arange(1002), 4)
    assert max(Counter(numbers.tolist()).values()) <= 1002 // 4 + MOST_TOGETHER
    assert keys_of(corpus, [0, 999, 1001]) == [("c0", "q0"), ("c0", "q999"), ("c2", "q0")]


def test_more_slices_than_clips_leaves_some_empty(world: Path, tmp_path: Path) -> None:
    settings = config(world, tmp_path)
    assert make_slice(settings, 39, 40) == [(0, 0), (0, 0)]
    assert slice_numbers(corpus_of(tmp_path, [2, 2]), np.arange(4), 5).tolist() == [0, 0, 1, 1]
