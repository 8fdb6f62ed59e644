"""The classes of a map: their order in the network, names, raster values and colours."""

from dataclasses import asdict, field
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

IGNORE = 255
"""Label of pixels ignored in training and scoring, and nodata value of class maps."""

# Okabe & Ito (2008), "Color Universal Design": distinguishable with all common forms of colour blindness.
PALETTE = ("#009E73", "#E69F00", "#0072B2", "#D55E00", "#CC79A7", "#F0E442", "#56B4E9", "#8A5FBF", "#000000")
BACKGROUND_COLOUR = "#D9D9D9"
SPLIT_COLOURS = {"train": "#56B4E9", "val": "#F0E442", "test": "#D55E00"}
"""Sky blue, yellow and vermilion: light enough to stand out on an aerial image."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Legend:
    """K classes, in the order of their indices in label masks.

    Two classes are binary: the network has one output, the probability of class 1, the positive class. More classes
    are mutually exclusive and have one output each. Overlapping classes (multi-label, two or more) have one output each
    and no background class: a pixel may belong to several classes or none.
    """

    names: tuple[str, ...]
    """Class names, by index."""
    values: tuple[int, ...] = field(default=())
    """Values in class maps, by index, 0 to 254. Empty: the indices."""
    overlapping: bool = False
    """Whether a pixel may belong to several classes or none (multi-label)."""

    def __post_init__(self) -> None:
        if not self.values:
            object.__setattr__(self, "values", tuple(range(len(self.names))))
        if len(self.names) < 2 or len(self.names) > IGNORE:
            raise ValueError(f"{len(self.names)} classes: a legend needs 2 to {IGNORE}")
        if len(set(self.names)) != len(self.names) or len(set(self.values)) != len(self.values):
            raise ValueError("two classes share a name or a value")
        if len(self.values) != len(self.names) or not all(0 <= value < IGNORE for value in self.values):
            raise ValueError(f"every class needs a value from 0 to {IGNORE - 1}")

    @property
    def outputs(self) -> int:
        """The number of output channels of the network."""
        return 1 if self.binary else len(self.names)

    @property
    def binary(self) -> bool:
        """Whether the network has one output, the probability of the positive class."""
        return len(self.names) == 2 and not self.overlapping

    @property
    def content(self) -> dict[str, Any]:
        """The fields for digests; `overlapping` only where True, so that digests of older tile sets stay valid."""
        return {name: value for name, value in asdict(self).items() if name != "overlapping" or value}

    @property
    def colours(self) -> tuple[str, ...]:
        """One colour per class as #RRGGBB; grey for the negative class and for classes named background or other."""
        plain = {"background", "other"} | ({self.names[0]} if self.binary else set())
        palette = (PALETTE[i % len(PALETTE)] for i in range(len(self.names)))
        return tuple(BACKGROUND_COLOUR if name in plain else next(palette) for name in self.names)
