"""Command-line functions of `geograft review`, `sample`, `area` and `jaccard`."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from geograft.cli.flags import config_from, print_result, settings, with_progress
from geograft.config import ReviewConfig, SampleConfig


@with_progress
@settings(sample=SampleConfig)
def sample(map: str, /, *, out: Path, **chosen: Any) -> None:  # noqa: A002 (the word on the command line)
    """Draw a random sample of a map's pixels, stratified by class, for labelling in a GIS.

    Args:
        map: Class map, a GeoTIFF from `geograft predict`.
        out: GeoPackage to write, .gpkg.
    """
    from geograft.commands.sample import sample

    print_result(sample(map, out, config_from(SampleConfig, SampleConfig(), chosen)))


@with_progress
def area(map: str, points: Path, /, *, out: Path | None = None) -> None:  # noqa: A002
    """Estimate class areas and map accuracy from a labelled sample, with 95 % confidence intervals.

    Args:
        map: Class map that the sample was drawn from.
        points: GeoPackage from `geograft sample` with the field `reference` filled in.
        out: JSON file to write all results to.
    """
    from geograft.commands.area import area

    print_result(area(map, points, out))


@with_progress
@settings(review=ReviewConfig)
def review(
    runs: Annotated[tuple[Path, ...], Parameter(negative=())], /, *, out: Path, tiles: Path | None = None, **chosen: Any
) -> None:
    """Write error maps, the worst tiles and suspected label errors, as layers for QGIS. Only held-out pixels are used.

    Args:
        runs: A run, or one run per fold: folders, bundles (.graft), or hf:USER/NAME on the hub.
        out: Folder to write: errors/SCENE.tif, worst.gpkg, suspects.gpkg.
        tiles: Another tile set with the same classes, of an area that the run was not trained on.
    """
    from geograft.commands.review import review

    print_result(review(runs, out, tiles, config_from(ReviewConfig, ReviewConfig(), chosen)))


def jaccard(
    submissions: Annotated[tuple[Path, ...], Parameter(negative=())], /, *, labels: Path, out: Path | None = None
) -> None:
    """Score polygons by the metric of the DSTL competition: the Jaccard index per class and its mean.

    Args:
        submissions: CSV files from `geograft polygons MAP.tif --out IMAGE.csv --dstl-grid grid_sizes.csv`.
        labels: The competition's folder, or its train_wkt_v4.csv.
        out: JSON file to write all results to.
    """
    from geograft.commands.jaccard import jaccard

    print_result(jaccard(submissions, labels, out))
