"""`geograft project FOLDER --import FILE`: polygons and masks of other programs become labels of a project.

What a model outlined, Segment Anything for example, keeps the origin `suggested` until a person has checked it: scores
against a model's own outlines would be too high. All labels are added in one transaction, or none.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import shapely
from affine import Affine
from jaxtyping import Bool, Integer, Shaped
from numpy import ndarray
from pyproj import CRS
from shapely.geometry.base import BaseGeometry

from geograft.commands.project import outline_in
from geograft.config.recipes import LABEL_FILE, ProjectSettings, read_project
from geograft.dataset.scenes import read_image_infos, scene_names
from geograft.errors import InputError, SettingError
from geograft.files import StrPath, check_input_file, to_paths
from geograft.geo.formats import RASTER_MAGIC, raster_driver, read_header
from geograft.geo.grid import Grid, Window, transform_points
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.geo.rasters.tags import legend_from_tags
from geograft.geo.vectors.arrow import to_multipolygons
from geograft.geo.vectors.label_edits import edit_features, read_features
from geograft.geo.vectors.label_file import (
    AREAS_LAYER,
    CLASS,
    LABEL_ORIGINS,
    LABELS_LAYER,
    NOTE,
    ORIGIN,
    ROLE,
    Origin,
    is_label_file,
)
from geograft.geo.vectors.reader import class_names, describe_polygons, read_layer, repair_polygons, reproject
from geograft.mapping.polygons.regions import ClassMapSource, find_regions
from geograft.mapping.polygons.shapes import as_array
from geograft.memory import check_scene_size
from geograft.progress import progress_bar
from geograft.text import join_names, pluralise

LAYERS = (LABELS_LAYER, AREAS_LAYER)
MAX_OUTLINES = 200_000
"""Maximum number of labels of one file: more are mostly noise, and slow in every GIS."""
EXAMPLE = "--class tree, or --class 1=tree,2=water"


@dataclass(frozen=True)
class ClassChoice:
    """The classes of a project, and which values of a file become them."""

    names: tuple[str, ...]
    """The classes of the project."""
    single: str = ""
    """The class of everything in the file; empty: by value."""
    by_value: Mapping[str, str] | None = None
    """The class of each value; values that it lacks are left out. None: values are names of classes."""

    def of_values(self, values: Sequence[str]) -> list[str]:
        """Return the class of each value; empty for a value to leave out, or that is no class."""
        table = {name: name for name in self.names} if self.by_value is None else self.by_value
        return [table.get(value, "") for value in values]


@dataclass(frozen=True)
class Outlines:
    """What a file has for a project: valid polygons with their classes."""

    path: Path
    shapes: Shaped[ndarray, " n"]
    """In the CRS of the labels; empty where a feature has no area."""
    classes: Sequence[str]
    """Empty for a value that is left out."""
    origins: Sequence[str] = ()
    """As stored in the file; empty if it does not say."""
    repaired: int = 0


@dataclass(frozen=True)
class ProjectLabels:
    """Where labels are added: the label file of a project as it is, and the images that it belongs to."""

    path: Path
    revision: str
    crs: CRS
    images: Mapping[str, ImageInfo]
    labels: Sequence[tuple[BaseGeometry, str]]
    scoring: Sequence[BaseGeometry]
    """The scoring areas."""

    @property
    def footprints(self) -> list[BaseGeometry]:
        """The outlines of the images in the CRS of the labels."""
        return [outline_in(info.grid, info.grid.window, self.crs) for info in self.images.values()]

    @property
    def precision(self) -> float:
        """A hundredth of a pixel in units of the CRS: outlines that differ by less are the same."""
        first = next(iter(self.images.values())).grid
        return float(np.sqrt(self.footprints[0].area / (first.height * first.width))) / 100


@dataclass(frozen=True)
class ImportedLabels:
    """The result of `import_labels`."""

    path: Path
    added: Mapping[str, int]
    """Number of labels added by class."""
    skipped: Mapping[str, int]
    """Number of features left out by reason."""
    repaired: int
    """Number of polygons that were invalid and have been repaired."""
    suggested: int
    """Number of added labels of origin suggested."""
    unchecked: int
    """How many of these lie in scoring areas."""

    def lines(self) -> list[str]:
        """Return what was added and left out, and what to do next."""
        count = pluralise(sum(self.added.values()), "label")
        classes = join_names(f"{name} {number:,}" for name, number in self.added.items())
        skipped = join_names(f"{number:,} {reason}" for reason, number in self.skipped.items() if number)
        return [
            f"{self.path}: {count} added{': ' if classes else ''}{classes}",
            *([f"Left out: {skipped}"] if skipped else []),
            *([f"{pluralise(self.repaired, 'invalid polygon')} repaired"] if self.repaired else []),
            *self._advice(),
        ]

    def _advice(self) -> Iterator[str]:
        if self.unchecked:
            yield (
                f"Note: {self.unchecked:,} of origin suggested in scoring areas. Check them there and set their origin "
                "to drawn: `geograft go` scores against no outlines that nobody checked."
            )
        elif self.suggested:
            yield "Their origin is suggested. Use --origin drawn for outlines that a person drew or checked."


def import_labels(
    folder: StrPath,
    files: StrPath | Sequence[StrPath],
    classes: str | Mapping[str, str] = "",
    class_field: str | None = None,
    origin: Origin | None = None,
) -> ImportedLabels:
    """Add polygons and masks of other programs to the labels of a project, and return what was added.

    Polygons (GeoPackage, GeoJSON, Shapefile and so on) are reprojected and repaired. In masks, each connected region of
    one value is an outline along pixel edges: the pixels inside are those of the mask. A mask without CRS belongs to
    the image of its size, with several of them to the one whose name its own begins with.

    `classes` is the class of everything in the files ("tree"; in masks of all values but 0), or the class of each value
    ("1=tree,2=water", or a dict); other values are left out. Without it, the values of `class_field` (default: class),
    or the class names in a map's metadata, are the names; in a project of one class it may be left out.

    `origin` is "drawn" for outlines that a person drew or checked on these images. By default it is what a label file
    says of each, and "suggested" for all others.

    Outlines that are labels already, that lie outside of the images, or that have no area are left out.

    Raises:
        InputError: if the folder is no project, or a file cannot be read, has no class, or has nothing on the images.
        SettingError: for a class that the project does not have.
        GeograftError: if the label file is locked or was changed in the meantime; nothing is changed then.
    """
    folder, paths = Path(folder), to_paths(files)
    if origin not in (None, *LABEL_ORIGINS):
        raise SettingError(f"--origin {origin}: a label is {' or '.join(LABEL_ORIGINS)}.")
    settings, _ = read_project(folder)
    choice = choose_classes(settings, classes)
    target = read_target(folder, settings)
    found = [read_outlines(path, target, choice, class_field) for path in paths]
    if not found:
        raise InputError("no file to import. Give at least one.")
    known = {_key(shape, name, target.precision) for shape, name in target.labels}
    skipped: Counter[str] = Counter()
    rows = [row for each in found for row in _new_rows(each, target, known, origin, skipped)]
    if rows:
        with edit_features(target.path, LAYERS, target.revision) as file:
            for shape, values in rows:
                file.insert(LABELS_LAYER, shape, values)
    suggested = as_array(shape for shape, values in rows if values[ORIGIN] == "suggested")
    unchecked = int(_touching(suggested, target.scoring).sum())
    added = Counter(values[CLASS] for _, values in rows)
    return ImportedLabels(
        target.path, dict(added), dict(skipped), sum(each.repaired for each in found), len(suggested), unchecked
    )


def choose_classes(settings: ProjectSettings, classes: str | Mapping[str, str]) -> ClassChoice:
    """Return the classes that values become; `classes` as in `import_labels`.

    Raises:
        SettingError: for a class that the project does not have, or a text that is no list of pairs.
    """
    names = settings.names
    if isinstance(classes, str):
        if classes in names:
            return ClassChoice(names, single=classes)
        pairs = [part.partition("=") for part in classes.split(",")] if classes else []
        table = {value.strip(): name.strip() for value, _, name in pairs}
        if len(table) < len(pairs) or not all(separator for _, separator, _ in pairs):
            raise SettingError(
                f"--class {classes!r} is neither a class of the project ({join_names(names)}) nor a list such as "
                "1=tree,2=water with each value once."
            )
    else:
        table = {str(value): name for value, name in classes.items()}
    wrong = next((name for name in table.values() if name not in names), None)
    if wrong is not None:
        raise SettingError(f"--class: {wrong!r} is not a class of the project. It has: {join_names(names)}.")
    return ClassChoice(names, by_value=table or None)


def read_target(folder: Path, settings: ProjectSettings) -> ProjectLabels:
    """Return the labels of a project as they are, and the metadata of its images.

    Raises:
        InputError: if the label file or an image cannot be read.
    """
    path = folder / LABEL_FILE
    paths = [folder / name for name in settings.images]
    images = dict(zip(scene_names(paths), read_image_infos(paths), strict=True))
    with read_features(path, LAYERS) as file:
        crs = file.crs(LABELS_LAYER)
        if crs is None:
            raise InputError(f"{path} has no CRS. Assign the layer {LABELS_LAYER} its CRS in your GIS.")
        labels = [(row.shape, str(row.values.get(CLASS))) for row in file.rows(LABELS_LAYER)]
        scoring = [row.shape for row in file.rows(AREAS_LAYER) if row.values.get(ROLE) == "scoring"]
        return ProjectLabels(path, file.revision, crs, images, labels, scoring)


def read_outlines(path: Path, target: ProjectLabels, choice: ClassChoice, class_field: str | None) -> Outlines:
    """Return the outlines of a mask or the polygons of a vector file with their classes.

    Raises:
        InputError: if the file cannot be read, or says no class that the project has.
    """
    return _mask(path, target, choice) if is_mask(path) else _polygons(path, target, choice, class_field)


def is_mask(path: Path) -> bool:
    """Return whether a file is a raster, by its content.

    Raises:
        InputError: if it cannot be read.
    """
    if path.suffix.lower() == ".gdb" and path.is_dir():
        return False
    check_input_file(path)
    header = read_header(path)
    magic = (first for first, driver in RASTER_MAGIC if driver != "GPKG")
    return header.startswith(tuple(magic)) or path.suffix.lower() in (".vrt", ".asc")


def _new_rows(
    found: Outlines, target: ProjectLabels, known: set[tuple[str, bytes]], origin: Origin | None, skipped: Counter[str]
) -> Iterator[tuple[BaseGeometry, dict[str, str]]]:
    """Yield the outlines to add with their fields; count the others in `skipped`, and keep all in `known`.

    Raises:
        InputError: if none of a file's outlines lies on an image.
    """
    has_area = ~shapely.is_empty(found.shapes)
    chosen = np.array([bool(name) for name in found.classes], bool)
    near = _touching(found.shapes, target.footprints)
    if not near.any():
        raise InputError(
            f"{found.path}: none of its {pluralise(len(found.shapes), 'outline')} lies on an image of the project. "
            "Check its CRS."
        )
    skipped["without area"] += int((~has_area).sum())
    skipped["of other values"] += int((has_area & ~chosen).sum())
    skipped["outside of the images"] += int((has_area & chosen & ~near).sum())
    for index in np.flatnonzero(chosen & near).tolist():
        shape, name = found.shapes[index], found.classes[index]
        key = _key(shape, name, target.precision)
        if key in known:
            skipped["that are labels already"] += 1
            continue
        known.add(key)
        own = found.origins[index] if len(found.origins) else ""
        yield shape, {CLASS: name, ORIGIN: origin or own or "suggested", NOTE: f"from {found.path.name}"}


def _touching(shapes: ndarray, others: Sequence[BaseGeometry]) -> Bool[ndarray, " n"]:
    """Return which shapes share an area with one of the others."""
    touching = np.zeros(len(shapes), bool)
    own, other = shapely.STRtree(others).query(shapes, predicate="intersects")
    shared = shapely.area(shapely.intersection(shapes[own], as_array(others)[other])) > 0
    touching[own[shared]] = True
    return touching


def _key(shape: BaseGeometry, name: str, precision: float) -> tuple[str, bytes]:
    """Return what an outline has in common with its copies: class, and rounded coordinates from the same start."""
    multi = to_multipolygons([shape])
    # Zero is added because -0.0 and 0.0 have different bytes.
    rounded = shapely.transform(multi, lambda points: np.round(points / precision) + 0.0)
    return name, bytes(shapely.to_wkb(shapely.normalize(rounded))[0])


# ----------------------------------------------------------------------------------------------------------- polygons


def _polygons(path: Path, target: ProjectLabels, choice: ClassChoice, class_field: str | None) -> Outlines:
    name = LABELS_LAYER if is_label_file(path) else ""
    fields, count = describe_polygons(path, name)
    if count > MAX_OUTLINES:
        raise _too_many(path, f"{count:,} features")
    field = _class_field(path, fields, choice, class_field)
    layer = read_layer(path, [each for each in (field, ORIGIN) if each in fields], name)
    shapes, repaired = repair_polygons(layer.shapes_in(target.crs), str(path))
    origins: list[str] = []
    if ORIGIN in fields:
        origins = [value if value in LABEL_ORIGINS else "" for value in layer.frame[ORIGIN].tolist()]
    if not field:
        return Outlines(path, shapes, [choice.single or choice.names[0]] * len(shapes), origins, layer.repaired_count)
    values = np.full(len(shapes), "", object)
    values[layer.kept] = class_names(path, layer.frame[layer.kept][field], field)
    found = choice.of_values(values.tolist())
    missing = sorted({value for value, each in zip(values, found, strict=True) if value and not each})
    if missing and choice.by_value is None:
        raise InputError(
            f"{path}: {join_names(map(repr, missing), limit=5)} in {field!r} is not a class of the project, which has "
            f"{join_names(choice.names)}. Say what becomes of them: --class {missing[0]}={choice.names[0]}"
        )
    return Outlines(path, shapes, found, origins, layer.repaired_count + repaired)


def _class_field(path: Path, fields: Sequence[str], choice: ClassChoice, given: str | None) -> str:
    """Return the field with the class; empty if everything is of one class.

    Raises:
        InputError: if there is no such field, or several classes and none.
    """
    if choice.single and given:
        raise SettingError(f"--class {choice.single} is one class for all, and --class-field a class each. Give one.")
    if choice.single:
        return ""
    field = given or CLASS
    if field in fields:
        return field
    if given is None and choice.by_value is None and len(choice.names) == 1:
        return ""
    raise InputError(
        f"{path} has no field {field!r} with the class. It has: {join_names(fields) or 'none at all'}. Choose one with "
        "--class-field, or give all features one class with --class."
    )


# -------------------------------------------------------------------------------------------------------------- masks


def _mask(path: Path, target: ProjectLabels, choice: ClassChoice) -> Outlines:
    if raster_driver(path) == "JPEG":
        raise InputError(f"{path} is a JPEG, which changes the values of a mask. Save it as PNG or GeoTIFF.")
    with Image.open(path) as image:
        info = image.info
        check_scene_size(str(path), info.grid.height, info.grid.width)
        grid = _place(info, target.images)
        table = _mask_classes(info, choice)
        with progress_bar(f"outlines {path.name}", grid.height * grid.width / 1e6, "Mpx") as bar:

            def is_empty(window: Window) -> bool:
                bar.advance(window.height * window.width / 1e6)
                return image.is_empty(window)

            reader = MaskReader(image, None if table is None else np.array(sorted(table), np.int64))
            source = ClassMapSource(grid.height, grid.width, reader.read, is_empty)
            regions = list(islice(find_regions(source), MAX_OUTLINES + 1))
    if len(regions) > MAX_OUTLINES:
        raise _too_many(path, f"more than {MAX_OUTLINES:,} regions")
    if not regions:
        raise InputError(f"{path} has no pixel to import: all are 0, nodata or of other values. Check --class.")
    default = choice.single or choice.names[0]
    classes = [default if table is None else table[region.value] for region in regions]
    shapes = shapely.transform(
        as_array(region.shape for region in regions), lambda points: transform_points(points, grid.transform)
    )
    assert grid.crs is not None
    if not grid.crs.equals(target.crs, ignore_axis_order=True):
        shapes = repair_polygons(reproject(shapes, grid.crs, target.crs, str(path)), str(path))[0]
    return Outlines(path, shapes, classes)


@dataclass
class MaskReader:
    """Reads the values of a mask, and which pixels belong to an outline."""

    image: Image
    values: Integer[ndarray, " k"] | None
    """The values to outline; None: all but 0."""
    _rows: tuple[Window, ndarray, ndarray] | None = None
    """The last row of blocks of a file that is decoded from its start."""

    def read(self, window: Window) -> tuple[Integer[ndarray, "h w"], Bool[ndarray, "h w"]]:
        """Return the values of a window inside the mask, and which pixels to outline.

        Raises:
            InputError: if the pixels cannot be read, or are no values of a mask.
        """
        if self.image.info.windowed:
            pixels, valid = self.image.read(window)
        else:
            rows = Window(window.row, 0, window.height, self.image.info.grid.width)
            if self._rows is None or self._rows[0] != rows:
                self._rows = rows, *self.image.read(rows)
            here = (slice(None), slice(window.col, window.stop_col))
            pixels, valid = self._rows[1][:, *here], self._rows[2][here]
        values = self._checked(pixels)
        return values, valid & (values != 0 if self.values is None else np.isin(values, self.values))

    def _checked(self, pixels: Shaped[ndarray, "b h w"]) -> Integer[ndarray, "h w"]:
        path = self.image.info.path
        values: ndarray = pixels[0]
        if (pixels != values).any():
            raise InputError(
                f"{path} has {len(pixels)} bands that differ: it is a picture, not a mask. Save the mask itself, with "
                "one value per class or object."
            )
        if values.dtype.kind == "f":
            fractions = values[values != np.rint(values)]
            if len(fractions):
                raise InputError(
                    f"{path} has values such as {fractions[0]:g}; a mask has whole numbers. Threshold or round it."
                )
            values = values.astype(np.int64)
        return values


def _mask_classes(info: ImageInfo, choice: ClassChoice) -> dict[int, str] | None:
    """Return the class of each value of a mask; None if all values but 0 are of the same class.

    Raises:
        InputError: if nothing says the classes.
        SettingError: if a value in --class is no whole number.
    """
    if choice.single:
        return None
    if choice.by_value is not None:
        try:
            return {int(value): name for value, name in choice.by_value.items()}
        except ValueError as error:
            raise SettingError(f"--class: values of a mask are whole numbers: {EXAMPLE}. {error}.") from error
    legend = legend_from_tags(info.tags)
    if legend is not None:
        named = dict(zip(legend.values, legend.names, strict=True))
        table = {value: name for value, name in named.items() if name in choice.names}
        if table:
            return table
    if len(choice.names) == 1:
        return None
    raise InputError(f"{info.path} does not say its classes, and the project has {len(choice.names)}. Give {EXAMPLE}.")


def _place(info: ImageInfo, images: Mapping[str, ImageInfo]) -> Grid:
    """Return the grid of a mask; without CRS, that of the image that it belongs to.

    Raises:
        InputError: if there is none, or several.
    """
    if info.grid.crs is not None:
        return info.grid
    size = info.grid.height, info.grid.width
    same = {name: each.grid for name, each in images.items() if (each.grid.height, each.grid.width) == size}
    found = same
    if len(same) > 1:
        found = {name: grid for name, grid in same.items() if info.path.stem.casefold().startswith(name.casefold())}
    if len(found) != 1:
        fault = "its name begins like none or several of the images of" if same else "no image of the project has"
        raise InputError(
            f"{info.path} has no CRS, and {fault} its size, {size[1]} x {size[0]} pixels. Assign its CRS, or name it "
            "like its image."
        )
    (grid,) = found.values()
    if info.grid.transform != Affine.identity() and not info.grid.transform.almost_equals(grid.transform, 1e-3):
        raise InputError(
            f"{info.path} has no CRS, and its transform is not that of the image of its size. Assign its CRS."
        )
    return grid


def _too_many(path: Path, found: str) -> InputError:
    return InputError(
        f"{path} has {found}; at most {MAX_OUTLINES:,} labels can be imported from one file. Remove the smallest ones, "
        "or import a part."
    )
