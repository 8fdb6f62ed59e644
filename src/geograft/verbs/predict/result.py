"""What `geograft predict` returns, and how it reads."""

from dataclasses import dataclass
from pathlib import Path

from geograft.verbs.predict.job import MadeMap


@dataclass(frozen=True)
class Forecast:
    """What making one map will take."""

    path: Path
    shape: tuple[int, int]
    """Rows and columns."""
    blocks: int
    """Blocks of the map's file that may hold data."""
    all_blocks: int
    tiles: int
    """Tiles left to compute, at most: without those that are known to be empty unread."""
    all_tiles: int
    done_tiles: int
    """Tiles that a killed job computed."""
    batch_s: float | None
    """Time that the model took for one batch of real tiles; None when no tile has a valid pixel."""
    seconds: float
    """Time for all tiles left, at most: as many batches, each as long."""
    map_bytes: int
    """Size of the files to be written, at most: not compressed, with overviews."""
    ledger_bytes: int
    """Size of the finished strips beside them until all is written, at most."""

    def lines(self) -> list[str]:
        """Return the forecast as text."""
        left = f", {self.done_tiles:,} of them computed before" if self.done_tiles else ""
        timed = f" (by one batch, which took {self.batch_s:.2f} s)" if self.batch_s is not None else ""
        return [
            f"{self.path}: {self.shape[1]:,} x {self.shape[0]:,} pixels",
            f"  blocks   {self.blocks:,} of {self.all_blocks:,} may hold data",
            f"  tiles    at most {self.tiles:,} to compute, of {self.all_tiles:,} in all{left}",
            f"  time     at most about {duration(self.seconds)}{timed}",
            f"  disk     at most {size(self.map_bytes)} of maps, and {size(self.ledger_bytes)} until they are whole; "
            "compressed, both become much smaller",
        ]


@dataclass(frozen=True)
class Prediction:
    """What `predict` wrote, or would write."""

    path: Path
    """The map, or the folder of maps."""
    maps: tuple[MadeMap, ...]
    """None for a dry run."""
    notes: tuple[str, ...]
    """What the user should know about the result, a line each."""
    forecasts: tuple[Forecast, ...] = ()
    """For a dry run: what each map will take."""

    def lines(self) -> list[str]:
        """Return the result as plain text."""
        made = [line for part in self.maps for line in part.lines()]
        planned = [line for part in self.forecasts for line in part.lines()]
        return made + planned + [f"Note: {note}" for note in self.notes]


def duration(seconds: float) -> str:
    """Return a time in words of one unit.

    >>> [duration(s) for s in (0.4, 90, 9000, 400000)]
    ['1 s', '90 s', '2.5 h', '4.6 days']
    """
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def size(count: int) -> str:
    """Return a number of bytes in words of one unit.

    >>> [size(n) for n in (900, 34_000_000, 10**11)]
    ['1 kB', '34 MB', '100 GB']
    """
    power, unit = next((p, u) for p, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= p or u == "kB")
    return f"{max(1, count / power):.3g} {unit}"
