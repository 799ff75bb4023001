"""Questions longer than the LLM's positions, counted out one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paltrain.config.schema import DataConfig
from paltrain.data.build import build_plan
from paltrain.data.context import ContextLimit
from paltrain.data.lengths import build_length_table
from paltrain.errors import ManifestError
from paltrain.model.audio_tokens import in_the_sequence
from tests.data.conftest import half_as_many, render_words

CONFIG = DataConfig(manifests=["manifest.jsonl"], batch_questions=8, window_shards=2)


def as_many(n_frames):
    return np.asarray(n_frames)


def lengths_by_hand(corpus, tokens_of_frames):
    """Every question's own tokens and those of all clips that it hears; clip n has 5 + n frames."""
    lengths = []
    for number in range(corpus.n_clips):
        clip = corpus.clip(number)
        for question in clip.questions:
            heard = [clip.id] if clip.audio else []
            heard += list(question.clips or ())
            frames = [5 + int(name.removeprefix("clip")) for name in heard]
            text = sum(map(len, render_words(clip, question).texts))
            lengths.append(text + sum(int(tokens_of_frames(n)) for n in frames))
    return np.array(lengths)


@pytest.mark.parametrize(
    ("routes", "tokens_of_frames"),
    [
        ({"a": "lal"}, half_as_many),
        ({"a": "plits"}, half_as_many),
        ({"a": "lal", "b": "plits"}, lambda n: half_as_many(n) + n),
        ({"a": "lal", "b": "xattn"}, half_as_many),  # beside the sequence: no positions
        ({"a": "xattn"}, lambda n: 0),
    ],
)
def test_questions_over_the_positions_are_set_aside_and_counted(
    corpus, store, routes, tokens_of_frames
):
    lengths = lengths_by_hand(corpus, tokens_of_frames)
    table = build_length_table(corpus, render_words, tokenizer_hash="t", template_hash="r")
    tokens = {"a": half_as_many, "b": as_many}
    for most in (int(lengths.max()), int(np.median(lengths))):
        plan = build_plan(
            CONFIG,
            corpus=corpus,
            stores=dict.fromkeys(routes, store),
            lengths=table,
            audio_tokens={name: tokens[name] for name in routes},
            seed=0,
            context=ContextLimit.of(most, in_the_sequence(routes)),
        )
        within = np.flatnonzero(lengths <= most)
        assert sorted(plan.planner.order.questions.tolist()) == within.tolist()
        left_out = {} if most == lengths.max() else list(plan.left_out.values())
        assert left_out in ({}, [len(lengths) - len(within)])
        assert all(f"the LLM's {most} positions" in reason for reason in plan.left_out)


def test_nothing_left_says_why_and_an_unknown_limit_sets_nothing_aside(corpus, store):
    table = build_length_table(corpus, render_words, tokenizer_hash="t", template_hash="r")
    assert ContextLimit.of(None, ["a"]) is None

    def plan(context):
        return build_plan(
            replace(CONFIG), corpus=corpus, stores={"a": store}, lengths=table,
            audio_tokens={"a": half_as_many}, seed=0, context=context,
        )  # fmt: skip

    assert plan(None).left_out == {}
    with pytest.raises(ManifestError, match=r"no question is left .* the LLM's 3 positions"):
        plan(ContextLimit.of(3, ["a"]))
