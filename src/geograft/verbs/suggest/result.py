"""What `geograft suggest` returns, and how it reads."""

from dataclasses import dataclass
from pathlib import Path

from geograft.table import table
from geograft.verbs.suggest.ranking import Suggestion
from geograft.wording import counted

LISTED = 10
"""Suggestions that are printed; the file has all."""


@dataclass(frozen=True)
class Suggestions:
    """What `suggest` wrote."""

    path: Path
    rasters: tuple[Path, ...]
    tiles: tuple[Suggestion, ...]
    """In the order in which to label them."""
    seen: int
    """Unlabelled tiles that were looked at."""
    labelled: int
    """Tiles left out, for they are labelled already."""
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the first suggestions as a table, and what to do with them."""
        return [
            f"{self.path}: {counted(len(self.tiles), 'tile')} to label, of {self.seen:,} that are not labelled"
            + (f" ({self.labelled:,} more are)" if self.labelled else ""),
            *table([("rank", "score", "uncertainty", "novelty", "row", "col", "raster"), *map(self._cells, self._top)]),
            *([f"and {len(self.tiles) - LISTED:,} more"] if len(self.tiles) > LISTED else []),
            f"Together they stand for {sum(one.score for one in self.tiles):.0%} of what the run is unsure of.",
            *(f"Note: {note}" for note in self.notes),
        ]

    @property
    def _top(self) -> tuple[Suggestion, ...]:
        return self.tiles[:LISTED]

    def _cells(self, one: Suggestion) -> tuple[str, ...]:
        novelty = "" if one.novelty is None else f"{one.novelty:.2f}"
        numbers = (f"{one.score:.1%}", f"{one.doubt:.3f}", novelty, f"{one.window.row:,}", f"{one.window.col:,}")
        return (str(one.rank), *numbers, self.rasters[one.raster].name)
