"""From run folders to `report.html` and `summary.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paltrain.data.manifest import read_manifest
from paltrain.errors import PaltrainError
from paltrain.eval.records import EvalScores
from paltrain.files import write_atomically, write_json
from paltrain.report.clips import PlayableClip, choose_clips, playable_clips
from paltrain.report.collect import ReportData, collect, to_summary
from paltrain.report.page import render_page

PAGE_FILE = "report.html"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class WrittenReport:
    page: Path
    summary: Path
    missing: dict[str, str]


def build_report(
    runs: Sequence[Path],
    *,
    out: Path,
    bench: Path,
    phases: Path,
    split: str,
    title: str,
    n_clips: int,
) -> WrittenReport:
    """Write both files into `out`; what is not there is named in them, not invented."""
    data = collect(runs, bench=bench, phases=phases, split=split)
    clips = _clips(data, n_clips)
    out.mkdir(parents=True, exist_ok=True)
    page = out / PAGE_FILE
    write_atomically(page, render_page(data, clips, title=title))
    write_json(out / SUMMARY_FILE, to_summary(data))
    return WrittenReport(page, out / SUMMARY_FILE, data.missing)


def _clips(data: ReportData, n: int) -> list[PlayableClip]:
    folders = {EvalScores.load(folder).model: folder for folder in data.eval_folders}
    chosen = choose_clips(folders, n=n)
    if not chosen:
        return []
    manifests = {m for folder in data.eval_folders for m in EvalScores.load(folder).manifests}
    return playable_clips(folders, _recordings(sorted(manifests), set(chosen)), clip_ids=chosen)


def _recordings(manifests: Sequence[str], wanted: set[str]) -> dict[str, Path]:
    """Where the recordings of the wanted clips lie; a manifest that is gone has none."""
    found: dict[str, Path] = {}
    for manifest in map(Path, manifests):
        try:
            for clip in read_manifest(manifest):
                if clip.id in wanted and clip.audio is not None:
                    found[clip.id] = manifest.parent / clip.audio
        except (PaltrainError, OSError):
            continue
    return found
