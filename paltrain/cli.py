"""What the tools' command lines share: `tool [options] CONFIG [CONFIG ...] [key=value ...]`.

A tool is thin: it parses with `config_parser` and `parse_config_arguments`, calls the library, and
ends with

    if __name__ == "__main__":
        sys.exit(main_guard(main))

so that what a user can cause ends in one clear line and exit code 2, and a bug keeps its traceback.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from paltrain.config.load import load_config, to_yaml
from paltrain.errors import EXIT_USER_ERROR, PaltrainError
from paltrain.log import setup_logging

EXIT_INTERRUPTED = 130
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
