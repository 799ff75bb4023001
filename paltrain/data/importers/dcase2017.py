"""DCASE 2017 task 4: 17 sounds of traffic and warning in AudioSet clips of 10 s;
https://github.com/ankitshah009/Task-4-Large-scale-weakly-supervised-sound-event-detection-for-smart-cars

    groundtruth_release/groundtruth_weak_label_{training,testing,evaluation}_set.csv
        2ceUOv8A3FE_20.000_30.000.wav <tab> 20.000 <tab> 30.000 <tab> Train horn

One label a line, no header; the training list stands in the repository's root as well. The
recordings are named Y2ceUOv8A3FE_20.000_30.000.wav (README.md, "Y is added") and are looked for
anywhere below the folder of recordings, since the archives and the download script use folders of
other names. `testing` is the development test and is the split `test`; `evaluation`, on which the
challenge was decided, is `evaluation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from paltrain.data.importers.aside import EMPTY, Aside
from paltrain.data.importers.ask import tag
from paltrain.data.importers.collect import Found, part_files
from paltrain.data.importers.recordings import AudioFolder
from paltrain.data.importers.rows import Format, read_rows
from paltrain.data.importers.youtube import choose

DATASET = "dcase2017"
PARTS = {"train": "training", "test": "testing", "evaluation": "evaluation"}
SPLITS = tuple(PARTS)
RELEASED = Path("groundtruth_release")
WEAK = Format(delimiter="\t", columns=("file", "start", "end", "label"), is_quoted=False)


def read(
    root: Path, aside: Aside, splits: Sequence[str], *, audio_dir: Path | None = None
) -> Iterator[Found]:
    """Errors as in `part_files` and `AudioFolder`."""
    names = {split: f"groundtruth_weak_label_{part}_set.csv" for split, part in PARTS.items()}
    released = {split: str(RELEASED / name) for split, name in names.items()}
    is_released = any((root / released[split]).is_file() for split in splits)
    tables = part_files(root, released if is_released else names, wanted=splits)
    folder = AudioFolder(audio_dir or root)
    for split, table in tables.items():
        for clip, (line, labels) in _by_clip(table, aside).items():
            tried = [f"Y{clip}", clip]
            near = PARTS[split]
            audio = choose(
                folder, tried, near=near, clip=clip, aside=aside, file=table.name, line=line
            )
            if audio:
                yield Found(clip, audio, split, (tag(labels),), table.name, line)


def _by_clip(table: Path, aside: Aside) -> dict[str, tuple[int, list[str]]]:
    """First line and labels by file name without suffix."""
    clips: dict[str, tuple[int, list[str]]] = {}
    for row in read_rows(table, needs=(), aside=aside, name=table.name, form=WEAK):
        clip, label = row["file"].strip().removesuffix(".wav"), row["label"].strip()
        if not clip or not label:
            aside.add(EMPTY, f"'{clip}' has no label", file=table.name, line=row.line)
            continue
        clips.setdefault(clip, (row.line, []))[1].append(label)
    return clips
