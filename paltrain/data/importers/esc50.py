"""ESC-50: 2000 recordings of 5 s, 50 classes, 5 folds; https://github.com/karolpiczak/ESC-50

    meta/esc50.csv   filename,fold,target,category,esc10,src_file,take
    audio/1-100032-A-0.wav

The folds keep recordings of one source together; one fold is the test, the others train, so that a
published figure is the mean over five imports with `--test-fold` 1 to 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from paltrain.data.importers.aside import BROKEN, EMPTY, Aside
from paltrain.data.importers.ask import classify
from paltrain.data.importers.collect import Found, part_files
from paltrain.data.importers.rows import read_rows

DATASET = "esc50"
SPLITS = ("train", "test")
TABLE = "meta/esc50.csv"
FOLDS = ("1", "2", "3", "4", "5")


def read(root: Path, aside: Aside, splits: Sequence[str], *, test_fold: int = 5) -> Iterator[Found]:
    """Errors as in `part_files` and `read_rows`."""
    table = part_files(root, {"train": TABLE, "test": TABLE}, wanted=splits)[splits[0]]
    rows = list(read_rows(table, needs=("filename", "fold", "category"), aside=aside, name=TABLE))
    labels = sorted({_label(row["category"]) for row in rows} - {""})
    for row in rows:
        name, label = row["filename"], _label(row["category"])
        if row["fold"] not in FOLDS:
            aside.add(BROKEN, f"fold must be 1 to 5, is '{row['fold']}'", file=TABLE, line=row.line)
        elif not label or not name:
            aside.add(EMPTY, f"'{name}' has no category", file=TABLE, line=row.line)
        else:
            split = "test" if row["fold"] == str(test_fold) else "train"
            question = classify(label, labels=labels)
            yield Found(name, root / "audio" / name, split, (question,), TABLE, row.line)


def _label(category: str) -> str:
    """As words: crying_baby is "crying baby"."""
    return category.replace("_", " ").strip()
