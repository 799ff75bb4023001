"""What the tools' command lines share: `tool [options] CONFIG [CONFIG ...] [key=value ...]`.

A tool is thin: it parses with `config_parser` and `parse_config_arguments`, calls the library, and
ends with

    if __name__ == "__main__":
        sys.exit(main_guard(main))

so that what a user can cause ends in one clear line and exit code 2, and a bug keeps its traceback.

A tool whose work comes in slices (`paltrain.slices`) also has `add_slice_options`, `settle_slice`,
and works within `progress_in`.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from paltrain.config.load import load_config, to_yaml
from paltrain.errors import EXIT_USER_ERROR, ConfigError, PaltrainError
from paltrain.log import setup_logging
from paltrain.slices import slice_of_array
from paltrain.status import FAILED, FINISHED, RUNNING, STOPPED, StatusFile

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143  # by SIGTERM, as a shell says it
STOPS = (signal.SIGTERM, signal.SIGUSR2)  # on preemption and cancelling; before the time limit
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
MAKE_ROOM = "make room and run the same command again: what was finished is kept"
T = TypeVar("T")


def config_parser(
    description: str | None, *, default_configs: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """A parser of `CONFIG [CONFIG ...] [key=value ...] [--show-config]`.

    The tool adds its own options to it.
    default_configs: taken when no CONFIG is named; without them at least one must be.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shown = f" (default: {' '.join(default_configs)})" if default_configs else ""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG | key=value",
        help=f"YAML files{shown}, and settings that override them, e.g. run.seed=1",
    )
    parser.add_argument(
        "--show-config", action="store_true", help="print the resolved config and stop"
    )
    parser.set_defaults(default_configs=list(default_configs))
    return parser


def parse_config_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None = None
) -> argparse.Namespace:
    """The arguments, options and words in any order.

    Adds to the parser's own: `configs` (list[Path]) and `overrides` (list[str], `key=value`).
    """
    arguments = parser.parse_intermixed_args(argv)
    is_override = {word: "=" in word and not Path(word).exists() for word in arguments.words}
    named = [word for word in arguments.words if not is_override[word]]
    arguments.configs = [Path(word) for word in named or arguments.default_configs]
    arguments.overrides = [word for word in arguments.words if is_override[word]]
    if not arguments.configs:
        parser.error("name at least one CONFIG, e.g. configs/quickstart/lal_stage1.yaml")
    return arguments


def load_each(schema: type[T], arguments: argparse.Namespace) -> list[T]:
    """One configuration for each CONFIG, the overrides applied to all; prints them if asked to.

    With --show-config it prints the resolved YAML and ends the process with code 0.
    """
    configs = [load_config(schema, [path], arguments.overrides) for path in arguments.configs]
    if arguments.show_config:
        print("---\n".join(to_yaml(config) for config in configs), end="")
        raise SystemExit(0)
    return configs


def load_merged(schema: type[T], arguments: argparse.Namespace) -> T:
    """One configuration from all CONFIGs merged in order; --show-config as in `load_each`."""
    config = load_config(schema, arguments.configs, arguments.overrides)
    if arguments.show_config:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def add_slice_options(parser: argparse.ArgumentParser) -> None:
    """`--slice I/N`, `--merge N` and `--heartbeat FILE`."""
    parser.add_argument(
        "--slice",
        metavar="I/N",
        help="one part of the work, counted from 0; by default that of a Slurm array's task",
    )
    parser.add_argument(
        "--merge",
        type=int,
        metavar="N",
        help="put together what N slices made; if any is incomplete, say which and change nothing",
    )
    parser.add_argument(
        "--heartbeat",
        metavar="FILE",
        help="keep progress there: JSON with state, time, done, total",
    )


def settle_slice(arguments: argparse.Namespace) -> None:
    """Make `--slice`, or the variables of a Slurm array, the configuration's key `slice`."""
    said = any(word.startswith("slice=") for word in arguments.overrides)
    part = arguments.slice
    if part is None and not said and arguments.merge is None and (part := slice_of_array()):
        print(f"slice={part}: this is a task of a Slurm array")
    if part is not None:
        arguments.overrides = [*arguments.overrides, f"slice={part}"]


def check_merge(arguments: argparse.Namespace, slice_: str | None) -> None:
    """Raises ConfigError for a number of slices that cannot be, and for a merge of one slice."""
    if arguments.merge is None:
        return
    if arguments.merge < 1:
        raise ConfigError(
            f"--merge N takes the number of slices, at least 1, but is {arguments.merge}: say the "
            "n of slice=i/n"
        )
    if slice_ is not None:
        raise ConfigError(
            f"--merge {arguments.merge} puts all slices together, but slice={slice_} asks for one "
            "of them: leave one of the two out"
        )


def slice_command(tool: str, arguments: argparse.Namespace, *options: str) -> str:
    """The command that makes slice I of `arguments.merge`; options: further ones of the tool."""
    words = [word for word in arguments.words if not word.startswith("slice=")]
    return shlex.join(["python", tool, *words, *options, "--slice", f"I/{arguments.merge}"])


class Progress:
    """How far a tool is, told to a status file; without one it is told to nobody."""

    def __init__(self, file: StatusFile | None) -> None:
        self._file = file
        self._fields: dict[str, Any] = {}

    def __call__(self, done: int, total: int) -> None:
        """Call it as often as you like."""
        self._fields = {"done": done, "total": total}
        if self._file:
            self._file.beat(**self._fields)

    def enter(self, state: str, **fields: Any) -> None:
        """Begin or end."""
        if self._file:
            self._file.write(state, **self._fields, **fields)


@contextmanager
def progress_in(file: str | None) -> Iterator[Progress]:
    """Keep a status file true while a tool works: running, then finished, stopped or failed.

    SIGTERM and SIGUSR2, as Slurm sends them, end the work like Ctrl-C, with exit code 143.
    """
    progress = Progress(StatusFile(Path(file)) if file else None)
    try:
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        progress.enter(RUNNING)
    except OSError as error:
        raise ConfigError(f"--heartbeat {file} cannot be written: {error.strerror}") from error
    before = {number: signal.signal(number, _terminate) for number in STOPS}
    try:
        yield progress
        progress.enter(FINISHED)
    except (KeyboardInterrupt, SystemExit) as stop:
        _enter_after(stop, progress, STOPPED)
        raise
    except Exception as error:
        _enter_after(error, progress, FAILED, error=str(error))
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminate(number: int, frame: object) -> NoReturn:
    print("terminated: the same command goes on from here", file=sys.stderr)
    raise SystemExit(EXIT_TERMINATED)


def _enter_after(ended: BaseException, progress: Progress, state: str, **fields: Any) -> None:
    """The disk that ended the work may fail its status, too: the first failure is told."""
    try:
        progress.enter(state, **fields)
    except OSError as full:
        ended.add_note(f"nor could the status file be written: {full}")


def main_guard(
    main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None
) -> int:
    """Run a tool's `main(argv)` and return its exit code: 0 where it returns None.

    A PaltrainError, and a full disk, become `error: ...` on stderr and code 2, Ctrl-C code 130; a
    closed pipe (`tool | head`) ends quietly.
    """
    setup_logging()
    try:
        return main(argv) or 0
    except PaltrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"error: the disk cannot take more{where}: {error.strerror}; {MAKE_ROOM}",
            file=sys.stderr,
        )
        return EXIT_USER_ERROR
