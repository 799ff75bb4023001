"""The paper's model forms, and what else can be configured, at toy size: arguments of `pal`."""

from __future__ import annotations

from typing import Any

from tests.model.conftest import FAMILIES, pal_of, stream, tiny_llm

LORA = {"rank": 2, "alpha": 4.0, "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"]}


def learned(kind: str, **changes: Any) -> dict[str, Any]:
    """A connector of learned queries."""
    return {"type": kind, "n_heads": 2, "n_layers": 1, **changes}


SUMMARY = learned("summary", n_summary=3, summary_by="queries")
WINDOWS = {"type": "summary", "n_summary": 3, "summary_by": "windows", "hidden_width": None}

PAPER: dict[str, dict[str, Any]] = {
    "plits": {"streams": {"a": stream("plits")}},
    "lal": {"streams": {"a": stream("lal")}},
    "lal_frozen_ffn": {"streams": {"a": stream("lal")}},
    "lal_delayed": {"streams": {"a": stream("lal", layers={"start": 1})}},
    "lal_ensemble": {"streams": {"a": stream("lal"), "b": stream("lal")}},
    "pal": {"streams": {"w": stream("plits"), "a": stream("lal"), "b": stream("lal")}},
    "pal_unified": {"streams": {"a": stream("lal"), "s": stream("plits", connector=SUMMARY)}},
    "qformer_plits": {
        "streams": {"a": stream("plits", connector=learned("resampler", n_latents=4))}
    },
    "flamingo": {"streams": {"a": stream("xattn", layers={"every": 2})}},
    "lora_plits": {"streams": {"a": stream("plits")}, "lora": LORA},
    "lora_lal": {"streams": {"a": stream("lal")}, "lora": LORA},
}
FURTHER: dict[str, dict[str, Any]] = {
    "lal_linear": {
        "streams": {"a": stream("lal", layers=[0, 2], layer_projection="linear")},
    },
    "lal_mlp": {"streams": {"a": stream("lal", layer_projection="mlp")}},
    "lal_here_and_there": {"streams": {"a": stream("lal"), "b": stream("lal", layers=[1])}},
    "pal_delayed": {"streams": {"b": stream("plits"), "a": stream("lal", layers={"start": 1})}},
    "pal_blind": {
        "streams": {"b": stream("plits"), "a": stream("lal", layers={"start": 1})},
        "plits_sees_lal": False,
    },
    "pal_unified_windows": {
        "streams": {"a": stream("lal"), "s": stream("plits", connector=WINDOWS)}
    },
    "all_routes": {
        "streams": {"x": stream("xattn", layers=[1, 2]), "p": stream("plits"), "a": stream("lal")}
    },
}
FORMS = PAPER | FURTHER
# (family, form): the paper's forms in every family, the others in one.
CASES = [(family, form) for form in PAPER for family in FAMILIES]
CASES += [("qwen3", form) for form in FURTHER]
WITH_LAL = [name for name in PAPER if "lal" in name or name == "pal"]


def streams_of(form: str) -> tuple[str, ...]:
    return tuple(FORMS[form]["streams"])


def model_of(form: str, family: str = "llama", **changes: Any) -> Any:
    """A tiny float64 model of the form. changes: of `tiny_llm`."""
    return pal_of(tiny_llm(family, **changes), FORMS[form])
