"""Tables in Markdown, put into pages between two marks."""

from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
TRAINING = PAGE.with_name("training.md")
LOG = PAGE.parents[1] / "LOG.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are figures."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def replaced(page: str, name: str, content: str) -> str:
    """Return `page` with `content` between the marks of `name`.

    Raises:
        ValueError: when the page has no such marks.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"The page has no part between {begin.strip()} and {end}.")
    return f"{before}{begin}\n{content}\n\n{end}{after}"


def write(name: str, content: str, path: Path = PAGE) -> None:
    """Put `content` into docs/speed.md, or another page."""
    path.write_text(replaced(path.read_text(encoding="utf-8"), name, content), encoding="utf-8")
