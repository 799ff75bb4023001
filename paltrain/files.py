"""Files that processes on several machines write: seen whole or not at all, and one at a time.

A name beside the final one is random, since two machines may give two processes the same id.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from paltrain.log import get_logger

log = get_logger(__name__)

LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


def beside(path: Path) -> Path:
    """A hidden name in the folder of `path` that no other process takes."""
    return path.with_name(f".{path.name}.{uuid4().hex}")


def write_atomically(path: Path, text: str) -> None:
    """Beside, then renamed: a reader sees the old or the new content, and a kill leaves one."""
    written = beside(path)
    try:
        written.write_text(text, encoding="utf-8")
        os.replace(written, path)
    finally:
        written.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, one process at a time of all that lock `folder`, on whatever machine.

    A file system without locks is warned of, once, and gone on with. The lock falls with its
    process.
    """
    with open(folder / LOCK_FILE, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            _warn_of_no_locks(folder, error.strerror)
        yield


@cache
def _warn_of_no_locks(folder: Path, reason: str) -> None:
    log.warning(
        "%s has no file locks (%s): do not start two commands with different manifests on it at "
        "the same time",
        folder,
        reason,
    )
