"""Numbers with their nouns.

Plain text tables.
"""

from collections.abc import Sequence


def counted(count: int, noun: str) -> str:
    """Return a number and its noun.

    >>> counted(1, "tile"), counted(1150, "tile")
    ('1 tile', '1,150 tiles')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with aligned columns, the first to the left, the others to the right.

    >>> table([("class", "IoU"), ("tree", "0.61")])
    ['class   IoU', 'tree   0.61']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
