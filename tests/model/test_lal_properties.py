"""The six properties of LAL for every form that uses it, in float64 on tiny random decoders; what
holds of the other forms, too, is tested with them."""

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
from tests.model.conftest import Forest, mixed_batch, pal_of, tiny_llm
from tests.model.dense import conversation_logits
from tests.model.forms import CASES, FORMS, PAPER, WITH_LAL, model_of, streams_of

CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # RMSNorm and RoPE compute in float32 inside the families
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def text_rows(batch: Batch, leaf: int) -> torch.Tensor:
    """Text tokens of the path to `leaf`."""
    starts = np.cumsum(batch.n_tokens) - batch.n_tokens
    rows = [np.arange(starts[p], starts[p] + batch.n_tokens[p]) for p in batch.path(leaf)]
    return torch.from_numpy(np.concatenate(rows))


# ---- 1: without audio, the untouched model -------------------------------------------------------


@pytest.mark.parametrize("form", [form for form in PAPER if "lora" not in form])
def test_without_audio_the_logits_are_those_of_the_untouched_model(family: str, form: str) -> None:
    untouched = tiny_llm(family)
    model = pal_of(copy.deepcopy(untouched), FORMS[form])
    batch = text_alone()
    torch.testing.assert_close(model.text_logits(batch), plain_logits(untouched, batch), **CLOSE)
    assert model.get_input_embeddings().num_embeddings == untouched.config.vocab_size


def test_without_audio_the_logits_are_those_of_the_llm_with_its_adapters(family: str) -> None:
    """Whose adapters are merged here by their definition, W + B A alpha / rank."""
    untouched = tiny_llm(family)
    model = pal_of(copy.deepcopy(untouched), FORMS["lora_lal"])
    lora, batch = FORMS["lora_lal"]["lora"], text_alone()
    weights, n_merged = dict(model.named_parameters()), 0
    with torch.no_grad():
        for name, parameter in untouched.named_parameters():
            stem = f"llm.{name.removesuffix('.weight')}"
            if f"{stem}.lora_A.default.weight" in weights:
                a, b = (weights[f"{stem}.lora_{which}.default.weight"] for which in "AB")
                parameter.add_(b @ a * lora["alpha"] / lora["rank"])
                n_merged += 1
    assert n_merged == 3 * len(lora["target_modules"])
    torch.testing.assert_close(model.text_logits(batch), plain_logits(untouched, batch), **CLOSE)


def text_alone() -> Batch:
    forest = Forest()
    for n_tokens in (5, 1, 9):
        forest.text(n_tokens)
    return forest.build()


def plain_logits(llm: Any, batch: Batch) -> torch.Tensor:
    runs = batch.token_ids.split(batch.n_tokens.tolist())
    return torch.cat([llm(run[None]).logits[0] for run in runs])


# ---- 2: one layer, LAL = PLITS -------------------------------------------------------------------


@pytest.mark.parametrize("form", WITH_LAL)
def test_with_one_layer_lal_equals_plits(family: str, form: str) -> None:
    lal, plits, streams = twins(form, family, n_layers=1)
    batch = mixed_batch(streams)
    torch.testing.assert_close(lal.text_logits(batch), plits.text_logits(batch), **CLOSE)


@pytest.mark.parametrize("form", WITH_LAL)
def test_with_two_layers_lal_differs_from_plits(form: str) -> None:
    """Or the test above would compare nothing."""
    lal, plits, streams = twins(form, "llama", n_layers=2)
    batch = mixed_batch(streams)
    assert (lal.text_logits(batch) - plits.text_logits(batch)).abs().max() > 1e-3


def twins(form: str, family: str, *, n_layers: int) -> tuple[PalModel, PalModel, tuple[str, ...]]:
    """A form and the same with all streams by PLITS, of the same weights, in the order of
    positions."""
    streams = FORMS[form]["streams"]
    if n_layers == 1:
        streams = {name: {**spec, "layers": "all"} for name, spec in streams.items()}
    order = sorted(streams, key=lambda name: streams[name]["route"] == "plits")
    by_plits = {name: {**streams[name], "route": "plits", "layers": "all"} for name in order}
    llm = tiny_llm(family, n_layers=n_layers)
    lal = pal_of(copy.deepcopy(llm), FORMS[form] | {"streams": streams})
    plits = pal_of(llm, FORMS[form] | {"streams": by_plits})
    plits.load_state_dict(lal.state_dict())
    return lal, plits, tuple(streams)


# ---- 3: a dense reference ------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "form"), CASES)
def test_logits_equal_the_dense_reference(family: str, form: str) -> None:
    model = model_of(form, family)
    batch = mixed_batch(streams_of(form))
    logits = model.text_logits(batch)
    for leaf in batch.leaves:
        expected = conversation_logits(model, batch, int(leaf))
        torch.testing.assert_close(logits[text_rows(batch, int(leaf))], expected, **CLOSE)


@pytest.mark.parametrize(("family", "form"), CASES)
def test_gradients_equal_the_dense_reference(family: str, form: str) -> None:
    model = model_of(form, family)
    forest = Forest(streams=streams_of(form))
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


@pytest.mark.parametrize("form", ["lal", "flamingo"])
def test_text_before_a_clip_is_blind_to_it_and_text_behind_hears_it(family: str, form: str) -> None:
    model = model_of(form, family)
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


def question_batch(conversations: list[list[int]], streams: tuple[str, ...]) -> Batch:
    """Conversations about clip 0, 1, ...: lists of questions; equal numbers, equal tokens."""
    builder: BatchBuilder = BatchBuilder()
    values: dict[str, list[np.ndarray]] = {name: [] for name in streams}
    for questions in conversations:
        clip_number = questions[0] // 10
        rng = np.random.default_rng(clip_number)
        trunk = builder.add_text(rng.integers(3, 97, 4))
        n_frames = {name: 5 + clip_number + place for place, name in enumerate(streams)}
        for name, n in n_frames.items():
            values[name].append(rng.normal(size=(n, 6)))
        clip = builder.add_clip(n_frames, trunk)
        for question in questions:
            tokens = np.random.default_rng(100 + question).integers(3, 97, 3 + question % 4)
            piece = builder.add_text(tokens, clip)
            builder.add_targets(piece, np.arange(len(tokens)) > 0)
    return builder.build(
        {name: torch.from_numpy(np.concatenate(each)) for name, each in values.items()}
    )


@pytest.mark.parametrize(("family", "form"), CASES)
def test_loss_and_gradient_do_not_depend_on_packing(family: str, form: str) -> None:
    model = model_of(form, family)

    def total(batches: list[Batch]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss = sum(model(batch).loss_sum for batch in batches)
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return {"loss": loss.detach(), **gradients}

    def question(conversations: list[list[int]]) -> Batch:
        return question_batch(conversations, streams_of(form))

    alone = total([question([[q]]) for q in (0, 1, 2, 10, 11, 20)])
    arrangements = {
        "packed apart": [question([[0], [1], [2], [10], [11], [20]])],
        "another order": [question([[20], [11], [0], [10], [2], [1]])],
        "questions of a clip together": [question([[0, 1, 2], [10, 11], [20]])],
        "some together, two batches": [
            question([[2, 0], [20]]),
            question([[11, 10], [1]]),
        ],
    }
    for name, batches in arrangements.items():
        for key, value in total(batches).items():
            torch.testing.assert_close(
                value, alone[key], rtol=1e-5, atol=1e-6, msg=f"{name}: {key}"
            )


# ---- 5: cached decoding --------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "form"), CASES)
def test_cached_decoding_equals_the_full_forward_token_by_token(family: str, form: str) -> None:
    model = model_of(form, family)
    streams = streams_of(form)

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


@pytest.mark.parametrize("form", ["lal_delayed", "flamingo"])
def test_sampling_beams_and_several_answers_a_prompt_run_through_transformers_generate(
    form: str,
) -> None:
    model = model_of(form)
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


def one_question(form: str, n_frames: int) -> Batch:
    """A clip with so many frames in the streams that enter by LAL or as summary, 2 in others."""
    streams = FORMS[form]["streams"]
    grows = {s for s in streams if streams[s]["route"] == "lal" or is_summary(streams[s])}
    forest = Forest(streams=streams_of(form))
    clip = forest.clip(2, forest.text(3), **dict.fromkeys(grows, n_frames))
    forest.text(6, clip)
    return forest.build()


def is_summary(spec: dict[str, Any]) -> bool:
    return bool(spec["connector"]["type"] == "summary")


@pytest.mark.parametrize("form", WITH_LAL)
def test_audio_costs_no_flop_in_q_proj_o_proj_or_ffn(form: str) -> None:
    model = model_of(form)
    short, long = (flops_by_module(model, one_question(form, n)) for n in (2, 200))
    for layer in range(3):
        for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp"):
            name = f"llm.model.layers.{layer}.{module}"
            assert short[name] == long[name] > 0, name
        name = f"llm.model.layers.{layer}.self_attn.k_proj"
        takes = form != "lal_delayed" or layer > 0
        assert (long[name] > short[name]) == takes


@pytest.mark.parametrize("form", WITH_LAL)
def test_audio_saves_no_activation_in_q_proj_o_proj_or_ffn(form: str) -> None:
    model = model_of(form)
    saved: list[torch.Size] = []
    hooks = [
        module.register_forward_hook(lambda _m, inputs, _out: saved.append(inputs[0].shape))
        for name, module in model.llm.named_modules()
        if name.endswith(("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
    ]
    model(one_question(form, 200)).loss_sum.backward()
    for hook in hooks:
        hook.remove()
    n_plits = {"pal": 1, "pal_unified": 3}.get(form, 0)
    assert len(saved) == 15
    assert {shape[1] for shape in saved} == {9 + n_plits}


def test_a_stream_without_audio_runs_its_modules_and_gets_zero_gradient() -> None:
    for form in FORMS:
        model = model_of(form)
        forest = Forest()
        forest.text(6)
        batch = forest.build()
        model(replace(batch, features={})).loss_sum.backward()
        for name, parameter in model.streams.named_parameters():
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name


def test_the_dummy_batch_reaches_every_parameter_with_zero_gradient() -> None:
    for form in FORMS:
        model = model_of(form, "qwen3")
        model(model.dummy_batch()).loss_sum.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, (form, name)
            assert not parameter.grad.any(), (form, name)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["flash_attn", "torch"])
@pytest.mark.parametrize("form", ["lal", "plits", "pal", "flamingo"])
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
    batch = mixed_batch(streams_of(form)).to("cuda")
    reference = pal_of(llm, FORMS[form] | {"attention_backend": "sdpa"}).to("cuda").float()
    ours = copy.deepcopy(reference)
    for parameter in ours.parameters():  # buffers, RoPE's frequencies among them, stay as they are
        parameter.data = parameter.data.to(torch.bfloat16)
    ours.config.attention_backend = backend
    expected, loss = (model(batch).loss_sum for model in (reference, ours))
    torch.testing.assert_close(loss, expected, rtol=3e-2, atol=3e-2)
    expected.backward()
    loss.backward()
    # Beside a large gradient the rounding of a small one, a gate's sum that cancels, says nothing.
    least = 0.02 * torch.stack([p.grad.norm() for p in reference.parameters()]).norm()
    for (name, theirs), mine in zip(reference.named_parameters(), ours.parameters(), strict=True):
        error = (mine.grad.float() - theirs.grad).norm() / theirs.grad.norm().clamp(min=least)
        assert error < 0.15, (name, float(error))
