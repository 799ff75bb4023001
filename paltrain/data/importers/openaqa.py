"""OpenAQA, and OpenASQA: questions about recordings of many data sets;
https://github.com/YuanGongND/ltu (README.md, "OpenAQA (LTU) and OpenASQA (LTU-AS) Dataset")

    [{"instruction": "What is the significance of the sound of crying?",     the question
      "input": "",                                          words spoken in the recording (OpenASQA)
      "audio_id": "/data/sls/audioset/dave_version/audio/LZq4Neh-oWU.flac",
      "dataset": "as_strong_train", "task": "open-ended question",           both optional
      "output": "The sound of crying suggests ..."}, ...]                    the answer

`audio_id` is a path of the authors' machine. It is looked for, in this order, under the folders
that `--map OLD=NEW` names, as it stands (relative paths: from the JSON's folder), and by its file
name below the folder of recordings; of several with that name the one whose folders agree most with
`audio_id` is taken. All of it is the split `train`, as LTU uses it. Spoken words come before the
question. LTU repeats some data sets (Clotho twice, SoundBible ten times); here a question is asked
once.

`task` becomes one of this project's names: whatever begins with cla is classification, with cap
describe, with temp temporal, and anything else open_ended. That tasks begin so is from memory and
from LTU's openaqa/utils/combine_*.py, which name files and not the field's values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from paltrain.data.importers.aside import AMBIGUOUS, BROKEN, EMPTY, MISSING, Aside
from paltrain.data.importers.ask import CLASSIFICATION, DESCRIBE, OPEN_ENDED, TEMPORAL, Draft
from paltrain.data.importers.collect import Found
from paltrain.data.importers.recordings import AudioFolder, is_utf8
from paltrain.data.importers.rows import read_json_list

DATASET = "openaqa"
SPLITS = ("train",)
NEEDED = ("instruction", "audio_id", "output")
TASKS = {"cla": CLASSIFICATION, "cap": DESCRIBE, "temp": TEMPORAL}


def read(
    file: Path,
    aside: Aside,
    splits: Sequence[str],
    *,
    audio_dir: Path | None = None,
    moved: Sequence[tuple[str, str]] | None = None,
) -> Iterator[Found]:
    """moved: (folder of the authors' machine, what it is here).

    Raises:
        ManifestError: as in `read_json_list` and `AudioFolder`.
    """
    place = _Places(file.parent, audio_dir, moved or ())
    for number, entry in read_json_list(file):
        texts = _texts(entry, aside, file.name, number)
        if texts is None:
            continue
        audio = place.of(texts["audio_id"])
        if isinstance(audio, Path):
            draft = Draft(_task(entry), _instruction(entry, texts), texts["output"])
            name, dataset = texts["audio_id"].lstrip("/"), entry.get("dataset")
            yield Found(
                name,
                audio,
                SPLITS[0],
                (draft,),
                file.name,
                number,
                dataset if isinstance(dataset, str) and dataset else None,
            )
        else:
            kind = AMBIGUOUS if audio else MISSING
            which = f"may be any of {', '.join(audio[:3])}" if audio else "is nowhere"
            reason = f"{texts['audio_id']} {which}: name its folder with --audio-dir or --map"
            aside.add(kind, reason, file=file.name, line=number)


class _Places:
    """Where recordings of the authors' machine lie on this one; each is looked for once."""

    def __init__(
        self, here: Path, audio_dir: Path | None, moved: Sequence[tuple[str, str]]
    ) -> None:
        self._here, self._moved = here, moved
        self._folder = AudioFolder(audio_dir) if audio_dir else None
        self._known: dict[str, Path | list[str]] = {}

    def of(self, audio_id: str) -> Path | list[str]:
        """The recording, or the names of those that it may be: none or several."""
        if audio_id not in self._known:
            self._known[audio_id] = self._find(audio_id)
        return self._known[audio_id]

    def _find(self, audio_id: str) -> Path | list[str]:
        for old, new in self._moved:
            if audio_id.startswith(old):
                return Path(new + audio_id.removeprefix(old))
        path = self._here / audio_id  # an absolute one stays as it is
        if os.path.isfile(path):  # also a name that is too long for this machine
            return Path(os.path.normpath(path))
        found = self._folder.find(PurePosixPath(audio_id).stem) if self._folder else []
        agreeing = [_n_same_folders(path, audio_id) for path in found]
        best = [path for path, n in zip(found, agreeing, strict=True) if n == max(agreeing)]
        return best[0] if len(best) == 1 else [str(path) for path in best]


def _n_same_folders(path: Path, audio_id: str) -> int:
    """Of the folders right above the file."""
    pairs = zip(
        reversed(path.parts[:-1]), reversed(PurePosixPath(audio_id).parts[:-1]), strict=False
    )
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _texts(entry: Any, aside: Aside, file: str, number: int) -> dict[str, str] | None:
    """The needed texts of an entry; None, and set aside, if one is missing, empty or no text."""
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in NEEDED):
        reason = f"must be an object with the texts {', '.join(NEEDED)}, is {entry!r:.80}"
        aside.add(BROKEN, reason, file=file, line=number)
        return None
    texts = {key: entry[key].strip() for key in NEEDED}
    if not all(is_utf8(text) for text in entry.values() if isinstance(text, str)):
        aside.add(BROKEN, "holds half a character (a surrogate alone)", file=file, line=number)
        return None
    empty = [key for key, text in texts.items() if not text]
    if empty:
        aside.add(EMPTY, f"no {' and no '.join(empty)}", file=file, line=number)
    return None if empty else texts


def _task(entry: Mapping[str, Any]) -> str:
    task = str(entry.get("task") or "").strip().lower()
    return next((name for start, name in TASKS.items() if task.startswith(start)), OPEN_ENDED)


def _instruction(entry: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """The question; before it what is spoken, where the entry has that."""
    spoken = entry.get("input")
    if not isinstance(spoken, str) or not spoken.strip():
        return texts["instruction"]
    return f"{spoken.strip()}\n{texts['instruction']}"
