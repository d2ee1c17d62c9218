"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """
    Write a table as Markdown.

    :param header: Names of the columns.
    :param rows: Cells, as they are to be read: a bar in one does not end it.
    :param left: Columns that are left-aligned; all others right.
    :return: A Markdown table, with a line break at its end.
    """
    align = ["---" if index in left else "---:" for index in range(len(header))]
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, align, *cells)) + "\n"
