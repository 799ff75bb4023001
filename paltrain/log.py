"""Logging: rank 0 speaks on the console, every rank carries its number in the record."""

from __future__ import annotations

import logging
import os
from pathlib import Path

FORMAT = "%(asctime)s %(levelname).1s rank %(rank)s %(name)s: %(message)s"


def get_logger(name: str) -> logging.Logger:
    """The logger of module `name` (`__name__`)."""
    return logging.getLogger(name)


class _RankFilter(logging.Filter):
    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def filter(self, record: logging.LogRecord) -> bool:
        record.rank = self.rank
        return True


def setup_logging(
    *, rank: int | None = None, file: Path | None = None, level: int = logging.INFO
) -> None:
    """Send rank 0's records to the console and, if `file` is given, every rank's to it.

    rank: default from the environment variable RANK, else 0.
    """
    rank = int(os.environ.get("RANK", "0")) if rank is None else rank
    handlers: list[logging.Handler] = [logging.StreamHandler()] if rank == 0 else []
    if file is not None:
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    for handler in handlers:
        handler.addFilter(_RankFilter(rank))
        handler.setFormatter(logging.Formatter(FORMAT, datefmt="%H:%M:%S"))
    logging.basicConfig(
        level=logging.WARNING, handlers=handlers or [logging.NullHandler()], force=True
    )
    for ours in ("paltrain", "cluster", "tools"):
        logging.getLogger(ours).setLevel(level)
