"""What `geograft area` found, for people and for programs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from geograft.estimation import Estimates, Figures, Tally
from geograft.geo.accuracy.strata import Strata
from geograft.table import table

HECTARE, LEAST_IN_HECTARES = 1e4, 1e5
"""In m2; and from what area on hectares are shown."""


@dataclass(frozen=True)
class AreaReport:
    """Areas and accuracies of a map's classes, estimated from a sample."""

    map: Path
    points: Path
    unit: str
    """Of areas: m2, or px where the map has no CRS."""
    strata: Strata
    tally: Tally
    estimates: Estimates
    left: int
    """Points that are not labelled."""
    notes: tuple[str, ...]
    """What the user should know about the result, a line each."""

    @property
    def headline(self) -> str:
        """The result in a sentence or two."""
        right, low, high = (f"{100 * x[0]:.0f}" for x in _interval(self.estimates.overall, 1))
        accuracy = f"{right} % of the map is right (95 % interval {low} to {high} %)."
        return f"{self._class_of_interest()} {accuracy}" if len(self.strata.names) == 2 else f"{accuracy} {self._off()}"

    def content(self) -> dict[str, Any]:
        """Return what the JSON file holds: areas in `unit`, shares from 0 to 1, null where a figure does not exist."""
        found, total = self.estimates, float(self.strata.areas.sum())
        figures = {
            "area": _plain(found.area, total),
            "users_accuracy": _plain(found.users, 1),
            "producers_accuracy": _plain(found.producers, 1),
        }
        return {
            "map": str(self.map),
            "points": str(self.points),
            "headline": self.headline,
            "unit": self.unit,
            "labelled": int(self.tally.points.sum()),
            "left": self.left,
            "overall_accuracy": _plain(found.overall, 1)[0],
            "classes": [
                {
                    "class": name,
                    "value": self.strata.values[i],
                    "pixels": int(self.strata.pixels[i]),
                    "mapped_area": float(self.strata.areas[i]),
                }
                | {key: figure[i] for key, figure in figures.items()}
                for i, name in enumerate(self.strata.names)
            ],
            "error_matrix": {"points": self.tally.points.tolist(), "shares": found.shares.tolist()},
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """Return the headline, a table by class, the sample's error matrix and the notes, as plain text."""
        unit, scale = self._shown
        found, names = self.estimates, self.strata.names
        mapped = [_number(area / scale) for area in self.strata.areas]
        columns = (
            names,
            mapped,
            _with_margin(found.area, 1 / scale, 1),
            _with_margin(found.users, 100, 0),
            _with_margin(found.producers, 100, 0),
        )
        header = ("class", f"mapped {unit}", f"estimated {unit}", "user's accuracy %", "producer's accuracy %")
        matrix = [(name, *(f"{n:,}" for n in row)) for name, row in zip(names, self.tally.points, strict=True)]
        return [
            self.headline,
            *table([header, *zip(*columns, strict=True)]),
            f"{self.tally.points.sum():,} points, map classes in rows, what is there in columns; ± is a 95 % interval:",
            *table([("", *names), *matrix]),
            *(f"Note: {note}" for note in self.notes),
        ]

    @property
    def _shown(self) -> tuple[str, float]:
        """The unit of areas that people read, and its size in the unit of figures."""
        return ("ha", HECTARE) if self.unit == "m2" and self.strata.areas.sum() >= LEAST_IN_HECTARES else (self.unit, 1)

    def _class_of_interest(self) -> str:
        unit, scale = self._shown
        value, low, high = (_number(x[1] / scale) for x in _interval(self.estimates.area, self.strata.areas.sum()))
        mapped, name = _number(self.strata.areas[1] / scale), self.strata.names[1]
        if np.isnan(self.estimates.area.error[1]):
            return f"No point is {name} on the ground; the map shows {mapped} {unit}."
        return f"{name} covers {value} {unit} (95 % interval {low} to {high} {unit}); the map shows {mapped} {unit}."

    def _off(self) -> str:
        """Return which classes the map shows too much or too little of."""
        found, mapped = self.estimates.area, self.strata.areas
        off = np.flatnonzero(np.abs(mapped - found.value) > found.margin)
        ways = [f"{'much' if mapped[i] > found.value[i] else 'little'} {self.strata.names[i]}" for i in off]
        if not ways:
            return "No class has a mapped area outside its interval."
        return f"It shows too {', too '.join(ways)}: more than the sample's chance explains."


def _interval(figures: Figures, most: float) -> tuple[Float64[ndarray, " k"], ...]:
    """Return values and 95 % intervals, which end at 0 and at `most`."""
    low, high = figures.value - figures.margin, figures.value + figures.margin
    return figures.value, np.maximum(low, 0), np.minimum(high, most)


def _plain(figures: Figures, most: float) -> list[dict[str, float | None]]:
    """Return figures as JSON holds them."""
    names = ("estimate", "low", "high", "standard_error")
    columns = (*_interval(figures, most), figures.error)
    rows = zip(*columns, strict=True)
    return [{n: None if np.isnan(x) else float(x) for n, x in zip(names, row, strict=True)} for row in rows]


def _with_margin(figures: Figures, scale: float, decimals: int) -> list[str]:
    """Return figures with their margins, as text; - where there is none."""
    pairs = zip(figures.value * scale, figures.margin * scale, strict=True)
    return [
        "-"
        if np.isnan(value)
        else f"{value:,.{decimals}f}" + ("" if np.isnan(margin) else f" ± {margin:,.{decimals}f}")
        for value, margin in pairs
    ]


def _number(value: float) -> str:
    return f"{value:,.1f}"
