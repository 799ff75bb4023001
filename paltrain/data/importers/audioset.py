"""AudioSet: 10 s of YouTube, 527 classes; https://research.google.com/audioset/download.html and
https://research.google.com/audioset/download_strong.html

    balanced_train_segments.csv, unbalanced_train_segments.csv, eval_segments.csv
        # comments, then: YTID, start_seconds, end_seconds, "/m/09x0r,/m/05zppz"
    audioset_train_strong.tsv, audioset_eval_strong.tsv
        segment_id  start_time_seconds  end_time_seconds  label     (YTID_STARTMS, class id)
    class_labels_indices.csv   index,mid,display_name
    ontology.json              [{"id", "name", ...}, ...]; https://github.com/audioset/ontology
    mid_to_display_name.tsv    class id, name

The last three name the classes; those that are there are joined (the strong labels have classes
that class_labels_indices.csv lacks). AudioSet-20k is the parts `balanced` and `eval`, AudioSet-2M
`balanced`, `unbalanced` and `eval`. Audio is not part of the release; it is looked for anywhere
below the folder of recordings as YTID_START_END (s or ms), YTID_START or YTID, each also with Y
before it (names as downloaders give them; from memory). A file with the bare name must be the
segment, not its whole video.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from paltrain.data.importers.aside import BROKEN, EMPTY, Aside
from paltrain.data.importers.ask import TAGS, TAGS_STRONG, Draft, tag, which_first
from paltrain.data.importers.collect import Found, part_files
from paltrain.data.importers.recordings import AudioFolder
from paltrain.data.importers.rows import Format, read_json, read_rows
from paltrain.data.importers.youtube import choose, is_seconds, names_of
from paltrain.errors import ManifestError, unknown_name

DATASET = "audioset"
SPLITS = ("train", "test")
WEAK = {
    "balanced": "balanced_train_segments.csv",
    "unbalanced": "unbalanced_train_segments.csv",
    "eval": "eval_segments.csv",
}
STRONG = {
    "strong_train": "audioset_train_strong.tsv",
    "strong_eval": "audioset_eval_strong.tsv",
}
PARTS = (*WEAK, *STRONG)
SPLIT_OF = {part: "test" if "eval" in part else "train" for part in PARTS}
SEGMENTS = Format(
    columns=("ytid", "start_seconds", "end_seconds", "positive_labels"),
    skips_spaces=True,
    comment="#",
)
EVENTS = Format(delimiter="\t", is_quoted=False)
EVENT_COLUMNS = ("segment_id", "start_time_seconds", "end_time_seconds", "label")
NAMES = Format(delimiter="\t", columns=("mid", "name"), is_quoted=False)


def read(
    root: Path,
    aside: Aside,
    splits: Sequence[str],
    *,
    parts: Sequence[str] = ("balanced", "eval"),
    audio_dir: Path | None = None,
) -> Iterator[Found]:
    """parts: of PARTS.

    Raises:
        ManifestError: as in `part_files`, `AudioFolder` and `read_rows`; no file names the classes.
    """
    for part in parts:
        if part not in PARTS:
            raise ManifestError(unknown_name("part", part, list(PARTS)))
    wanted = [part for part in parts if SPLIT_OF[part] in splits]
    if not wanted:
        raise ManifestError(f"of {', '.join(parts)} none is in split {', '.join(splits)}")
    files = part_files(root, {**WEAK, **STRONG}, wanted=wanted)
    names = _class_names(root, aside)
    folder = AudioFolder(audio_dir or root)
    for part, file in files.items():
        lines = _weak(file, aside) if part in WEAK else _strong(file, aside)
        for line, youtube_id, start_s, end_s, events in lines:
            clip = f"{youtube_id}_{round(float(start_s) * 1000)}"
            known = [(onset_s, names[label]) for onset_s, label in events if label in names]
            if not known:
                unknown = ", ".join(label for _, label in events) or "no label"
                reason = f"{clip} has no label with a known name: {unknown}"
                aside.add(EMPTY, reason, file=file.name, line=line)
                continue
            tried = names_of(youtube_id, start_s, end_s) + names_of(youtube_id, None, None)
            near = file.name.split("_")[0]
            audio = choose(
                folder, tried, near=near, clip=clip, aside=aside, file=file.name, line=line
            )
            if audio:
                asked = tuple(_questions(known, clip, is_strong=part in STRONG))
                yield Found(clip, audio, SPLIT_OF[part], asked, file.name, line)


Segment = tuple[int, str, str, str | None, list[tuple[float, str]]]
# line, YTID, start and end in s, and (onset in s, class id) of its events


def _weak(file: Path, aside: Aside) -> Iterator[Segment]:
    for row in read_rows(file, needs=(), aside=aside, name=file.name, form=SEGMENTS):
        start_s, end_s = row["start_seconds"].strip(), row["end_seconds"].strip()
        labels = [label.strip() for label in row["positive_labels"].split(",") if label.strip()]
        if is_seconds(start_s) and is_seconds(end_s) and row["ytid"].strip():
            yield row.line, row["ytid"].strip(), start_s, end_s, [(0.0, label) for label in labels]
        else:
            reason = f"must be YTID, start, end, labels; is {', '.join(row.values.values())}"
            aside.add(BROKEN, reason, file=file.name, line=row.line)


def _strong(file: Path, aside: Aside) -> Iterator[Segment]:
    """The events of a segment joined; they stand in any order."""
    segments: dict[str, tuple[int, list[tuple[float, str]]]] = {}
    for row in read_rows(file, needs=EVENT_COLUMNS, aside=aside, name=file.name, form=EVENTS):
        youtube_id, _, start_ms = row["segment_id"].rpartition("_")
        if youtube_id and start_ms.isdigit() and is_seconds(row["start_time_seconds"]):
            _, events = segments.setdefault(row["segment_id"], (row.line, []))
            events.append((float(row["start_time_seconds"]), row["label"].strip()))
        else:
            reason = f"must be YTID_STARTMS, start, end, label; is {', '.join(row.values.values())}"
            aside.add(BROKEN, reason, file=file.name, line=row.line)
    for segment, (line, events) in segments.items():
        youtube_id, _, start_ms = segment.rpartition("_")
        start_s = int(start_ms) / 1000
        yield line, youtube_id, f"{start_s:.3f}", f"{start_s + 10:.3f}", events


def _questions(
    events: Sequence[tuple[float, str]], clip: str, *, is_strong: bool
) -> Iterator[Draft]:
    yield tag([label for _, label in events], task=TAGS_STRONG if is_strong else TAGS)
    first = which_first(events, clip=clip) if is_strong else None
    if first:
        yield first


def _class_names(root: Path, aside: Aside) -> dict[str, str]:
    """Display name by class id, from all files that tell."""
    names: dict[str, str] = {}
    if (file := root / "mid_to_display_name.tsv").is_file():
        rows = read_rows(file, needs=(), aside=aside, name=file.name, form=NAMES)
        names |= {row["mid"]: row["name"] for row in rows}
    if (file := root / "ontology.json").is_file():
        names |= _ontology_names(file)
    if (file := root / "class_labels_indices.csv").is_file():
        rows = read_rows(file, needs=("mid", "display_name"), aside=aside, name=file.name)
        names |= {row["mid"]: row["display_name"] for row in rows}
    if not names:
        raise ManifestError(
            f"{root} has none of class_labels_indices.csv, ontology.json and "
            "mid_to_display_name.tsv: one of them must name the classes"
        )
    return names


def _ontology_names(file: Path) -> dict[str, str]:
    try:
        return {entry["id"]: entry["name"] for entry in read_json(file)}
    except (TypeError, KeyError) as error:
        raise ManifestError(
            f'{file} must be a list of {{"id", "name", ...}}: download it again'
        ) from error
