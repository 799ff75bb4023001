"""What the checks of a chain share: what was found of each job, and what earlier jobs will make.

Manifests and stores that several jobs read are opened once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cluster.job import Job
from cluster.preflight.child import Child
from paltrain.config.schema import FeaturesConfig, TrainConfig
from paltrain.errors import ManifestError, PaltrainError
from paltrain.run_folder import init_runs

if TYPE_CHECKING:
    from paltrain.data.index import Corpus
    from paltrain.data.shards import FeatureStore

T = TypeVar("T")
Stamp = Mapping[str, Any]  # what made a store; perhaps not all of it


@dataclass
class Findings:
    """Of one job, or of all together: what was looked at and is good, what not, what is unknown.

    warnings: what works, but is hardly meant.
    """

    name: str
    kind: str
    good: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def attempt(self, act: Callable[[], T], *, about: str = "") -> T | None:
        """`act()`; what a user can mend becomes a problem, and None is returned.

        about: what it concerns, where the error does not say so.
        """
        start = f"{about}: " if about else ""
        try:
            return act()
        except PaltrainError as error:
            self.problems.append(f"{start}{error}")
        except OSError as error:
            self.problems.append(f"{start}{error.filename} cannot be used: {error.strerror}")
        return None


@dataclass(frozen=True)
class Need:
    """Room that a job's files will take. what: they are."""

    name: str
    folder: Path
    n_bytes: int
    what: str


class Chain:
    """The jobs, and what their checks share."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)
        self.child = Child(jobs[0].environment if jobs else {})
        self.needs: list[Need] = []
        self.stamps: dict[str, Mapping[str, Stamp | None]] = {}  # by job and stream
        self.audits: dict[tuple[str, Path], Any] = {}  # of stores, by what is wanted of them
        self._corpora: dict[tuple[str, ...], Corpus] = {}
        self._stores: dict[Path, FeatureStore] = {}
        self._rows: dict[tuple[tuple[str, ...], Path], NDArray[np.int64]] = {}

    def run_before(self, job: Job, folder: Path) -> Job | None:
        """The run of this chain that will have filled `folder` before `job` starts."""
        return next(
            (
                before
                for before in self._before(job)
                if isinstance(before.config, TrainConfig)
                and not is_done(before)
                and before.folder.path == folder.absolute()
            ),
            None,
        )

    def starts_from(self, job: Job) -> Job | None:
        """The run of this chain whose model `job` starts from."""
        config = job.config
        if not isinstance(config, TrainConfig):
            return None
        found = (self.run_before(job, folder) for folder in init_runs(config))
        return next((before for before in found if before is not None), None)

    def features_before(self, job: Job, store: Path) -> Job | None:
        """The job of this chain that will have made or completed a store before `job` starts."""
        return next(
            (
                before
                for before in self._before(job)
                if isinstance(before.config, FeaturesConfig)
                and before.config.slice is None
                and store.absolute()
                in [Path(made).absolute() for made in before.config.stores().values()]
            ),
            None,
        )

    def corpus(self, manifests: Sequence[str]) -> Corpus:
        """Raises ManifestError with the faults of all manifests."""
        key = tuple(manifests)
        if key not in self._corpora:
            self._corpora[key] = _open_corpus(manifests)
        return self._corpora[key]

    def store(self, folder: Path) -> FeatureStore:
        from paltrain.data.shards import FeatureStore

        if folder not in self._stores:
            self._stores[folder] = FeatureStore.open(folder)
        return self._stores[folder]

    def rows(self, manifests: Sequence[str], folder: Path) -> NDArray[np.int64]:
        """(C,) row of each clip in the store, -1 where it has none."""
        key = (tuple(manifests), folder)
        if key not in self._rows:
            ids = self.corpus(manifests).clip_id_array
            self._rows[key] = self.store(folder).rows_of(ids)
        return self._rows[key]

    def known_rows(self, manifests: Sequence[str], folder: Path) -> NDArray[np.int64] | None:
        """The same, where they have been looked up already."""
        return self._rows.get((tuple(manifests), folder))

    def _before(self, job: Job) -> list[Job]:
        return self.jobs[: self.jobs.index(job)]


def is_done(job: Job) -> bool:
    """Whether the run has finished, so that a launch leaves it alone."""
    return job.folder.path.is_dir() and job.is_done


def _open_corpus(manifests: Sequence[str]) -> Corpus:
    from paltrain.data.index import Corpus, ManifestIndex

    indexes, faults = [], []
    for path in manifests:
        try:
            indexes.append(ManifestIndex.open(path))
        except ManifestError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(
                f"the index of manifest {path} cannot be written ({error.strerror}: "
                f"{error.filename}): make its folder writable, or compile it where it is"
            )
    if faults:
        raise ManifestError("; ".join(faults))
    return Corpus(indexes)
