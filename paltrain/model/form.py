"""A model's form: what a run and the model that it starts from must agree in. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

STREAM_FIELDS = ("route", "width", "connector", "layers", "layer_projection")


def form_differences(
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    *,
    may_be_equal: Callable[[Any, Any, str], bool] = lambda there, here, name: there == here,
) -> list[str]:
    """A sentence part for each difference. there: of the model; here: of the run, both with
    streams, lora and plits_sees_lal as `PalConfig` keeps them.

    Adapters may be new: a model without them is of the form of the run that adds them.
    """
    of_model, of_run = _fields(there), _fields(here)
    if of_model["lora"] is None:
        of_model["lora"] = of_run["lora"]
    return [
        f"{name}: {of_model.get(name)!r} there, {of_run.get(name)!r} here"
        for name in sorted({*of_model, *of_run})
        if not may_be_equal(of_model.get(name), of_run.get(name), name)
    ]


def _fields(form: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree, by dotted name."""
    fields = {
        f"streams.{name}.{field}": spec.get(field)
        for name, spec in form["streams"].items()
        for field in STREAM_FIELDS
    }
    # PLITS rows look at LAL keys only where both routes are.
    routes = {spec["route"] for spec in form["streams"].values()}
    sees = form["plits_sees_lal"] if {"plits", "lal"} <= routes else None
    return {**fields, "lora": form["lora"], "plits_sees_lal": sees}
