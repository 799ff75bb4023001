"""Write a trained model as a `transformers` folder of its own, and check that it loads.

    python tools/export.py runs/quickstart/lal_stage2 --out exported/lal

The folder holds weights, configuration, tokenizer and chat template; read it with
`paltrain.PalModel.from_pretrained` and `paltrain.PalProcessor.from_pretrained`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from paltrain.cli import main_guard


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    from paltrain.eval.export import export_model

    n_parameters = export_model(arguments.run, out=arguments.out, dtype=arguments.dtype)
    print(f"wrote {arguments.out} ({n_parameters:,} parameters; loads)")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a finished run's folder, or an exported model")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new or empty")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="default: as the run trained"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main_guard(main))
