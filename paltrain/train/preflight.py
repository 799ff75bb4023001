"""Answers, in a process of its own, what only torch and its friends know before a job queues.

    python -m paltrain.train.preflight < questions.json

Questions are a JSON list of {"what": ..., further fields}; the answers are JSON lines in the same
order, {"answer": {...}} or {"error": "why not"}. Each is written as soon as it is known, so that a
question whose answer takes the process down can be told from those behind it. No GPU is needed, and
a model is laid out without memory (torch's `meta` device).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from paltrain.errors import ModelError, PaltrainError

Answer = dict[str, Any]


def can_import(question: Mapping[str, Any]) -> Answer:
    """name: of a module."""
    module = importlib.import_module(question["name"])
    return {"version": str(getattr(module, "__version__", "of unknown version"))}


def attention(question: Mapping[str, Any]) -> Answer:
    """backend, device ("cuda", "cpu"), dtype: whether the backend can serve them."""
    import torch

    from paltrain.model.attention import BACKENDS

    dtype = getattr(torch, question["dtype"])
    if obstacle := BACKENDS[question["backend"]].obstacle(question["device"], dtype):
        raise ModelError(obstacle)
    return {}


def model_size(question: Mapping[str, Any]) -> Answer:
    """llm (fields of its configuration), streams, lora, plits_sees_lal, trainable, lr_by_pattern:
    parameters by number.

    All that the run itself would refuse of these is refused here.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from paltrain.model.modeling import PalModel
    from paltrain.train.stages import parameter_groups, set_trainable

    fields = {key: value for key, value in question["llm"].items() if key != "dtype"}
    try:
        with torch.device("meta"):
            llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
            form = {key: question[key] for key in ("streams", "lora", "plits_sees_lal")}
            model = PalModel.from_llm(llm, **form)
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ModelError(f"the LLM's configuration makes no model: {error}") from error
    set_trainable(model, question["trainable"])
    parameter_groups(model, lr=1.0, weight_decay=0.0, lr_by_pattern=question["lr_by_pattern"])
    parameters = list(model.parameters())
    return {
        "n_parameters": sum(p.numel() for p in parameters),
        "n_trainable": sum(p.numel() for p in parameters if p.requires_grad),
    }


def tokenizer(question: Mapping[str, Any]) -> Answer:
    """folder, template (fields of `TemplateFields`): whether a question becomes tokens by them."""
    from paltrain.model.template import ChatTemplate
    from paltrain.model.tokenization import TemplateFields, load_tokenizer

    try:
        loaded = load_tokenizer(question["folder"])
    except PaltrainError:
        raise
    except Exception as error:
        raise ModelError(
            f"tokenizer.json cannot be read ({type(error).__name__}: {error}): copy or download it "
            "again"
        ) from error
    fields = replace(TemplateFields(**question["template"]), max_text_tokens=None)
    ChatTemplate(loaded, fields).render([("Which sound is heard?", "a bell")], 0)
    return {"n_tokens": len(loaded)}


ASKED: Mapping[str, Callable[[Mapping[str, Any]], Answer]] = {
    "import": can_import,
    "attention": attention,
    "model": model_size,
    "tokenizer": tokenizer,
}


def reply(question: Mapping[str, Any]) -> dict[str, Any]:
    """The answer, or why there is none: a library that cannot be used fails in many ways."""
    try:
        return {"answer": ASKED[question["what"]](question)}
    except PaltrainError as error:
        return {"error": str(error)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to stderr
    for question in json.load(sys.stdin):
        said.write(json.dumps(reply(question)) + "\n")
        said.flush()


if __name__ == "__main__":
    main()
