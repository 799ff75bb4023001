"""Slices: what they are called, and what a merge says of those that are incomplete."""

import pytest

from paltrain.errors import ConfigError, IncompleteError
from paltrain.slices import (
    EVERYTHING,
    Lack,
    incomplete,
    number_ranges,
    parse_slice,
    slice_of_array,
)


def test_a_slice_is_counted_from_zero_and_none_is_everything():
    assert parse_slice("3/64") == (3, 64)
    assert parse_slice("0/1") == parse_slice(None) == EVERYTHING


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([0], "0"), ([0, 1], "0-1"), ([3, 17, 40, 41, 42], "3,17,40-42"), ([1, 3, 5], "1,3,5")],
)
def test_slices_are_named_as_sbatch_takes_them(numbers, text):
    assert number_ranges(numbers) == text


def test_an_incomplete_merge_says_what_is_missing_and_how_to_make_it():
    lacks = [Lack(1, 1, 4), Lack(3, 5, 5)]
    error = incomplete(lacks, n_slices=4, what="shards", command="make slice=I/4", note="Well.")
    assert isinstance(error, IncompleteError)
    assert str(error).splitlines() == [
        "a merge needs every slice whole; incomplete: 2 of 4",
        "  slice 1 lacks 1 of 4 shards",
        "  slice 3 lacks 5 of 5 shards",
        "Nothing was changed. Make what is missing, I being 1,3, and merge again:",
        "  make slice=I/4",
        "Well.",
    ]


def test_of_many_incomplete_slices_all_numbers_are_still_named():
    lacks = [Lack(number, 1, 1) for number in range(500)]
    error = incomplete(lacks, n_slices=501, what="shards", command="make")
    lines = str(error).splitlines()
    assert len(lines) < 30
    assert "  and 480 more" in lines
    assert "I being 0-499" in lines[-2]


@pytest.mark.parametrize(
    ("variables", "part"),
    [
        ({}, None),
        ({"ID": "2", "COUNT": "4", "MIN": "0", "MAX": "3", "STEP": "1"}, "2/4"),
        ({"ID": "7", "COUNT": "3", "MIN": "3", "MAX": "7", "STEP": "2"}, "2/3"),
        ({"ID": "5", "COUNT": "1", "MIN": "5", "MAX": "5"}, None),
    ],
)
def test_a_slurm_array_tells_the_slice(monkeypatch, variables, part):
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert slice_of_array() == part


def test_an_array_with_gaps_tells_no_slice(monkeypatch):
    for name, value in {"ID": "17", "COUNT": "2", "MIN": "3", "MAX": "17", "STEP": "1"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    with pytest.raises(ConfigError, match=r"task 17 of a Slurm array with gaps.*say which slice"):
        slice_of_array()
