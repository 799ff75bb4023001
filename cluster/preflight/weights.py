"""Preflight of model folders: found without a network, whole by their safetensors headers.

A header says where the last tensor ends; a file of another size is torn. No torch, and no tensor is
read, so any model costs milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.hub import find_in_cache
from paltrain.config.schema import EncoderConfig
from paltrain.encoders import encoder_facts
from paltrain.encoders.base import stamp_of
from paltrain.encoders.facts import Facts
from paltrain.errors import ModelError

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
LENGTH_BYTES = 8  # of the header, at the start of a file


def local_folder(
    name: str, key: str, *, environment: Mapping[str, str], revision: str | None = None,
    file: str = CONFIG,
) -> Path:  # fmt: skip
    """Where a model or tokenizer lies, by its folder or its hub name (then in the hub's cache).

    key: of the configuration, for messages. environment: the job's, which may move the cache.

    Raises:
        ModelError: it is not there.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / file).is_file():
            raise ModelError(
                f"{key}: the folder {name} has no {file}: name one that `save_pretrained` wrote"
            )
        return folder
    try:
        found = find_in_cache(name, file=file, environment=environment, revision=revision)
    except ModelError as error:
        raise ModelError(f"{key}: {error}") from error
    if found is None:
        wanted = f" --revision {revision}" if revision else ""
        raise ModelError(
            f"{key}: {name} is neither a folder nor in the local hub cache, and the job may have "
            f"no network: `hf download {name}{wanted}` where there is one (on a login node)"
        )
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Raises ModelError where the file is no JSON."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}): copy or download it again") from error
    return values


def faults_of_weights(folder: Path) -> Iterator[str]:
    """What is missing or torn of a model's weights."""
    if (folder / SINGLE).exists():
        yield from _faults_of_file(folder / SINGLE, names=())
    elif (folder / INDEX).exists():
        shards: dict[str, list[str]] = {}
        for tensor, file in read_json(folder / INDEX).get("weight_map", {}).items():
            shards.setdefault(file, []).append(tensor)
        for file, tensors in sorted(shards.items()):
            yield from _faults_of_file(folder / file, names=tensors)
    elif not any(folder.glob("pytorch_model*.bin")):
        yield (
            f"{folder} has no weights ({SINGLE}, or {INDEX} and its files): copy or download it "
            "again"
        )


def size_of_weights(folder: Path) -> int:
    """Bytes of its weight files."""
    files = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    return sum(path.stat().st_size for path in files if path.exists())


def facts_of(encoder: EncoderConfig, *, environment: Mapping[str, str]) -> Facts:
    """What the encoder will be, by its small files: no torch, and no weights are read.

    Raises:
        ConfigError: there is no such encoder, or not with these options.
        ModelError: its files are missing, or another model's.
    """

    def read(file: str) -> dict[str, Any]:
        return read_json(encoder_folder(encoder, file, environment=environment) / file)

    return encoder_facts(**encoder.arguments(), files=read)


def encoder_stamp(encoder: EncoderConfig, *, environment: Mapping[str, str]) -> dict[str, Any]:
    """What a store by this encoder is stamped with, but for the hash of its weights.

    Raises:
        ConfigError, ModelError: as `facts_of`.
    """
    facts = facts_of(encoder, environment=environment)
    path, revision = encoder.path, encoder.revision
    stamp = stamp_of(facts, type=encoder.type, path=path, revision=revision, weight_hash=None)
    stamp["encoder"]["pool"] = encoder.pool
    return {**stamp, "dtype": encoder.dtype.value}


def encoder_folder(encoder: EncoderConfig, file: str, *, environment: Mapping[str, str]) -> Path:
    """Where an encoder's files lie, found by one of them.

    Raises:
        ModelError: it is not there.
    """
    assert encoder.path is not None
    key, revision = f"encoder '{encoder.type}'", encoder.revision
    return local_folder(encoder.path, key, environment=environment, revision=revision, file=file)


def _faults_of_file(path: Path, *, names: Sequence[str]) -> Iterator[str]:
    again = "copy or download it again"
    if not path.exists():
        state = "is a link to nothing" if path.is_symlink() else "is missing"
        yield f"{path} {state}: {again}"
        return
    size = path.stat().st_size
    header = _header(path, size)
    if header is None:
        yield f"{path} ({size} bytes) is no safetensors file, or torn in its header: {again}"
        return
    n_bytes, tensors = header
    end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if size != LENGTH_BYTES + n_bytes + end:
        yield (
            f"{path} is torn: by its header it has {LENGTH_BYTES + n_bytes + end} bytes, but it "
            f"has {size}: {again}"
        )
    lost = [name for name in names if name not in tensors]
    if lost:
        yield f"{path} lacks {len(lost)} tensors that {INDEX} places there ({lost[0]}): {again}"


def _header(path: Path, size: int) -> tuple[int, dict[str, Any]] | None:
    """Bytes of the header, and its tensors; None where there is none."""
    with path.open("rb") as file:
        n_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or n_bytes > size - LENGTH_BYTES:
            return None
        try:
            tensors: dict[str, Any] = json.loads(file.read(n_bytes))
        except ValueError:
            return None
    tensors.pop("__metadata__", None)
    return n_bytes, tensors
