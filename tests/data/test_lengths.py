"""The length table: what it counts, what it sets aside, and by what it is found again."""

import json
import subprocess
import sys

import numpy as np
import pytest

from paltrain.batch import BatchBuilder, RenderedQuestion
from paltrain.data.lengths import build_length_table, find_length_table, measure, table_path
from paltrain.errors import ManifestError

HASHES = {"tokenizer_hash": "t", "template_hash": "r"}


def rendered(*texts: str, targets: str) -> RenderedQuestion:
    """Texts of one-letter tokens; those in `targets` are to be predicted."""
    ids = tuple(np.array([ord(c) for c in text], np.int64) for text in texts)
    masks = tuple(np.array([c in targets for c in text], bool) for text in texts)
    return RenderedQuestion(ids, masks)


def test_a_table_counts_every_question(corpus, render):
    table = build_length_table(corpus, render, **HASHES)
    number = 0
    for clip_number in range(corpus.n_clips):
        clip = corpus.clip(clip_number)
        for question in clip.questions:
            row = table.rows[number]
            asked = render(clip, question)
            assert row["trunk"] == asked.n_trunk_tokens
            assert row["branch"] == asked.n_branch_tokens
            assert row["target"] == asked.n_target_tokens
            number += 1
    assert number == corpus.n_questions
    assert table.usable.all()


def test_only_targets_that_a_batch_keeps_are_counted():
    question = rendered("ab", "cde", targets="abce")
    builder = BatchBuilder()
    trunk = builder.add_text(question.texts[0])
    clip = builder.add_clip({}, trunk)
    branch = builder.add_text(question.texts[1], clip)
    builder.add_targets(trunk, question.targets[0])
    builder.add_targets(branch, question.targets[1])
    assert measure(question)[2] == len(builder.build().target_ids) == 2  # b and e


def test_a_trunk_key_is_equal_where_text_and_further_clips_are():
    same = measure(rendered("ab", "x", targets="x"))[3]
    assert measure(rendered("ab", "yz", targets="z"))[3] == same
    assert measure(rendered("ac", "x", targets="x"))[3] != same
    assert measure(rendered("ab", "x", targets="x"), ["further"])[3] != same
    assert measure(rendered("a", "b", "x", targets="x"))[3] != same


def test_a_question_that_cannot_be_rendered_is_set_aside_with_its_reason(corpus, render):
    def fussy(clip, question):
        if question.id == corpus.clip(1).questions[0].id:
            raise ManifestError("prompt and answer are 99 tokens")
        return render(clip, question)

    table = build_length_table(corpus, fussy, **HASHES)
    assert np.flatnonzero(~table.usable).tolist() == [corpus.first_question[1]]
    path = table_path(corpus, **HASHES).with_suffix(".rejected.jsonl")
    (entry,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert entry["clip"] == corpus.clip(1).id
    assert entry["reason"] == "prompt and answer are 99 tokens"


def test_a_table_without_a_usable_question_is_an_error(corpus):
    def refuse(clip, question):
        raise ManifestError("no answer")

    with pytest.raises(ManifestError, match="none of .* questions can be trained on.*no answer"):
        build_length_table(corpus, refuse, **HASHES)


def test_a_table_is_found_by_its_hashes_and_by_no_others(corpus, render):
    assert find_length_table(corpus, **HASHES) is None
    built = build_length_table(corpus, render, **HASHES)
    found = find_length_table(corpus, **HASHES)
    assert found is not None
    assert found.fingerprint == built.fingerprint
    assert (found.rows == built.rows).all()
    assert find_length_table(corpus, tokenizer_hash="t", template_hash="other") is None
    assert find_length_table(corpus, tokenizer_hash="other", template_hash="r") is None


def test_a_torn_table_is_refused(corpus, render):
    build_length_table(corpus, render, **HASHES)
    path = table_path(corpus, **HASHES)
    np.save(path, np.load(path)[:-1])
    with pytest.raises(ManifestError, match="remove it and build it again"):
        find_length_table(corpus, **HASHES)


def test_plans_need_no_torch():
    code = (
        "import sys, paltrain.data.loader, paltrain.data.summary, paltrain.data.lengths;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
