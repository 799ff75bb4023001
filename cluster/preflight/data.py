"""Preflight of what a job reads: manifests, and feature stores joined to them.

A store must have every clip that is asked for: questions on a clip without features are left out of
training, and if it got them later the run could not go on, since the clips in use fix the order of
its data. What it is to get of other manifests does not matter.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.job import Job
from cluster.preflight.chain import Chain, Findings, Stamp
from cluster.preflight.weights import encoder_stamp
from paltrain.config.schema import FeaturesConfig, MixtureConfig
from paltrain.data.build import parts_of
from paltrain.data.filters import BoolArray, asked_for
from paltrain.data.frames import dtype_of, frame_bytes
from paltrain.data.mixture import mix
from paltrain.data.rejected import rejected_clips
from paltrain.data.selection import hears_only
from paltrain.data.shards import (
    finished_shards,
    missing_shards,
    read_stamp,
    shard_path,
)
from paltrain.errors import ManifestError, PaltrainError, unknown_name

if TYPE_CHECKING:
    from paltrain.data.index import Corpus
    from paltrain.data.shards import FeatureStore

LEAST_TAR_BYTES_PER_CLIP = 1664  # at least: two members' headers, an npy header, one block of JSON


@dataclass(frozen=True)
class Wanted:
    """What a job asks of manifests.

    filters: by dataset and duration, as `asked_for` takes them. mixture: its parts by name; empty:
    everything that the filters leave.
    """

    manifests: Sequence[str]
    split: str
    tasks: Sequence[str] | None = None
    filters: Mapping[str, Any] = field(default_factory=dict)
    mixture: Mapping[str, MixtureConfig] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """A store beside the clips that are wanted of it.

    absent: ids of those that have neither features nor a line in rejected.jsonl. unmade: numbers of
    the shards of its assignment that are not there. torn: of those shorter than their index says.
    """

    n_wanted: int
    n_rejected: int
    absent: Sequence[str]
    n_shards: int
    unmade: Sequence[int]
    torn: Sequence[int]


def look_at_data(
    wanted: Wanted, stores: Mapping[str, Path], job: Job, chain: Chain, findings: Findings
) -> dict[str, Stamp | None]:
    """Manifests, and the stores of streams by name. Returns the stores' stamps, where known."""
    corpus = findings.attempt(lambda: _corpus(wanted, chain))
    if corpus is not None:
        findings.good.append(
            f"{len(wanted.manifests)} manifest(s): split '{wanted.split}' has "
            f"{int(_asked(corpus, wanted).sum())} questions on "
            f"{int(wanted_clips(corpus, wanted).sum())} clips"
            + (f" for the tasks {', '.join(wanted.tasks)}" if wanted.tasks else "")
        )
    names: dict[Path, list[str]] = {}  # of the streams that read a store
    for name, folder in stores.items():
        names.setdefault(folder, []).append(f"'{name}'")
    of_store = {
        folder: _look_at_store(
            f"stream{'s' * (len(them) > 1)} {', '.join(them)}",
            folder, wanted, corpus, job, chain, findings,
        )
        for folder, them in names.items()
    }  # fmt: skip
    stamps = {name: of_store[folder] for name, folder in stores.items()}
    if corpus is not None:
        _look_at_what_is_left(wanted, corpus, stores, chain, findings)
    return stamps


def _corpus(wanted: Wanted, chain: Chain) -> Corpus:
    corpus = chain.corpus(wanted.manifests)
    faults = []
    if wanted.split not in corpus.splits:
        faults.append(unknown_name("split", wanted.split, list(corpus.splits)))
    tasks = [task for task in wanted.tasks or [] if task not in corpus.tasks]
    faults += [unknown_name("task", task, list(corpus.tasks)) for task in tasks]
    if faults:
        raise ManifestError(f"{', '.join(map(str, wanted.manifests))}: {'; '.join(faults)}")
    _asked(corpus, wanted)  # raises where a filter names what is not there
    return corpus


def _asked(corpus: Corpus, wanted: Wanted) -> BoolArray:
    """(Q,) the questions of the split that filters and mixture ask for."""
    in_split = np.asarray(corpus.clip_split) == corpus.splits.index(wanted.split)
    asked: BoolArray = np.repeat(in_split, np.diff(corpus.first_question))
    for questions, _ in asked_for(corpus, "data", tasks=wanted.tasks, **wanted.filters):
        asked &= questions
    if wanted.mixture:
        parts = parts_of(corpus, wanted.mixture, kept=asked)
        asked = np.any([part.asked for part in parts], axis=0)
    return asked


def wanted_clips(corpus: Corpus, wanted: Wanted) -> BoolArray:
    """(C,) the clips that those questions are about."""
    total = np.concatenate([[0], np.cumsum(_asked(corpus, wanted))])
    clips: BoolArray = np.diff(total[np.asarray(corpus.first_question)]) > 0
    return clips


# ---- stores --------------------------------------------------------------------------------------


def _look_at_store(
    who: str, folder: Path, wanted: Wanted, corpus: Corpus | None,
    job: Job, chain: Chain, findings: Findings,
) -> Stamp | None:  # fmt: skip
    """who: the streams that read it, in words."""
    maker = chain.features_before(job, folder)
    if maker is not None:
        return _look_at_maker(who, folder, wanted, maker, findings)
    store = findings.attempt(lambda: chain.store(folder), about=who)
    if store is None:
        return read_stamp(folder) if (folder / "store.json").is_file() else None
    if corpus is None:
        findings.unknown.append(f"{who}: what {folder} lacks, for want of the manifests")
        return store.stamp
    audit = findings.attempt(lambda: _audit_once(store, corpus, wanted, chain))
    if audit is not None:
        findings.problems += _faults_of(who, store, wanted, audit)
        set_aside = f" ({audit.n_rejected} set aside)" if audit.n_rejected else ""
        if not audit.absent:
            findings.good.append(
                f"{who}: {folder} has {audit.n_shards} shards with {len(store)} clips, "
                f"all {audit.n_wanted} of split '{wanted.split}' among them{set_aside}"
            )
    return store.stamp


def _look_at_maker(
    who: str, folder: Path, wanted: Wanted, maker: Job, findings: Findings
) -> Stamp | None:
    """A store that an earlier job of the chain makes."""
    config = maker.config
    assert isinstance(config, FeaturesConfig)
    made = {Path(manifest).absolute() for manifest in config.manifests}
    others = [path for path in wanted.manifests if Path(path).absolute() not in made]
    if others:
        findings.problems.append(
            f"{who}: {folder} is made by {maker.folder.name} of this chain, but not for "
            f"{', '.join(others)}: name them in its manifests, too"
        )
    else:
        findings.good.append(f"{who}: {folder}, made by {maker.folder.name} of this chain")
    try:
        if (folder / "store.json").is_file():
            return read_stamp(folder)
        encoder = next(
            config.encoders[name]
            for name, store in config.stores().items()
            if Path(store).absolute() == folder.absolute()
        )
        return encoder_stamp(encoder, environment=maker.environment)
    except PaltrainError:  # said of that job
        return None


def _audit_once(store: FeatureStore, corpus: Corpus, wanted: Wanted, chain: Chain) -> Audit:
    """The stages of a chain mostly read the same."""
    key = (repr(wanted), store.folder)
    if key not in chain.audits:
        chain.audits[key] = _audit(store, corpus, wanted, chain)
    audit: Audit = chain.audits[key]
    return audit


def _audit(store: FeatureStore, corpus: Corpus, wanted: Wanted, chain: Chain) -> Audit:
    folder = store.folder
    clips = wanted_clips(corpus, wanted) & np.asarray(corpus.has_audio)
    rows = chain.rows(wanted.manifests, folder)
    lacking = corpus.clip_id_array[clips & (rows < 0)].tolist()
    rejected = rejected_clips(folder)
    finished = finished_shards(folder)
    return Audit(
        n_wanted=int(clips.sum()),
        n_rejected=sum(clip in rejected for clip in lacking),
        absent=[clip for clip in lacking if clip not in rejected],
        n_shards=len(finished),
        unmade=missing_shards(folder),
        torn=_torn(store, finished),
    )


def _torn(store: FeatureStore, finished: Sequence[int]) -> list[int]:
    """The shards whose tar cannot hold the frames that their index promises."""
    per_frame = frame_bytes(store.width, dtype_of(store.stamp))
    of_clips = store.n_frames.astype(np.int64) * per_frame + LEAST_TAR_BYTES_PER_CLIP
    n_bytes = np.zeros(max(finished) + 1, np.int64)
    np.add.at(n_bytes, store.shard_of, of_clips)
    sizes = {number: shard_path(store.folder, number).stat().st_size for number in finished}
    return [number for number in finished if sizes[number] < n_bytes[number]]


def _faults_of(who: str, store: FeatureStore, wanted: Wanted, audit: Audit) -> list[str]:
    folder, faults = store.folder, []
    command = _command(store, wanted)
    unmade = (
        f"{len(audit.unmade)} of its {audit.n_shards + len(audit.unmade)} shards are not made "
        f"(the first is number {audit.unmade[0]})"
        if audit.unmade
        else ""
    )
    if audit.absent:
        faults.append(
            f"{who}: {len(audit.absent)} of the {audit.n_wanted} clips of split "
            f"'{wanted.split}' have no features in {folder}, beside {audit.n_rejected} set aside "
            f"(the first is '{audit.absent[0]}'){'; ' * bool(unmade)}{unmade}: run {command}"
        )
    if audit.torn:
        path = shard_path(folder, audit.torn[0])
        faults.append(
            f"{who}: {len(audit.torn)} shard(s) of {folder} are shorter than their index "
            f"says ({path.name}): remove each and its index, and run {command}"
        )
    return faults


def _command(store: FeatureStore, wanted: Wanted) -> str:
    """What makes what the store lacks."""
    encoder = store.stamp.get("encoder") or {}
    name = store.folder.name
    words = [f"manifests=[{','.join(wanted.manifests)}]", f"folder={store.folder.parent}"]
    fields = {key: encoder.get(key) for key in ("type", "path", "revision", "pool")}
    options = encoder.get("options") or {}
    fields |= {f"options.{key}": value for key, value in options.items()}
    fields["dtype"] = store.stamp["dtype"]
    words += [f"encoders.{name}.{key}={value}" for key, value in fields.items() if value]
    words.append(f"only=[{name}]")
    return f"`{shlex.join(['python', 'tools/precompute_features.py', *words])}`"


def _look_at_what_is_left(
    wanted: Wanted, corpus: Corpus, stores: Mapping[str, Path], chain: Chain, findings: Findings
) -> None:
    """Whether any question is left, and every part of a mixture has some, as far as stores are
    there."""
    left = _asked(corpus, wanted)
    for folder in stores.values():
        rows = chain.known_rows(wanted.manifests, folder)
        if rows is not None:
            heard = ~np.asarray(corpus.has_audio) | (rows >= 0)
            left &= hears_only(corpus, heard)
    if not left.any():
        findings.problems.append(
            f"no question of split '{wanted.split}' is left to use"
            + (f" for the tasks {', '.join(wanted.tasks)}" if wanted.tasks else "")
            + (", for none of their clips has features in every store" if stores else "")
            + ": name the manifests and the stores that belong together"
        )
    elif wanted.mixture:
        parts = parts_of(corpus, wanted.mixture, kept=left)
        findings.attempt(lambda: mix(parts, np.asarray(corpus.first_question)))
