"""Preflight of long recordings: clips whose audio tokens alone outrun the LLM's positions.

Text is not counted here, since that takes the length table; the plan of a run counts both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cluster.preflight.chain import Chain, Findings
from cluster.preflight.data import Wanted, wanted_clips
from paltrain.data.context import ContextLimit
from paltrain.errors import PaltrainError
from paltrain.model.audio_tokens import in_the_sequence, n_audio_tokens

Specs = Mapping[str, Mapping[str, Any]]  # streams, as their model keeps them


def look_at_context(
    llm: Mapping[str, Any], specs: Specs, stores: Mapping[str, Path], wanted: Wanted, *,
    consequence: str, chain: Chain, findings: Findings, most: int | None = None,
) -> None:  # fmt: skip
    """Warn of clips with more audio tokens than positions.

    llm: fields of the LLM's configuration. most: tokens of a stream beyond which a clip is cut or
    set aside anyway. consequence: what becomes of the questions about them.
    """
    routes = {name: spec["route"] for name, spec in specs.items()}
    limit = ContextLimit.of(llm.get("max_position_embeddings"), in_the_sequence(routes))
    if limit is None:
        return
    try:
        corpus = chain.corpus(wanted.manifests)
        clips = wanted_clips(corpus, wanted)
    except PaltrainError:  # said already
        return
    total = np.zeros(corpus.n_clips, np.int64)
    for name in limit.streams:
        rows = chain.known_rows(wanted.manifests, stores[name])
        if rows is None:  # the store is not there yet
            continue
        frames = np.where(rows < 0, 0, np.asarray(chain.store(stores[name]).n_frames)[rows])
        tokens = n_audio_tokens(frames, specs[name]["connector"])
        total += tokens if most is None else np.minimum(tokens, most)
    over = clips & (total >= limit.n_positions)
    if over.any():
        findings.warnings.append(
            f"{int(over.sum())} of {int(clips.sum())} clips have more audio tokens (the longest "
            f"{int(total[clips].max())}) than the LLM has positions (max_position_embeddings="
            f"{limit.n_positions}): {consequence}; cut recordings into pieces, or take fewer "
            "tokens a second (connector.frame_stack, the encoder's pool)"
        )
