"""The command line: thin functions that parse, call one verb and print what it returns.

Nothing heavy is imported before a verb is called, so that help answers at once.
"""

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from geograft.errors import GeograftError


def installed_version() -> str:
    """Return the version of Geograft. Looking it up takes as long as all the rest of `geograft --help`."""
    from importlib.metadata import version

    return version("geograft")


app = App(
    name="geograft",
    help="Maps from satellite and aerial images with few labels, by transfer learning.\n\n"
    "images + labels -> prepare -> train -> evaluate -> predict -> polygons",
    help_format="plaintext",
    version=installed_version,
)
prepare = App(name="prepare", help="Turn images and labels into a tile set.", sort_key=1)
app.command(prepare)


def add(parent: App, place: int, home: str, text: str, example: str) -> None:
    """Add the command MODULE:FUNCTION in the `place`-th row of the help; it is imported when it is called."""
    function = f"geograft.cli.{home}"
    name = home.partition(":")[2]
    parent.command(function, name=name, help=text, help_epilogue=f"Example: $ geograft {example}", sort_key=place)


add(
    prepare, 1, "data:vector",
    "Make a tile set from images and polygons. Labels are reprojected to the images, never the images.",
    "prepare vector scene.tif --labels crowns.gpkg --out tiles/",
)  # fmt: skip
add(
    prepare, 2, "data:masks",
    "Make a tile set from a folder of images and a folder of mask images, paired by name.",
    "prepare masks images/ masks/ --classes 1=forest,2=other --out tiles/",
)  # fmt: skip
add(
    prepare, 3, "data:dstl",
    "Make a tile set from the DSTL competition's folder as Kaggle ships it.",
    "prepare dstl dstl/ --classes 5 --out tiles/",
)  # fmt: skip
add(
    app, 2, "data:audit",
    "Say what training has seen of the validation and test ground, and how near to it it came.",
    "audit tiles/",
)  # fmt: skip
add(
    app, 3, "learning:model",
    "Show a network's stages with their shapes, parameters, GFLOP and memory, and draw its graph.",
    "model transfer --draw-to transfer.svg",
)  # fmt: skip
add(
    app, 4, "learning:train",
    "Train a network on a tile set and keep the epoch with the least validation loss.",
    "train tiles/ --out runs/trees --epochs 20",
)  # fmt: skip
add(
    app, 5, "learning:compare",
    "Train every variant of a recipe with every seed on the same tiles, side by side. Goes on after a stop.",
    "compare tiles/ --recipe recipes/demo.toml --out comparison/",
)  # fmt: skip
add(
    app, 5, "learning:curve",
    "Draw how good a network is with how many training tiles, pretrained and from scratch. Goes on after a stop.",
    "curve tiles/ --out curve/ --recipe recipes/demo.toml --seeds 0 1 2",
)  # fmt: skip
add(
    app, 5, "learning:find",
    "Search for the learning rates, losses and encoder that suit a tile set, and write a recipe. Goes on after a stop.",
    "find tiles/ --out found/ --trials 12",
)  # fmt: skip
add(
    app, 6, "learning:calibrate",
    "Choose a run's threshold and temperature on its validation tiles and write them into its card.",
    "calibrate runs/trees",
)  # fmt: skip
add(
    app, 7, "learning:evaluate",
    "Score a run on the tiles of one split, every pixel once, with 95 % intervals.",
    "evaluate runs/trees --split test",
)  # fmt: skip
add(
    app, 8, "area:review",
    "Write where a run is wrong, and where labels probably are, as layers to look at in a GIS.",
    "review runs/trees --out review/",
)  # fmt: skip
add(
    app, 9, "maps:predict",
    "Map whole rasters of any size with a run. A killed prediction goes on where it stopped.",
    "predict runs/trees region.tif --out trees.tif",
)  # fmt: skip
add(
    app, 10, "maps:polygons",
    "Turn a class map into polygons with their area.",
    "polygons trees.tif --out trees.gpkg --min-area-m2 1",
)  # fmt: skip
add(
    app, 16, "maps:suggest",
    "Say which tiles to label next: those that stand for the most of what a run is unsure of.",
    "suggest runs/trees region.tif --out next.gpkg --tiles 20",
)  # fmt: skip
add(
    app, 11, "area:sample",
    "Draw a random sample of a map's pixels by class, to be labelled in a GIS.",
    "sample trees.tif --out points.gpkg",
)  # fmt: skip
add(
    app, 12, "area:area",
    "Estimate the area of each class with its 95 % interval from a labelled sample.",
    "area trees.tif points.gpkg --out area.json",
)  # fmt: skip
add(
    app, 13, "area:jaccard",
    "Score polygons by the DSTL competition's rule: the Jaccard index by class, and the mean.",
    "jaccard 6100_1_3.csv --labels dstl/",
)  # fmt: skip
add(
    app, 14, "maps:report",
    "Write one HTML page about a run or a comparison that opens anywhere and can be mailed.",
    "report comparison/ --out report.html",
)  # fmt: skip
add(
    app, 15, "maps:demo",
    "Compare the article's three models with Geograft's default on the embedded scene, and map another place.",
    "demo --out demo-out",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on `arguments` (default: the process's own).

    What a user can mend ends in one line on stderr and exit code 1.
    """
    try:
        app(sys.argv[1:] if arguments is None else arguments, exit_on_error=False, print_error=False)
    except (GeograftError, CycloptsError) as error:
        sys.exit(f"geograft: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)
