"""What an audit says as a whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from geograft.geo.splitting.likeness import Likeness
from geograft.geo.tilesets.tileset import Split
from geograft.verbs.audit.found import Held, Reach, Twin
from geograft.verbs.audit.words import (
    balance_lines,
    distance_lines,
    leak,
    likeness_lines,
    listed,
    nearness,
    overlap_lines,
    twin_lines,
)


@dataclass(frozen=True)
class Audit:
    """What the split of a tile set gives away."""

    title: str
    tiles: Mapping[Split, int]
    held: tuple[Held, ...]
    """One entry for each of val and test that has tiles."""
    divided_groups: tuple[str, ...]
    """Groups of scenes of different sizes that train in one scene and are held out in another."""
    balance: Mapping[Split, tuple[float, ...]]
    """Share of each class among the labelled pixels of a split's tiles, by class index."""
    classes: tuple[str, ...] = ()
    unit: Literal["m", "px"] = "px"
    """Of distances."""
    pixel: float = 1.0
    """Size of a pixel in that unit."""
    twins: tuple[Twin, ...] = ()
    likeness: Likeness | None = None
    """How far images and labels resemble themselves, in pixels; None where no image was read."""
    notes: tuple[str, ...] = ()
    """What could not be looked at."""

    @property
    def leaks(self) -> bool:
        """Whether training has seen held-out ground: the same pixels, another scene of it, or a group on both sides."""
        shared = any(held.overlap.shared_pixels or held.seen_elsewhere > 0 for held in self.held)
        return shared or bool(self.divided_groups)

    @property
    def reach(self) -> Reach | None:
        """How far the ground resembles itself, by the variogram that reaches farther; None where that is not known."""
        if self.likeness is None:
            return None
        found = []
        for what in ("image", "labels"):
            one = self.likeness.image if what == "image" else self.likeness.labels
            if one.model is not None:
                found.append(Reach(what, self.pixel * min(one.range, float(one.lag[-1])), one.resolved))
        return max(found, key=lambda one: (one.distance, not one.resolved), default=None)

    @property
    def verdict(self) -> str:
        """The finding in one line, with what to do about it."""
        if not self.held or "train" not in self.tiles:
            return "Nothing can leak: no tiles train and are held out at the same time."
        if self.leaks:
            return leak(self.held, self.divided_groups, self.twins)
        names = " or ".join(held.split for held in self.held)
        clean = f"No leak: no {names} pixel lies in a training tile."
        return f"{clean} {nearness(self.held, self.reach, self.unit, self.pixel)}".rstrip()

    def lines(self) -> list[str]:
        """Return what the command line prints."""
        groups = [f"Groups on both sides of the split: {listed(self.divided_groups)}", ""]
        return [
            self.title,
            "",
            *overlap_lines(self.tiles, self.held),
            "",
            *balance_lines(self.balance, self.classes),
            *distance_lines(self.held, self.reach, self.unit),
            *likeness_lines(self.likeness, self.pixel, self.unit),
            *twin_lines(self.twins),
            *(groups if self.divided_groups else []),
            *(f"Note: {note}" for note in self.notes),
            self.verdict,
        ]
