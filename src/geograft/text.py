"""Formatting of text: counts with nouns, lists of names, numbers, tables, text in XML, HTML tables for notebooks."""

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from xml.sax.saxutils import quoteattr

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot represent."""


def pluralise(count: int, noun: str) -> str:
    """Return a count with its noun in the singular or plural.

    >>> pluralise(1, "tile"), pluralise(1150, "tile"), pluralise(2, "class")
    ('1 tile', '1,150 tiles', '2 classes')
    """
    plural = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def join_names(names: Iterable[str], separator: str = ", ", limit: int = 20) -> str:
    """Return the first `limit` names and the number of the others.

    >>> join_names("abcde", limit=3)
    'a, b, c, and 2 more'
    """
    names = list(names)
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return separator.join([*names[:limit], *more])


def format_percentage(fraction: float) -> str:
    """Return a fraction as text, never rounding a small value to zero or a large one to 100 %.

    >>> format_percentage(0.93978), format_percentage(0.0), format_percentage(0.00001), format_percentage(0.9999)
    ('94.0 %', '0.0 %', '<0.1 %', '>99.9 %')
    """
    if 0.9995 <= fraction < 1:
        return ">99.9 %"
    return "<0.1 %" if 0 < fraction < 0.0005 else f"{fraction:.1%}".replace("%", " %")


def format_distance(distance: float, unit: str) -> str:
    """Return a distance as text.

    >>> format_distance(7.62, "m"), format_distance(926.3, "m"), format_distance(18_300, "m")
    ('7.6 m', '926 m', '18 km')
    >>> format_distance(41.8, "px"), format_distance(float("inf"), "px")
    ('42 px', '-')
    """
    if not math.isfinite(distance):
        return "-"
    if unit == "m" and distance >= 10_000:
        return f"{distance / 1000:,.0f} km"
    return f"{distance:.1f} m" if unit == "m" and distance < 100 else f"{distance:,.0f} {unit}"


def format_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table with aligned columns: the first left-aligned, the others right-aligned.

    >>> format_table([("class", "IoU"), ("tree", "0.61")])
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


def xml_text(text: str) -> str:
    """Return text with U+FFFD in place of the characters that XML 1.0 cannot represent, such as control characters."""
    return NOT_XML.sub("\ufffd", text)


def xml_attribute(text: str) -> str:
    """Return text as a quoted XML attribute.

    >>> print(xml_attribute("a < b"))
    "a &lt; b"
    """
    return quoteattr(xml_text(text))


def html_table(title: str, rows: Iterable[Sequence[str]], notes: Iterable[str] = ()) -> str:
    """Return an HTML table without styles of its own, as notebooks show the results of libraries.

    >>> html_table("map", [("tree", "12 %")], ["a < b"])
    '<table><caption>map</caption><tr><th>tree</th><td>12 %</td></tr></table><p>a &lt; b</p>'
    """
    cells = (
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    paragraphs = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f"<table><caption>{escape(title)}</caption>{''.join(cells)}</table>{paragraphs}"
