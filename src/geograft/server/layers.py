"""What the server shows: the layers of a project, or of a run with rasters, looked up again when their files change.

A client names a layer by its id, which is looked up in this list: no path, address or expression comes from outside.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from geograft.config import ServeConfig
from geograft.config.recipes import LABEL_FILE, QUICK, SUGGESTED, VIEWS
from geograft.errors import InputError
from geograft.files import json_digest
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.geo.rasters.tags import THRESHOLD_TAG, legend_from_tags, sibling_path
from geograft.geo.webmap import Place, Plane, is_on_earth, plane_of
from geograft.legend import BACKGROUND_COLOUR, IGNORE, Legend

Kind = Literal["image", "classes", "probability", "uncertainty", "applicability", "errors"]

SIBLINGS: Mapping[Kind, str] = {
    "probability": "probabilities",
    "uncertainty": "uncertainty",
    "applicability": "applicability",
}
"""What a file beside a map has, by the kind of its layers."""
RIGHT_COLOUR, MISSED_COLOUR, FALSE_COLOUR = "#009E73", "#0072B2", "#D55E00"
"""Of errors, as in the figures of reports: right, missed, and mapped where it is not."""
CORRECT = "correct"
"""What error rasters of `geograft review` call the value 0."""


@dataclass(frozen=True)
class ShownClass:
    """A class, with its value in maps and its colour #RRGGBB."""

    value: int
    name: str
    colour: str


@dataclass(frozen=True)
class Subject:
    """What one server shows."""

    title: str
    kind: Literal["project", "run"]
    classes: tuple[ShownClass, ...]
    """The classes to map, without the background."""
    images: tuple[tuple[str, Path], ...]
    """Name of the scene and file of each image; there is at least one image or map."""
    maps: tuple[tuple[str, Path], ...]
    """Name of the scene and file of each class map, which need not exist yet."""
    reviews: tuple[tuple[str, Path], ...] = ()
    """Name of the scene and file of each error raster of `geograft review`, which need not exist."""
    folder: Path | None = None
    """The folder of the project; None for a run."""
    run: Path | None = None
    """The run, to export: its folder, which need not exist yet; None for a bundle, which is a file."""
    downloads: Mapping[str, tuple[str, Path]] = field(default_factory=dict)
    """Title and file of what can be downloaded, by name; files need not exist."""

    basemap: ServeConfig = field(default_factory=ServeConfig)
    """The tiles behind the images that the page may show."""
    reduced: Mapping[str, Path] = field(default_factory=dict)
    """A copy at lower resolution of large images without overviews, by the revision of the image."""

    @property
    def label_file(self) -> Path | None:
        """The GeoPackage of labels and areas of a project."""
        return self.folder and self.folder / LABEL_FILE

    @property
    def quick_maps(self) -> tuple[tuple[str, Path], ...]:
        """Name of the scene and file of the quick map of each image without a map, which need not exist yet."""
        if self.folder is None:
            return ()
        missing = (each for each in self.shown_maps if not each[1].is_file())
        return tuple((name, self.folder / QUICK / path.name) for name, path in missing)

    @property
    def view_maps(self) -> tuple[tuple[str, Path], ...]:
        """Name of the scene and file of the map of the view, which only exists while the whole image is mapped."""
        return tuple((name, self.folder / VIEWS / path.name) for name, path in self.maps) if self.folder else ()

    @property
    def shown_maps(self) -> tuple[tuple[str, Path], ...]:
        """The maps of the views that exist, and the maps of all other images, which need not exist yet.

        A map that is about to be replaced is of an older run.
        """
        views = {name: path for name, path in self.view_maps if path.is_file()}
        return tuple((name, views.get(name, path)) for name, path in self.maps)

    @property
    def suggestions(self) -> Path | None:
        """The GeoPackage of the areas to label next."""
        return self.folder and self.folder / SUGGESTED

    def shorten_paths(self, message: str) -> str:
        """Return an error message with names instead of the paths of rasters, and paths relative to the folder."""
        for _, path in (*self.images, *self.maps, *self.reviews):
            message = message.replace(str(path), path.name)
        for folder in (self.folder, self.run):
            if folder is not None:
                message = message.replace(f"{folder.absolute()}{os.sep}", "").replace(f"{folder}{os.sep}", "")
        return message


@dataclass(frozen=True)
class ShownRaster:
    """A raster and its place on the map."""

    group: str
    """Name of the scene."""
    path: Path
    info: ImageInfo
    place: Place

    @property
    def revision(self) -> str:
        """A text that changes when the file does."""
        return file_revision(self.path)


@dataclass(frozen=True)
class Layer:
    """A raster, or some bands of it, as the page shows it."""

    id: str
    kind: Kind
    title: str
    raster: ShownRaster
    bands: tuple[int, ...]
    """The bands to read, counted from 1; for an image those that are shown at first."""
    colours: Mapping[int, str] = field(default_factory=dict)
    """Colour of each value of a class map."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Name of each value of a class map."""
    class_value: int | None = None
    """The number of the class among those of the subject, for probabilities."""
    class_name: str = ""
    """The class of a probability; empty for other kinds."""
    threshold: float | None = None
    """The probability from which the map has the class."""
    legend: tuple[tuple[str, str], ...] = ()
    """Names and colours of what errors show; empty for other kinds."""
    drawn: str = ""
    """State of the labels that errors are found with; empty for other kinds, and for errors from a file."""
    quick: bool = False
    """Whether it is a quick estimate, in place of which the map of a trained network will be shown."""

    @property
    def in_steps(self) -> bool:
        """Whether a file of bytes has values from 0 to 1 in steps of 1/250."""
        return self.kind in ("probability", "uncertainty") or (self.kind == "errors" and self.threshold is not None)

    @property
    def content(self) -> dict[str, Any]:
        """The layer as the page gets it."""
        coarsest, finest = self.raster.place.zooms
        return {
            "id": self.id,
            "group": self.raster.group,
            "kind": self.kind,
            "title": self.title,
            "bounds": self.raster.place.bounds,
            "minzoom": coarsest,
            "maxzoom": finest,
            "bands": self.raster.info.band_names if self.kind == "image" else [],
            "default_bands": self.bands if self.kind == "image" else [],
            "revision": self.raster.revision + self.drawn,
            "class_value": self.class_value,
            "threshold": self.threshold,
            "legend": [{"name": name, "color": colour} for name, colour in self.legend],
            "quick": self.quick,
        }


def file_revision(*paths: Path | None) -> str:
    """Return a text that changes when one of the files does; files need not exist, and may be removed meanwhile."""
    return json_digest([path and _file_state(path) for path in paths])[:16]


def _file_state(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size


def read_info(path: Path) -> ImageInfo:
    """Return the metadata of an image or a map; it is read again when the file has changed.

    Raises:
        InputError: when the file is missing or cannot be read.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Restore it.") from error
    return _read_info(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _read_info(path: Path, modified_ns: int, size: int) -> ImageInfo:
    with Image.open(path) as image:
        return image.info


def layers_of(subject: Subject) -> list[Layer]:
    """Return all layers of the files that exist now; images first, each scene's in the order of Kind.

    Raises:
        InputError: when a file that exists cannot be read.
    """
    plane = local_plane(subject)
    found = [_image_layer(f"image-{i}", _raster(*each, plane)) for i, each in enumerate(subject.images)]
    for i, each in enumerate(subject.shown_maps):
        if each[1].is_file():
            layers = _map_layers(str(i), _raster(*each, plane), subject, plane)
            found += layers if each in subject.maps else map(_view_layer, layers)
    for i, each in enumerate(subject.reviews):
        if each[1].is_file():
            found += _review_layers(f"review-{i}", _raster(*each, plane))
    for i, each in enumerate(subject.quick_maps):
        if each[1].is_file():
            found += map(_quick_layer, _map_layers(f"quick-{i}", _raster(*each, plane), subject, plane))
    return found


def lacks_maps(subject: Subject) -> bool:
    """Return whether an image has no map of a trained network yet."""
    return any(not path.is_file() for _, path in subject.maps)


def _view_layer(layer: Layer) -> Layer:
    return replace(layer, title=f"{layer.title}, so far of the view")


def _quick_layer(layer: Layer) -> Layer:
    return replace(layer, title=f"Quick {layer.title[:1].lower()}{layer.title[1:]}", quick=True)


def error_layers(layers: Sequence[Layer], drawn: str) -> Iterator[Layer]:
    """Yield layers that show where maps and labelled scoring areas agree: where there is a threshold, at any threshold.

    `drawn` is the state of the labels.
    """
    live = {layer.raster.group for layer in layers if layer.kind == "probability" and layer.threshold is not None}
    for layer in layers:
        named = replace(layer, id=f"errors-{layer.id}", kind="errors", drawn=drawn)
        if layer.kind == "probability" and layer.threshold is not None:
            names = {0: "", 1: layer.class_name}
            yield replace(named, title=f"Errors of {layer.class_name}", names=names, legend=_legend(layer.class_name))
        elif layer.kind == "classes" and layer.raster.group not in live:
            alone = [name for value, name in layer.names.items() if value in layer.colours]
            own = alone[0] if len(alone) == 1 else ""
            title = f"Errors of {own}" if own else "Errors"
            yield replace(named, title=title, class_name=own, legend=_legend(own))


def _legend(name: str) -> tuple[tuple[str, str], ...]:
    """Return what errors of a class show, or those of several classes, without a name."""
    if not name:
        return (("right", RIGHT_COLOUR), ("another class", FALSE_COLOUR))
    return (("right", RIGHT_COLOUR), ("missed", MISSED_COLOUR), (f"mapped as {name}, but is not", FALSE_COLOUR))


def is_error_raster(info: ImageInfo) -> bool:
    """Return whether a raster is one of `geograft review`."""
    return info.tags.get("CLASS_0") == CORRECT


def _review_layers(identity: str, raster: ShownRaster) -> Iterator[Layer]:
    """Yield a layer for each band of an error raster; none for one of more than 15 classes, whose values are large."""
    if raster.info.dtype != "uint8":
        return
    tags = {key.removeprefix("CLASS_"): name for key, name in raster.info.tags.items() if key.startswith("CLASS_")}
    names = {int(value): name for value, name in tags.items() if value.isdecimal() and int(value) < IGNORE}
    colours = dict.fromkeys(names, FALSE_COLOUR) | {0: RIGHT_COLOUR}
    if set(names) == {0, 1, 2}:
        colours[1] = MISSED_COLOUR
    for band in range(1, raster.info.bands + 1):
        own = f" of {raster.info.band_names[band - 1]}" if raster.info.bands > 1 else ""
        legend = tuple((names[value], colours[value]) for value in sorted(names)) if len(names) == 3 else _legend("")
        yield Layer(
            f"{identity}-{band}", "errors", f"Reviewed errors{own}", raster, (band,), colours, names, legend=legend
        )


def local_plane(subject: Subject) -> Plane:
    """Return the plane of rasters without CRS; that of the first raster if all have one.

    Raises:
        InputError: when a file that exists cannot be read.
    """
    every = (*subject.images, *subject.maps, *subject.reviews)
    paths = [path for _, path in every if path.is_file()]
    grids = [read_info(path).grid for path in paths]
    if not grids:
        raise InputError(f"{subject.title} has no raster left to show. Restore its images.")
    return plane_of([grid for grid in grids if not is_on_earth(grid.crs)] or grids[:1])


def _raster(group: str, path: Path, plane: Plane) -> ShownRaster:
    info = read_info(path)
    own = Plane(info.grid.crs) if is_on_earth(info.grid.crs) else plane
    return ShownRaster(group, path, info, Place(info.grid, own))


def _image_layer(identity: str, raster: ShownRaster) -> Layer:
    in_colour = raster.info.bands >= 3 and not raster.info.palette
    return Layer(identity, "image", "Image", raster, (1, 2, 3) if in_colour else (1,))


def _map_layers(number: str, raster: ShownRaster, subject: Subject, plane: Plane) -> Iterator[Layer]:
    legend = map_classes(raster.info)
    for i, (band, title, names) in enumerate(_class_bands(legend)):
        colours = _colours(legend, names, subject.classes)
        yield Layer(f"classes-{number}-{i}", "classes", title, raster, (band,), colours, names)
    for kind, what in SIBLINGS.items():
        path = sibling_path(raster.path, what)
        if path.is_file():
            sibling = _raster(raster.group, path, plane)
            if kind == "probability":
                yield from _probability_layers(number, sibling, legend, _thresholds(raster.info), subject.classes)
            else:
                yield Layer(f"{kind}-{number}", kind, kind.capitalize(), sibling, (1,))


def map_classes(info: ImageInfo) -> Legend:
    """Return the classes of a map.

    Raises:
        InputError: when the file does not say them.
    """
    legend = legend_from_tags(info.tags)
    if legend is None or info.bands != (len(legend.names) if legend.overlapping else 1):
        raise InputError(
            f"{info.path} is not a class map: it does not say its classes. Give one of `geograft predict`."
        )
    return legend


def _class_bands(legend: Legend) -> list[tuple[int, str, Mapping[int, str]]]:
    """Return band, title and names by value of each layer of classes."""
    if legend.overlapping:
        return [(i, f"Map of {name}", {1: name}) for i, name in enumerate(legend.names, start=1)]
    return [(1, "Map", dict(zip(legend.values, legend.names, strict=True)))]


def _colours(legend: Legend, names: Mapping[int, str], shown: Sequence[ShownClass]) -> dict[int, str]:
    """Return the colour of each value, without the background: the subject's own, or the legend's."""
    usual = dict(zip(legend.names, legend.colours, strict=True))
    usual = {name: colour for name, colour in usual.items() if colour != BACKGROUND_COLOUR}
    usual |= {each.name: each.colour for each in shown}
    return {value: usual[name] for value, name in names.items() if name in usual}


def _thresholds(info: ImageInfo) -> tuple[float, ...]:
    try:
        return tuple(float(text) for text in info.tags.get(THRESHOLD_TAG, "").split())
    except ValueError:
        return ()


def _probability_layers(
    number: str, raster: ShownRaster, legend: Legend, thresholds: Sequence[float], shown: Sequence[ShownClass]
) -> Iterator[Layer]:
    """Yield the layers of a file of probabilities: of the positive class, or of each class."""
    # A project numbers classes in its own order, a map those that had labels.
    numbers = {each.name: each.value for each in shown}
    first = 1 if legend.binary else 0
    classes = list(enumerate(zip(legend.names, legend.values, strict=True)))[first:]
    if raster.info.bands != len(legend.names):
        raise InputError(
            f"{raster.path} has {raster.info.bands} bands, but its map has {len(legend.names)} classes. Map it again."
        )
    for i, (name, value) in classes:
        yield Layer(
            f"probability-{number}-{i}",
            "probability",
            f"Probability of {name}",
            raster,
            (i + 1,),
            class_value=numbers.get(name, value),
            class_name=name,
            threshold=thresholds[i - first] if len(thresholds) == len(classes) else None,
        )
