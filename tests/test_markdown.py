"""Tables as a Markdown reader takes them."""

from __future__ import annotations

from paltrain.markdown import markdown_table


def test_a_cell_keeps_to_its_place_whatever_it_holds() -> None:
    text = markdown_table(("task", "n"), [("a|b", "1\n2")])
    assert text == "| task | n |\n| --- | --- |\n| a\\|b | 1 2 |\n"


def test_figures_stand_at_the_right() -> None:
    text = markdown_table(("task", "n"), [("a", "1")], of_figures=True)
    assert text.splitlines()[1] == "| --- | ---: |"
