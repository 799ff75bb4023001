"""Which parameters train, and with which learning rate and weight decay.

A stage lists groups or name patterns; a group is a few patterns (`GROUPS`). Patterns are
shell-style (`fnmatch`) over parameter names, which start with `llm.` (the transformers decoder) and
`streams.<name>.` (connectors and per-layer projections). A pattern that matches nothing is an
error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from paltrain.errors import ConfigError

GROUPS: dict[str, tuple[str, ...]] = {
    "all": ("*",),
    "connectors": ("streams.*",),
    "attention": ("llm.*.self_attn.*",),
    "ffn": ("llm.*.mlp.*",),
    "norms": ("llm.*norm.weight", "llm.*norm.bias"),
    "embeddings": ("llm.*embed_tokens.*",),
    "head": ("llm.lm_head.*",),
    "lora": ("llm.*.lora_*",),
}


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a peak learning rate and a weight decay."""

    lr: float
    weight_decay: float
    names: tuple[str, ...]


def set_trainable(model: nn.Module, patterns: Iterable[str]) -> tuple[str, ...]:
    """Let exactly the parameters that `patterns` name require gradients; returns their names.

    Raises ConfigError with every pattern that is refused or matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen = _matches(names, patterns, key="stage.trainable")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return tuple(name for name in names if name in chosen)


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    lr_by_pattern: Mapping[str, float],
) -> list[ParameterGroup]:
    """Trainable parameters by (learning rate, weight decay), in order of first appearance.

    lr_by_pattern: the first pattern that matches a name decides. Norms, biases and other vectors
    have no weight decay. Raises ConfigError for a pattern that matches no trainable parameter.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    names = [name for name, _ in trainable]
    lr_of: dict[str, float] = {}
    for pattern, its_lr in lr_by_pattern.items():
        for name in _matches(names, [pattern], key="optimizer.lr_by_pattern"):
            lr_of.setdefault(name, its_lr)
    groups: dict[tuple[float, float], list[str]] = {}
    for name, parameter in trainable:
        decay = weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((lr_of.get(name, lr), decay), []).append(name)
    return [ParameterGroup(lr, decay, tuple(its)) for (lr, decay), its in groups.items()]


def _matches(names: list[str], patterns: Iterable[str], *, key: str) -> set[str]:
    chosen: set[str] = set()
    faults = []
    for pattern in patterns:
        found = {n for n in names for shape in _shapes(pattern) if fnmatchcase(n, shape)}
        chosen |= found
        if not found:
            faults.append(_why_nothing(pattern, names))
    if not chosen and not faults:
        faults.append("it is empty, so nothing would train: name at least one group")
    if faults:
        raise ConfigError(f"`{key}`: " + "; ".join(faults))
    return chosen


def _shapes(pattern: str) -> tuple[str, ...]:
    return GROUPS.get(pattern, (pattern,))


def _why_nothing(pattern: str, names: list[str]) -> str:
    if pattern == "encoder" or pattern.startswith("encoder."):
        return (
            f"'{pattern}' cannot train: features are precomputed once and the encoder is not "
            "part of the model; train 'connectors' instead"
        )
    if pattern == "head":
        return "'head' matches nothing: it is tied to the embeddings here, so name 'embeddings'"
    if pattern == "lora":
        return "'lora' matches nothing: the model has no adapters; set model.lora.rank, e.g. to 8"
    if pattern == "connectors":
        return "'connectors' matches nothing: the model has no audio streams (`model.streams`)"
    near = get_close_matches(pattern, [*GROUPS, *names], n=3, cutoff=0.4)
    hint = f"; near names: {', '.join(near)}" if near else ""
    return f"'{pattern}' matches no parameter{hint}; groups: {', '.join(GROUPS)}"
