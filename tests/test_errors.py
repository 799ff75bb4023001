import doctest

import paltrain.errors
from paltrain.errors import PaltrainError, near_hint, unknown_name


def test_the_examples_hold():
    assert doctest.testmod(paltrain.errors).attempted == 4
    assert doctest.testmod(paltrain.errors).failed == 0


def test_an_unknown_name_far_from_all_lists_them_without_a_guess():
    assert unknown_name("route", "zzz", ["plits", "lal"]) == (
        "unknown route 'zzz'; valid: plits, lal"
    )
    assert near_hint("zzz", []) == ""


def test_every_error_a_user_can_cause_is_caught_by_its_base():
    ours = [each for each in vars(paltrain.errors).values() if isinstance(each, type)]
    assert all(issubclass(each, PaltrainError) for each in ours if issubclass(each, Exception))
