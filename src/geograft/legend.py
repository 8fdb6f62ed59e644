"""The classes of a map: their order in the network, their names, their values in rasters and their colours."""

from dataclasses import asdict, field
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

IGNORE = 255
"""The label of a pixel that is neither trained nor scored, and the map value of a pixel that is not known."""

# Okabe & Ito (2008), "Color Universal Design": told apart with every common form of colour blindness.
PALETTE = ("#009E73", "#E69F00", "#0072B2", "#D55E00", "#CC79A7", "#F0E442", "#56B4E9", "#8A5FBF", "#000000")
BACKGROUND_COLOUR = "#D9D9D9"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Legend:
    """K classes in the order of their indices, which are what label masks hold.

    With two classes the network has one output, the probability of class 1, the class of interest; class 0 is the rest.
    With more it has K outputs that exclude each other. Overlapping classes, two or more, have an output each, and there
    is no class for the rest: a pixel may be of several of them, or of none.
    """

    names: tuple[str, ...]
    """Names by index."""
    values: tuple[int, ...] = field(default=())
    """Values in class maps by index, 0 to 254. Empty: the indices themselves."""
    overlapping: bool = False
    """Whether a pixel may be of several classes or of none."""

    def __post_init__(self) -> None:
        if not self.values:
            object.__setattr__(self, "values", tuple(range(len(self.names))))
        if len(self.names) < 2 or len(self.names) > IGNORE:
            raise ValueError(f"{len(self.names)} classes: a map needs 2 to {IGNORE}")
        if len(set(self.names)) != len(self.names) or len(set(self.values)) != len(self.values):
            raise ValueError("two classes share a name or a value")
        if len(self.values) != len(self.names) or not all(0 <= value < IGNORE for value in self.values):
            raise ValueError(f"every class needs a value from 0 to {IGNORE - 1}")

    @property
    def outputs(self) -> int:
        """The number of channels that a network for these classes puts out."""
        return 1 if self.binary else len(self.names)

    @property
    def binary(self) -> bool:
        """Whether the network has one output, the probability of class 1."""
        return len(self.names) == 2 and not self.overlapping

    @property
    def content(self) -> dict[str, Any]:
        """What a digest is made of: every field but `overlapping` where it is False, which older ones do not know."""
        return {name: value for name, value in asdict(self).items() if name != "overlapping" or value}

    @property
    def colours(self) -> tuple[str, ...]:
        """One colour a class as #RRGGBB; grey for class 0 of two, and for any class called background or other."""
        plain = {"background", "other"} | ({self.names[0]} if self.binary else set())
        palette = (PALETTE[i % len(PALETTE)] for i in range(len(self.names)))
        return tuple(BACKGROUND_COLOUR if name in plain else next(palette) for name in self.names)
