"""`geograft review`, `geograft sample`, `geograft area` and `geograft jaccard`. Verbs are imported when called."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from geograft.cli.flags import config_from, settings, show
from geograft.config import ReviewConfig, SampleConfig


@settings(sample=SampleConfig)
def sample(map: Path, /, *, out: Path, **chosen: Any) -> None:  # noqa: A002 (the word on the command line)
    """Draw a random sample of a map's pixels by class, to be labelled in a GIS.

    Args:
        map: Class map, a GeoTIFF from `geograft predict`.
        out: GeoPackage to write, .gpkg.
    """
    from geograft.commands.sample import sample

    show(sample(map, out, config_from(SampleConfig, SampleConfig(), chosen)))


def area(map: Path, points: Path, /, *, out: Path | None = None) -> None:  # noqa: A002
    """Estimate the area of each class with its 95 % interval, and the map's accuracies, from a labelled sample.

    Args:
        map: Class map that the sample was drawn from.
        points: GeoPackage from `geograft sample` with the field `reference` filled in.
        out: JSON file to write all figures to.
    """
    from geograft.commands.area import area

    show(area(map, points, out))


@settings(review=ReviewConfig)
def review(
    runs: Annotated[tuple[Path, ...], Parameter(negative=())], /, *, out: Path, tiles: Path | None = None, **chosen: Any
) -> None:
    """Write where runs are wrong on ground that they did not train on, and where labels are probably wrong.

    Args:
        runs: Folder of a run, or of one run a fold.
        out: Folder to write: errors/SCENE.tif, worst.gpkg, suspects.gpkg.
        tiles: Another tile set with the same classes, of ground that the run did not train on.
    """
    from geograft.commands.review import review

    show(review(runs, out, tiles, config_from(ReviewConfig, ReviewConfig(), chosen)))


def jaccard(
    submissions: Annotated[tuple[Path, ...], Parameter(negative=())], /, *, labels: Path, out: Path | None = None
) -> None:
    """Score DSTL submissions by the competition's rule: the Jaccard index of polygons, by class and in the mean.

    Args:
        submissions: Tables from `geograft polygons MAP.tif --out IMAGE.csv --dstl-grid grid_sizes.csv`.
        labels: Kaggle's folder, or train_wkt_v4.csv itself.
        out: JSON file to write all figures to.
    """
    from geograft.commands.jaccard import jaccard

    show(jaccard(submissions, labels, out))
