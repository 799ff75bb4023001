"""PalModel as users hold it: round trip, refusals, gradient checkpointing."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformers import AttentionInterface, AutoModel, AutoModelForCausalLM

from paltrain import PalConfig, PalModel
from paltrain.errors import ModelError
from paltrain.model.lal import ATTENTION_NAME
from tests.model.conftest import mixed_batch, pal, stream, tiny_llm
from tests.model.forms import FORMS, PAPER, model_of, streams_of


@pytest.mark.parametrize("tie", [False, True])
def test_save_and_load_round_trip_gives_the_same_logits(family: str, tie: bool, tmp_path) -> None:
    streams = {
        "a": stream("lal", layers={"start": 1}, layer_projection="mlp"),
        "b": stream("plits"),
    }
    model = pal(tiny_llm(family, tie_word_embeddings=tie), streams)
    batch = mixed_batch(("a", "b"))
    model.save_pretrained(tmp_path)
    for loaded in (PalModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        logits = loaded.eval().text_logits(batch)
        weights, own = loaded.state_dict(), model.state_dict()
        assert weights.keys() == own.keys()
        assert all(torch.equal(weights[name], own[name]) for name in own)
        # Where a file's weights lie in memory decides which kernel a CPU takes: equal to rounding.
        torch.testing.assert_close(logits, model.text_logits(batch), rtol=1e-12, atol=1e-13)
        head, embeddings = loaded.get_output_embeddings(), loaded.get_input_embeddings()
        assert (head.weight is embeddings.weight) == tie
    config = PalConfig.from_pretrained(tmp_path)
    assert list(config.streams) == ["a", "b"]


@pytest.mark.parametrize("form", PAPER)
def test_every_form_is_saved_and_loaded_whole(form: str, tmp_path) -> None:
    model, batch = model_of(form), mixed_batch(streams_of(form))
    model.save_pretrained(tmp_path)
    loaded = PalModel.from_pretrained(tmp_path).eval()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(
        loaded.text_logits(batch), model.text_logits(batch), rtol=1e-12, atol=1e-13
    )


def test_fresh_adapters_and_fresh_blocks_change_nothing() -> None:
    """B and the gates are zero, whatever `transformers` initialises."""
    batch = mixed_batch()
    for form, without in (("lora_lal", "lal"), ("lora_plits", "plits")):
        options = {key: value for key, value in FORMS[form].items() if key != "streams"}
        models = []
        for extra in (options, {}):
            torch.manual_seed(1)
            streams = FORMS[without]["streams"]
            models.append(
                PalModel.from_llm(
                    tiny_llm("llama"), streams=streams, dtype=torch.float64, **extra
                ).eval()
            )
        torch.testing.assert_close(models[0].text_logits(batch), models[1].text_logits(batch))
    llm = tiny_llm("llama")
    blocks = PalModel.from_llm(
        copy.deepcopy(llm), streams=FORMS["flamingo"]["streams"], dtype=torch.float64
    ).eval()
    bare = pal(llm, {})
    deaf = replace(batch, features={})
    torch.testing.assert_close(blocks.text_logits(batch), bare.text_logits(deaf))


def test_adapters_for_modules_that_the_llm_lacks_are_refused() -> None:
    """The head, too, which may be tied."""
    for name in ("query_proj", "lm_head"):
        lora = {"rank": 2, "alpha": 4.0, "target_modules": [name, "v_proj"]}
        with pytest.raises(ModelError, match=f"names {name}, which .* have not: choose among"):
            pal(tiny_llm("llama"), {"a": stream("lal")}, lora=lora)


def test_soft_capping_is_refused_with_what_to_do() -> None:
    states, attention = torch.zeros(1, 1, 1, 1), AttentionInterface()[ATTENTION_NAME]
    with pytest.raises(ModelError, match=r"soft-capping \(30.0\) .*: choose an LLM without it"):
        attention(None, states, states, states, None, scaling=1.0, softcap=30.0, pal=object())


@pytest.mark.parametrize("key", ["route", "width", "connector", "layers", "layer_projection"])
def test_a_stream_that_lacks_a_field_is_named(key: str) -> None:
    spec = stream("lal")
    del spec[key]
    with pytest.raises(ModelError, match=f"stream 'a' does not say its {key}"):
        pal(tiny_llm("llama"), {"a": spec})


@pytest.mark.parametrize(
    "layers", [{"start": 1.5}, {"start": None}, {"every": 0}, {"every": 2, "end": 3}, [1.0], {}]
)
def test_layers_that_are_no_whole_numbers_are_refused(layers: object) -> None:
    with pytest.raises(ModelError, match="stream 'a': layers"):
        pal(tiny_llm("llama"), {"a": stream("lal", layers=layers)})


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    connector = {"type": "resampler", "n_latents": 4, "n_heads": 5, "n_layers": 1}
    with pytest.raises(ModelError, match="stream 'a': connector.n_heads=5 must divide .* 32"):
        pal(tiny_llm("llama"), {"a": stream("lal", connector=connector)})


def test_building_around_a_pretrained_llm_leaves_its_weights_alone(tmp_path) -> None:
    llm = tiny_llm("llama")
    llm.save_pretrained(tmp_path)
    before = {name: p.clone() for name, p in llm.named_parameters()}
    model = PalModel.from_llm(str(tmp_path), streams={"a": stream("lal")}, dtype=torch.float64)
    for name, parameter in model.llm.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_the_llm_inside_is_saved_as_an_ordinary_transformers_folder(tmp_path) -> None:
    model = pal(tiny_llm("qwen3"), {})
    model.llm.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(3, 12)[None]
    assert plain.config._attn_implementation == "sdpa"
    assert plain(ids).logits.shape == (1, 9, 97)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_checkpointing_gives_the_same_gradients_bitwise(form: str) -> None:
    batch = mixed_batch(streams_of(form))
    gradients = []
    for checkpointing in (False, True):
        model = model_of(form).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(batch).loss_sum.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_trains_and_answers_near_float32(form: str) -> None:
    batch = mixed_batch(streams_of(form))
    model = model_of(form).float()
    expected = model(batch).loss_sum
    model = model.to(torch.bfloat16)
    loss = model(batch).loss_sum
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0.0)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    answers = model.generate(batch, max_new_tokens=2, eos_token_id=None, pad_token_id=0)
    assert answers.shape == (len(batch.leaves), 2)


@pytest.mark.parametrize(
    ("streams", "message"),
    [
        ({"a": stream("lall")}, "unknown route 'lall'.*did you mean 'lal'"),
        ({"a": stream("lal", layers=[1, 3])}, r"layers name \[3\], but the LLM has layers 0 to 2"),
        ({"a": stream("lal", layers={"start": 5})}, r"layers name \[5\]"),
        ({"a": stream("lal", layers="some")}, "layers is 'some'; valid: all"),
        ({"a": stream("lal", layers={"every": 0})}, "layers.every must be at least 1, is 0"),
    ],
)
def test_a_stream_that_cannot_be_built_is_refused(streams: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        pal(tiny_llm("llama"), streams)


def test_features_of_another_width_or_stream_are_refused() -> None:
    model = pal(tiny_llm("llama"), {"a": stream("lal")})
    batch = mixed_batch()
    features = batch.features["a"]
    wide = replace(features, values=torch.zeros(len(features.values), 9))
    with pytest.raises(ModelError, match="features of width 6, but they have width 9"):
        model(replace(batch, features={"a": wide}))
    with pytest.raises(ModelError, match="unknown stream 'whisper'"):
        model(replace(batch, features={"whisper": features}))


def test_an_llm_that_cannot_be_honoured_is_refused() -> None:
    with pytest.raises(ModelError, match="LLM family 'gpt2' is not supported; supported: llama"):
        PalModel.from_llm(AutoModelForCausalLM.from_config(_gpt2()))
    with pytest.raises(ModelError, match=r"attention_dropout is 0\.1"):
        PalModel.from_llm(tiny_llm("llama", attention_dropout=0.1))
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ModelError, match="RoPE type 'dynamic' depends on the length"):
        PalModel.from_llm(tiny_llm("llama", rope_parameters=rope))


def test_a_conversation_over_the_sliding_window_is_refused_and_a_shorter_one_is_exact() -> None:
    llm = tiny_llm("mistral")
    windowed = tiny_llm("mistral", sliding_window=12)
    batch = mixed_batch()
    with pytest.raises(
        ModelError, match=r"spans \d+ positions, over the LLM's sliding window of 12"
    ):
        pal(windowed, {"a": stream("lal")})(batch)
    wide = copy.deepcopy(llm)
    wide.config.sliding_window = 60
    a, b = (pal(x, {"a": stream("lal")}).text_logits(batch) for x in (llm, wide))
    assert torch.equal(a, b)


def test_a_missing_llm_says_what_to_give(tmp_path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded: .*Give a folder"):
        PalModel.from_llm(str(tmp_path / "nowhere"))


def test_a_prompt_that_ends_in_a_clip_is_refused() -> None:
    from tests.model.conftest import Forest

    forest = Forest()
    forest.clip(4, forest.text(3))
    with pytest.raises(ModelError, match="a prompt ends in a clip"):
        pal(tiny_llm("llama"), {"a": stream("lal")}).generate(forest.build(), max_new_tokens=2)


def _gpt2():
    from transformers import GPT2Config

    return GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2)
