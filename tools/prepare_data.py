#!/usr/bin/env python
"""Turn recordings and questions into a manifest that training reads.

  python tools/prepare_data.py soundscapes                      the quickstart's synthetic scenes
  python tools/prepare_data.py table --audio-dir DIR --table questions.csv --out data/mine
  python tools/prepare_data.py folder --data DIR --out data/mine        DIR/LABEL/*.wav
  python tools/prepare_data.py esc50 --data ESC-50-master --out data/esc50 --test-fold 1

`table` reads a CSV file with the columns audio, question, answer and, if you like, task, split and
options (separated by |). The others read public data sets as they are downloaded; COMMAND --help
has the layout. What cannot be used is set aside in OUT/rejected.jsonl with its line and reason, and
the rest goes on.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.progress import Progress

from paltrain.cli import main_guard
from paltrain.data import importers
from paltrain.data.importers.summary import summarize

Arguments = argparse.Namespace

OPENAQA_EXAMPLE = "--data openaqa_5.6M.json --map /data/sls/audioset=downloads/audioset"
AUDIOSET_EXAMPLE = "--data downloads/audioset --parts balanced,unbalanced,eval --workers 16"
ESC50_EXAMPLE = "--data ESC-50-master --test-fold 1"


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    arguments.run(arguments)


def soundscapes(arguments: Arguments) -> None:
    from paltrain.data.soundscapes.dataset import write_soundscapes

    with Progress() as bar:
        task = bar.add_task("recordings", total=arguments.scenes)
        written = write_soundscapes(
            arguments.out,
            n_scenes=arguments.scenes,
            seed=arguments.seed,
            workers=arguments.workers,
            progress=lambda done: bar.update(task, completed=done),
        )
    print(f"{written.n_made} recordings made, {written.n_scenes - written.n_made} there before")
    print(summarize(written.manifest))


def data_set(arguments: Arguments) -> None:
    """Import a layout: `arguments.layout` is its module in paltrain.data.importers."""
    from paltrain.data.importers.collect import Choice, import_clips

    module = import_module(f"paltrain.data.importers.{arguments.layout}")
    options = {name: getattr(arguments, name) for name in arguments.options}
    read: Callable[..., Any] = partial(module.read, arguments.data, **options)
    named_after: Path = getattr(arguments, arguments.named_after)
    choice = Choice(
        arguments.splits, arguments.limit, arguments.workers, arguments.dedupe, arguments.decode
    )
    with Progress(transient=True) as bar:
        task = bar.add_task("recordings", total=None)
        imported = import_clips(
            read,
            dataset=getattr(module, "DATASET", named_after.resolve().name),
            splits=module.SPLITS,
            out=arguments.out,
            choice=choice,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(imported.report())
    print(summarize(imported.manifest))


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    scenes = commands.add_parser("soundscapes", help="synthesise scenes and ask about them")
    scenes.add_argument("--out", type=Path, default=Path("data/soundscapes"))
    scenes.add_argument("--scenes", type=_positive, default=4000, help="default: 4000")
    scenes.add_argument("--seed", type=int, default=0)
    scenes.add_argument(
        "--workers", type=_positive, default=os.cpu_count() or 1, help="default: one a core"
    )
    scenes.set_defaults(run=soundscapes)

    _add_data_sets(commands)
    return parser


def _add_data_sets(commands: Any) -> None:
    """A command for each layout, with the options that its `read` takes."""
    _add_own_recordings(commands)
    _add_openaqa(commands)
    _add_audioset(commands)
    _add_audio_dir(_data_set(commands, "audiocaps", "captions of AudioSet clips"), "audio_dir")
    _add_audio_dir(_data_set(commands, "dcase2017", "task 4: tags of 17 sounds"), "audio_dir")
    _data_set(commands, "clotho", "five captions a clip")
    _data_set(commands, "vocalsound", "six sounds of the voice")
    _data_set(commands, "fsd50k", "tags of 200 classes")

    esc50 = _data_set(commands, "esc50", "50 classes in 5 folds", example=ESC50_EXAMPLE)
    esc50.add_argument(
        "--test-fold", type=int, choices=range(1, 6), default=5, help="the others train; default: 5"
    )
    esc50.set_defaults(options=("test_fold",))


def _add_own_recordings(commands: Any) -> None:
    """`table` and `folder`."""
    own = _data_set(
        commands,
        "table",
        "your own recordings and a CSV of questions",
        data="--table",
        what="a CSV file, one question a line; its columns are above",
        example="--table questions.csv --audio-dir recordings",
    )
    own.add_argument("--audio-dir", type=Path, required=True, help="where the recordings lie")
    own.add_argument(
        "--test-fraction",
        type=float,
        default=0.1,
        help="share of the recordings that are kept for the test, where the table has no column "
        "split (default: 0.1)",
    )
    own.add_argument("--seed", type=int, default=0, help="of that choice")
    own.set_defaults(
        options=("audio_dir", "test_fraction", "seed"), named_after="audio_dir", decode=True
    )

    plain = _data_set(commands, "folder", "a folder whose sub-folders are labels")
    plain.add_argument("--test-fraction", type=float, default=0.1, help="default: 0.1")
    plain.add_argument("--seed", type=int, default=0, help="of the drawn test")
    plain.set_defaults(options=("test_fraction", "seed"))


def _add_openaqa(commands: Any) -> None:
    openaqa = _data_set(commands, "openaqa", "LTU's questions", example=OPENAQA_EXAMPLE)
    openaqa.add_argument("--audio-dir", type=Path, help="where to look for recordings by name")
    openaqa.add_argument(
        "--map",
        dest="moved",
        type=_moved,
        action="append",
        metavar="OLD=NEW",
        help="a folder of audio_id, and what it is here; may be repeated",
    )
    openaqa.set_defaults(options=("audio_dir", "moved"))


def _add_audioset(commands: Any) -> None:
    audioset = _data_set(
        commands, "audioset", "tags; 20k, 2M and strong labels", example=AUDIOSET_EXAMPLE
    )
    _add_audio_dir(audioset, "audio_dir", "parts")
    audioset.add_argument(
        "--parts",
        type=_names,
        default=("balanced", "eval"),
        help="of balanced, unbalanced, eval, strong_train, strong_eval (default: balanced,eval, "
        "which is AudioSet-20k; with unbalanced it is 2M)",
    )


def _data_set(
    commands: Any,
    layout: str,
    about: str,
    *,
    example: str = "",
    data: str = "--data",
    what: str = "the data set as unpacked",
) -> argparse.ArgumentParser:
    """The command of a layout, whose help is its module's docstring. example: its arguments. data:
    the option that names it."""
    source = Path(importers.__file__).with_name(f"{layout}.py").read_text(encoding="utf-8")
    command: argparse.ArgumentParser = commands.add_parser(
        layout,
        help=about,
        description=ast.get_docstring(ast.parse(source)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words = example or f"--data downloads/{layout}"
    command.epilog = (
        f"example:\n  python tools/prepare_data.py {layout} {words} --out data/{layout}"
    )
    command.add_argument(data, dest="data", type=Path, required=True, help=what)
    command.add_argument("--out", type=Path, required=True, help="folder of the manifest")
    command.add_argument("--splits", type=_names, help="a,b: these alone")
    command.add_argument("--limit", type=_positive, help="at most so many clips of each split")
    command.add_argument(
        "--workers",
        type=_positive,
        default=os.cpu_count() or 1,
        help="processes that read recordings (default: one a core)",
    )
    command.add_argument(
        "--dedupe",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="make one clip of recordings with the same bytes, and note every recording's content "
        "for the feature store. Reads every byte; without it headers alone are read (default: do)",
    )
    command.add_argument(
        "--decode",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="decode every recording, so that what is cut off is set aside now and not when "
        "features are made, and what is silent is counted (default: do not; table: do)",
    )
    command.set_defaults(run=data_set, layout=layout, options=(), named_after="data")
    return command


def _add_audio_dir(command: argparse.ArgumentParser, *options: str) -> None:
    command.add_argument(
        "--audio-dir", type=Path, help="where the recordings lie, at any depth (default: --data)"
    )
    command.set_defaults(options=options)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _moved(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not old or not equals:
        raise argparse.ArgumentTypeError(f"must be OLD=NEW, is {text}")
    return old, new


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, is {value}")
    return value


if __name__ == "__main__":
    sys.exit(main_guard(main))
