"""Clotho v2.1: 15 to 30 s of Freesound, five captions each; https://zenodo.org/record/4783391

    clotho_captions_{development,validation,evaluation}.csv   file_name,caption_1,...,caption_5
    {development,validation,evaluation}/NAME.wav   or clotho_audio_development/NAME.wav, ...

Columns and the folders clotho_audio_* as in https://github.com/soundata/soundata,
tests/resources/sound_datasets/clotho; the folders development, ... as in
https://github.com/lukewys/dcase_2020_T6, create_dataset/README.md.
Some names begin with a space, in the table as on disk. Development is `train`, validation `val`,
evaluation `test`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os.path import isfile
from pathlib import Path

from paltrain.data.importers.aside import EMPTY, Aside
from paltrain.data.importers.ask import describe
from paltrain.data.importers.collect import Found, part_files
from paltrain.data.importers.rows import read_rows

DATASET = "clotho"
PARTS = {"train": "development", "val": "validation", "test": "evaluation"}
SPLITS = tuple(PARTS)
CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


def read(root: Path, aside: Aside, splits: Sequence[str]) -> Iterator[Found]:
    """Errors as in `part_files` and `read_rows`."""
    tables = {split: f"clotho_captions_{part}.csv" for split, part in PARTS.items()}
    for split, table in part_files(root, tables, wanted=splits).items():
        name = tables[split]
        for row in read_rows(table, needs=("file_name", *CAPTIONS), aside=aside, name=name):
            captions = [row[column].strip() for column in CAPTIONS if row[column].strip()]
            file = row["file_name"]
            if not captions or not file.strip():
                aside.add(EMPTY, f"'{file}' has no caption", file=name, line=row.line)
                continue
            audio = _audio(root, PARTS[split], file)
            clip = f"{PARTS[split]}/{file}"
            yield Found(clip, audio, split, describe(captions, split=split), name, row.line)


def _audio(root: Path, part: str, file: str) -> Path:
    """Where it lies; where it should lie, if it is nowhere."""
    unpacked = f"clotho_audio_{part}"
    folders = [root / part, root / unpacked, root / unpacked / part]
    names = dict.fromkeys((file, file.strip()))
    there = [folder / name for folder in folders for name in names if isfile(folder / name)]
    return there[0] if there else folders[0] / file
