"""Finished polygons on their way to a file."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from geograft.config import PolygonConfig
from geograft.geo.metres import method
from geograft.geo.polygons.holes import swallowed
from geograft.geo.polygons.packed import unpacked
from geograft.geo.polygons.polygonledger import Arrays, PolygonLedger
from geograft.geo.polygons.regions import BLOCK_PX
from geograft.geo.polygons.shapes import as_array
from geograft.geo.rasters.maptags import beside
from geograft.geo.vectors.features import Features
from geograft.verbs.polygons.finding import Finding

BATCH = 10_000
"""Polygons written at a time."""


@dataclass
class ClassTotal:
    """The polygons of one class."""

    polygons: int = 0
    area: float = 0.0


@dataclass(frozen=True)
class Result:
    """The polygons that a ledger holds, but for those in filled holes; can be gone through more than once."""

    ledger: PolygonLedger
    finding: Finding
    settings: PolygonConfig

    @property
    def unit(self) -> str:
        """The unit of areas."""
        return "m2" if self.finding.image.info.grid.crs else "px"

    def batches(self) -> Iterator[Features]:
        """Yield the polygons in pixels with their columns, some thousand at a time; at least once, for the fields."""
        yield self._features(
            as_array([]), {name: np.zeros(0) for name in ("value", "area", "perimeter")}, np.zeros((0, 3))
        )
        for row, part in self.ledger.parts():
            kept = np.flatnonzero(self._kept(part, self._layer(row)))
            shapes = unpacked(part["wkb"], part["wkb_ends"])
            columns = {name: part[name] for name in ("value", "area", "perimeter")}
            sums = part["sums"]
            for start in range(0, len(kept), BATCH):
                some = kept[start : start + BATCH]
                yield self._features(shapes[some], {name: side[some] for name, side in columns.items()}, sums[some])

    def classes(self) -> dict[str, ClassTotal]:
        """Return the number and area of polygons by class, in the order in which classes are met."""
        found: dict[str, ClassTotal] = {}
        for row, part in self.ledger.parts():
            kept = self._kept(part, self._layer(row))
            for value, area in zip(part["value"][kept].tolist(), part["area"][kept].tolist(), strict=True):
                total = found.setdefault(self.finding.name(value), ClassTotal())
                total.polygons, total.area = total.polygons + 1, total.area + area
        return found

    def left_out(self) -> int:
        """Return how many polygons were smaller than the least area."""
        return sum(int(part["left_out"]) for _, part in self.ledger.parts())

    def notes(self) -> Iterator[str]:
        """Yield what the user should know about the result."""
        info = self.finding.image.info
        if not self.finding.probabilities:
            missing = beside(info.path, "probabilities").name
            yield (
                f"{missing} does not lie beside the map, so polygons have no mean probability and no uncertain share. "
                "`geograft predict --probabilities uint8` writes it."
            )
        if not info.grid.crs:
            yield f"{info.path} has no CRS: areas and lengths are in pixels, in the settings too."
        elif method(info.grid) == "geodesic":
            yield "areas and perimeters are measured on the ellipsoid, for the map's CRS does not keep areas."
        if not self.finding.legend:
            also = "" if self.finding.background is None else "; value 0 counts as background and is left out"
            yield f"{info.path} does not state its classes: they are named by their values{also}."

    def _features(self, shapes: ndarray, columns: dict[str, ndarray], sums: ndarray) -> Features:
        area, perimeter = ("area_m2", "perimeter_m") if self.unit == "m2" else ("area_px", "perimeter_px")
        values = columns["value"].astype(np.int64)
        names = np.array([self.finding.name(value) for value in values.tolist()], object)
        fields = {"class": names, "value": values, area: columns["area"], perimeter: columns["perimeter"]}
        if self.finding.probabilities:
            fields["mean_probability"], fields["uncertain_share"] = self.finding.probabilities.figures(
                sums.astype(np.int64)
            )
        return Features(shapes, fields)

    def _layer(self, row: int) -> int:
        return row // self.finding.image.info.grid.height

    def _kept(self, part: Arrays, layer: int) -> Bool[ndarray, " n"]:
        """Return which polygons do not lie in a hole that was filled in their own layer."""
        first: Int64[ndarray, "n 2"] = part["first"]
        kept = np.ones(len(first), bool)
        if self.settings.fill_holes_m2:
            rows = first[:, 1] // BLOCK_PX
            for row in np.unique(rows).tolist():
                here = rows == row
                kept[here] = ~swallowed(first[here], self._holes(row, layer))
        return kept

    def _holes(self, row: int, layer: int) -> ndarray:
        """Return all filled holes of a layer that reach into a row of blocks."""
        name = f"holes_{row}"
        found = [
            unpacked(part[name], part[f"{name}_ends"])
            for begin, part in self.ledger.parts()
            if self._layer(begin) == layer and name in part.names
        ]
        return np.concatenate([as_array([]), *found])
