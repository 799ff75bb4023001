"""What is known of encoders without torch: equal to what the encoders are once they are built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    ClapAudioConfig,
    ClapAudioModel,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from cluster.preflight.weights import encoder_stamp, facts_of
from paltrain.config.schema import EncoderConfig
from paltrain.encoders import ENCODERS, build_encoder
from paltrain.errors import ConfigError, ModelError
from tests.encoders.test_pretrained import CONVOLUTIONS
from tests.encoders.test_pretrained import SIZES as SMALL
from tests.encoders.test_sslam import SIZES, released_weights
from tests.whisper import save_tiny_whisper

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys
from cluster.preflight.weights import encoder_stamp
from paltrain.config.schema import EncoderConfig
stamps = [encoder_stamp(EncoderConfig(**f), environment={}) for f in json.load(sys.stdin)]
loaded = [name for name in ("torch", "transformers", "torchaudio") if name in sys.modules]
print(json.dumps([loaded, stamps]))
"""


def clap_config(**changes: Any) -> ClapAudioConfig:
    small = {"depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2], "hidden_size": 32}
    return ClapAudioConfig(**{"patch_embeds_hidden_size": 4, **small, **changes})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder of each kind of files, as `transformers` or a release has them."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("encoders")
    save_tiny_whisper(root / "whisper")
    unfused = ClapFeatureExtractor(truncation="rand_trunc")
    models = {
        "clap-half": (ClapAudioModel(clap_config()), unfused),
        # Of what is left at its default nothing is written.
        "clap-whole": (
            ClapModel(
                ClapConfig(
                    audio_config=clap_config(depths=[2, 2, 6, 2]),
                    text_config=ClapTextConfig(**SMALL, vocab_size=20),
                )
            ),
            unfused,
        ),
        "wav2vec2": (
            Wav2Vec2Model(Wav2Vec2Config(**SMALL, **CONVOLUTIONS, add_adapter=True)),
            Wav2Vec2FeatureExtractor(),
        ),
        "ast": (
            ASTModel(ASTConfig(**SMALL, max_length=100, num_mel_bins=40)),
            ASTFeatureExtractor(max_length=100, num_mel_bins=40),
        ),
    }
    for name, (model, extract) in models.items():
        model.save_pretrained(root / name)
        extract.save_pretrained(root / name)
    (root / "sslam").mkdir()
    save_file(released_weights(), root / "sslam" / "model.safetensors")
    return {path.name: str(path) for path in root.iterdir()}


def kinds(folders: dict[str, str]) -> list[dict[str, Any]]:
    """Every type, with and without its options, as `EncoderConfig` takes them."""
    fast = {"compute_dtype": "bfloat16"}
    return [
        {"type": "logmel"},
        {"type": "logmel", "options": {"n_mels": 40, "frame_rate_hz": 25}, "pool": 2},
        {"type": "whisper", "path": folders["whisper"]},
        {"type": "whisper", "path": folders["whisper"], "options": fast, "pool": 2},
        {"type": "clap", "path": folders["clap-half"]},
        {"type": "clap", "path": folders["clap-whole"], "pool": 2},
        {"type": "clap", "path": folders["clap-whole"], "options": {"output": "pooled"}},
        {"type": "sslam", "path": folders["sslam"], "options": SIZES},
        {"type": "sslam", "options": {"random_seed": 1, "output": "time_pooled", **SIZES}},
        {"type": "sslam", "options": {"random_seed": 1, **SIZES, **fast}, "pool": 4},
        {"type": "transformers", "path": folders["wav2vec2"], "options": {"layer": 1}},
        {"type": "transformers", "path": folders["wav2vec2"], "options": {"random_seed": 1}},
        {"type": "transformers", "path": folders["ast"]},
        {"type": "transformers", "path": folders["ast"], "pool": 3},
    ]


def test_the_stamp_is_known_without_torch_as_the_encoder_says_it(folders: dict[str, str]) -> None:
    asked = kinds(folders)
    assert {fields["type"] for fields in asked} == set(ENCODERS)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(asked), cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded, stamps = json.loads(done.stdout)
    assert loaded == []
    for fields, stamp in zip(asked, stamps, strict=True):
        encoder = build_encoder(**fields)
        said = encoder.provenance()
        assert len(said.pop("weight_hash")) == 16
        said["encoder"].setdefault("pool", 1)
        assert stamp == {**json.loads(json.dumps(said)), "dtype": "float16"}, fields
        known = facts_of(EncoderConfig(**fields), environment={})
        assert (known.tokens_per_step, known.window_s) == (
            encoder.tokens_per_step,
            encoder.window_s,
        ), fields


def test_the_numbers_of_what_is_released(tmp_path: Path) -> None:
    """By the configuration files of laion/clap-htsat-unfused and openai/whisper-large-v3, as far as
    they count, and by SSLAM's own sizes."""
    clap = {"model_type": "clap", "audio_config": {"depths": [2, 2, 6, 2], "patch_stride": [4, 4]}}
    audio = {"sampling_rate": 48_000, "nb_max_samples": 480_000, "truncation": "rand_trunc"}
    whisper = {"max_source_positions": 1500, "d_model": 1280}
    for name, config, preprocessor in (
        ("clap", clap, audio),
        ("whisper", whisper, {"sampling_rate": 16_000, "n_samples": 480_000}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(preprocessor))

    def numbers(type: str, path: str | None = None, **fields: Any) -> tuple[float, int, int]:
        stamp = encoder_stamp(EncoderConfig(type, path, **fields), environment={})
        return stamp["frame_rate_hz"], stamp["width"], stamp.get("tokens_per_step", 1)

    assert numbers("clap", str(tmp_path / "clap")) == (6.4, 768, 2)
    assert numbers("whisper", str(tmp_path / "whisper"), pool=2) == (25.0, 1280, 1)
    assert numbers("sslam", "not/downloaded") == (50.0, 768, 8)
    assert numbers("sslam", "not/downloaded", options={"output": "time_pooled"}) == (6.25, 768, 1)


def test_wrong_options_and_files_are_refused_without_torch(
    folders: dict[str, str], tmp_path: Path
) -> None:
    def refused(fault: str, **fields: Any) -> None:
        with pytest.raises((ConfigError, ModelError), match=fault):
            facts_of(EncoderConfig(**fields), environment={})

    refused("unknown encoder type 'claps'", type="claps")
    refused("does not say its `facts`", type="paltrain.encoders.pooled:PooledEncoder")
    refused("encoder 'clap' needs its path", type="clap")
    refused("option of encoder 'clap' 'layer'.*valid: output", type="clap", path="a",
            options={"layer": 1})  # fmt: skip
    refused("unknown output of encoder 'sslam'", type="sslam", path="a", options={"output": "x"})
    refused("either a path .* or random_seed", type="sslam")
    refused(r"'sslam': options.random_seed is 'a': .* integer; see paltrain.encoders.sslam",
            type="sslam", options={"random_seed": "a"})  # fmt: skip
    refused("unknown compute_dtype 'half'", type="whisper", path="a",
            options={"compute_dtype": "half"})  # fmt: skip
    refused("layer=9 must be from 0", type="transformers", path=folders["ast"],
            options={"layer": 9})  # fmt: skip
    refused("pool=3 must divide the encoder's 64 time steps", type="sslam", path="a", pool=3)
    refused("for Whisper use type: whisper", type="transformers", path=folders["whisper"])
    refused("holds a model of type 'whisper'", type="clap", path=folders["whisper"])
    refused("do not say 'n_samples'", type="whisper", path=folders["wav2vec2"])
    refused("encoder 'whisper': no/whisper is neither a folder nor", type="whisper",
            path="no/whisper")  # fmt: skip
    refused("has no config.json", type="clap", path=str(tmp_path))
