"""Command-line functions of verbs that make, check and hand over maps: `predict`, `polygons`, `review`, `area`, ..."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from geograft.cli.flags import BandFiles, config_from, print_result, settings, stac_rasters, with_progress
from geograft.config import (
    ExportConfig,
    PartConfig,
    PolygonConfig,
    PredictConfig,
    ReviewConfig,
    SampleConfig,
    ServeConfig,
    StacConfig,
    SuggestConfig,
    WorkerConfig,
)
from geograft.errors import InputError, SettingError
from geograft.text import pluralise


@with_progress
@settings(predict=PredictConfig, stac=StacConfig, worker=WorkerConfig)
def predict(
    run: Path,
    rasters: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    /,
    *,
    out: Path,
    band_files: BandFiles = (),
    ensemble: Annotated[tuple[Path, ...], Parameter(negative=(), consume_multiple=True)] = (),
    aoi: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    worker: Annotated[bool, Parameter(negative=())] = False,
    **chosen: Any,
) -> None:
    """Map rasters of any size with a run. Run the same command again to resume an interrupted prediction.

    Args:
        run: A run: its folder, a bundle (.graft), hf:USER/NAME on the hub, or an address (https://, s3://).
        rasters: Rasters with the bands of the run, .vrt included; GeoTIFFs also from https://, s3://, gs:// and az://.
        band_files: Files of one scene by band, such as "B02=a.tif,B8A=b.tif"; once per scene.
        out: Class map to write: MAP.tif mosaics rasters on one grid; a folder gets one per raster; both may be on s3://.
        ensemble: Further runs; the probabilities of all runs are averaged.
        aoi: Vector file; only pixels inside its polygons are mapped.
        dry_run: Print the number of tiles, the size of the output and the estimated time; write nothing.
        worker: Compute units of one map together with other processes that share the folder --out (docs/scale.md).
    """
    # Before the import, which takes a noticeable part of the time of a small map.
    started = time.perf_counter()
    from geograft.commands.predict import predict
    from geograft.commands.units import predict_units

    config = config_from(PredictConfig, PredictConfig(), chosen)
    places = (*rasters, *band_files, *stac_rasters(chosen))
    options = config_from(WorkerConfig, WorkerConfig(), chosen)
    if (worker or options.ray) and dry_run:
        raise SettingError("--dry-run estimates the cost of a map on one machine. Omit --worker and --ray.")
    if not (worker or options.ray) and options != WorkerConfig():
        raise SettingError("--part, --tolerance and --one-file are settings of a worker. Add --worker or --ray.")
    if worker or options.ray:
        print_result(predict_units((run, *ensemble), places, out, config, aoi, options))
    else:
        prediction = predict((run, *ensemble), places, out, config, aoi, dry_run)
        print_result(prediction)
        if prediction.failures:
            raise InputError(
                f"{pluralise(len(prediction.failures), 'raster')} of {len(places)} skipped; the maps of the others are "
                "complete. The same command tries them again."
            )
    if not dry_run:
        sys.stdout.write(f"the whole command took {time.perf_counter() - started:.1f} s\n")


@with_progress
def jobs(
    out: Path,
    /,
    *,
    clean: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """List the units of a job that workers share: done, running, failed and why.

    Args:
        out: The folder or bucket that the workers share: --out of a command with --worker.
        clean: Remove claims, failures and a stop, so that workers try again what is not done. No worker may be running.
    """
    from geograft.commands.jobs import jobs

    print_result(jobs(out, clean))


POLYGON_FILE, SUGGESTIONS_FILE = "polygons.gpkg", "suggestions.gpkg"


@with_progress
@settings(polygons=PolygonConfig, worker=PartConfig)
def polygons(
    map: str,  # noqa: A002 (the word on the command line)
    /,
    *,
    out: Path,
    dstl_grid: Path | None = None,
    worker: Annotated[bool, Parameter(negative=())] = False,
    file: str = POLYGON_FILE,
    **chosen: Any,
) -> None:
    """Polygonise a class map; each polygon has its class and area. Run the same command again to resume.

    Args:
        map: Class map, a GeoTIFF from `geograft predict`, or the folder of a map by workers.
        out: File to write: .gpkg, .geojson, .fgb, .parquet, or .csv for a DSTL submission; with --worker a folder.
        dstl_grid: grid_sizes.csv of the DSTL competition, for .csv; the map must have the name of its image.
        worker: Trace units of the map together with other processes that share the folder --out (docs/scale.md).
        file: With --worker, the file to write in the folder --out; its suffix selects the format.
    """
    from geograft.commands.polygons import polygons

    config = config_from(PolygonConfig, PolygonConfig(), chosen)
    options = config_from(PartConfig, PartConfig(), chosen)
    if worker or options.ray:
        from geograft.commands.units import polygon_units

        print_result(polygon_units(map, out, config, dstl_grid, file, options))
        return
    if options != PartConfig() or file != POLYGON_FILE:
        raise SettingError("--part, --tolerance and --file are settings of a worker. Add --worker or --ray.")
    print_result(polygons(map, out, config, dstl_grid))


@with_progress
@settings(suggest=SuggestConfig, stac=StacConfig, worker=PartConfig)
def suggest(
    run: Path,
    rasters: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    /,
    *,
    out: Path,
    band_files: BandFiles = (),
    ensemble: Annotated[tuple[Path, ...], Parameter(negative=(), consume_multiple=True)] = (),
    known: Path | None = None,
    aoi: Path | None = None,
    worker: Annotated[bool, Parameter(negative=())] = False,
    file: str = SUGGESTIONS_FILE,
    **chosen: Any,
) -> None:
    """Choose the tiles to label next (active learning): the most uncertain and representative ones.

    Args:
        run: A run: its folder, a bundle (.graft), hf:USER/NAME on the hub, or an address (https://, s3://).
        rasters: Rasters or scenes with the bands that the run was trained on, or a tile set, for its images.
        band_files: Files of one scene by band, such as "B02=a.tif,B8A=b.tif"; once per scene.
        out: GeoPackage to write, .gpkg; with --worker a folder.
        ensemble: Further runs, to measure their disagreement.
        known: Tile set of the area that is already labelled; default: the run's own.
        aoi: Vector file; only tiles inside its polygons are suggested.
        worker: Score units of the rasters together with other processes that share the folder --out (docs/scale.md).
        file: With --worker, the GeoPackage to write in the folder --out.
    """
    from geograft.commands.suggest import suggest

    config = config_from(SuggestConfig, SuggestConfig(), chosen)
    options = config_from(PartConfig, PartConfig(), chosen)
    shared = (run, *ensemble), (*rasters, *band_files, *stac_rasters(chosen)), out, config
    if worker or options.ray:
        from geograft.commands.units import suggest_units

        print_result(suggest_units(*shared, options, known=known, aoi=aoi, file=file))
        return
    if options != PartConfig() or file != SUGGESTIONS_FILE:
        raise SettingError("--part, --tolerance and --file are settings of a worker. Add --worker or --ray.")
    print_result(suggest(*shared, known, aoi))


Target = Literal["onnx", "deepness", "openvino", "torch", "bundle", "stac"]


@with_progress
@settings(export=ExportConfig)
def export(
    run: Path,
    /,
    *,
    out: Path,
    target: Annotated[Target, Parameter(name="--for")] = "onnx",
    tiles: Path | None = None,
    **chosen: Any,
) -> None:
    """Write a run as a model file for another program, as one file for other people, or as a STAC item.

    Args:
        run: A run: its folder, a bundle (.graft), hf:USER/NAME on the hub, or an address (https://, s3://).
        out: File to write: .onnx for ONNX Runtime and Deepness, .xml for OpenVINO, .pt2 for torch, .graft for a bundle,
            .json for a STAC item.
        target: onnx, deepness (a plugin of QGIS), openvino, torch, bundle or stac.
        tiles: Folder of the run's tile set, if it was moved: for --int8, and for bundles and STAC items.
    """
    from geograft.commands.export import export

    print_result(export(run, out, target, config_from(ExportConfig, ExportConfig(), chosen), tiles))


@with_progress
def report(
    folder: Path,
    /,
    *,
    map: Path | None = None,  # noqa: A002 (the word on the command line)
    tiles: Path | None = None,
    out: Path | None = None,
) -> None:
    """Write a self-contained HTML report of a run or a comparison.

    Args:
        folder: A run or a comparison.
        map: Map from `geograft predict`, for an overview picture and the mapped area.
        tiles: Folder of its tile set, if it was moved.
        out: HTML file to write; default: report.html in the folder. A bundle needs it.
    """
    from geograft.commands.report import report

    print_result(report(folder, out, map, tiles))


@with_progress
def push(
    run: Path,
    repository: str,
    /,
    *,
    license: str = "unknown",  # noqa: A002 (the word on the hub)
    private: Annotated[bool, Parameter(negative=())] = False,
    tiles: Path | None = None,
) -> None:
    """Publish a run on the Hugging Face hub: a bundle with a model card. Commands read it as hf:USER/NAME.

    Uploads at once, with the token of `hf auth login` or HF_TOKEN.

    Args:
        run: A run: its folder or a bundle (.graft).
        repository: USER/NAME; created if it does not exist.
        license: Licence of the model, one of the hub's identifiers such as apache-2.0.
        private: Create a private repository.
        tiles: Folder of its tile set, if it was moved; one of its tiles is the picture on the model card.
    """
    from geograft.commands.push import push

    print_result(push(run, repository, tiles, license, private))


@with_progress
def demo(*, out: Path = Path("demo-out"), compare: Annotated[bool, Parameter(negative=())] = False) -> None:
    """Train on a built-in scene, and score and map a second one.

    Args:
        out: Folder for all outputs of the demo.
        compare: Train the article's three networks, too, and compare them with Geograft's default.
    """
    from geograft.commands.demo import demo

    print_result(demo(out, compare_article=compare))


def install(*, profile: str = "default") -> None:
    """Install the plugin of QGIS: Processing algorithms that call this program. QGIS's own Python stays as it is.

    Args:
        profile: Name of the QGIS profile, or its folder.
    """
    from geograft.commands.qgis import qgis

    print_result(qgis(profile))


@settings(serve=ServeConfig)
def serve(
    path: Path,
    rasters: Annotated[tuple[Path, ...], Parameter(negative=())] = (),
    /,
    *,
    port: int = 8753,
    open_browser: Annotated[bool, Parameter(name="--open", negative=())] = False,
    read_only: Annotated[bool, Parameter(negative=())] = False,
    uploads: int = 0,
    **chosen: Any,
) -> None:
    """Show a project, or a run with rasters, as a map in the browser. Listens on this machine only. Ctrl-C ends it.

    Args:
        path: A project (the folder of `geograft project`), or a run.
        rasters: With a run: images, scenes, and class maps of `geograft predict` with the files beside them.
        port: Port of the server; 0 for any free one.
        open_browser: Open the address in the browser.
        read_only: Show only: nobody can draw or start a job.
        uploads: Let the page import polygons and masks into the labels, files of up to this many MB; 0: off.
    """
    from geograft.commands.serve import serve

    config = config_from(ServeConfig, ServeConfig(), chosen)
    serve(path, rasters, port, open_browser, read_only, uploads, config)


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
