"""AudioCaps: captions of AudioSet clips; https://github.com/cdjkim/audiocaps (dataset/ and
dataset2.0/)

    train.csv, val.csv, test.csv   audiocap_id,youtube_id,start_time,caption

In training each clip has one caption, in the other splits five. The recordings come from YouTube
or from a link on request, and every downloader has names of its own, so that they are looked for
anywhere below the folder of recordings as, in this order, YOUTUBEID_START, Y + that, AUDIOCAPID,
YOUTUBEID and Y + that; START in s or ms. The first two are AudioSet's names, the third is that of
https://github.com/MorenoLaQuatra/audiocaps-download, the others are usual ones (from memory).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from paltrain.data.importers.aside import EMPTY, Aside
from paltrain.data.importers.ask import describe
from paltrain.data.importers.collect import Found, part_files
from paltrain.data.importers.recordings import AudioFolder
from paltrain.data.importers.rows import Row, read_rows
from paltrain.data.importers.youtube import choose, is_seconds, names_of

DATASET = "audiocaps"
SPLITS = ("train", "val", "test")
COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")


def read(
    root: Path, aside: Aside, splits: Sequence[str], *, audio_dir: Path | None = None
) -> Iterator[Found]:
    """Errors as in `part_files`, `AudioFolder` and `read_rows`."""
    tables = part_files(root, {split: f"{split}.csv" for split in SPLITS}, wanted=splits)
    folder = AudioFolder(audio_dir or root)
    for split, table in tables.items():
        by_clip: dict[str, list[Row]] = {}
        for row in read_rows(table, needs=COLUMNS, aside=aside, name=table.name):
            if row["caption"].strip() and row["youtube_id"] and is_seconds(row["start_time"]):
                by_clip.setdefault(f"{row['youtube_id']}_{row['start_time']}", []).append(row)
            else:
                reason = (
                    f"audiocap {row['audiocap_id']} has no caption, no youtube_id or no start_time"
                )
                aside.add(EMPTY, reason, file=table.name, line=row.line)
        for clip, rows in by_clip.items():
            yield from _found(clip, rows, split, table.name, folder, aside)


def _found(
    clip: str, rows: Sequence[Row], split: str, file: str, folder: AudioFolder, aside: Aside
) -> Iterator[Found]:
    """The clip with the captions of all its rows, if its recording is there."""
    first = rows[0]
    exact = names_of(first["youtube_id"], first["start_time"], None)
    ids = [row["audiocap_id"] for row in rows]
    names = [*exact, *ids, *names_of(first["youtube_id"], None, None)]
    audio = choose(folder, names, near=split, clip=clip, aside=aside, file=file, line=first.line)
    if audio:
        captions = [row["caption"].strip() for row in rows]
        yield Found(clip, audio, split, describe(captions, split=split), file, first.line)
