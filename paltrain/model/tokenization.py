"""Tokenizers: load one, train one, and name one by a hash without loading it (no torch here).

The hash covers what decides token ids and the chat text (`tokenizer.json` and the chat template),
so that length tables made with it can be found on a login node.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paltrain.errors import ModelError, cannot_load

TEMPLATE_FORMAT = 1  # changes when the same fields give other tokens
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "<|bos|>{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|eos|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class TemplateFields:
    """What, beside the tokenizer, decides how a question becomes tokens.

    chat_template: jinja source; None: the tokenizer's own. date_string: for templates that would
    insert today's. max_text_tokens: prompt and answer together; a longer one is refused, or its
    answer's end is cut.
    """

    system: str | None = None
    chat_template: str | None = None
    date_string: str = "26 Jul 2024"
    loss_on_prompt: bool = False
    max_text_tokens: int | None = None
    truncate_text: bool = False


def load_tokenizer(name_or_path: str) -> Any:
    """A `transformers` tokenizer by folder or hub name.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        sentence = cannot_load(name_or_path, error, what="tokenizer", holds="with tokenizer.json")
        raise ModelError(sentence) from error


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Any:
    """A byte-level BPE tokenizer with a plain chat template, trained on `texts`; the same texts
    give the same."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
    )


def tokenizer_hash(name_or_path: str) -> str:
    """12 hex digits of a tokenizer's files, found in a folder or in the local hub cache.

    Raises:
        ModelError: there is no tokenizer.json.
    """
    digest = hashlib.sha256(_tokenizer_file(name_or_path, "tokenizer.json").read_bytes())
    digest.update(_chat_template_source(name_or_path).encode())
    return digest.hexdigest()[:12]


def template_hash(fields: Mapping[str, Any]) -> str:
    """12 hex digits of the fields of `TemplateFields`."""
    text = json.dumps({"format": TEMPLATE_FORMAT, **fields}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _chat_template_source(name_or_path: str) -> str:
    try:
        return _tokenizer_file(name_or_path, "chat_template.jinja").read_text(encoding="utf-8")
    except ModelError:
        config = _tokenizer_file(name_or_path, "tokenizer_config.json")
        return json.dumps(json.loads(config.read_text(encoding="utf-8")).get("chat_template"))


def _tokenizer_file(name_or_path: str, file: str) -> Path:
    folder = Path(name_or_path)
    if folder.is_dir():
        found: Any = folder / file
        found = found if found.is_file() else None
    else:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name_or_path, file)
    if not isinstance(found, str | Path):
        raise ModelError(
            f"tokenizer '{name_or_path}' has no {file} here: give a folder that holds it, or load "
            f"the hub name once where there is a network (`hf download {name_or_path}`)"
        )
    return Path(found)
