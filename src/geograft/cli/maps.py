"""`geograft predict`, `geograft polygons`, `geograft report` and `geograft demo`. Verbs are imported when called."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from geograft.cli.flags import config_from, settings, show
from geograft.config import PolygonConfig, PredictConfig, SuggestConfig


@settings(predict=PredictConfig)
def predict(
    run: Path,
    rasters: Annotated[tuple[Path, ...], Parameter(negative=())],
    /,
    *,
    out: Path,
    ensemble: Annotated[tuple[Path, ...], Parameter(negative=(), consume_multiple=True)] = (),
    aoi: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    **chosen: Any,
) -> None:
    """Map whole rasters of any size with a run. A killed prediction goes on where it stopped.

    Args:
        run: Folder of a run.
        rasters: Images with the bands that the run was trained on; .vrt too.
        out: Class map to write, MAP.tif: rasters on one grid become one map. Else a folder, one map a raster.
        ensemble: Folders of more runs; the mean of all counts.
        aoi: Vector file: only what its polygons cover is mapped.
        dry_run: Say how many tiles and bytes it is and about how long it takes, and write nothing.
    """
    from geograft.commands.predict import predict

    config = config_from(PredictConfig, PredictConfig(), chosen)
    show(predict((run, *ensemble), rasters, out, config, aoi, dry_run))


@settings(polygons=PolygonConfig)
def polygons(
    map: Path,  # noqa: A002 (the word on the command line)
    /,
    *,
    out: Path,
    dstl_grid: Path | None = None,
    **chosen: Any,
) -> None:
    """Turn a class map into polygons with their area. A killed job goes on where it stopped.

    Args:
        map: Class map, a GeoTIFF from `geograft predict`.
        out: File to write: .gpkg, .geojson, .fgb, .parquet, or .csv for DSTL's submission.
        dstl_grid: DSTL's grid_sizes.csv, for .csv; the map must be called as its image.
    """
    from geograft.commands.polygons import polygons

    show(polygons(map, out, config_from(PolygonConfig, PolygonConfig(), chosen), dstl_grid))


@settings(suggest=SuggestConfig)
def suggest(
    run: Path,
    rasters: Annotated[tuple[Path, ...], Parameter(negative=())],
    /,
    *,
    out: Path,
    ensemble: Annotated[tuple[Path, ...], Parameter(negative=(), consume_multiple=True)] = (),
    known: Path | None = None,
    aoi: Path | None = None,
    **chosen: Any,
) -> None:
    """Say which tiles to label next: those that stand for the most of what a run is unsure of.

    Args:
        run: Folder of a run.
        rasters: Images with the bands that the run was trained on; or a tile set, for the images in it.
        out: GeoPackage to write, .gpkg.
        ensemble: Folders of more runs; what they disagree on is uncertain.
        known: Tile set whose ground is labelled; default: the run's own.
        aoi: Vector file: only what its polygons cover is suggested.
    """
    from geograft.commands.suggest import suggest

    config = config_from(SuggestConfig, SuggestConfig(), chosen)
    show(suggest((run, *ensemble), rasters, out, config, known, aoi))


def report(folder: Path, /, *, out: Path | None = None) -> None:
    """Write one HTML page about a run or a comparison that opens anywhere and can be mailed.

    Args:
        folder: Folder of a run or of a comparison.
        out: Page to write; default: report.html in the folder.
    """
    from geograft.commands.report import report

    show(report(folder, out))


def demo(*, out: Path = Path("demo-out")) -> None:
    """Compare the article's three models with Geograft's default on the embedded scene, and map another place.

    Args:
        out: Folder for everything that the demo makes.
    """
    from geograft.commands.demo import demo

    show(demo(out))
