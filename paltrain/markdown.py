"""Tables in Markdown, as reports and model cards hold them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

ABSENT = "-"  # what is not there


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, of_figures: bool = False
) -> str:
    """A line for the header, a rule, and a line a row. of_figures: all columns but the first stand
    at the right."""
    rule = ["---", *("---:" if of_figures else "---" for _ in header[1:])]
    lines = [map(_cell, header), rule, *(map(_cell, row) for row in rows)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
