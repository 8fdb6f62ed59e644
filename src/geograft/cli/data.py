"""`geograft prepare` and `geograft audit`. Verbs are imported when they are called, so that --help answers at once."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from geograft.cli.flags import config_from, settings, show
from geograft.config import PrepareConfig, Recipe, load_recipe
from geograft.errors import SettingError

Flag = Annotated[bool, Parameter(negative=())]


@settings(prepare=PrepareConfig)
def vector(
    images: Annotated[tuple[Path, ...], Parameter(negative=())],
    /,
    *,
    labels: Path,
    out: Path,
    class_field: str | None = None,
    aoi: Path | None = None,
    overlapping: Flag = False,
    fractions: Flag = False,
    groups: Path | None = None,
    recipe: Path | None = None,
    **chosen: Any,
) -> None:
    """Make a tile set from images and polygons. Labels are reprojected to the images, never the images.

    Args:
        images: GeoTIFFs or anything else that GDAL reads.
        labels: Polygons: GeoPackage, GeoJSON or Shapefile.
        out: Folder of the tile set.
        class_field: Attribute that holds the class. Without it all polygons are of one class.
        aoi: Polygons of what the annotator looked at; the rest is neither trained nor scored.
        overlapping: Each class has an output of its own: a pixel is of every class that has a polygon over it.
        fractions: A pixel is of the classes by how much of it lies in their polygons, seen on 8 x 8 points.
        groups: CSV file with the columns scene and group, for --split group.
        recipe: TOML file whose [prepare] table gives the settings.
    """
    from geograft.commands.prepare import prepare
    from geograft.dataset.sources import VectorSource

    source = VectorSource(images, labels, class_field, aoi, groups, overlapping, fractions)
    show(prepare(source, out, _config(recipe, chosen)))


@settings(prepare=PrepareConfig)
def masks(
    images: Path,
    masks: Path,
    /,
    *,
    classes: str,
    out: Path,
    ignore: int | None = None,
    fractions: Flag = False,
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
        masks: Folder of masks, one band, one value a class; with --fractions and --overlapping, one band a class.
        classes: Values or bands, and names: 1=forest,2=other. Of two the first is mapped. Band 0 is what others leave.
        out: Folder of the tile set.
        ignore: Mask value of pixels that are neither trained nor scored.
        fractions: Bands say how much of a pixel each class has, from 0 to --full-value.
        overlapping: Each class has an output of its own: a pixel may be of several, or of none.
        full_value: What stands for a whole pixel in such bands: 100 for percent.
        skip_mismatched: Leave out pairs that do not match in name or size instead of stopping.
        groups: CSV file with the columns scene and group, for --split group.
        recipe: TOML file whose [prepare] table gives the settings.
    """
    from geograft.commands.prepare import prepare
    from geograft.dataset.sources import MaskSource

    table = parse_classes(classes)
    source = MaskSource(images, masks, table, ignore, skip_mismatched, groups, overlapping, fractions, full_value)
    show(prepare(source, out, _config(recipe, chosen)))


@settings(prepare=PrepareConfig)
def dstl(
    folder: Path,
    /,
    *,
    classes: Annotated[str, Parameter(help="Numbers of the classes, 1 to 10, by commas: 5 is trees.")],
    out: Path,
    overlapping: Flag = False,
    fractions: Flag = False,
    recipe: Path | None = None,
    **chosen: Any,
) -> None:
    """Make a tile set from the DSTL competition's folder as Kaggle ships it.

    Args:
        folder: Folder with train_wkt_v4.csv, grid_sizes.csv and three_band, zipped or not.
        out: Folder of the tile set.
        overlapping: Each class has an output of its own: a pixel is of every class that has a polygon over it.
        fractions: A pixel is of the classes by how much of it lies in their polygons, seen on 8 x 8 points.
        recipe: TOML file whose [prepare] table gives the settings.
    """
    from geograft.commands.prepare import prepare
    from geograft.dataset.sources import DstlSource

    numbers = tuple(_number(part, "--classes") for part in classes.split(","))
    show(prepare(DstlSource(folder, numbers, overlapping, fractions), out, _config(recipe, chosen)))


def audit(tiles: Path, /, *, figure: Path | None = None) -> None:
    """Say what training has seen of the validation and test ground, and how near to it it came.

    Args:
        tiles: Folder of a tile set.
        figure: PNG file: how far the ground resembles itself, over the distances of held-out tiles from training.
    """
    from geograft.commands.audit import audit

    show(audit(tiles, figure))


def parse_classes(text: str) -> dict[int, str]:
    """Return {1: "forest", 2: "other"} for "1=forest,2=other".

    Raises:
        SettingError: when a part is not NUMBER=NAME.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(separator and name.strip() for _, separator, name in pairs):
        raise SettingError(f"--classes {text!r} is not understood: give values and names, as in 1=forest,2=other.")
    return {_number(value, "--classes"): name.strip() for value, _, name in pairs}


def _number(text: str, flag: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingError(f"{flag}: {text!r} is not a whole number.") from None


def _config(recipe: Path | None, chosen: dict[str, Any]) -> PrepareConfig:
    base = (load_recipe(recipe) if recipe else Recipe()).prepare
    config: PrepareConfig = config_from(PrepareConfig, base, chosen)
    return config
