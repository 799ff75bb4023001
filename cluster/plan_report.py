"""What a training run would do with its data, as text: step plan, shard audit. No torch.

A figure that needs something absent reads `unknown: what is missing, how to get it`; the rest is
said all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.run_data import RunData, Unknown
from paltrain.config.schema import ConnectorConfig, Route, TrainConfig
from paltrain.data.mixture import PartShare
from paltrain.data.summary import PlanSummary
from paltrain.model.audio_tokens import FIXED

if TYPE_CHECKING:
    from paltrain.data.index import Corpus
    from paltrain.data.shards import FeatureStore

LABEL_WIDTH = 20


def plan_lines(config: TrainConfig, data: RunData | Unknown) -> Iterator[str]:
    """Step plan and shard audit of a run, as far as its data are known."""
    if isinstance(data, Unknown):
        yield line("step plan", f"unknown: {data}")
        yield line("shard audit", f"unknown: {data}")
        return
    if data.summary is None:
        yield line("step plan", f"unknown: {data.no_plan}")
    else:
        yield from _plan_lines(config, data.summary, data.no_text, data.no_audio)
        if data.guessed_cost and data.summary.imbalance is not None:
            yield line("  cost of a visit", f"guessed: {data.guessed_cost}")
    yield line("shard audit", "" if config.model.streams else "no streams: text only")
    for name in config.model.streams:
        if name in data.stores:
            found = _audit(data.corpus, data.stores[name], config.data.split)
        else:
            found = f"unknown: {data.no_stores[name]}"
        yield line(f"  {name}", found)


def stream_lines(
    config: TrainConfig, stamps: Mapping[str, Mapping[str, Any] | Unknown]
) -> Iterator[str]:
    """How each stream enters the LLM, and how many audio tokens it makes of a second or a clip."""
    streams = config.model.streams
    if not streams:
        return
    yield line("streams", "")
    for name, stream in streams.items():
        layers = "" if stream.route is Route.plits else f", layers {layers_in_words(stream.layers)}"
        tokens = _tokens_in_words(stream.connector, stamps[name])
        yield line(f"  {name}", f"{stream.route.value}{layers}: {tokens}")


def _tokens_in_words(connector: ConnectorConfig, stamp: Mapping[str, Any] | Unknown) -> str:
    fixed = FIXED.get(connector.type.value)
    if fixed is not None:
        return f"{getattr(connector, fixed)} audio tokens a clip"
    if isinstance(stamp, Unknown):
        return f"unknown: {stamp}"
    rate, stack = float(stamp["frame_rate_hz"]), connector.frame_stack
    of_frames = f" ({rate:g} frames, {stack} in a token)" if stack > 1 else ""
    return f"{rate / stack:g} audio tokens per second{of_frames}"


def layers_in_words(layers: Any) -> str:
    """`model.streams.*.layers` as it is written."""
    if isinstance(layers, Mapping):
        return "{" + ", ".join(f"{key}: {value}" for key, value in layers.items()) + "}"
    return str(layers)


def _plan_lines(
    config: TrainConfig, plan: PlanSummary, why_no_lengths: str, why_no_audio: str
) -> Iterator[str]:
    steps = config.stage.steps or max(1, round(plan.steps_per_epoch * (config.stage.epochs or 0)))
    epochs = steps / plan.steps_per_epoch
    yield line("step plan", "")
    rows: list[tuple[str, str | None, str]] = [
        ("questions", _questions(plan), ""),
        ("left out", "; ".join(f"{n} {why}" for why, n in plan.left_out.items()) or "none", ""),
        ("steps", f"{steps} ({epochs:.2f} epochs of {plan.steps_per_epoch} steps)", ""),
        ("text tokens", _said(plan.n_text_tokens, "an epoch"), why_no_lengths),
        ("target tokens", _said(plan.n_target_tokens, "an epoch"), why_no_lengths),
        ("audio tokens", _said(plan.n_audio_tokens, "an epoch"), why_no_audio),
        ("micro-batches", _said(plan.micro_batches_per_step, "a step and rank"), why_no_audio),
        ("imbalance", _said(plan.imbalance, "(dearest rank / mean rank)"), why_no_audio),
        ("idle share", _said(plan.idle_share, "of the ranks' time in a step"), why_no_audio),
        ("padding share", _said(plan.padding_share, "of a step's tokens"), why_no_audio),
        ("read per step", _bytes(plan.bytes_per_step, "by all nodes"), why_no_audio),
        (
            "read per node",
            _bytes(plan.bytes_per_step_and_node, "by the one with most"),
            why_no_audio,
        ),
    ]
    if not config.model.streams:
        rows = [row for row in rows if row[0] not in ("read per step", "read per node")]
    rows += [(f"part {name}", _share(share), "") for name, share in plan.mixture.items()]
    unknown: dict[str, list[str]] = {}
    for label, value, reason in rows:
        if value is None:
            unknown.setdefault(reason, []).append(label)
        else:
            yield line("  " + label, value)
    for reason, labels in unknown.items():
        yield f"  {', '.join(labels)}: unknown: {reason}"


def _questions(plan: PlanSummary) -> str:
    """How often the questions of how many clips are asked."""
    visits = f"about {plan.n_clips} clips in {plan.n_visits} visits"
    return f"{plan.n_questions} asked an epoch, {plan.n_different} different, {visits}"


def _said(figure: float | None, of_what: str) -> str | None:
    """A figure with what it is of."""
    if figure is None:
        return None
    return f"{figure:.4g} {of_what}" if isinstance(figure, float) else f"{figure} {of_what}"


def _bytes(n_bytes: float | None, by_whom: str) -> str | None:
    """Of features in a step, in words."""
    if n_bytes is None:
        return None
    unit, size = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6)) if n_bytes >= s), ("kB", 1e3))
    return f"{n_bytes / size:.3g} {unit} of features a step, {by_whom}"


def _share(part: PartShare) -> str:
    different = f"{part.n_questions} different, about {part.n_clips} clips"
    return f"{part.n_asked} asked an epoch ({part.share:.1%} of it), {different}"


def _audit(corpus: Corpus, store: FeatureStore, split: str) -> str:
    n_shards = len(np.unique(np.asarray(store.shard_of)))
    rows = store.rows_of(corpus.clip_id_array)
    wanted = np.asarray(corpus.has_audio)
    if split in list(corpus.splits):
        wanted = wanted & (np.asarray(corpus.clip_split) == list(corpus.splits).index(split))
    absent = int((wanted & (rows < 0)).sum())
    return (
        f"{len(store.n_frames)} clips in {n_shards} shard(s); of {int(wanted.sum())} '{split}' "
        f"clips with audio {absent} lack features"
        + ("; run tools/precompute_features.py again" if absent else "")
    )


def say(act: Callable[[], str]) -> str:
    """`act()`, or why it is unknown."""
    try:
        return act()
    except Unknown as error:
        return f"unknown: {error}"


def line(label: str, value: str) -> str:
    """A line of the report."""
    return f"{label:<{LABEL_WIDTH}} {value}".rstrip()
