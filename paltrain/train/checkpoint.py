"""Checkpoints keyed by parameter name, so that any number of ranks can go on from any other.

    checkpoints/
        step-00000040/
            checkpoint.json           step, data state, Adam's count, config, sizes of the files
            state-00000.safetensors   "<name>/param", "<name>/exp_avg", "<name>/exp_avg_sq": full,
            state-00001.safetensors   float32; each rank a share of the names and its random state
        step-00000060.partial/         being written, or left by a crash: ignored, removed at start
        latest                         the text "step-00000040"; moved last

Each rank writes about the same number of bytes. Everything is written beside and renamed, so a
crash or a full disk costs at most the newest checkpoint. Only trainable parameters and persistent
buffers are in it; the frozen rest is held by its hash.

Cost: one gather of three float32 tensors a parameter; a rank holds its own share of them on the
host.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paltrain.comm import Comm
from paltrain.errors import CheckpointError
from paltrain.log import get_logger
from paltrain.train.engine import STATE_KEYS, Engine, ParameterState
from paltrain.train.random_state import random_state, set_random_state

log = get_logger(__name__)

FORMAT = 1
LATEST = "latest"
RECORD = "checkpoint.json"
PARTIAL = ".partial"
RNG_KEY = "rng/"
BUFFER_KEY = "buffer/"


@dataclass(frozen=True)
class Progress:
    """Where a run stands, as a checkpoint records it.

    step: optimizer steps done, skipped ones included. data: the loader's state
    (`DataState.to_dict`). config: the resolved configuration. code_version: of the code that wrote
    it.
    """

    step: int
    data: Mapping[str, Any]
    n_applied_steps: int
    n_nonfinite: int
    frozen_hash: str
    world_size: int
    config: Mapping[str, Any]
    code_version: str


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run. `save` and `load` are collective: every rank calls them.

    keep: how many finished ones stay; older ones are removed after a newer one is safe.
    """

    folder: Path
    comm: Comm
    keep: int

    def clean(self) -> None:
        """Remove what a crash left half-written (rank 0)."""
        if self.comm.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(f"*{PARTIAL}"):
                log.info("removing the half-written checkpoint %s", left)
                shutil.rmtree(left)
        self.comm.barrier()

    def latest(self) -> Path | None:
        """The newest finished checkpoint, None without one. Raises CheckpointError if torn."""
        pointer = self.folder / LATEST
        if not pointer.exists():
            return None
        folder = self.folder / pointer.read_text(encoding="utf-8").strip()
        _check_files(folder)
        return folder

    def save(self, engine: Engine, progress: Progress) -> Path:
        """Write a checkpoint and move `latest` to it.

        Raises CheckpointError on every rank if any of them cannot write; the last good one stays.
        """
        final = self.folder / f"step-{progress.step:08d}"
        partial = final.with_name(final.name + PARTIAL)
        share = _share(engine.trainable, rank=self.comm.rank, world_size=self.comm.world_size)
        tensors = _collect(engine, share, own_buffers=self.comm.rank == 0)
        self._attempt(lambda: _make_room(partial), on_rank_0_only=True)
        try:
            self._attempt(lambda: _write_state(partial, tensors, rank=self.comm.rank))
            self._attempt(lambda: self._publish(partial, final, progress), on_rank_0_only=True)
        except CheckpointError:
            if self.comm.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        return final

    def load(self, folder: Path, engine: Engine, *, frozen_hash: str) -> Progress:
        """Bring the engine and this rank's random state to where `folder` left them.

        Raises CheckpointError if its parameters or the frozen base are not this run's.
        """
        record = _read_record(folder)
        progress = Progress(**record["progress"])
        if progress.frozen_hash != frozen_hash:
            raise CheckpointError(
                f"{folder} was trained on other frozen weights (hash {progress.frozen_hash}, now "
                f"{frozen_hash}): give the run the model it started from, or set run.fresh=true"
            )
        with _Tensors(folder) as tensors:
            _check_names(folder, tensors.names(), engine.trainable)
            engine.load_state(tensors.state, n_applied_steps=progress.n_applied_steps)
            engine.load_buffers(dict(tensors.buffers()))
            if progress.world_size == self.comm.world_size:
                tensors.restore_rng(self.comm.rank)
        return progress

    def _publish(self, partial: Path, final: Path, progress: Progress) -> None:
        files = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        record = {"format": FORMAT, "progress": asdict(progress), "files": files}
        _write_text(partial / RECORD, json.dumps(record, indent=1))
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        _write_text(self.folder / LATEST, final.name + "\n")
        finished = sorted(self.folder.glob("step-" + "[0-9]" * 8))
        for old in finished[: -max(self.keep, 1)]:
            if old != final:
                shutil.rmtree(old)

    def _attempt(self, act: Any, *, on_rank_0_only: bool = False) -> None:
        """Run `act`; if it fails anywhere, raise that rank's CheckpointError everywhere."""
        fault = None
        if self.comm.rank == 0 or not on_rank_0_only:
            try:
                act()
            except CheckpointError as error:
                fault = str(error)
            except OSError as error:
                fault = (
                    f"cannot write the checkpoint {error.filename or self.folder}: {error.strerror}"
                )
        faults = [f for f in self.comm.gather(fault) if f]
        if faults:
            raise CheckpointError(faults[0])


def frozen_hash(model: nn.Module) -> str:
    """A hash of names and bytes of the parameters that do not train, of unsharded weights."""
    import xxhash

    digest = xxhash.xxh3_128()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            raw = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(raw.numpy().data)
    return digest.hexdigest()


def _share(sizes: Mapping[str, int], *, rank: int, world_size: int) -> set[str]:
    """The names that `rank` writes: largest first, each to the rank with the least so far."""
    loads = [0] * world_size
    mine = set()
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        lightest = loads.index(min(loads))
        loads[lightest] += sizes[name]
        if lightest == rank:
            mine.add(name)
    return mine


def _collect(engine: Engine, share: set[str], *, own_buffers: bool) -> dict[str, Tensor]:
    tensors = {}
    for name, state in engine.state():
        if name in share:
            for key in STATE_KEYS:
                tensors[f"{name}/{key}"] = (
                    state[key].detach().float().to("cpu", copy=True).contiguous()
                )
    buffers = engine.buffers()
    if own_buffers:
        tensors |= {BUFFER_KEY + name: value.contiguous() for name, value in buffers.items()}
    return tensors | {RNG_KEY + name: state for name, state in random_state().items()}


def _make_room(partial: Path) -> None:
    partial.parent.mkdir(parents=True, exist_ok=True)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()


def _write_state(partial: Path, tensors: dict[str, Tensor], *, rank: int) -> None:
    path = partial / f"state-{rank:05d}.safetensors"
    n_bytes = sum(t.numel() * t.element_size() for t in tensors.values())
    free = shutil.disk_usage(partial).free
    remedy = "free some space, or lower checkpoint.keep; the last finished checkpoint is unharmed"
    if free < n_bytes:
        raise CheckpointError(
            f"no room for the checkpoint {path}: it takes {n_bytes} bytes, {free} are free: "
            f"{remedy}"
        )
    try:
        save_file(tensors, path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write the checkpoint {path} of {n_bytes} bytes: {error}: {remedy}"
        ) from error


def _write_text(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): {_fall_back(folder)}") from error
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {record.get('format')}, this code reads {FORMAT}: use "
            "the code that wrote it, or set run.fresh=true"
        )
    return record


def _check_files(folder: Path) -> None:
    for name, size in _read_record(folder)["files"].items():
        path = folder / name
        actual = path.stat().st_size if path.exists() else None
        if actual != size:
            state = "is missing" if actual is None else f"has {actual} bytes"
            raise CheckpointError(
                f"the checkpoint file {path} must have {size} bytes, but {state}: "
                f"{_fall_back(folder)}"
            )


def _fall_back(folder: Path) -> str:
    others = [p.name for p in sorted(folder.parent.glob("step-" + "[0-9]" * 8)) if p != folder]
    if not others:
        return "restore it, or set run.fresh=true to start anew"
    return f"restore it, or write '{others[-1]}' into {folder.parent / LATEST} to go on from there"


def _check_names(folder: Path, saved: set[str], expected: Mapping[str, int]) -> None:
    missing, extra = sorted(set(expected) - saved), sorted(saved - set(expected))
    if missing or extra:
        raise CheckpointError(
            f"{folder} does not hold this run's trainable parameters: it lacks {_few(missing)} "
            f"and has {_few(extra)} beyond them: restore the configuration it was made with, or "
            "set run.fresh=true"
        )


def _few(names: list[str]) -> str:
    return (
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"
    )


class _Tensors:
    """All state files of a checkpoint, open; a tensor is read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        self._file_of: dict[str, Any] = {}

    def __enter__(self) -> _Tensors:
        for path in sorted(self.folder.glob("state-*.safetensors")):
            try:
                file: Any = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise CheckpointError(
                    f"{path} is torn ({error}): {_fall_back(self.folder)}"
                ) from error
            self._files[path.name] = file
            self._file_of |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()
        self._file_of.clear()

    def names(self) -> set[str]:
        marks = tuple("/" + key for key in STATE_KEYS)
        return {key.rpartition("/")[0] for key in self._file_of if key.endswith(marks)}

    def state(self, name: str) -> ParameterState:
        return {key: self._tensor(f"{name}/{key}") for key in STATE_KEYS}

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        for key in self._file_of:
            if key.startswith(BUFFER_KEY):
                yield key.removeprefix(BUFFER_KEY), self._tensor(key)

    def restore_rng(self, rank: int) -> None:
        file = self._files[f"state-{rank:05d}.safetensors"]
        keys = [key for key in file.keys() if key.startswith(RNG_KEY)]  # noqa: SIM118 - no mapping
        set_random_state({key.removeprefix(RNG_KEY): file.get_tensor(key) for key in keys})

    def _tensor(self, key: str) -> Tensor:
        tensor: Tensor = self._file_of[key].get_tensor(key)
        return tensor
