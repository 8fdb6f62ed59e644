"""What an audit finds, piece by piece."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from geograft.geo.coverage import Overlap
from geograft.geo.tilesets.tileset import Split

Evidence = Literal["place", "file", "image", "labels"]
"""How two scenes were known to show the same ground: where they lie, the same file, or what they look like."""


@dataclass(frozen=True)
class Twin:
    """Two scenes that show the same ground, one held out and one that trains."""

    held: str
    trains: str
    by: Evidence
    similarity: float | None = None
    """Correlation of their structure, for those known by what they look like; see
    `geograft.geo.splitting.duplicates`."""


@dataclass(frozen=True)
class Held:
    """The tiles of one split that does not train, beside the training tiles."""

    split: Split
    overlap: Overlap
    gap_px: int | None
    """Pixels between the nearest two tiles, one of each kind; None where no scene holds both kinds."""
    distances: Float64[ndarray, " n"] = field(default_factory=lambda: np.zeros(0))
    """From every tile to the nearest training tile; infinite where there is none in reach. Metres on the ground where
    the tiles have a CRS, otherwise pixels in the scene: see `Audit.unit`."""
    seen_elsewhere: float = 0.0
    """Share of the tiles' area of which a training tile of another scene shows the same ground."""

    def nearer(self, distance: float) -> float:
        """Return the share of the tiles that lie nearer than that to a training tile."""
        return float((self.distances < distance).mean()) if len(self.distances) else 0.0


@dataclass(frozen=True)
class Reach:
    """How far the ground resembles itself, of image or labels, whichever reaches farther."""

    what: Literal["image", "labels"]
    distance: float
    """In the audit's unit."""
    resolved: bool
    """Whether likeness ends there; else it is the longest distance that was looked at."""
