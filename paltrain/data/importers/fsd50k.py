"""FSD50K: 51 197 Freesound clips with labels of AudioSet's ontology;
https://zenodo.org/record/4060432

    FSD50K.ground_truth/dev.csv          fname,labels,mids,split      (split: train or val)
    FSD50K.ground_truth/eval.csv         fname,labels,mids
    FSD50K.ground_truth/vocabulary.csv   index,label,mid              (no header)
    FSD50K.dev_audio/64760.wav, FSD50K.eval_audio/37199.wav

Labels are joined by commas and hold those of all ancestors in the ontology. Columns as in the
copies of https://github.com/soundata/soundata, tests/resources/sound_datasets/fsd50k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from paltrain.data.importers.aside import BROKEN, EMPTY, Aside
from paltrain.data.importers.ask import tag
from paltrain.data.importers.collect import Found, part_files
from paltrain.data.importers.rows import Format, Row, read_rows

DATASET = "fsd50k"
SPLITS = ("train", "val", "test")
TRUTH = "FSD50K.ground_truth"
DEV, EVAL = f"{TRUTH}/dev.csv", f"{TRUTH}/eval.csv"
TABLES = {"train": DEV, "val": DEV, "test": EVAL}
AUDIO = {DEV: "FSD50K.dev_audio", EVAL: "FSD50K.eval_audio"}
VOCABULARY = Format(columns=("index", "label", "mid"))


def read(root: Path, aside: Aside, splits: Sequence[str]) -> Iterator[Found]:
    """Errors as in `part_files` and `read_rows`."""
    tables = part_files(root, TABLES, wanted=splits)
    file = f"{TRUTH}/vocabulary.csv"
    rows = read_rows(root / file, needs=(), aside=aside, name=file, form=VOCABULARY)
    known = {row["label"] for row in rows}
    for name in dict.fromkeys(TABLES[split] for split in tables):
        needs = ("fname", "labels", "split") if name == DEV else ("fname", "labels")
        for row in read_rows(root / name, needs=needs, aside=aside, name=name):
            split = row["split"] if name == DEV else "test"
            labels = _labels(row, known, name, aside)
            if split not in SPLITS:
                reason = f"split must be train or val, is '{split}'"
                aside.add(BROKEN, reason, file=name, line=row.line)
            elif labels:
                wav = f"{AUDIO[name]}/{row['fname']}.wav"
                yield Found(wav, root / wav, split, (tag(labels),), name, row.line)


def _labels(row: Row, known: set[str], file: str, aside: Aside) -> list[str]:
    """As words; empty, and set aside, where one is not in the vocabulary or there is none."""
    labels = [label for label in row["labels"].split(",") if label]
    unknown = [label for label in labels if label not in known]
    if unknown or not labels:
        why = f"vocabulary.csv lacks {', '.join(unknown)}" if unknown else "it has no label"
        aside.add(EMPTY, f"{row['fname']}: {why}", file=file, line=row.line)
        return []
    return [label.replace("_", " ") for label in labels]
