"""Chat templates: where the clip stands, what is learnt, what is refused."""

from __future__ import annotations

import pytest

from paltrain.config.schema import TemplateConfig, TrainConfig
from paltrain.errors import ConfigError, ManifestError, ModelError
from paltrain.model.build import template_fields
from paltrain.model.template import AUDIO_PLACEHOLDER, ChatTemplate
from paltrain.model.tokenization import load_tokenizer, tokenizer_hash, train_tokenizer

TEXTS = ["Which sound is heard?", "a bell", "a dog barks twice", "How many sounds?", "two"] * 20
LLAMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['role'] == 'user' %}{{ date_string }} {% endif %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=320)


def test_the_answer_and_its_end_are_the_targets_and_the_clip_stands_before_the_question(
    tokenizer,
) -> None:
    rendered = ChatTemplate(tokenizer).render([("Which sound is heard?", "a bell")], n_clips=1)
    before, after = (tokenizer.decode(ids) for ids in rendered.texts)
    assert before == "<|bos|><|user|>"
    assert after == "\nWhich sound is heard?<|assistant|>a bell<|eos|>"
    assert tokenizer.decode(rendered.texts[1][rendered.targets[1]]) == "a bell<|eos|>"
    assert not rendered.targets[0].any()


def test_a_prompt_has_the_tokens_that_precede_the_answer_in_training(tokenizer) -> None:
    template = ChatTemplate(tokenizer, system="Listen.")
    learnt = template.render([("How many sounds?", "two")], n_clips=1)
    asked = template.render([("How many sounds?", None)], n_clips=1)
    assert asked.texts[0].tolist() == learnt.texts[0].tolist()
    assert asked.texts[1].tolist() == learnt.texts[1][~learnt.targets[1]].tolist()


def test_placeholders_say_where_clips_stand_and_are_no_tokens(tokenizer) -> None:
    text = f"First {AUDIO_PLACEHOLDER} then {AUDIO_PLACEHOLDER}: same?"
    rendered = ChatTemplate(tokenizer).render([(text, "no")], n_clips=2)
    assert [tokenizer.decode(ids) for ids in rendered.texts[:2]] == [
        "<|bos|><|user|>First ",
        " then ",
    ]
    assert AUDIO_PLACEHOLDER not in tokenizer.get_vocab()


def test_every_turn_of_a_dialogue_is_learnt(tokenizer) -> None:
    turns = [("Which sound is heard?", "a bell"), ("How many sounds?", "two")]
    rendered = ChatTemplate(tokenizer).render(turns, n_clips=1)
    learnt = tokenizer.decode(rendered.texts[1][rendered.targets[1]])
    assert learnt == "a bell<|eos|>two<|eos|>"


def test_loss_on_the_prompt_leaves_out_the_token_behind_a_clip(tokenizer) -> None:
    rendered = ChatTemplate(tokenizer, loss_on_prompt=True).render(
        [("How many?", "two")], n_clips=1
    )
    assert [mask.tolist() for mask in rendered.targets] == [
        [False] + [True] * (len(ids) - 1) for ids in rendered.texts
    ]


def test_a_fixed_date_is_given_and_what_follows_the_end_token_is_not_learnt(tokenizer) -> None:
    template = ChatTemplate(tokenizer, chat_template=LLAMA_LIKE, date_string="26 Jul 2024")
    rendered = template.render([("a bell", "two")], n_clips=0)
    assert tokenizer.decode(rendered.texts[0]).startswith("<|bos|><|user|>26 Jul 2024 a bell")
    assert rendered.texts[0][-1] == tokenizer.eos_token_id


def test_an_answer_over_the_budget_is_refused_or_cut(tokenizer) -> None:
    turns = [("How many sounds?", "a dog barks twice")]
    whole = ChatTemplate(tokenizer).render(turns, n_clips=1)
    limit = sum(map(len, whole.texts)) - 1
    with pytest.raises(
        ManifestError, match=f"over max_text_tokens={limit}: raise it, or set truncate_text"
    ):
        ChatTemplate(tokenizer, max_text_tokens=limit).render(turns, n_clips=1)
    cut = ChatTemplate(tokenizer, max_text_tokens=limit, truncate_text=True).render(
        turns, n_clips=1
    )
    assert cut.texts[1].tolist() == whole.texts[1][:-1].tolist()
    with pytest.raises(ManifestError, match="over max_text_tokens=3"):
        ChatTemplate(tokenizer, max_text_tokens=3, truncate_text=True).render(turns, n_clips=1)


def test_placeholders_that_do_not_match_the_clips_are_refused(tokenizer) -> None:
    with pytest.raises(ManifestError, match="have 1 <.audio.> for 2 clips"):
        ChatTemplate(tokenizer).render([(f"{AUDIO_PLACEHOLDER} what?", "two")], n_clips=2)


def test_a_tokenizer_without_a_template_is_refused_with_the_key_to_set(tokenizer) -> None:
    bare = train_tokenizer(TEXTS, vocab_size=300)
    bare.chat_template = None
    with pytest.raises(ModelError, match=r"template\.chat_template"):
        ChatTemplate(bare)
    bare.chat_template, bare.eos_token = LLAMA_LIKE, None
    with pytest.raises(ModelError, match=r"set eos_token in its tokenizer_config\.json"):
        ChatTemplate(bare)


def test_a_template_that_cannot_be_read_is_named(tmp_path) -> None:
    config = TrainConfig(template=TemplateConfig(chat_template=str(tmp_path / "none.jinja")))
    with pytest.raises(ConfigError, match=r"none\.jinja cannot be read .*: name a jinja file"):
        template_fields(config)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer) -> None:
    rewriting = "{{ messages | length }}" + LLAMA_LIKE
    with pytest.raises(ModelError, match="rewrites earlier turns"):
        ChatTemplate(tokenizer, chat_template=rewriting).render([("a", "b")], n_clips=0)


def test_the_hash_of_a_saved_tokenizer_is_found_without_loading_it(tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    first = tokenizer_hash(str(tmp_path))
    load_tokenizer(str(tmp_path)).save_pretrained(tmp_path / "again")
    assert tokenizer_hash(str(tmp_path / "again")) == first
    train_tokenizer(["other text"] * 9, vocab_size=320).save_pretrained(tmp_path / "other")
    assert tokenizer_hash(str(tmp_path / "other")) != first


def test_a_missing_tokenizer_says_how_to_get_one(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json here"):
        tokenizer_hash(str(tmp_path))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(str(tmp_path))
