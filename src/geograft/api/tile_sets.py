"""Make tile sets from Python: one function per kind of label, with the settings of `geograft prepare` as options."""

from collections.abc import Mapping, Sequence

from geograft.api.keywords import keyword_settings
from geograft.commands.prepare import prepare
from geograft.config import PrepareConfig
from geograft.dataset.scenes import Groups
from geograft.dataset.sources import CocoSource, DstlSource, MaskSource, VectorSource
from geograft.dataset.tileset import TileSet
from geograft.files import StrPath


@keyword_settings(PrepareConfig)
def prepare_vector(
    images: StrPath | Sequence[StrPath],
    labels: StrPath,
    out: StrPath,
    *,
    class_field: str | None = None,
    aoi: StrPath | None = None,
    groups: Groups = None,
    overlapping: bool = False,
    fractional: bool = False,
    config: PrepareConfig,
) -> TileSet:
    """Make a tile set from images and polygons, like `geograft prepare vector`.

    `images` are one or more rasters, `labels` a GeoPackage, GeoJSON or Shapefile in any CRS, `out` the new folder. From
    the labels.gpkg of a project, its random scoring areas are the test split.
    `geograft.VectorSource` describes class_field, aoi, groups, overlapping and fractional.
    """
    return prepare(VectorSource(images, labels, class_field, aoi, groups, overlapping, fractional), out, config)


@keyword_settings(PrepareConfig)
def prepare_masks(
    images: StrPath,
    masks: StrPath,
    out: StrPath,
    *,
    classes: Mapping[int, str] | Mapping[str, str],
    ignore: int | str | None = None,
    ignore_undeclared: bool = False,
    groups: Groups = None,
    overlapping: bool = False,
    fractional: bool = False,
    full_value: float = 1.0,
    skip_mismatched: bool = False,
    config: PrepareConfig,
) -> TileSet:
    """Make a tile set from a folder of images and a folder of mask images, like `geograft prepare masks`.

    `classes` are the names by mask value, colour or band: {1: "forest", 2: "other"}; the first of two is positive.
    `geograft.MaskSource` describes the other options of masks.
    """
    source = MaskSource(
        images, masks, classes, ignore, skip_mismatched, groups, overlapping, fractional, full_value, ignore_undeclared
    )
    return prepare(source, out, config)


@keyword_settings(PrepareConfig)
def prepare_coco(
    images: StrPath,
    labels: StrPath,
    out: StrPath,
    *,
    classes: Sequence[str] = (),
    ignore_crowds: bool = False,
    groups: Groups = None,
    overlapping: bool = False,
    fractional: bool = False,
    skip_mismatched: bool = False,
    config: PrepareConfig,
) -> TileSet:
    """Make a tile set from a folder of images and a COCO file of their annotations, like `geograft prepare coco`.

    `geograft.CocoSource` describes classes, ignore_crowds, groups, overlapping, fractional and skip_mismatched.
    """
    source = CocoSource(images, labels, tuple(classes), ignore_crowds, skip_mismatched, groups, overlapping, fractional)
    return prepare(source, out, config)


@keyword_settings(PrepareConfig)
def prepare_dstl(
    folder: StrPath,
    out: StrPath,
    *,
    classes: Sequence[int],
    overlapping: bool = False,
    fractional: bool = False,
    config: PrepareConfig,
) -> TileSet:
    """Make a tile set from the folder of Kaggle's DSTL competition, like `geograft prepare dstl`.

    `classes` are numbers from 1 to 10; 5 is trees. `geograft.DstlSource` describes overlapping and fractional.
    """
    return prepare(DstlSource(folder, tuple(classes), overlapping, fractional), out, config)
