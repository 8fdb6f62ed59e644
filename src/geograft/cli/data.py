"""Command-line functions of `geograft project`, `prepare` and `audit`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from geograft.cli.flags import BandFiles, config_from, print_result, settings, stac_rasters, with_progress
from geograft.config import PrepareConfig, Recipe, StacConfig, load_recipe
from geograft.config.recipes import AreaConfig, ImageConfig
from geograft.errors import SettingError

Flag = Annotated[bool, Parameter(negative=())]
Origin = Literal["drawn", "suggested"]


@with_progress
@settings(project=AreaConfig, images=ImageConfig, stac=StacConfig)
def project(
    folder: Path,
    images: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    /,
    *,
    classes: str = "",
    band_files: BandFiles = (),
    area_m: float | None = None,
    imported: Annotated[tuple[Path, ...], Parameter(name="--import", negative=(), consume_multiple=True)] = (),
    class_name: Annotated[str, Parameter(name="--class")] = "",
    class_field: str | None = None,
    origin: Origin | None = None,
    **chosen: Any,
) -> None:
    """Make a project folder for a map: settings, layers to label in, random scoring areas, and a project for QGIS.

    With --import, add polygons and masks of other programs to the labels of a project that exists.

    Args:
        folder: Folder of the project, which must not exist; with --import, of an existing one.
        images: Rasters that GDAL reads, with a CRS; scenes and addresses of rasters, which are copied into the folder.
        classes: Names of the classes to map, separated by commas; the rest of the images is background.
        band_files: Files of one scene by band, such as "B02=a.tif,B8A=b.tif"; once per scene.
        area_m: Length of the sides of the scoring areas in metres, instead of --area-px.
        imported: Polygons (GeoPackage, GeoJSON, Shapefile) and masks (GeoTIFF, PNG) to add to the labels.
        class_name: With --import: class of everything in the files; or class by value, such as 1=tree,2=water.
        class_field: With --import: attribute of polygons with the class or its value. [default: class]
        origin: With --import: drawn, if a person drew or checked the outlines. [default: suggested]
    """
    if imported:
        from geograft.commands.import_labels import import_labels

        if images or band_files or classes or area_m is not None or any(value is not None for value in chosen.values()):
            raise SettingError(
                f"--import adds to the labels of {folder}, whose images and areas stay. Give only these."
            )
        print_result(import_labels(folder, imported, class_name, class_field, origin))
        return
    from geograft.commands.project import project

    if class_name or class_field or origin:
        raise SettingError("--class, --class-field and --origin are of what --import adds. Give --import FILE.")
    if chosen.get("area_px") is not None and area_m is not None:
        raise SettingError("--area-px and --area-m both say how large the scoring areas are. Give one of them.")
    areas = config_from(AreaConfig, AreaConfig(), chosen)
    config = config_from(ImageConfig, ImageConfig(), chosen)
    inputs = (*images, *band_files, *stac_rasters(chosen))
    print_result(project(folder, inputs, classes.split(","), areas, area_m, config))


@with_progress
@settings(prepare=PrepareConfig)
def vector(
    images: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    /,
    *,
    labels: Path,
    out: Path,
    band_files: BandFiles = (),
    class_field: str | None = None,
    aoi: Path | None = None,
    overlapping: Flag = False,
    fractional: Flag = False,
    groups: Path | None = None,
    recipe: Path | None = None,
    **chosen: Any,
) -> None:
    """Make a tile set from images and polygons. Labels are reprojected to the CRS of the images.

    Args:
        images: Rasters that GDAL reads, and scenes: a .SAFE folder or .zip, a Landsat folder, a STAC item (.json).
        band_files: Files of one scene by band, such as "B02=a.tif,B8A=b.tif"; once per scene.
        labels: Polygons: GeoPackage, GeoJSON or Shapefile; or labels.gpkg of a project, with its labelled areas.
        out: Folder of the tile set.
        class_field: Attribute with the class. Without it all polygons belong to one class.
        aoi: Polygons of the annotated area; pixels outside are ignored in training and scoring.
        overlapping: Multi-label: a pixel belongs to every class whose polygons cover it.
        fractional: Fractional (soft) labels: the fraction of each pixel inside the polygons, from 8 x 8 subpixels.
        groups: CSV file with the columns scene and group, for --split group.
        recipe: TOML file; its [prepare] table sets the defaults of the flags below.
    """
    from geograft.commands.prepare import prepare
    from geograft.dataset.sources import VectorSource

    source = VectorSource((*images, *band_files), labels, class_field, aoi, groups, overlapping, fractional)
    print_result(prepare(source, out, _config(recipe, chosen)))


@with_progress
@settings(prepare=PrepareConfig)
def masks(
    images: Path,
    masks: Path,
    /,
    *,
    classes: str = "",
    out: Path,
    ignore: str | None = None,
    ignore_undeclared: Flag = False,
    fractional: Flag = False,
    overlapping: Flag = False,
    full_value: float = 1.0,
    skip_mismatched: bool = False,
    groups: Path | None = None,
    recipe: Path | None = None,
    **chosen: Any,
) -> None:
    """Make a tile set from a folder of images and a folder of mask images, paired by name.

    Args:
        images: Folder of images: PNG, JPEG or TIFF.
        masks: Folder of masks: class values or colours; with --fractional or --overlapping, a band per class.
        classes: Mask values, colours or bands, and names: 1=forest,2=other or "#b50000=building,#1f7b16=plants"; or a
            CSV file with the columns name and colour or value. The first of two is positive; band 0 is the rest.
        out: Folder of the tile set.
        ignore: Mask value or colour of pixels to ignore in training and scoring.
        ignore_undeclared: Ignore the pixels of all values and colours that --classes lacks.
        fractional: Fractional (soft) labels: each band holds the fraction of its class, from 0 to --full-value.
        overlapping: Multi-label: a pixel may belong to several classes or none.
        full_value: Band value of a fraction of 1, for example 100 for percent.
        skip_mismatched: Skip images and masks that do not match in name or size, instead of raising an error.
        groups: CSV file with the columns scene and group, for --split group.
        recipe: TOML file; its [prepare] table sets the defaults of the flags below.
    """
    from geograft.commands.prepare import prepare
    from geograft.dataset.sources import MaskSource

    table = parse_classes(classes)
    ignored = ignore if ignore is None or ignore.startswith("#") else _number(ignore, "--ignore")
    source = MaskSource(images, masks, table, ignored, skip_mismatched, groups, overlapping, fractional, full_value)
    source = replace(source, ignore_undeclared=ignore_undeclared)
    print_result(prepare(source, out, _config(recipe, chosen)))


@with_progress
@settings(prepare=PrepareConfig)
def coco(
    images: Path,
    /,
    *,
    labels: Path,
    out: Path,
    classes: str = "",
    ignore_crowds: Flag = False,
    overlapping: Flag = False,
    fractional: Flag = False,
    skip_mismatched: bool = False,
    groups: Path | None = None,
    recipe: Path | None = None,
    **chosen: Any,
) -> None:
    """Make a tile set from a folder of images and a COCO file of their annotations.

    Args:
        images: Folder of the images that the file lists.
        labels: JSON file of instances as polygons or run-length encoded masks: CVAT, Label Studio, Roboflow.
        out: Folder of the tile set.
        classes: Categories to use, separated by commas; the rest is background. Default: all with an annotation.
        ignore_crowds: Ignore crowd regions (iscrowd) in training and scoring, instead of counting them as their class.
        overlapping: Multi-label: a pixel belongs to every class whose instances cover it.
        fractional: Fractional (soft) labels: the fraction of each pixel inside the instances, from 8 x 8 subpixels.
        skip_mismatched: Skip images that are missing or have another size than listed, instead of raising an error.
        groups: CSV file with the columns scene and group, for --split group.
        recipe: TOML file; its [prepare] table sets the defaults of the flags below.
    """
    from geograft.commands.prepare import prepare
    from geograft.dataset.sources import CocoSource

    names = tuple(name.strip() for name in classes.split(",") if name.strip())
    source = CocoSource(images, labels, names, ignore_crowds, skip_mismatched, groups, overlapping, fractional)
    print_result(prepare(source, out, _config(recipe, chosen)))


@with_progress
@settings(prepare=PrepareConfig)
def dstl(
    folder: Path,
    /,
    *,
    classes: Annotated[str, Parameter(help="Class numbers, 1 to 10, separated by commas. 5 is trees.")],
    out: Path,
    overlapping: Flag = False,
    fractional: Flag = False,
    recipe: Path | None = None,
    **chosen: Any,
) -> None:
    """Make a tile set from the folder of Kaggle's DSTL competition.

    Args:
        folder: Folder with train_wkt_v4.csv, grid_sizes.csv and three_band, zipped or not.
        out: Folder of the tile set.
        overlapping: Multi-label: a pixel belongs to every class whose polygons cover it.
        fractional: Fractional (soft) labels: the fraction of each pixel inside the polygons, from 8 x 8 subpixels.
        recipe: TOML file; its [prepare] table sets the defaults of the flags below.
    """
    from geograft.commands.prepare import prepare
    from geograft.dataset.sources import DstlSource

    numbers = tuple(_number(part, "--classes") for part in classes.split(","))
    print_result(prepare(DstlSource(folder, numbers, overlapping, fractional), out, _config(recipe, chosen)))


@with_progress
def audit(tiles: Path, /, *, figure: Path | None = None) -> None:
    """Check a tile set's split for leakage: shared pixels, duplicate scenes, spatial autocorrelation.

    Args:
        tiles: Folder of a tile set.
        figure: PNG file to write: the variogram, and the distances of held-out tiles from training tiles.
    """
    from geograft.commands.audit import audit

    print_result(audit(tiles, figure))


def parse_classes(text: str) -> dict[int, str] | dict[str, str]:
    """Return {1: "forest", 2: "other"} for "1=forest,2=other", and likewise for colours or a CSV file; {} for "".

    Raises:
        InputError: if a CSV file cannot be used.
        SettingError: if a part is not NUMBER=NAME or #RRGGBB=NAME, or two have the same value.
    """
    if text.lower().endswith(".csv"):
        from geograft.dataset.masks import read_class_table

        return read_class_table(Path(text))
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    if not all(separator and name.strip() for _, separator, name in pairs):
        raise SettingError(f"--classes {text!r} cannot be parsed. Give NUMBER=NAME pairs, such as 1=forest,2=other.")
    values = [value.strip().lower() for value, _, _ in pairs]
    double = next((value for value in values if values.count(value) > 1), None)
    if double is not None:
        raise SettingError(f"--classes {text!r} has {double} twice. Give each value one name.")
    names = [name.strip() for _, _, name in pairs]
    if any(value.startswith("#") for value in values):
        return dict(zip(values, names, strict=True))
    return {_number(value, "--classes"): name for value, name in zip(values, names, strict=True)}


def _number(text: str, flag: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingError(f"{flag}: {text!r} is not an integer.") from None


def _config(recipe: Path | None, chosen: dict[str, Any]) -> PrepareConfig:
    base = (load_recipe(recipe) if recipe else Recipe()).prepare
    config: PrepareConfig = config_from(PrepareConfig, base, chosen)
    return config
