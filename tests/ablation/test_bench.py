"""tools/bench.py's command line, as far as it is about ablations."""

from __future__ import annotations

import pytest

from paltrain.errors import ConfigError
from tools.bench import main, parse


def test_forms_without_an_ablation_is_an_error_that_says_what_to_add():
    with pytest.raises(ConfigError, match=r"add --ablation configs/ablations/NAME\.yaml"):
        main(["forms"])


def test_the_help_says_which_benchmark_takes_which_option(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    _, forms = capsys.readouterr().out.split("\nforms:\n")
    assert "--ablation" in forms
    assert "--preset" not in forms
