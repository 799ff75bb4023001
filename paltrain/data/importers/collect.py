"""What every importer of a public data set shares: lines become clips, and clips a manifest.

1. A module for each layout yields `Found`: one recording, its split, the questions about it.
2. Lines about the same recording become one clip. A question that stands there twice is asked once;
   one with options and two different answers keeps the first, and the other is set aside, as is one
   whose answer is none of its options.
3. `splits` and `limit` choose clips; recordings are read in processes for durations and contents.
4. Recordings with the same bytes become one clip with the questions of all. Across splits they do
   not: the copy in the split that is nearer to a test stays, the other is set aside. Contents
   stand in the manifest, so that a feature store knows the same recordings of other manifests.
5. `manifest.jsonl` and `rejected.jsonl` are written; the counts are reported.

Costs: every question in memory until the manifest is written (OpenAQA: 5.6 million, some 4 GB);
for recordings see `recordings`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paltrain.data.importers.aside import (
    CONTRADICTION,
    DUPLICATE,
    MISSING,
    NO_OPTION,
    TWO_SPLITS,
    Aside,
)
from paltrain.data.importers.ask import Draft
from paltrain.data.importers.recordings import (
    Look,
    Measured,
    Progress,
    Unusable,
    in_processes,
    measure,
)
from paltrain.data.manifest import Clip, Question, write_manifest
from paltrain.errors import ManifestError, unknown_name
from paltrain.log import get_logger

log = get_logger(__name__)

TRAIN_LIKE = "train"  # the split that gives way where a recording is in two
VAL_LIKE = "val"


@dataclass(frozen=True, slots=True)
class Found:
    """A recording and questions about it, as some line says.

    clip: its name in the data set, the same on every machine. file, line: where that is said.
    """

    clip: str
    audio: Path
    split: str
    questions: tuple[Draft, ...]
    file: str
    line: int | None = None
    dataset: str | None = None  # where a data set is made of several


@dataclass(frozen=True)
class Choice:
    """What to import. splits: None for all. limit: clips of each split. workers: processes. dedupe:
    by content, which reads every byte. decode: every sample, to find what is cut off or silent."""

    splits: tuple[str, ...] | None = None
    limit: int | None = None
    workers: int = 1
    dedupe: bool = True
    decode: bool = False


@dataclass
class Imported:
    """What an import did."""

    manifest: Path
    aside: Aside
    n_clips: int
    n_questions: int
    n_silent: int | None = None  # where nobody listened

    def report(self) -> str:
        """A few lines for people: what was taken, what was set aside, and why."""
        taken = f"{self.n_clips} clips and {self.n_questions} questions taken"
        if self.n_silent is not None:
            taken += f", {self.n_silent} of the recordings silent"
        left = self.aside.report(self.manifest.parent)
        return f"{taken}; nothing set aside" if not left else f"{taken}\n{left}"


@dataclass(slots=True)
class _Gathered:
    found: Found
    drafts: dict[Draft, None] = field(default_factory=dict)


Read = Callable[[Aside, Sequence[str]], Iterator[Found]]


def import_clips(
    read: Read,
    *,
    dataset: str,
    splits: Sequence[str],
    out: Path,
    choice: Choice,
    progress: Progress | None = None,
) -> Imported:
    """Write `out/manifest.jsonl`, and `out/rejected.jsonl` if need be.

    read: gives the lines of the named splits, setting aside what it cannot use. splits: all that
    the data set has; none where they may have any name.

    Raises:
        ManifestError: an unknown split, what `read` raises, or nothing can be used.
    """
    aside = Aside()
    wanted = _wanted(choice, splits)
    gathered = _gather(read(aside, wanted), wanted, aside)
    gathered = _limited(gathered, choice.limit)
    measured = _measured(gathered, choice, aside, progress)
    if choice.dedupe:
        _merge_duplicates(gathered, measured, aside)
    aside.write(out)
    if not measured:
        none = f"there is no line{' of split ' + ', '.join(wanted) if choice.splits else ''}"
        first = aside.entries[0]["reason"] if aside.entries else none
        raise ManifestError(f"nothing of {dataset} can be used; the first because {first}")
    clips = (_clip(gathered[path], path, measured[path], dataset, out) for path in measured)
    manifest = out / "manifest.jsonl"
    return Imported(
        manifest,
        aside,
        n_clips=write_manifest(manifest, clips),
        n_questions=sum(len(gathered[path].drafts) for path in measured),
        n_silent=sum(seen.is_silent for seen in measured.values()) if choice.decode else None,
    )


def part_files(
    root: Path, names: Mapping[str, str], *, wanted: Sequence[str], option: str = "--data"
) -> dict[str, Path]:
    """The files of the wanted splits (names: split to path below `root`) that are there.

    Raises:
        ManifestError: none is there.
    """
    if not root.is_dir():
        raise ManifestError(f"{option} {root} is no folder: name where the data set was unpacked")
    paths = {split: root / name for split, name in names.items() if split in wanted}
    there = {split: path for split, path in paths.items() if path.is_file()}
    if not there:
        expected = ", ".join(dict.fromkeys(names[split] for split in paths))
        raise ManifestError(f"{root} has no {expected}: {option} names the unpacked data set")
    for split in [split for split in paths if split not in there]:
        log.warning("there is no %s: split %s is left out", paths[split], split)
    return there


def _wanted(choice: Choice, splits: Sequence[str]) -> tuple[str, ...]:
    for split in choice.splits or ():
        if splits and split not in splits:
            raise ManifestError(unknown_name("split", split, list(splits)))
    return choice.splits or tuple(splits)


def _gather(lines: Iterable[Found], wanted: Sequence[str], aside: Aside) -> dict[Path, _Gathered]:
    """Lines by recording; of a recording in two splits, the one nearer to a test stays."""
    gathered: dict[Path, _Gathered] = {}
    for found in lines:
        if wanted and found.split not in wanted:
            continue
        drafts = [draft for draft in found.questions if _is_answerable(draft, found, aside)]
        if found.questions and not drafts:
            continue
        known = gathered.setdefault(found.audio, _Gathered(found))
        if found.split != known.found.split:
            stays, goes = sorted((known.found, found), key=_nearness_to_test)
            aside.add(
                TWO_SPLITS,
                f"{goes.clip} is in split {stays.split}, too, and stays there",
                file=goes.file,
                line=goes.line,
            )
            if goes is found:
                continue
            known = gathered[found.audio] = _Gathered(found)
        _add(known, drafts, found, aside)
    return gathered


def _is_answerable(draft: Draft, found: Found, aside: Aside) -> bool:
    """Whether the answer is among the options, if there are any; otherwise it is set aside."""
    if draft.options is None or draft.answer in draft.options:
        return True
    options = " | ".join(draft.options)
    reason = f"the answer '{draft.answer}' is none of the options {options}: spell it as one"
    aside.add(NO_OPTION, reason, file=found.file, line=found.line)
    return False


def _nearness_to_test(found: Found) -> int:
    """Order of splits: tests first, training last."""
    return {TRAIN_LIKE: 2, VAL_LIKE: 1}.get(found.split, 0)


def _add(known: _Gathered, drafts: Iterable[Draft], found: Found, aside: Aside) -> None:
    for draft in drafts:
        other = _contradicted(known.drafts, draft)
        if other is None:
            known.drafts.setdefault(draft)
        elif other != draft:
            aside.add(
                CONTRADICTION,
                f"{found.clip}: '{draft.answer}', but '{other.answer}' was said before",
                file=found.file,
                line=found.line,
            )


def _contradicted(drafts: Iterable[Draft], draft: Draft) -> Draft | None:
    """The question with the same options among `drafts`; only one of them can be right."""
    if draft.options is None:
        return None
    same = (d for d in drafts if d.instruction == draft.instruction and d.options == draft.options)
    return next(same, None)


def _limited(gathered: dict[Path, _Gathered], limit: int | None) -> dict[Path, _Gathered]:
    """The first `limit` clips of each split whose file is there; further ones are not looked at."""
    if limit is None:
        return gathered
    taken: Counter[str] = Counter()
    chosen = {}
    for path, known in gathered.items():
        if taken[known.found.split] < limit:
            chosen[path] = known
            taken[known.found.split] += os.path.isfile(path)
    return chosen


def _measured(
    gathered: Mapping[Path, _Gathered], choice: Choice, aside: Aside, progress: Progress | None
) -> dict[Path, Measured]:
    """The recordings that can be used; the others are set aside."""
    usable = {}
    paths, look = list(gathered), Look(contents=choice.dedupe, decoded=choice.decode)
    with in_processes(choice.workers) as over_files:
        results = measure(paths, look, over_files=over_files, progress=progress)
    for path, result in zip(paths, results, strict=True):
        found = gathered[path].found
        if isinstance(result, Unusable):
            reason = f"{path} is missing" if result.kind == MISSING else result.reason
            aside.add(result.kind, reason, file=found.file, line=found.line)
        else:
            usable[path] = result
    return usable


def _merge_duplicates(
    gathered: Mapping[Path, _Gathered], measured: dict[Path, Measured], aside: Aside
) -> None:
    """Of recordings with the same bytes one stays in `measured`."""
    by_content: dict[str | None, list[Path]] = {}
    for path, seen in measured.items():
        by_content.setdefault(seen.content, []).append(path)
    for group in by_content.values():
        first, *others = sorted(group, key=lambda path: _nearness_to_test(gathered[path].found))
        stays = gathered[first]
        for path in others:
            found, drafts = gathered[path].found, gathered[path].drafts
            if found.split == stays.found.split:
                _add(stays, drafts, found, aside)
                what = "which has the questions of both"
            else:
                what = f"of split {stays.found.split}: its {len(drafts)} questions are left out"
            aside.add(
                DUPLICATE,
                f"{found.clip} is the same recording as {stays.found.clip}, {what}",
                file=found.file,
                line=found.line,
            )
            del measured[path]


def _clip(known: _Gathered, path: Path, measured: Measured, dataset: str, out: Path) -> Clip:
    found = known.found
    name = f"{dataset}/{found.clip}"
    seen: Counter[str] = Counter()
    questions = []
    for draft in known.drafts:
        seen[draft.task] += 1
        questions.append(
            Question(
                f"{name}/{draft.task}-{seen[draft.task]}",
                draft.task,
                draft.instruction,
                draft.answer,
                options=draft.options,
                labels=draft.labels,
                references=draft.references,
            )
        )
    return Clip(
        id=name,
        audio=os.path.relpath(path, out),
        duration_s=measured.duration_s,
        dataset=found.dataset or dataset,
        split=found.split,
        questions=tuple(questions),
        content=measured.content,
    )
