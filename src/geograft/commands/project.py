"""`geograft project`: a folder in which a map is made: images, classes, labels to draw, and a project for QGIS.

The accuracy of the map is measured in random areas, which are drawn here: a sample that nobody chose.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import shapely
from numpy import ndarray
from pyproj import CRS

from geograft.config import PredictConfig
from geograft.config.recipes import (
    IMAGES,
    LABEL_FILE,
    MAPS,
    PROJECT_FILE,
    AreaConfig,
    CopiedImage,
    ImageConfig,
    ProjectClass,
    ProjectSettings,
)
from geograft.dataset.scenes import read_image_infos, scene_names
from geograft.errors import InputError, SettingError
from geograft.files import StrPath, atomic_folder, refuse_existing, write_bytes, write_text
from geograft.geo.grid import Grid, Window
from geograft.geo.measure import resolution_m
from geograft.geo.qgis_project import Group, ProjectLayer, View, project_xml, zip_project
from geograft.geo.rasters.opening import raster_state
from geograft.geo.rasters.raster import Image, ImageInfo
from geograft.geo.rasters.scene_image import open_image, scene_of_raster
from geograft.geo.rasters.styles import image_style
from geograft.geo.rasters.writer import write_local_copy
from geograft.geo.scene import BandChoice, RasterInput, SceneFiles, to_inputs
from geograft.geo.scene_layouts import find_scene, is_band_list
from geograft.geo.vectors.label_file import (
    AREA_ORIGINS,
    AREAS_LAYER,
    CLASS,
    LABEL_ORIGINS,
    LABELLED,
    LABELS_LAYER,
    NOTE,
    ORIGIN,
    RANK,
    ROLE,
    ROLES,
    SCENE,
    Area,
    write_label_file,
)
from geograft.geo.vectors.reader import reproject
from geograft.geo.vectors.styles import Entry, FieldForm, categorized_style, quote_text
from geograft.legend import SPLIT_COLOURS, Legend
from geograft.locations import Location
from geograft.locks import lock_output
from geograft.memory import MAX_TILE_PX
from geograft.progress import track
from geograft.text import join_names, pluralise

QGIS_FILE, RESULTS_FILE = "project.qgz", "results.qgs"
RESULTS_GROUP = "Results"
MIN_VALID = 0.9
"""Minimum fraction of valid pixels in a random area."""
MAX_FAILURES = 1000
"""Number of random positions in a row without place for an area after which no more are tried."""
MIN_AREA_PX = 16
MAX_CLASSES = 200


@dataclass(frozen=True)
class RandomArea:
    """A square of an image, at a random position."""

    scene: str
    window: Window
    outline: shapely.Polygon
    """In the CRS of the labels."""


@dataclass(frozen=True)
class ProjectFolder:
    """The result of `project`."""

    folder: Path
    settings: ProjectSettings
    areas: tuple[RandomArea, ...]
    resolution_m: float

    def lines(self) -> list[str]:
        """Return what the folder has, and what to do next."""
        names = join_names(self.settings.names)
        side = self.settings.areas.area_px
        size = f"{side} x {side} pixels ({side * self.resolution_m:.3g} x {side * self.resolution_m:.3g} m)"
        count = pluralise(len(self.areas), "random scoring area")
        return [
            f"{self.folder}: {pluralise(len(self.settings.images), 'image')}, "
            f"{pluralise(len(self.settings.classes), 'class')}: {names}",
            *([f"{LABEL_FILE} has {count} of {size}"] if self.areas else [NO_SCORING_AREAS]),
            f"Open {self.folder / QGIS_FILE} in QGIS. In the layer areas, draw areas to train on. Inside of each area, "
            "draw every object of the classes in the layer labels, then check labelled.",
            f"Then: geograft go {self.folder}",
        ]


NO_SCORING_AREAS = f"{LABEL_FILE} has no scoring areas, so the accuracy of the map will be unknown"


EVERYTHING = ImageConfig()


def project(
    folder: StrPath,
    images: StrPath | RasterInput | Sequence[StrPath | RasterInput],
    classes: Sequence[str],
    areas: AreaConfig | None = None,
    area_m: float | None = None,
    config: ImageConfig = EVERYTHING,
) -> ProjectFolder:
    """Make a project folder for one or several images and return it.

    It has project.toml (settings), labels.gpkg (layers to draw in, with the scoring areas), project.qgz (for QGIS) and
    results.qgs (its group of results, which `geograft go` replaces). Local rasters stay where they are. Of scenes with
    a file per band, and of remote rasters, the bands of `config` are written to GeoTIFFs in the folder.

    Scoring areas are squares at random positions of the images that have mostly valid pixels; they do not overlap. With
    `area_m`, their side is given in metres instead of pixels. Reads the pixels of the areas, and a sample for display.

    Raises:
        InputError: if an image cannot be used, has no CRS, or has no place for the areas.
        SettingError: for classes without a name, or named twice, and for areas that are too small.
        OutputError: if the folder exists or cannot be written.
    """
    folder = Path(folder)
    with lock_output(folder):
        refuse_existing(folder)
        inputs = [one if isinstance(one, SceneFiles) else find_scene(one) or one for one in to_inputs(images)]
        infos = _image_infos(inputs, config)
        crs = infos[0].grid.crs
        assert crs is not None
        resolution = resolution_m(infos[0].grid) or 1.0
        wanted = _with_side(areas or AreaConfig(), area_m, resolution)
        names = scene_names([info.path for info in infos])
        copies = _copies(inputs, infos, names)
        settings = _with_bands(_settings(folder, infos, classes, wanted), config, copies)
        with atomic_folder(folder) as part:
            shown = _local_images(part, infos, copies)
            drawn = draw_areas(shown if copies else infos, names, wanted, crs)
            write_text(part / PROJECT_FILE, settings.toml())
            drawing = drawing_layers(settings, crs)
            styles = drawing[1].style, drawing[0].style
            write_label_file(part / LABEL_FILE, _ranked(drawn), (), crs, styles)
            write_bytes(part / QGIS_FILE, _qgis_project(settings, drawing, shown, names, crs))
            write_text(part / RESULTS_FILE, results_project(settings.title, (), crs))
    return ProjectFolder(folder, settings, drawn, resolution)


def _image_infos(inputs: Sequence[RasterInput], config: ImageConfig) -> tuple[ImageInfo, ...]:
    """Return the metadata of the images; with chosen bands or masks, as scenes of these.

    Raises:
        InputError: if one of them cannot be used in a project, or there is none.
    """
    if not inputs:
        raise InputError("no images. Give at least one.")
    for one in inputs:
        if isinstance(one, Path):
            raster_state(one)
    choice = BandChoice(config.bands, config.mask)
    infos = read_image_infos(inputs, choice)
    if config.bands:
        infos = tuple(info if info.scene else scene_of_raster(info, choice) for info in infos)
    missing = next((info.path for info in infos if info.grid.crs is None), None)
    if missing is not None:
        raise InputError(
            f"{missing} has no CRS, which a project needs. Assign one (gdal_edit), or use `geograft prepare`."
        )
    return infos


def _copies(inputs: Sequence[RasterInput], infos: Sequence[ImageInfo], names: Sequence[str]) -> dict[int, str]:
    """Return the images that are written to the folder, by number, and where: scenes and remote rasters.

    Beside these, other images are too if bands or pixels of theirs are chosen; all then have the same bands.
    """
    foreign = {number for number, one in enumerate(inputs) if isinstance(one, SceneFiles | Location)}
    chosen = {number for number, info in enumerate(infos) if info.scene} if foreign else set()
    return {number: f"{IMAGES}/{names[number]}.tif" for number in sorted(foreign | chosen)}


def _local_images(part: Path, infos: Sequence[ImageInfo], copies: Mapping[int, str]) -> list[ImageInfo]:
    """Write the copies to the folder of a project, and return the metadata of its images as they are shown: whole."""
    if copies:
        (part / IMAGES).mkdir()
    for number, name in track(copies.items(), len(copies), "Images", "images"):
        write_local_copy(infos[number], part / name)
    found = []
    for number, info in enumerate(infos):
        with Image.open(part / copies[number] if number in copies else info.path) as image:
            found.append(image.info)
    return found


def _with_bands(settings: ProjectSettings, config: ImageConfig, copies: Mapping[int, str]) -> ProjectSettings:
    """Return the settings of a project with the bands and masks of its images; of copies, what they were made from."""
    if copies:
        images = [copies.get(number, image) for number, image in enumerate(settings.images)]
        made = tuple(CopiedImage(name, settings.images[number], **asdict(config)) for number, name in copies.items())
        return replace(settings, images=tuple(images), copies=made)
    tables = ("prepare", "predict", "suggest")
    return replace(settings, **{name: replace(getattr(settings, name), **asdict(config)) for name in tables})


def _with_side(areas: AreaConfig, area_m: float | None, resolution: float) -> AreaConfig:
    """Return `areas` with a side of `area_m` metres, if it is given.

    Raises:
        SettingError: if that is too few or too many pixels.
    """
    if area_m is None:
        return areas
    try:
        return replace(areas, area_px=round(area_m / resolution))
    except (ValueError, OverflowError) as error:
        raise SettingError(
            f"--area-m {area_m:g}: pixels of {resolution:.3g} m make that {area_m / resolution:.4g} pixels. Use "
            f"{MIN_AREA_PX} to {MAX_TILE_PX} pixels."
        ) from error


def _settings(folder: Path, infos: Sequence[ImageInfo], classes: Sequence[str], areas: AreaConfig) -> ProjectSettings:
    names = [name.strip() for name in classes]
    double = next((name for name in names if names.count(name) > 1), None)
    if not names or not all(names) or double is not None or len(names) > MAX_CLASSES:
        fault = f"has {double} twice" if double else f"names {sum(map(bool, names))} classes"
        raise SettingError(f"--classes {','.join(classes)!r} {fault}. Give names such as tree,water.")
    colours = Legend(("", *names)).colours[1:]
    return ProjectSettings(
        title=folder.resolve().name,
        images=tuple(_image_name(info, folder) for info in infos),
        classes=tuple(ProjectClass(*each) for each in zip(names, colours, strict=True)),
        areas=areas,
        # Polygons then have the mean probability of their class.
        predict=PredictConfig(probabilities="uint8"),
    )


def _image_name(info: ImageInfo, folder: Path) -> str:
    """Return a raster's path relative to a folder; an address or a list of band files as it is."""
    path = info.path
    return str(path) if isinstance(path, Location) or is_band_list(path) else relative_path(path, folder)


def relative_path(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, with forward slashes; absolute if it is on another drive."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return path.resolve().as_posix()


def draw_areas(
    infos: Sequence[ImageInfo], names: Sequence[str], wanted: AreaConfig, crs: CRS
) -> tuple[RandomArea, ...]:
    """Return squares at random positions of the images, all equally likely; they do not overlap.

    Raises:
        InputError: if an image cannot be read, or has no place for as many squares.
    """
    rng, found, side, failures = np.random.default_rng(wanted.seed), list[RandomArea](), wanted.area_px, 0
    positions = np.array([max(i.grid.height - side + 1, 0) * max(i.grid.width - side + 1, 0) for i in infos], float)
    while len(found) < wanted.scoring_areas and positions.any() and failures < MAX_FAILURES:
        number = int(rng.choice(len(infos), p=positions / positions.sum()))
        grid = infos[number].grid
        row, col = (int(rng.integers(0, length - side + 1)) for length in (grid.height, grid.width))
        window = Window(row, col, side, side)
        outline = outline_in(grid, window, crs)
        if any(outline.intersects(other.outline) for other in found) or not _is_valid(infos[number], window):
            failures += 1
            continue
        found.append(RandomArea(names[number], window, outline))
        failures = 0
    if len(found) < wanted.scoring_areas:
        raise InputError(
            f"{len(found)} of {wanted.scoring_areas} scoring areas of {side} x {side} pixels have a place on the "
            f"images, apart from each other and with {MIN_VALID:.0%} valid pixels. Use fewer (--scoring-areas) or "
            "smaller ones (--area-px)."
        )
    return tuple(found)


def outline_in(grid: Grid, window: Window, crs: CRS) -> shapely.Polygon:
    """Return the outline of a window of a grid in a CRS."""
    shape = grid.footprint(window)
    if grid.crs is None or grid.crs.equals(crs, ignore_axis_order=True):
        return shape
    moved: shapely.Polygon = reproject(np.array([shape], object), grid.crs, crs)[0]
    return moved


def _is_valid(info: ImageInfo, window: Window) -> bool:
    with open_image(info) as image:
        return not image.is_empty(window) and bool(image.read(window)[1].mean() >= MIN_VALID)


def _ranked(areas: Sequence[RandomArea]) -> list[Area]:
    return [
        Area(area.outline, "scoring", "random", rank=rank, scene=area.scene) for rank, area in enumerate(areas, start=1)
    ]


# ------------------------------------------------------------------------------------------------------ shown in QGIS


def _qgis_project(
    settings: ProjectSettings,
    drawing: Sequence[ProjectLayer],
    infos: Sequence[ImageInfo],
    names: Sequence[str],
    crs: CRS,
) -> bytes:
    """Return the content of project.qgz: layers to draw in, the results to come, and the images."""
    images = [_image_layer(*each) for each in zip(infos, names, settings.images, strict=True)]
    bounds = np.array([outline_in(info.grid, info.grid.window, crs).bounds for info in infos])
    extent = (*bounds[:, :2].min(axis=0).tolist(), *bounds[:, 2:].max(axis=0).tolist())
    groups = (
        Group("Draw", drawing),
        Group(RESULTS_GROUP, project=RESULTS_FILE, hidden=[map_layer(name, crs).id for name in names]),
        Group("Images", images),
    )
    return zip_project(project_xml(groups, View(settings.title, crs, extent)), f"{Path(QGIS_FILE).stem}.qgs")


def results_project(title: str, layers: Sequence[ProjectLayer], crs: CRS) -> str:
    """Return the content of results.qgs, whose group project.qgz shows."""
    return project_xml([Group(RESULTS_GROUP, layers)], View(f"{title}: results", crs))


def map_layer(name: str, crs: CRS, style: str = "") -> ProjectLayer:
    """Return the map of an image, which covers it and is not drawn at first."""
    return ProjectLayer(f"{name}: map", f"{MAPS}/{name}.tif", crs, style, shown=False)


def drawing_layers(settings: ProjectSettings, crs: CRS) -> tuple[ProjectLayer, ProjectLayer]:
    """Return the layers of labels.gpkg as QGIS shows them: areas and labels."""
    classes = [Entry(each.name, each.name, each.colour) for each in settings.classes]
    single = {CLASS: quote_text(settings.names[0])} if len(classes) == 1 else {}
    label_form = FieldForm(
        aliases={CLASS: "Class", ORIGIN: "Origin: suggested if taken from a map and not checked", NOTE: "Note"},
        choices={CLASS: settings.names, ORIGIN: LABEL_ORIGINS},
        defaults={ORIGIN: DRAWN} | single,
        repeated=() if single else (CLASS,),
        hidden=bool(single),
    )
    area_form = FieldForm(
        aliases={ROLE: "Role", ORIGIN: "Origin", LABELLED: "Everything inside is labelled", RANK: "Order"}
        | {SCENE: "Image", NOTE: "Note"},
        choices={ROLE: ROLES, ORIGIN: AREA_ORIGINS},
        checkboxes=(LABELLED,),
        defaults={ROLE: quote_text("training"), ORIGIN: DRAWN, LABELLED: "false"},
        fixed=(ORIGIN, RANK, SCENE),
        label=RANK,
    )
    styles = (
        categorized_style(AREA_STATE, AREA_ENTRIES, "outline", area_form),
        categorized_style(CLASS, classes, "area", label_form),
    )
    areas, labels = (
        ProjectLayer(name, LABEL_FILE, crs, style, layer=name)
        for name, style in zip((AREAS_LAYER, LABELS_LAYER), styles, strict=True)
    )
    return areas, labels


DRAWN = quote_text("drawn")
TO_LABEL, DONE = ", to label", ", labelled"
AREA_STATE = f'"{ROLE}" || CASE WHEN "{LABELLED}" THEN {quote_text(DONE)} ELSE {quote_text(TO_LABEL)} END'
AREA_ENTRIES = [
    Entry(f"{role}{state}", f"{role}{state}", SPLIT_COLOURS[split], dashed=state == TO_LABEL)
    for role, split in (("training", "train"), ("scoring", "test"))
    for state in (TO_LABEL, DONE)
]


def _image_layer(info: ImageInfo, name: str, source: str) -> ProjectLayer:
    bands = shown_bands(info)
    numbers = [band + bool(info.alpha and band >= info.alpha) for band in bands]
    assert info.grid.crs is not None
    return ProjectLayer(name, source, info.grid.crs, image_style(numbers, display_limits(info, bands)))


SHOWN = (("red", "green", "blue"), ("B4", "B3", "B2"), ("B04", "B03", "B02"))
"""Names of bands that are shown as red, green and blue: by colour, and of Sentinel-2."""


def shown_bands(info: ImageInfo) -> tuple[int, ...]:
    """Return the numbers of the bands to show as red, green and blue, or of a single one to show in grey."""
    for names in SHOWN:
        if set(names) <= set(info.band_names):
            return tuple(info.band_names.index(name) + 1 for name in names)
    return (1, 2, 3) if info.bands >= len(SHOWN[0]) else (1,)


SAMPLES, SAMPLE_PX = 8, 32
PERCENTILES = (2, 98)


def display_limits(info: ImageInfo, bands: Sequence[int]) -> list[tuple[float, float]]:
    """Return the values of each band to show as black and as white: 0 and 255, or percentiles of a sample."""
    if info.dtype == "uint8":
        return [(0.0, 255.0)] * len(bands)
    grid = info.grid
    with Image.open(info.path) as image:
        parts = [
            _valid_pixels(image, Window(int(row), int(col), SAMPLE_PX, SAMPLE_PX), bands)
            for row in np.linspace(0, max(grid.height - SAMPLE_PX, 0), SAMPLES)
            for col in np.linspace(0, max(grid.width - SAMPLE_PX, 0), SAMPLES)
        ]
    pixels = np.concatenate(parts, axis=1).astype(float)
    if not pixels.size:
        return [(0.0, 1.0)] * len(bands)
    low, high = np.percentile(pixels, PERCENTILES, axis=1)
    return list(zip(low.tolist(), np.maximum(high, low + np.finfo(np.float32).eps).tolist(), strict=True))


def _valid_pixels(image: Image, window: Window, bands: Sequence[int]) -> ndarray:
    pixels, valid = image.read(window, bands)
    return pixels[:, valid]
