"""Further special tokens: the embeddings grow, and nothing that was there changes."""

from __future__ import annotations

import pytest
import torch

from paltrain import PalModel
from tests.model.conftest import VOCAB, mixed_batch, pal, stream, tiny_llm


@pytest.mark.parametrize("tie", [False, True])
def test_new_tokens_leave_all_other_logits_alone_and_are_saved(tie: bool, tmp_path) -> None:
    model = pal(tiny_llm("llama", tie_word_embeddings=tie), {"a": stream("lal")})
    batch = mixed_batch()
    with torch.no_grad():
        before = model.text_logits(batch)
    model.resize_token_embeddings(VOCAB + 3)
    logits = model.text_logits(batch)
    assert logits.shape[-1] == VOCAB + 3
    torch.testing.assert_close(logits[:, :VOCAB], before, rtol=1e-12, atol=1e-13)
    assert model.config.llm_config.vocab_size == model.llm.config.vocab_size == VOCAB + 3
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    assert (head.weight is embeddings.weight) == tie
    batch.token_ids[0] = VOCAB + 2
    model(batch).loss_sum.backward()
    assert embeddings.weight.grad[VOCAB + 2].any()
    model.save_pretrained(tmp_path)
    loaded = PalModel.from_pretrained(tmp_path)
    assert loaded.config.llm_config.vocab_size == loaded.llm.config.vocab_size == VOCAB + 3
    torch.testing.assert_close(
        loaded.text_logits(batch), model.text_logits(batch), rtol=1e-12, atol=1e-13
    )


def test_a_loaded_model_can_grow_too(tmp_path) -> None:
    pal(tiny_llm("qwen3"), {"a": stream("plits")}).save_pretrained(tmp_path)
    model = PalModel.from_pretrained(tmp_path)
    model.resize_token_embeddings(VOCAB + 1)
    assert model.config.llm_config.vocab_size == model.llm.config.vocab_size == VOCAB + 1
    model.save_pretrained(tmp_path / "grown")
    assert len(PalModel.from_pretrained(tmp_path / "grown").get_input_embeddings().weight) == 98
