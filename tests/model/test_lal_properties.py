"""The six properties of LAL, in float64 on tiny random decoders."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from paltrain.batch import Batch, BatchBuilder
from paltrain.errors import ModelError
from paltrain.model.attention import resolve_backend
from paltrain.model.modeling import PalModel
from tests.model.conftest import Forest, mixed_batch, pal, stream, tiny_llm
from tests.model.dense import conversation_logits

CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # RMSNorm and RoPE compute in float32 inside the families
EXACT = {"rtol": 1e-9, "atol": 1e-9}

FORMS: dict[str, dict[str, Any]] = {
    "lal": {"a": stream("lal")},
    "plits": {"a": stream("plits")},
    "lal_delayed": {"a": stream("lal", layers={"start": 2})},
    "lal_linear": {"a": stream("lal", layers=[0, 2], layer_projection="linear")},
    "lal_mlp": {"a": stream("lal", layer_projection="mlp")},
    "ensemble": {"a": stream("lal"), "b": stream("lal", layers=[1])},
    "pal": {"b": stream("plits"), "a": stream("lal", layers={"start": 1})},
}


def text_rows(batch: Batch, leaf: int) -> torch.Tensor:
    """Text tokens of the path to `leaf`."""
    starts = np.cumsum(batch.n_tokens) - batch.n_tokens
    rows = [np.arange(starts[p], starts[p] + batch.n_tokens[p]) for p in batch.path(leaf)]
    return torch.from_numpy(np.concatenate(rows))


# ---- 1: without audio, the untouched model -------------------------------------------------------


def test_without_audio_the_logits_are_those_of_the_untouched_model(family: str) -> None:
    untouched = tiny_llm(family)
    model = pal(copy.deepcopy(untouched), FORMS["lal"])
    forest = Forest()
    for n_tokens in (5, 1, 9):
        forest.text(n_tokens)
    batch = forest.build()
    runs = batch.token_ids.split(batch.n_tokens.tolist())
    expected = torch.cat([untouched(run[None]).logits[0] for run in runs])
    torch.testing.assert_close(model.text_logits(batch), expected, **CLOSE)
    assert model.get_input_embeddings().num_embeddings == untouched.config.vocab_size


# ---- 2: one layer, LAL = PLITS -------------------------------------------------------------------


def test_with_one_layer_lal_equals_plits(family: str) -> None:
    llm = tiny_llm(family, n_layers=1)
    lal = pal(copy.deepcopy(llm), FORMS["lal"])
    plits = pal(copy.deepcopy(llm), FORMS["plits"])
    batch = mixed_batch()
    torch.testing.assert_close(lal.text_logits(batch), plits.text_logits(batch), **CLOSE)


def test_with_two_layers_lal_differs_from_plits() -> None:
    """Or the test above would compare nothing."""
    llm = tiny_llm("llama", n_layers=2)
    lal, plits = (pal(copy.deepcopy(llm), FORMS[form]) for form in ("lal", "plits"))
    batch = mixed_batch()
    assert (lal.text_logits(batch) - plits.text_logits(batch)).abs().max() > 1e-3


# ---- 3: a dense reference ------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_logits_equal_the_dense_reference(family: str, form: str) -> None:
    model = pal(tiny_llm(family), FORMS[form])
    batch = mixed_batch(tuple(FORMS[form]))
    logits = model.text_logits(batch)
    for leaf in batch.leaves:
        expected = conversation_logits(model, batch, int(leaf))
        torch.testing.assert_close(logits[text_rows(batch, int(leaf))], expected, **CLOSE)


@pytest.mark.parametrize("form", ["lal", "plits", "pal", "lal_mlp"])
def test_gradients_equal_the_dense_reference(family: str, form: str) -> None:
    model = pal(tiny_llm(family), FORMS[form])
    forest = Forest(streams=tuple(FORMS[form]))
    forest.text(6, forest.clip(7, forest.text(3)))
    batch = forest.build()
    leaf = int(batch.leaves[0])

    def gradients(logits: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        logits.square().mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    packed = gradients(model.text_logits(batch)[text_rows(batch, leaf)])
    dense = gradients(conversation_logits(model, batch, leaf))
    assert packed.keys() == dense.keys()
    for name in dense:
        torch.testing.assert_close(packed[name], dense[name], rtol=1e-5, atol=1e-6, msg=name)


def test_text_before_a_clip_is_blind_to_it_and_text_behind_hears_it(family: str) -> None:
    model = pal(tiny_llm(family), FORMS["lal"])
    batch = mixed_batch()
    louder = replace(
        batch,
        features={"a": replace(batch.features["a"], values=batch.features["a"].values * 2)},
    )
    changed = (model.text_logits(batch) - model.text_logits(louder)).abs().amax(1) > 1e-6
    hears = torch.cat(
        [
            torch.full((int(n),), any(batch.is_clip[p] for p in batch.path(piece)))
            for piece, n in enumerate(batch.n_tokens)
        ]
    )
    assert torch.equal(changed, hears)


# ---- 4: packing invariance -----------------------------------------------------------------------


def question_batch(conversations: list[list[int]]) -> Batch:
    """Conversations about clip 0, 1, ...: lists of questions; equal numbers, equal tokens."""
    builder, values = BatchBuilder(), []
    for questions in conversations:
        clip_number = questions[0] // 10
        rng = np.random.default_rng(clip_number)
        trunk = builder.add_text(rng.integers(3, 97, 4))
        frames = rng.normal(size=(5 + clip_number, 6))
        values.append(frames)
        clip = builder.add_clip({"a": len(frames)}, trunk)
        for question in questions:
            tokens = np.random.default_rng(100 + question).integers(3, 97, 3 + question % 4)
            piece = builder.add_text(tokens, clip)
            builder.add_targets(piece, np.arange(len(tokens)) > 0)
    return builder.build({"a": torch.from_numpy(np.concatenate(values))})


@pytest.mark.parametrize("form", ["lal", "plits"])
def test_loss_and_gradient_do_not_depend_on_packing(family: str, form: str) -> None:
    model = pal(tiny_llm(family), FORMS[form])

    def total(batches: list[Batch]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss = sum(model(batch).loss_sum for batch in batches)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), **gradients}

    alone = total([question_batch([[q]]) for q in (0, 1, 2, 10, 11, 20)])
    arrangements = {
        "packed apart": [question_batch([[0], [1], [2], [10], [11], [20]])],
        "another order": [question_batch([[20], [11], [0], [10], [2], [1]])],
        "questions of a clip together": [question_batch([[0, 1, 2], [10, 11], [20]])],
        "some together, two batches": [
            question_batch([[2, 0], [20]]),
            question_batch([[11, 10], [1]]),
        ],
    }
    for name, batches in arrangements.items():
        for key, value in total(batches).items():
            torch.testing.assert_close(
                value, alone[key], rtol=1e-5, atol=1e-6, msg=f"{name}: {key}"
            )


# ---- 5: cached decoding --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["lal", "plits", "lal_delayed", "pal"])
def test_cached_decoding_equals_the_full_forward_token_by_token(family: str, form: str) -> None:
    model = pal(tiny_llm(family), FORMS[form])
    streams = tuple(FORMS[form])

    def forest(answers: list[list[int]]) -> Batch:
        """Two questions about one clip, one about a longer one, text alone; answers so far."""
        grown = Forest(3, streams)
        shared = grown.clip(7, grown.text(5))
        leaves = [grown.rng.integers(3, 97, n).tolist() for n in (4, 2, 6, 3)]
        parents = [shared, shared, grown.clip(12, grown.text(2)), -1]
        for prompt, answer, parent in zip(leaves, answers, parents, strict=True):
            grown.builder.add_text(np.array(prompt + answer), parent)
        return grown.build()

    generated = model.generate(
        forest([[], [], [], []]),
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    ).tolist()
    for step in range(6):
        batch = forest([tokens[:step] for tokens in generated])
        logits = model.text_logits(batch)
        last = np.cumsum(batch.n_tokens)[batch.leaves] - 1
        assert logits[last].argmax(-1).tolist() == [tokens[step] for tokens in generated]


def test_sampling_beams_and_several_answers_a_prompt_run_through_transformers_generate() -> None:
    model = pal(tiny_llm("llama"), FORMS["lal_delayed"])
    batch = mixed_batch()
    options = {"max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0}
    n = len(batch.leaves)
    several = model.generate(batch, do_sample=True, num_return_sequences=2, **options)
    assert several.shape == (2 * n, 4)
    beams = model.generate(batch, num_beams=3, do_sample=False, **options)
    greedy = model.generate(batch, do_sample=False, **options)

    def log_likelihood(tokens: torch.Tensor) -> torch.Tensor:
        return torch.stack([score(model, batch, i, row) for i, row in enumerate(tokens)])

    assert (log_likelihood(beams) >= log_likelihood(greedy) - 1e-9).all()


def score(model: PalModel, batch: Batch, leaf_number: int, answer: torch.Tensor) -> torch.Tensor:
    """Log-likelihood of an answer by the full forward pass, its conversation alone."""
    leaf = int(batch.leaves[leaf_number])
    builder, values, piece = BatchBuilder(), [], -1
    starts = np.cumsum(batch.n_tokens) - batch.n_tokens
    clip_numbers = np.cumsum(batch.is_clip) - 1
    frames = batch.features["a"].values.split(batch.features["a"].n_frames.tolist())
    for p in batch.path(leaf):
        if batch.is_clip[p]:
            values.append(frames[clip_numbers[p]])
            piece = builder.add_clip({"a": len(values[-1])}, piece)
        else:
            tokens = batch.token_ids[starts[p] : starts[p] + batch.n_tokens[p]].numpy()
            tokens = np.concatenate([tokens, answer.numpy()]) if p == leaf else tokens
            piece = builder.add_text(tokens, piece)
    alone = builder.build({"a": torch.cat(values)} if values else {})
    log_probs = model.text_logits(alone).log_softmax(-1)[-len(answer) - 1 : -1]
    return log_probs.gather(1, answer[:, None]).sum()


# ---- 6: what audio does not cost -----------------------------------------------------------------


def flops_by_module(model: PalModel, batch: Batch) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter:
        model(batch).loss_sum.backward()
    return {
        name.removeprefix("PalModel."): sum(counts.values())
        for name, counts in counter.get_flop_counts().items()
    }


def test_audio_costs_no_flop_in_q_proj_o_proj_or_ffn() -> None:
    def question(n_frames: int) -> Batch:
        forest = Forest()
        forest.text(6, forest.clip(n_frames, forest.text(3)))
        return forest.build()

    model = pal(tiny_llm("llama"), FORMS["lal"])
    short, long = (flops_by_module(model, question(n)) for n in (2, 200))
    for layer in range(3):
        for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp"):
            name = f"llm.model.layers.{layer}.{module}"
            assert short[name] == long[name] > 0, name
        name = f"llm.model.layers.{layer}.self_attn.k_proj"
        assert long[name] > short[name]


def test_audio_saves_no_activation_in_q_proj_o_proj_or_ffn() -> None:
    model = pal(tiny_llm("llama"), FORMS["lal"])
    saved: list[torch.Size] = []
    hooks = [
        module.register_forward_hook(lambda _m, inputs, _out: saved.append(inputs[0].shape))
        for name, module in model.named_modules()
        if name.endswith(("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
    ]
    forest = Forest()
    forest.text(6, forest.clip(200, forest.text(3)))
    model(forest.build()).loss_sum.backward()
    for hook in hooks:
        hook.remove()
    assert len(saved) == 15
    assert {shape[1] for shape in saved} == {9}


def test_a_stream_without_audio_runs_its_modules_and_gets_zero_gradient() -> None:
    for form in ("lal", "plits", "pal", "lal_mlp"):
        model = pal(tiny_llm("llama"), FORMS[form])
        forest = Forest()
        forest.text(6)
        batch = forest.build()
        model(replace(batch, features={})).loss_sum.backward()
        for name, parameter in model.streams.named_parameters():
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name


def test_the_dummy_batch_reaches_every_parameter_with_zero_gradient() -> None:
    for form in FORMS:
        model = pal(tiny_llm("qwen3"), FORMS[form])
        model(model.dummy_batch()).loss_sum.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (form, name)
            assert not parameter.grad.any(), (form, name)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flash_attn", "torch"])
@pytest.mark.parametrize("form", ["lal", "plits", "pal"])
def test_bf16_kernels_on_cuda_follow_the_float32_reference(
    family: str, form: str, backend: str
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    try:
        resolve_backend(backend, "cuda", torch.bfloat16)
    except ModelError as error:
        pytest.skip(str(error))
    llm = tiny_llm(family, hidden_size=128, head_dim=64, num_attention_heads=2)
    batch = mixed_batch(tuple(FORMS[form])).to("cuda")
    reference = pal(llm, FORMS[form], attention_backend="sdpa").to("cuda").float()
    ours = copy.deepcopy(reference).to(torch.bfloat16)
    ours.config.attention_backend = backend
    expected, loss = (model(batch).loss_sum for model in (reference, ours))
    torch.testing.assert_close(loss, expected, rtol=3e-2, atol=3e-2)
    expected.backward()
    loss.backward()
    for (name, theirs), mine in zip(reference.named_parameters(), ours.parameters(), strict=True):
        error = (mine.grad.float() - theirs.grad).norm() / theirs.grad.norm().clamp(min=1e-3)
        assert error < 0.15, (name, float(error))
