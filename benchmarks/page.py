"""Markdown tables, and the sections of docs pages that they replace."""

from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
TRAINING = PAGE.with_name("training.md")
LOG = PAGE.parents[1] / "LOG.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, with the first column left-aligned and the others right-aligned."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def replace_section(page: str, name: str, content: str) -> str:
    """Return `page` with `content` between the markers of `name`.

    Raises:
        ValueError: if the page has no such markers.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no section between {begin.strip()} and {end}")
    return f"{before}{begin}\n{content}\n\n{end}{after}"


def write_section(name: str, content: str, path: Path = PAGE) -> None:
    """Write `content` between the markers of `name` in docs/speed.md, or in another page."""
    path.write_text(replace_section(path.read_text(encoding="utf-8"), name, content), encoding="utf-8")
