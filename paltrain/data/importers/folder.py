"""A plain folder: the name of a sub-folder is the label of the recordings in it.

    DIR/dog/1.wav          one label, drawn into train and test
    DIR/train/dog/1.wav    likewise, where all folders in DIR are named as splits are

A drawn test has the same share of every label, and at least one recording of each that has two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from paltrain.data.importers.aside import EMPTY, UNREADABLE, Aside
from paltrain.data.importers.ask import classify
from paltrain.data.importers.collect import Found
from paltrain.data.importers.recordings import AudioFolder, audio_below, is_utf8

SPLITS = ("train", "val", "test")
SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def read(
    root: Path, aside: Aside, splits: Sequence[str], *, test_fraction: float = 0.1, seed: int = 0
) -> Iterator[Found]:
    """test_fraction, seed: of the drawn test. Raises ManifestError where there is no folder."""
    AudioFolder(root, option="--data")
    folders = [path.name for path in root.iterdir() if path.is_dir() and path.name[0] != "."]
    depth = 1 if folders and all(name.lower() in SPLIT_OF for name in folders) else 0
    by_label: dict[str, list[str]] = {}
    for file in audio_below(root):
        parts = Path(file).parts
        if not is_utf8(file):
            aside.add(UNREADABLE, "its name, or its folder's, is no UTF-8: rename it", file=file)
        elif len(parts) < depth + 2:
            aside.add(EMPTY, f"{file} lies in no folder that names its label", file=file)
        else:
            by_label.setdefault(_label(parts[depth]), []).append(file)
    labels = sorted(by_label)
    for label, files in by_label.items():
        tested = set() if depth else _drawn(files, test_fraction, seed)
        for file in files:
            drawn = "test" if file in tested else "train"
            split = SPLIT_OF[Path(file).parts[0].lower()] if depth else drawn
            question = classify(label, labels=labels)
            yield Found(file, root / file, split, (question,), file)


def _label(folder: str) -> str:
    """As words: glass_breaking is "glass breaking"."""
    return folder.replace("_", " ").strip()


def _drawn(files: Sequence[str], test_fraction: float, seed: int) -> set[str]:
    if not test_fraction or len(files) < 2:
        return set()
    n_tested = max(1, min(len(files) - 1, round(len(files) * test_fraction)))
    return set(Random(seed).sample(files, n_tested))
