"""The overview of a map on a report: a thumbnail of its classes, the mapped areas, and the network that made it."""

import math
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from geograft.card import ModelCard
from geograft.commands.report.sources import NetworkRuns, Subject
from geograft.commands.report.text import format_area, format_length, format_percent
from geograft.commands.report.view import PageImage, page_image
from geograft.dataset.thumbnails import map_thumbnail
from geograft.errors import InputError
from geograft.geo.measure import resolution_m
from geograft.geo.rasters.raster import Image
from geograft.geo.rasters.tags import CARD_TAG, has_band_per_class
from geograft.mapping.strata import Strata, read_strata

LONGEST_PX = 900
"""Longest side of the thumbnail."""


@dataclass(frozen=True)
class MapOverview:
    """A map that `geograft predict` wrote."""

    path: Path
    card: ModelCard
    """The card of the run that made it."""
    areas: dict[str, float]
    """Mapped area of each class in m2, or in pixels without a CRS."""
    total: float
    """Area of all pixels with a class."""
    has_crs: bool
    image: PageImage

    @property
    def shown_classes(self) -> list[str]:
        """The classes that are mapped: all but the negative class of a binary legend, the largest area first."""
        legend = self.card.legend
        names = legend.names[1:] if legend.binary else legend.names
        return sorted(names, key=lambda name: -self.areas.get(name, 0.0))

    def area_text(self, area: float) -> str:
        """Return an area with its unit."""
        return format_area(area) if self.has_crs else f"{area:,.0f} px"

    @property
    def summary(self) -> str:
        """The mapped area of each class, in a sentence."""
        found = [(name, self.areas.get(name, 0.0)) for name in self.shown_classes]
        parts = [f"{name} {self.area_text(area)} ({format_percent(area / self.total)})" for name, area in found]
        return f"Mapped on {self.area_text(self.total)}: {', '.join(parts)}."


def read_map(path: Path) -> MapOverview:
    """Read the areas and a thumbnail of a map. Reads its pixels twice, and once more per overlapping class.

    Raises:
        InputError: if it is not a map that `geograft predict` wrote, or cannot be read.
    """
    with Image.open(path) as image:
        try:
            card: ModelCard = TypeAdapter(ModelCard).validate_json(image.info.tags[CARD_TAG])
        except (KeyError, ValidationError):
            raise InputError(
                f"{path} has no model card in its tags. Give a map that `geograft predict` wrote, not a copy of it."
            ) from None
        grid, legend = image.info.grid, card.legend
        if has_band_per_class(image.info):
            strata = [read_strata(image, name) for name in legend.names]
            areas = {name: _area(found, 1) for name, found in zip(legend.names, strata, strict=True)}
        else:
            strata = [read_strata(image)]
            areas = dict(zip(strata[0].names, strata[0].areas.tolist(), strict=True))
        size = f"{grid.width:,} × {grid.height:,} px at {format_length(resolution_m(grid))}"
        picture = map_thumbnail(image, legend, LONGEST_PX)
    mapped = ", ".join(name for name in areas if areas[name])
    shown = page_image(picture, f"Map with the classes {mapped}", path.name, size, LONGEST_PX)
    return MapOverview(path, card, areas, float(strata[0].areas.sum()), grid.crs is not None, shown)


def _area(strata: Strata, value: int) -> float:
    return float(strata.areas[strata.values.index(value)])


def maker_of(subject: Subject, card: ModelCard) -> NetworkRuns | None:
    """Return the network that made a map with this card; None if none of the report did.

    Calibration may have changed the card since.
    """
    wanted = _identity(card)
    return next((v for v in subject.variants if any(_identity(run.card) == wanted for run in v.runs)), None)


def _identity(card: ModelCard) -> tuple[object, ...]:
    scores = sorted((name, value) for name, value in card.scores.items() if not math.isnan(value))
    return (card.model, card.weights_from, card.epoch, card.data_fingerprint, card.mean, card.std, scores)


def maker_sentence(subject: Subject, overview: MapOverview) -> str:
    """Return which network made the map, if it is not the one whose scores are shown at the top."""
    maker, leader = maker_of(subject, overview.card), subject.leader
    if subject.run and _identity(subject.run.card) == _identity(overview.card):
        return ""
    if maker is None:
        return (
            f"{overview.path.name} was made by another run, {overview.card.name} (epoch {overview.card.epoch}): the "
            "scores on this page are not those of this map."
        )
    if maker is leader:
        return f"{overview.path.name} was made by another seed of “{leader.name}” than the one whose tiles are shown."
    return (
        f"{overview.path.name} was made by “{maker.name}”, not by the best network, “{leader.name}”, whose score the "
        "headline gives."
    )
