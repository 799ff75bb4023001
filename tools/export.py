"""Write a trained model as a `transformers` folder of its own, and check that it loads.

    python tools/export.py runs/quickstart/lal_stage2 --out exported/lal
    python tools/export.py runs/quickstart/lal_stage2 --card-only

The folder holds weights, configuration, tokenizer, chat template and a model card (README.md) that
says what the model is, how it was trained, and what the evaluations in RUN/eval gave; read it with
`paltrain.PalModel.from_pretrained` and `paltrain.PalProcessor.from_pretrained`. --card-only writes
the card in the run's own model folder again, after an evaluation, and nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from paltrain.cli import main_guard


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    from paltrain.eval.export import export_model, renew_card

    if arguments.card_only:
        print(f"wrote {renew_card(arguments.run)}")
        return
    n_parameters = export_model(
        arguments.run,
        out=arguments.out,
        dtype=arguments.dtype,
        max_shard_size=arguments.max_shard_size,
        merge_adapters=arguments.merge_adapters,
    )
    print(f"wrote {arguments.out} ({n_parameters:,} parameters; loads)")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a finished run's folder, or an exported model")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="DIR", help="new or empty")
    what.add_argument("--card-only", action="store_true", help="only RUN's model card")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="default: as the run trained"
    )
    parser.add_argument(
        "--max-shard-size",
        default="5GB",
        metavar="SIZE",
        help="of a safetensors file (default 5GB); a larger model has several",
    )
    parser.add_argument(
        "--merge-adapters",
        action="store_true",
        help="add LoRA adapters into the weights; without, they stay beside them",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main_guard(main))
