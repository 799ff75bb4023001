"""What a manifest holds, in a few lines for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paltrain.data.index import Corpus


def summarize(manifest: Path) -> str:
    """Clips, hours and questions by task, a line for each split."""
    corpus = Corpus.open([manifest])
    lines = [f"{manifest}:"]
    clip_of_question = np.repeat(np.arange(corpus.n_clips), np.diff(corpus.first_question))
    for number, split in enumerate(corpus.splits):
        clips = np.asarray(corpus.clip_split) == number
        hours = float(np.asarray(corpus.duration_s)[clips].sum()) / 3600
        tasks = np.asarray(corpus.question_task)[clips[clip_of_question]]
        counts = np.bincount(tasks, minlength=len(corpus.tasks))
        by_task = ", ".join(f"{t} {n}" for t, n in zip(corpus.tasks, counts, strict=True) if n)
        lines.append(
            f"  {split}: {int(clips.sum())} clips, {hours:.2f} h, {len(tasks)} questions "
            f"({by_task})"
        )
    return "\n".join(lines)
