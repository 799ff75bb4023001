"""Names that downloaders give to a piece of a YouTube video, and the choice among such files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paltrain.data.importers.aside import AMBIGUOUS, MISSING, Aside
from paltrain.data.importers.recordings import AudioFolder

MAX_NAMED = 3


def names_of(youtube_id: str, start_s: str | None, end_s: str | None) -> list[str]:
    """Without suffix, the most exact first. start_s, end_s: as a table writes them, None: unknown.

    >>> names_of("abc", "30.000", "40.000")[:3]
    ['abc_30.000_40.000', 'Yabc_30.000_40.000', 'abc_30_40']
    >>> names_of("abc", "30", None)
    ['abc_30', 'Yabc_30', 'abc_30000', 'Yabc_30000']
    """
    if start_s is None:
        return [youtube_id, f"Y{youtube_id}"]
    times = [start_s] if end_s is None else [start_s, end_s]
    whole = [f"{float(time):g}" for time in times]
    in_ms = [str(round(float(time) * 1000)) for time in times]
    endings = ["_".join(parts) for parts in (times, whole, in_ms)]
    if end_s is not None:
        endings += [start_s, whole[0], in_ms[0]]
    return [f"{y}{youtube_id}_{ending}" for ending in dict.fromkeys(endings) for y in ("", "Y")]


def choose(
    folder: AudioFolder,
    names: Sequence[str],
    *,
    near: str,
    clip: str,
    aside: Aside,
    file: str,
    line: int,
) -> Path | None:
    """The recording with one of `names`; else None, and the line is set aside.

    near: of several with the same name, the one in a folder whose name has this word is taken.
    """
    found = folder.find(*names)
    if len(found) > 1:
        found = [path for path in found if near in str(path.relative_to(folder.folder))] or found
    if len(found) == 1:
        return found[0]
    if not found:
        tried = ", ".join(names[:MAX_NAMED])
        reason = f"{clip} has no recording below {folder.folder} (looked for {tried}, ...)"
        aside.add(MISSING, reason, file=file, line=line)
    else:
        shown = ", ".join(map(str, found[:MAX_NAMED]))
        reason = f"{clip} may be any of {shown}: name a folder that has only one of them"
        aside.add(AMBIGUOUS, reason, file=file, line=line)
    return None


def is_seconds(text: str) -> bool:
    """Whether a table's field is a time from 0 on."""
    try:
        return float(text) >= 0
    except ValueError:
        return False
