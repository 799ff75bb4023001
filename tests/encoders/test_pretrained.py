"""Encoders of `transformers` by their own class: waveform models and AST."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    AutoModel,
    GPT2Config,
    GPT2Model,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from paltrain.encoders import build_encoder
from paltrain.encoders.windows import encode_all
from paltrain.errors import ConfigError, ModelError
from tests.encoders.conftest import Noise, saved

RATE = 16_000
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
KINDS: dict[str, Any] = {
    "wav2vec2": lambda: Wav2Vec2Model(Wav2Vec2Config(**SIZES, **CONVOLUTIONS)),
    "wav2vec2-layer": lambda: Wav2Vec2Model(Wav2Vec2Config(**SIZES, **CONVOLUTIONS, **STABLE)),
    "hubert": lambda: HubertModel(HubertConfig(**SIZES, **CONVOLUTIONS)),
    "wavlm": lambda: WavLMModel(WavLMConfig(**SIZES, **CONVOLUTIONS)),
}
CELLS, STEPS = 3, 9  # of the small AST: 100 frames, 40 bands, patches of 16 every 10


def waveform_extractor() -> Wav2Vec2FeatureExtractor:
    return Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = KINDS[request.param]()
    return saved(model, waveform_extractor(), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return saved(KINDS["wav2vec2"](), waveform_extractor(), tmp_path_factory.mktemp("w2v2"))


@pytest.fixture(scope="module")
def ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = ASTModel(ASTConfig(**SIZES, max_length=100, num_mel_bins=40))
    extract = ASTFeatureExtractor(max_length=100, num_mel_bins=40)
    return saved(model, extract, tmp_path_factory.mktemp("ast"))


def test_waveform_models_equal_transformers(folder: Path, noise: Noise) -> None:
    encoder = build_encoder("transformers", path=str(folder))
    model = AutoModel.from_pretrained(folder).eval()
    assert (encoder.frame_rate_hz, encoder.window_s, encoder.width) == (50, 30, 16)
    waveforms = [noise(s, RATE) for s in (1.0, 0.7, 1.0, 0.0253)]
    for frames, waveform in zip(encoder.encode(waveforms), waveforms, strict=True):
        inputs = waveform_extractor()([waveform], sampling_rate=RATE, return_tensors="pt")
        with torch.inference_mode():
            expected = model(**inputs).last_hidden_state[0].numpy()
        assert len(frames) == model._get_feat_extract_output_lengths(len(waveform))
        np.testing.assert_allclose(frames, expected, atol=1e-5)


def test_a_layer_is_that_hidden_state(folder: Path, noise: Noise) -> None:
    waveform = noise(0.5, RATE)
    inputs = waveform_extractor()([waveform], sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder).eval()(**inputs, output_hidden_states=True)
    for layer in (0, 1, 2):
        encoder = build_encoder("transformers", path=str(folder), options={"layer": layer})
        expected = states.hidden_states[layer][0].numpy()
        np.testing.assert_allclose(encoder.encode([waveform])[0], expected, atol=1e-5)


def test_waveform_models_do_not_depend_on_the_batch(folder: Path, noise: Noise) -> None:
    encoder = build_encoder("transformers", path=str(folder))
    waveforms = [noise(s, RATE) for s in (0.3, 0.9, 0.3)] + [np.zeros(8000, np.float32)]
    for frames, waveform in zip(encoder.encode(waveforms), waveforms, strict=True):
        np.testing.assert_allclose(frames, encoder.encode([waveform])[0], atol=2e-5)
        assert np.isfinite(frames).all()


@pytest.mark.parametrize(
    ("n_samples", "n_frames"), [(1, 1), (100, 1), (400, 1), (720, 2), (25 * RATE, 499 + 499 + 249)]
)
def test_a_waveform_of_any_length_has_the_frames_of_the_convolutions(
    wav2vec2: Path, n_samples: int, n_frames: int, noise: Noise
) -> None:
    encoder = build_encoder("transformers", path=str(wav2vec2), options={"window_s": 10})
    (frames,) = encode_all(encoder, [noise(n_samples / RATE, RATE)])
    assert frames.shape == (n_frames, 16)
    assert np.isfinite(frames).all()


def test_ast_equals_transformers_in_order_of_time_and_is_trimmed(ast: Path, noise: Noise) -> None:
    encoder = build_encoder("transformers", path=str(ast))
    assert (encoder.frame_rate_hz, encoder.tokens_per_step) == (10 * CELLS, CELLS)
    assert encoder.window_s == pytest.approx(0.9)
    waveforms = [noise(0.9, RATE), noise(0.31, RATE)]
    extract, model = ASTFeatureExtractor.from_pretrained(ast), ASTModel.from_pretrained(ast).eval()
    inputs = extract(waveforms, sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs).last_hidden_state.numpy()
    assert expected.shape == (2, 2 + CELLS * STEPS, 16)
    whole, short = encoder.encode(waveforms)
    assert (len(whole), len(short)) == (STEPS * CELLS, 3 * CELLS)
    for step in range(STEPS):
        for cell in range(CELLS):
            token, patch = CELLS * step + cell, 2 + STEPS * cell + step
            np.testing.assert_allclose(whole[token], expected[0, patch], atol=1e-5)
            if token < len(short):
                np.testing.assert_allclose(short[token], expected[1, patch], atol=1e-5)


def test_the_first_patches_of_ast_are_the_first_sounds(ast: Path) -> None:
    """The order of the grid, told by the patches' own inputs: layer 0 without positions."""
    encoder = build_encoder("transformers", path=str(ast), options={"layer": 0})
    silence, late = np.zeros(14_400, np.float32), np.zeros(14_400, np.float32)
    late[8_000:] = np.random.default_rng(0).normal(size=6_400)
    change = np.abs(encoder.encode([late])[0] - encoder.encode([silence])[0]).sum(1)
    by_step = change.reshape(STEPS, CELLS).sum(1)
    assert by_step[:3].max() < 1e-6 < by_step[5:].min()


@pytest.mark.parametrize(
    ("n_samples", "n_steps"), [(1, 1), (100, 1), (25 * RATE, 250), (14_400 + 700, 9)]
)
def test_a_recording_through_ast_has_the_steps_of_its_duration(
    ast: Path, n_samples: int, n_steps: int, noise: Noise
) -> None:
    encoder = build_encoder("transformers", path=str(ast))
    (frames,) = encode_all(encoder, [noise(n_samples / RATE, RATE)])
    assert frames.shape == (n_steps * CELLS, 16)
    assert np.isfinite(frames).all()


def test_the_released_ast_has_1212_tokens_a_window_of_ten_seconds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved(ASTModel(ASTConfig(**SIZES)), ASTFeatureExtractor(), tmp_path)
    encoder = build_encoder("transformers", path=str(tmp_path))
    assert (encoder.frame_rate_hz, encoder.tokens_per_step) == (120, 12)
    assert encoder.window_s == pytest.approx(10.1)
    assert len(encoder.encode([np.zeros(161_600, np.float32)])[0]) == 1212
    with pytest.raises(ConfigError, match="pool=2 must divide the encoder's 101 time steps"):
        build_encoder("transformers", path=str(tmp_path), pool=2)


def test_random_weights_need_only_the_configuration(wav2vec2: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((wav2vec2 / name).read_bytes())
    fields = {"path": str(tmp_path), "options": {"random_seed": 4}}
    encoder = build_encoder("transformers", **fields)
    assert build_encoder("transformers", **fields).provenance() == encoder.provenance()
    assert encoder.provenance()["encoder"]["options"] == {"random_seed": 4}
    fields["options"] = {"random_seed": 5}
    other = build_encoder("transformers", **fields)
    assert other.provenance()["weight_hash"] != encoder.provenance()["weight_hash"]
    with pytest.raises(ModelError, match="cannot be loaded"):
        build_encoder("transformers", path=str(tmp_path))


def test_a_model_with_a_head_gives_the_encoder_below(tmp_path: Path, noise: Noise) -> None:
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**SIZES, **CONVOLUTIONS, vocab_size=5))
    saved(model, waveform_extractor(), tmp_path)
    waveform = noise(0.5, RATE)
    inputs = waveform_extractor()([waveform], sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        expected = model.eval().wav2vec2(**inputs).last_hidden_state[0].numpy()
    (frames,) = build_encoder("transformers", path=str(tmp_path)).encode([waveform])
    np.testing.assert_allclose(frames, expected, atol=1e-5)


def test_half_precision_is_near_and_an_encoder_is_rebuilt_from_its_provenance(
    folder: Path, noise: Noise
) -> None:
    options = {"compute_dtype": "bfloat16", "layer": 1, "window_s": 4}
    encoder = build_encoder("transformers", path=str(folder), options=options)
    stamp = encoder.provenance()
    assert stamp["encoder"]["options"] == options
    assert build_encoder(**stamp["encoder"]).provenance() == stamp
    whole = build_encoder("transformers", path=str(folder), options={"layer": 1})
    waveform = noise(0.5, RATE)
    difference = encoder.encode([waveform])[0] - whole.encode([waveform])[0]
    assert 0 < np.abs(difference).mean() < 0.1


def test_what_is_no_audio_encoder_says_why(
    wav2vec2: Path, ast: Path, whisper_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="encoder 'transformers' needs its path"):
        build_encoder("transformers")
    with pytest.raises(ModelError, match="'.*none' cannot be loaded"):
        build_encoder("transformers", path=str(tmp_path / "none"))
    text = GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=20))
    text.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded"):
        build_encoder("transformers", path=str(tmp_path))
    waveform_extractor().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a GPT2Model, and encoder 'transformers' takes"):
        build_encoder("transformers", path=str(tmp_path))
    with pytest.raises(ModelError, match="for Whisper use type: whisper"):
        build_encoder("transformers", path=str(whisper_folder))
    for path, options, fault in (
        (wav2vec2, {"layer": 3}, r"layer=3 must be from 0 \(before the first\) to 2"),
        (wav2vec2, {"window_s": 0.01}, "window_s=0.01 must hold at least the 400 samples"),
        (wav2vec2, {"output": "tokens"}, "option of encoder 'transformers' 'output'"),
        (ast, {"window_s": 5}, "hears a fixed window: leave out window_s=5"),
    ):
        with pytest.raises(ConfigError, match=fault):
            build_encoder("transformers", path=str(path), options=options)


def test_missing_weights_are_named(wav2vec2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in wav2vec2.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(wav2vec2 / "model.safetensors")
    del weights["encoder.layers.1.attention.q_proj.weight"], weights["masked_spec_embed"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"missing: encoder\.layers\.1\.attention\.q_proj\.weight\."
    ):
        build_encoder("transformers", path=str(tmp_path))
