"""Numbers as people write them."""

import math
from collections.abc import Sequence

from geograft.commands.report.sources import deviation, mean

DASH = "–"
NBSP = "\u00a0"


def fixed(value: float | None, digits: int = 2) -> str:
    """Return a number with `digits` decimals; a dash where there is none.

    >>> fixed(0.614), fixed(None)
    ('0.61', '–')
    """
    return DASH if value is None or math.isnan(value) else f"{value:.{digits}f}"


def with_spread(values: Sequence[float | None], digits: int = 2) -> str:
    """Return the mean, and the standard deviation where there are two values or more.

    >>> with_spread([0.5, 0.7])
    '0.60 ± 0.14'
    """
    spread = deviation(values)
    if spread is None:
        return fixed(mean(values), digits)
    return f"{fixed(mean(values), digits)} ± {fixed(spread, digits + (0 < spread < 0.5 / 10**digits))}"


def percent(share: float | None) -> str:
    """Return a share as a percentage that never rounds something to nothing, or nearly all to all.

    The spaces do not break.

    >>> [percent(share).replace(NBSP, " ") for share in (0.714, 0.001, 0.0001, 0.9999, 0)]
    ['71 %', '0.1 %', '< 0.1 %', '> 99.9 %', '0 %']
    """
    if share is None or math.isnan(share):
        return DASH
    if 0 < share < 0.0005:
        text = "< 0.1 %"
    elif 0.9995 <= share < 1:
        text = "> 99.9 %"
    else:
        text = f"{100 * share:.{1 if 0 < share < 0.1 or 0.99 <= share < 1 else 0}f} %"
    return text.replace(" ", NBSP)


def percent_range(ends: tuple[float, float] | None) -> str:
    """Return an interval of shares as percentages, for small print; nothing where there is none.

    >>> percent_range((0.69, 0.82)).replace(NBSP, " ")
    '69 % to 82 %'
    """
    return "" if ends is None else f"{percent(ends[0])} to {percent(ends[1])}"


def duration(seconds: float) -> str:
    """Return a time in its two largest units.

    >>> duration(41.2), duration(200), duration(4320)
    ('41 s', '3 min 20 s', '1 h 12 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def metres(resolution_m: float | None) -> str:
    """Return a length in the unit that suits it.

    >>> metres(0.1), metres(1.24), metres(None)
    ('10 cm', '1.24 m', '–')
    """
    if resolution_m is None:
        return DASH
    return f"{100 * resolution_m:.3g} cm" if resolution_m < 1 else f"{resolution_m:.3g} m"
