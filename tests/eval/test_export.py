"""tools/export.py: shards, types, adapters, and a card that tells what was measured and runs."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from paltrain import PalModel, PalProcessor
from paltrain.config.schema import EvalConfig
from paltrain.errors import AudioError, ModelError
from paltrain.eval.build import evaluate_all
from paltrain.eval.chat import converse, start_conversation
from paltrain.eval.export import _check_equal, export_model, without_adapters
from paltrain.eval.runs import load_model
from tests.model.conftest import mixed_batch
from tests.model.forms import model_of
from tools import chat, export


@pytest.fixture
def run(world: Path, tmp_path: Path) -> Path:
    shutil.copytree(world / "run", tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    return tmp_path / "run"


def evaluate(run: Path, world: Path) -> None:
    settings = EvalConfig(
        runs=[str(run)],
        manifests=[str(world / "scenes/manifest.jsonl")],
        features={"mel": str(world / "features")},
        max_new_tokens=4,
    )
    evaluate_all(settings, with_control=True, with_baseline=True)


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_results_reach_the_card_when_there_are_any(run: Path, world: Path, tmp_path: Path) -> None:
    export.main([str(run), "--out", str(tmp_path / "before")])
    assert "None yet" in card_of(tmp_path / "before")
    evaluate(run, world)
    export.main([str(run), "--out", str(tmp_path / "after")])
    card = card_of(tmp_path / "after")
    assert re.search(
        r"\| task \| questions \| run \| run, deaf \| average spectrum \| chance \|", card
    )
    assert re.search(r"\| how_many \| 6 \| [\d.]+ \([\d.]+-[\d.]+\) \| [\d.]+ \(", card)
    assert str(tmp_path) not in card
    assert str(world) not in card
    results = ModelCard.load(tmp_path / "after" / "README.md").data.eval_results
    assert {"how_many", "describe"} <= {result.task_name for result in results}

    export.main([str(run), "--card-only"])
    assert card_of(run / "model").split("## Results")[1] == card.split("## Results")[1]


def test_results_of_another_model_stay_off_the_card(
    run: Path, world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(run, world)
    model = PalModel.from_pretrained(run / "model")
    torch.nn.init.zeros_(model.get_input_embeddings().weight)
    model.save_pretrained(run / "model")
    export.main([str(run), "--out", str(tmp_path / "out")])
    assert "None yet" in card_of(tmp_path / "out")


def test_the_cards_code_runs_as_it_stands(
    run: Path,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export.main([str(run), "--out", str(tmp_path / "out")])
    shutil.copy(world / "scenes/audio/scene-000000.flac", tmp_path / "out/recording.wav")
    blocks = re.findall(r"```python\n(.*?)```", card_of(tmp_path / "out"), re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path / "out")
    capsys.readouterr()
    exec("\n".join(blocks), {})
    assert capsys.readouterr().out.count("\n") >= 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_and_types_are_as_asked(run: Path, tmp_path: Path, dtype: str) -> None:
    words = ["--out", str(tmp_path / "out"), "--max-shard-size", "8KB", "--dtype", dtype]
    export.main([str(run), *words])
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    loaded = PalModel.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == getattr(torch, dtype)
    original = PalModel.from_pretrained(run / "model").to(loaded.dtype).state_dict()
    assert all(torch.equal(value, original[name]) for name, value in loaded.state_dict().items())
    assert f"| saved as | {dtype} |" in card_of(tmp_path / "out")
    with pytest.raises(ModelError, match="give a number with its unit"):
        export_model(str(run), out=tmp_path / "odd", max_shard_size="big")


@pytest.mark.parametrize("tie", [False, True])
def test_adapters_stay_apart_unless_they_are_to_be_merged(
    run: Path, tmp_path: Path, tie: bool
) -> None:
    model = model_of("lora_lal", tie_word_embeddings=tie).float()
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_()
    model.save_pretrained(run / "model")
    PalProcessor.from_pretrained(run / "model").save_pretrained(tmp_path / "tokenizer")
    batch = mixed_batch()
    export.main([str(run), "--out", str(tmp_path / "apart")])
    export.main([str(run), "--out", str(tmp_path / "merged"), "--merge-adapters"])
    apart, merged = (PalModel.from_pretrained(tmp_path / name) for name in ("apart", "merged"))
    assert any(".lora_" in name for name in apart.state_dict())
    assert not any("lora" in name or "base" in name for name in merged.state_dict())
    assert merged.config.lora is None
    assert "rank 2" in card_of(tmp_path / "apart")
    assert "LoRA" not in card_of(tmp_path / "merged")
    expected = model.text_logits(batch)
    assert torch.equal(apart.text_logits(batch), expected)
    torch.testing.assert_close(merged.text_logits(batch), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ModelError, match="no adapters to merge"):
        without_adapters(merged)


def test_a_model_that_reads_back_otherwise_is_refused() -> None:
    saved, read = model_of("lal"), model_of("lal")
    with torch.no_grad():
        read.get_input_embeddings().weight[0, 0] += 1
    with pytest.raises(ModelError, match=r"as saved \(.*embed.*\): is the disk sound\? export"):
        _check_equal(saved, read, Path("out"))


def test_chat_answers_line_by_line(
    run: Path, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = world / "scenes/audio"
    gone, other = (f"/audio {audio}/{name}" for name in ("gone.wav", "scene-000001.flac"))
    lines = ["What?", gone, "And?", other, "Here?", "/new", "", "Hi"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    chat.main([str(run), "--audio", str(audio / "scene-000000.flac"), *("--max-new-tokens", "2")])
    said = capsys.readouterr()
    assert "mel: 50 frames/s of width 8, 25 a second by lal" in said.err
    assert said.err.count("error: ") == 1
    assert "gone.wav" in said.err
    assert len(said.out.splitlines()) >= 3


def test_a_question_that_fails_leaves_its_recordings_to_the_next_one(
    run: Path, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = start_conversation(load_model(run / "model"), folder=run / "model", max_new_tokens=2)
    recording, broken = world / "scenes/audio/scene-000000.flac", tmp_path / "broken.wav"
    broken.write_bytes(recording.read_bytes()[:60])
    two = "<|audio|> or <|audio|>?"
    converse(talk, [f"/audio {recording}", f"/audio {broken}", two, "Which sound?", "And now?"])
    said = capsys.readouterr()
    first, second = (line for line in said.err.splitlines() if line.startswith("error: "))
    assert f"error: {broken}" in first
    assert "have 2 <|audio|> for 1 clips" in second
    asked = [message["content"] for message in talk.messages if message["role"] == "user"]
    assert asked == ["<|audio|>\nWhich sound?", "And now?"]
    assert len(talk.clips) == 1


def test_a_conversation_about_a_recording_that_is_not_there_does_not_begin(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = start_conversation(load_model(run / "model"), folder=run / "model", max_new_tokens=2)
    with pytest.raises(AudioError, match=r"gone\.wav is missing"):
        converse(talk, ["Which sound?"], audio=[Path("gone.wav")])
    assert not capsys.readouterr().out
