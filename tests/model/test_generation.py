"""Generation through transformers' own loop, against its plain decoders and written-out search."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from paltrain.batch import Batch, PackedFeatures
from paltrain.errors import ModelError
from tests.model.conftest import Forest, mixed_batch, pal, stream, tiny_llm
from tests.model.forms import FORMS, model_of, streams_of

OPTIONS: dict[str, Any] = {"max_new_tokens": 5, "pad_token_id": 0}


def plain_llm(model: Any) -> Any:
    """The same decoder as transformers alone makes it."""
    config = copy.deepcopy(model.llm.config)
    config._attn_implementation = "eager"
    llm = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    llm.load_state_dict(model.llm.state_dict())
    return llm


def alone(batch: Batch, leaf: int, answer: list[int] | None = None) -> Batch:
    """One conversation of a batch as a batch of its own, followed by `answer`."""
    path, ids = batch.path(leaf), batch.token_ids
    starts = np.cumsum(batch.n_tokens) - batch.n_tokens
    runs = [ids[starts[p] : starts[p] + batch.n_tokens[p]] for p in path]
    clips = [int(np.sum(batch.is_clip[:p])) for p in path if batch.is_clip[p]]
    n_tokens = batch.n_tokens[path]
    n_tokens[-1] += len(answer or [])
    return replace(
        batch,
        token_ids=torch.cat([*runs, torch.tensor(answer or [], dtype=torch.int64)]),
        parent=np.arange(-1, len(path) - 1),
        n_tokens=n_tokens,
        is_clip=batch.is_clip[path],
        features={
            name: PackedFeatures(
                torch.cat([f.values[:0], *(_frames(f, clip) for clip in clips)]), f.n_frames[clips]
            )
            for name, f in batch.features.items()
        },
        target_rows=batch.target_rows[:0],
        target_ids=batch.target_ids[:0],
        target_weights=batch.target_weights[:0],
    )


def _frames(features: PackedFeatures, clip: int) -> Tensor:
    return features.values.split(features.n_frames.tolist())[clip]


def plain_inputs(model: Any, batch: Batch) -> Tensor:
    """A PLITS conversation as one sequence of embeddings (1, positions, D)."""
    texts = iter(batch.token_ids.split(batch.n_tokens[~batch.is_clip].tolist()))
    clips = iter(range(batch.n_clips))
    parts = []
    for is_clip in batch.is_clip:
        if is_clip:
            values = _frames(batch.features["a"], next(clips))
            parts.append(model.streams["a"](PackedFeatures(values, np.array([len(values)]))))
        else:
            parts.append(model.llm.get_input_embeddings()(next(texts)))
    return torch.cat(parts)[None]


@pytest.mark.parametrize(
    "options", [{"num_beams": 4}, {"num_beams": 3, "length_penalty": 2.0}, {"num_beams": 1}]
)
def test_beams_over_plits_are_those_of_transformers_over_the_plain_decoder(options: dict) -> None:
    model = pal(tiny_llm("llama"), {"a": stream("plits")})
    llm, batch = plain_llm(model), mixed_batch()
    common = {**OPTIONS, **options, "do_sample": False, "eos_token_id": list(range(3, 40))}
    together = model.generate(batch, **common)
    for row, leaf in zip(together.tolist(), batch.leaves.tolist(), strict=True):
        inputs = plain_inputs(model, alone(batch, leaf))
        mask = torch.ones(inputs.shape[:2], dtype=torch.int64)
        (expected,) = llm.generate(inputs_embeds=inputs, attention_mask=mask, **common).tolist()
        assert row[: len(expected)] == expected
        assert set(row[len(expected) :]) <= {0, 3}  # beams are filled up with an end token


def beam_search(model: Any, prompt: Batch, *, n_beams: int, n_tokens: int) -> list[int]:
    """The best of `n_beams` continuations without an end token, by the full forward pass."""
    leaf = int(prompt.leaves[0])
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(n_tokens):
        grown = []
        for score, tokens in beams:
            logits = model.text_logits(alone(prompt, leaf, tokens))[-1].log_softmax(-1)
            grown += [(score + float(v), [*tokens, i]) for i, v in enumerate(logits)]
        beams = sorted(grown, reverse=True)[:n_beams]
    return beams[0][1]


@pytest.mark.parametrize("form", ["lal_delayed", "pal", "flamingo"])
@torch.no_grad()
def test_beams_over_every_route_are_those_of_a_search_written_out(form: str) -> None:
    model = model_of(form)
    batch = mixed_batch(streams_of(form))
    options = {"max_new_tokens": 3, "pad_token_id": 0, "eos_token_id": None}
    together = model.generate(batch, num_beams=3, do_sample=False, **options).tolist()
    for row, leaf in zip(together, batch.leaves.tolist(), strict=True):
        assert row == beam_search(model, alone(batch, leaf), n_beams=3, n_tokens=3)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_no_one_and_two_clips_gives_what_each_conversation_gives_alone(
    form: str,
) -> None:
    model, batch = model_of(form), mixed_batch(streams_of(form))
    options = {**OPTIONS, "do_sample": False, "eos_token_id": None}
    together = model.generate(batch, **options)
    for row, leaf in zip(together, batch.leaves.tolist(), strict=True):
        assert torch.equal(model.generate(alone(batch, leaf), **options)[0], row)


def test_sampling_follows_its_seed() -> None:
    model, batch = pal(tiny_llm("llama"), {"a": stream("lal")}), mixed_batch()
    options = {**OPTIONS, "do_sample": True, "top_p": 0.9, "temperature": 1.5, "eos_token_id": None}

    def sampled(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model.generate(batch, **options)

    assert torch.equal(sampled(0), sampled(0))
    assert not torch.equal(sampled(0), sampled(1))


@pytest.mark.parametrize("form", ["lal", "plits", "flamingo"])
def test_an_answer_ends_at_the_last_position_and_a_longer_prompt_is_refused(form: str) -> None:
    model, batch = model_of(form), mixed_batch(streams_of(form))
    lengths = model.layout(batch).end_positions[batch.leaves]
    options = {"max_new_tokens": 5, "eos_token_id": 2, "do_sample": False}
    free = model.generate_answers(batch, **options)
    n_positions = int(lengths.max()) + 1
    model.config.llm_config.max_position_embeddings = n_positions
    room = n_positions - lengths + 1  # the last token of an answer is never fed
    cut = [answer[: int(n)] for answer, n in zip(free, room, strict=True)]
    assert model.generate_answers(batch, **options) == cut
    assert cut != free
    beams = model.generate_answers(batch, num_beams=2, **options)
    assert all(len(answer) <= n for answer, n in zip(beams, room, strict=True))
    model.config.llm_config.max_position_embeddings = n_positions - 2
    with pytest.raises(ModelError, match=rf"takes {n_positions - 1} pos.* {n_positions - 2} "):
        model.generate(batch, **options)


@pytest.mark.parametrize("form", ["lal", "plits"])
def test_prompts_of_one_token_are_answered_behind_audio_rows_and_refused_without(form: str) -> None:
    model, forest = model_of(form), Forest()
    forest.text(1, forest.clip(4, -1))
    batch, options = forest.build(), {**OPTIONS, "do_sample": False, "eos_token_id": None}
    if form == "plits":
        assert model.generate(batch, **options).shape == (1, 5)
    else:
        with pytest.raises(ModelError, match="every prompt is a single text token"):
            model.generate(batch, **options)
    forest.text(3)
    assert model.generate(forest.build(), **options).shape == (2, 5)


def test_answers_end_before_their_end_token() -> None:
    model, batch = pal(tiny_llm("llama"), {"a": stream("lal")}), mixed_batch()
    free = model.generate(batch, do_sample=False, eos_token_id=None, **OPTIONS).tolist()
    end = free[0][2]
    answers = model.generate_answers(batch, max_new_tokens=5, eos_token_id=end)
    cut = [row[: row.index(end)] if end in row else row for row in free]
    assert answers == cut
