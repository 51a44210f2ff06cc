"""A table, and its Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Line(NamedTuple):
    """One row of a table; ours are set off from the peers'."""

    cells: tuple[str, ...]
    ours: bool = False


@dataclass(frozen=True)
class Table:
    """Cells with a header; the first column names, the others hold figures."""

    name: str
    caption: str
    header: tuple[str, ...]
    lines: tuple[Line, ...]
    #: Columns of words, which stand at the left.
    words: int = 1

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown, without its caption."""
        rule = ["---" if i < self.words else "---:" for i in range(len(self.header))]
        body = [_markdown_line(_strong(line)) for line in self.lines]
        return "\n".join([_markdown_line(self.header), f"|{'|'.join(rule)}|", *body])


def _strong(line: Line) -> tuple[str, ...]:
    return (f"**{line.cells[0]}**", *line.cells[1:]) if line.ours else line.cells


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
