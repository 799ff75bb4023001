"""A saved model elsewhere: whole or refused, known to transformers, and free of training code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor

from paltrain import PalConfig, PalModel, PalProcessor
from paltrain.encoders import build_encoder
from paltrain.errors import ModelError
from paltrain.eval.export import export_model
from paltrain.model.configuration import MODEL_FORMAT
from paltrain.model.loading import load_llm
from tests.exported import export_tiny_model
from tests.model.conftest import pal, stream, tiny_llm

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = """
import sys

class NoTraining:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[2].partition(".")[0] in ("train", "data", "run", "bench"):
            if name.startswith("paltrain."):
                raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, NoTraining())
sys.modules["deepspeed"] = None

import paltrain
assert "torch" not in sys.modules, "import paltrain alone is light"
from paltrain import PalModel
from transformers import AutoConfig, AutoModel, AutoProcessor

folder = sys.argv[1]
assert AutoConfig.from_pretrained(folder).model_type == "pal"
model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
assert type(model) is PalModel and type(processor) is paltrain.PalProcessor
batch = processor(text="Which sound is heard?", audio="a.wav")
end = processor.tokenizer.eos_token_id
print(model.eval().generate_answers(batch, max_new_tokens=6, eos_token_id=end))
"""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    pal(tiny_llm("llama"), {"a": stream("lal")}).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_another_process_loads_and_asks_a_model_without_its_run_or_training_code(
    tmp_path: Path,
) -> None:
    encoder = build_encoder("logmel", options={"n_mels": 8})
    export_tiny_model(tmp_path / "run/model", encoder, ["Which sound is heard?", "a bell"] * 9)
    export_model(str(tmp_path / "run"), out=tmp_path / "moved/model")
    (tmp_path / "moved/here").mkdir()
    soundfile.write(tmp_path / "moved/here/a.wav", torch.randn(8_000).numpy() * 0.1, 8_000)
    processor = PalProcessor.from_pretrained(tmp_path / "run/model")
    expected = PalModel.from_pretrained(tmp_path / "run/model").generate_answers(
        processor(text="Which sound is heard?", audio=tmp_path / "moved/here/a.wav"),
        max_new_tokens=6,
        eos_token_id=processor.tokenizer.eos_token_id,
    )
    shutil.rmtree(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path / "moved/model")],
        cwd=tmp_path / "moved/here",
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tie", [False, True])
def test_shards_read_back_bit_by_bit_and_tied_weights_are_stored_once(
    tie: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = pal(tiny_llm("llama", tie_word_embeddings=tie), {"a": stream("lal")}).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert ("llm.lm_head.weight" in index) != tie
    loaded = PalModel.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == dtype
    theirs = loaded.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())
    head, embeddings = loaded.get_output_embeddings(), loaded.get_input_embeddings()
    assert (head.weight is embeddings.weight) == tie


def test_a_newer_format_is_refused_by_every_way_in(saved: Path) -> None:
    assert json.loads((saved / "config.json").read_text())["format"] == MODEL_FORMAT
    edit(saved, format=MODEL_FORMAT + 1)
    expected = f"format {MODEL_FORMAT + 1}, .* up to {MODEL_FORMAT}.*update paltrain"
    for way_in in (PalConfig, PalModel, PalProcessor, AutoConfig, AutoModel, AutoProcessor):
        with pytest.raises(ModelError, match=expected):
            way_in.from_pretrained(saved)


def test_a_format_that_is_no_number_was_edited(saved: Path) -> None:
    edit(saved, format="two")
    with pytest.raises(ModelError, match=r"must be a number, is 'two': config\.json was edited"):
        PalConfig.from_pretrained(saved)


def test_a_folder_from_before_formats_is_read(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    del config["format"], config["stages"]
    (saved / "config.json").write_text(json.dumps(config))
    assert PalModel.from_pretrained(saved).config.stages == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer_projection": "linear"},
            r"missing: streams\.a\.layer_projections\.0\.up\.bias, .*export it again",
        ),
        (
            {"width": 9},
            r"of another shape: streams\.a\.connector\.up\.weight \(32 x 12 there, 32 x 18 by",
        ),
    ],
)
def test_weights_of_another_form_are_named(saved: Path, changes: dict, message: str) -> None:
    edit(saved, streams={"a": stream("lal") | changes})
    for way_in in (PalModel, AutoModel):
        with pytest.raises(ModelError, match=message):
            way_in.from_pretrained(saved)


def test_a_stream_that_the_weights_do_not_know_is_named_with_what_is_there(saved: Path) -> None:
    edit(saved, streams={"b": stream("lal")})
    with pytest.raises(ModelError, match=r"missing: streams\.b.*not of this form: streams\.a"):
        PalModel.from_pretrained(saved)


def test_a_torn_or_lost_file_is_named(saved: Path) -> None:
    weights = saved / "model.safetensors"
    content = weights.read_bytes()
    for n in (4, len(content) // 2):
        weights.write_bytes(content[:n])
        with pytest.raises(ModelError, match=r"model\.safetensors is torn .*copy the whole folder"):
            PalModel.from_pretrained(saved)
    weights.write_bytes(content)
    PalModel.from_pretrained(saved).save_pretrained(saved / "shards", max_shard_size="20KB")
    lost = sorted((saved / "shards").glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match=lost.name):
        PalModel.from_pretrained(saved / "shards")


def test_a_bare_llm_is_told_from_a_model_that_listens(tmp_path: Path) -> None:
    tiny_llm("qwen2").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a bare LLM .*'qwen2'.*AutoModelForCausalLM"):
        PalModel.from_pretrained(tmp_path)


def test_an_llm_is_loaded_whole_or_refused(tmp_path: Path) -> None:
    tiny_llm("llama").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content, tensors = weights.read_bytes(), load_file(weights)
    assert load_llm(str(tmp_path), dtype=torch.float32).config.hidden_size == 32

    def refused(message: str) -> None:
        with pytest.raises(ModelError, match=message):
            PalModel.from_llm(str(tmp_path))

    name = "model.layers.1.self_attn.q_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, weights, {"format": "pt"})
    refused(rf"do not fit its config\.json: missing: {name}\. Its folder is incomplete")
    save_file({**tensors, name: tensors[name][:, :4].contiguous()}, weights, {"format": "pt"})
    refused(rf"of another shape: {name} \(32 x 4 there, 32 x 32 by the configuration\)")
    save_file({**tensors, "model.further": tensors[name].clone()}, weights, {"format": "pt"})
    load_llm(str(tmp_path), dtype=torch.float32)  # what the architecture has not is left unread
    weights.write_bytes(content[:1000])
    refused("LLM '.*' cannot be loaded: .*Give a folder that `save_pretrained` wrote")
    weights.unlink()
    refused("cannot be loaded")


def test_a_folder_that_is_not_there_is_not_called_a_hub_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="LLM '.*/gone' cannot be loaded: there is no such folder"):
        load_llm(str(tmp_path / "gone"), dtype=torch.float32)
