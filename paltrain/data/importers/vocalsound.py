"""VocalSound: 21 024 voices that laugh, sigh, cough, clear the throat, sneeze or sniff;
https://github.com/YuanGongND/vocalsound

    audio_16k/f0003_0_cough.wav   or audio_44k/
    class_labels_indices_vs.csv   index,mid,display_name
    datafiles/{tr,val,te}.json
        {"data": [{"wav": ".../f0003_0_cough.wav", "labels": "/m/01b_21"}, ...]}

The paths in the JSON files are those of the authors' machine; only the file names count, as in
their src/prep_data.py. Speakers are in one split each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from paltrain.data.importers.aside import BROKEN, EMPTY, Aside
from paltrain.data.importers.ask import classify
from paltrain.data.importers.collect import Found, part_files
from paltrain.data.importers.rows import read_json, read_rows
from paltrain.errors import ManifestError

DATASET = "vocalsound"
FILES = {"train": "datafiles/tr.json", "val": "datafiles/val.json", "test": "datafiles/te.json"}
SPLITS = tuple(FILES)
CLASSES = "class_labels_indices_vs.csv"
AUDIO = ("audio_16k", "audio_44k")
KEYS = ("wav", "labels")


def read(root: Path, aside: Aside, splits: Sequence[str]) -> Iterator[Found]:
    """Raises ManifestError as `part_files`, and where a JSON file has no list `data`."""
    files = part_files(root, FILES, wanted=splits)
    rows = read_rows(root / CLASSES, needs=("mid", "display_name"), aside=aside, name=CLASSES)
    names = {row["mid"]: row["display_name"].lower() for row in rows}
    folder = next((root / name for name in AUDIO if (root / name).is_dir()), root / AUDIO[0])
    for split, path in files.items():
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            raise ManifestError(f'{path} must be {{"data": [...]}}: download it again')
        for number, entry in enumerate(content["data"], 1):
            found = _found(entry, number, names, folder, split, aside)
            if found:
                yield found


def _found(
    entry: Any, number: int, names: Mapping[str, str], folder: Path, split: str, aside: Aside
) -> Found | None:
    """An entry of the list `data`; None, and set aside, if it has no recording or label."""
    file = FILES[split]
    if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in KEYS):
        reason = f'must be {{"wav": ..., "labels": ...}}, is {entry!r:.80}'
        aside.add(BROKEN, reason, file=file, line=number)
        return None
    wav = PurePosixPath(entry["wav"]).name
    label = names.get(entry["labels"])
    if not label:
        reason = f"{wav} has the label '{entry['labels']}', which {CLASSES} does not name"
        aside.add(EMPTY, reason, file=file, line=number)
        return None
    question = classify(label, labels=list(names.values()))
    return Found(wav, folder / wav, split, (question,), file, number)
