"""Command line: thin functions that parse arguments, call one verb and print its result.

Verbs are imported when they are called, so that --help is fast.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise

from cyclopts import App, CycloptsError, UnknownCommandError
from cyclopts import ValidationError as InvalidValueError

from geograft.errors import GeograftError
from geograft.interrupts import Interrupted, cancel_at_end_of_input, handle_signals, received_signal
from geograft.progress import report_as_json, write_event


def installed_version() -> str:
    """Return the installed version of Geograft. A function, since the look-up takes as long as the rest of --help."""
    from importlib.metadata import version

    return version("geograft")


app = App(
    name="geograft",
    help="Semantic segmentation of satellite and aerial images with few labels, by transfer learning.\n\n"
    "images + labels -> prepare -> train -> evaluate -> predict -> polygons",
    help_format="plaintext",
    version=installed_version,
    # Interrupts are reported by `main`.
    suppress_keyboard_interrupt=False,
)
prepare = App(name="prepare", help="Make a tile set from images and labels.", sort_key=1)
app.command(prepare)
qgis = App(name="qgis", help="Use Geograft in QGIS.", sort_key=17)
app.command(qgis)


def add_command(parent: App, place: int, home: str, text: str, example: str) -> None:
    """Add the command `home` (MODULE:FUNCTION) to the help at position `place`; it is imported when called."""
    function = f"geograft.cli.{home}"
    name = home.partition(":")[2]
    parent.command(function, name=name, help=text, help_epilogue=f"Example: $ geograft {example}", sort_key=place)


add_command(
    app, -1, "data:project",
    "Make a project folder for a map: settings, layers to label in, random scoring areas, and a project for QGIS.",
    "project trees/ scene.tif --classes tree",
)  # fmt: skip
add_command(
    app, 0, "learning:go",
    "Train, score, map and suggest what to label next, from the labels of a project folder. Resumable.",
    "go trees/",
)  # fmt: skip
add_command(
    prepare, 1, "data:vector",
    "Make a tile set from images and polygons. Labels are reprojected to the CRS of the images.",
    "prepare vector scene.tif --labels crowns.gpkg --out tiles/",
)  # fmt: skip
add_command(
    prepare, 2, "data:masks",
    "Make a tile set from a folder of images and a folder of mask images, paired by name.",
    "prepare masks images/ masks/ --classes 1=forest,2=other --out tiles/",
)  # fmt: skip
add_command(
    prepare, 3, "data:coco",
    "Make a tile set from a folder of images and a COCO file of their annotations.",
    "prepare coco images/ --labels instances.json --out tiles/",
)  # fmt: skip
add_command(
    prepare, 4, "data:dstl",
    "Make a tile set from the folder of Kaggle's DSTL competition.",
    "prepare dstl dstl/ --classes 5 --out tiles/",
)  # fmt: skip
add_command(
    app, 2, "data:audit",
    "Check a tile set's split for leakage: shared pixels, duplicate scenes, spatial autocorrelation.",
    "audit tiles/",
)  # fmt: skip
add_command(
    app, 3, "learning:model",
    "Summarise a network: shapes, parameters, GFLOP and memory of each stage. Can draw its graph.",
    "model transfer --draw-to transfer.svg",
)  # fmt: skip
add_command(
    app, 14, "learning:show",
    "Describe a run: classes, bands, network, training data, scores, licence of the pretrained weights.",
    "show runs/trees",
)  # fmt: skip
add_command(
    app, 14, "maps:push",
    "Publish a run on the Hugging Face hub: a bundle with a model card.",
    "push runs/trees USER/trees --license apache-2.0",
)  # fmt: skip
add_command(
    app, 4, "learning:train",
    "Train a network on a tile set; the epoch with the lowest validation loss is saved.",
    "train tiles/ --out runs/trees --epochs 20",
)  # fmt: skip
add_command(
    app, 5, "learning:compare",
    "Train all variants of a recipe with all seeds on the same tiles and compare them. Resumable.",
    "compare tiles/ --recipe recipes/demo-article.toml --out comparison/",
)  # fmt: skip
add_command(
    app, 5, "learning:curve",
    "Plot a learning curve: IoU against the number of training tiles. Resumable.",
    "curve tiles/ --out curve/ --recipe recipes/demo-article.toml --seeds 0 1 2",
)  # fmt: skip
add_command(
    app, 5, "learning:find",
    "Search learning rates, loss and encoder by successive halving (Optuna). Resumable.",
    "find tiles/ --out found/ --trials 12",
)  # fmt: skip
add_command(
    app, 6, "learning:calibrate",
    "Calibrate a run on its validation tiles: temperature scaling and the probability threshold.",
    "calibrate runs/trees",
)  # fmt: skip
add_command(
    app, 6, "learning:adapt",
    "Train a run further on a few labelled tiles of another place, if that makes it better there. Resumable.",
    "adapt runs/trees --tiles hill/ --out runs/hill",
)  # fmt: skip
add_command(
    app, 7, "learning:evaluate",
    "Score a run on the tiles of one split, with 95 % confidence intervals. Each pixel counts once.",
    "evaluate runs/trees --split test",
)  # fmt: skip
add_command(
    app, 8, "maps:review",
    "Write error maps, the worst tiles and suspected label errors, as layers for QGIS.",
    "review runs/trees --out review/",
)  # fmt: skip
add_command(
    app, 9, "maps:predict",
    "Map rasters of any size with a run. Resumable.",
    "predict runs/trees region.tif --out trees.tif",
)  # fmt: skip
add_command(
    app, 9, "maps:jobs",
    "List the units of a job that workers share: done, running, failed and why.",
    "jobs region-map/",
)  # fmt: skip
add_command(
    app, 10, "maps:polygons",
    "Polygonise a class map; each polygon has its class and area. Resumable.",
    "polygons trees.tif --out trees.gpkg --min-area-m2 1",
)  # fmt: skip
add_command(
    app, 16, "maps:suggest",
    "Choose the tiles to label next (active learning).",
    "suggest runs/trees region.tif --out next.gpkg --tiles 20",
)  # fmt: skip
add_command(
    app, 11, "maps:sample",
    "Draw a random sample of a map's pixels, stratified by class, for labelling in a GIS.",
    "sample trees.tif --out points.gpkg",
)  # fmt: skip
add_command(
    app, 12, "maps:area",
    "Estimate class areas and map accuracy from a labelled sample, with 95 % confidence intervals.",
    "area trees.tif points.gpkg --out area.json",
)  # fmt: skip
add_command(
    app, 13, "maps:jaccard",
    "Score polygons by the metric of the DSTL competition: the Jaccard index per class and its mean.",
    "jaccard 6100_1_3.csv --labels dstl/",
)  # fmt: skip
add_command(
    app, 14, "maps:export",
    "Write a run as a model file for ONNX Runtime, OpenVINO, torch, or Deepness in QGIS.",
    "export runs/trees --for onnx --out trees.onnx",
)  # fmt: skip
add_command(
    app, 14, "maps:report",
    "Write a self-contained HTML report of a run or a comparison.",
    "report comparison/ --out report.html",
)  # fmt: skip
add_command(
    app, 15, "maps:demo",
    "Train on a built-in scene, and score and map a second one; or compare the article's models there.",
    "demo --out demo-out",
)  # fmt: skip

add_command(
    app, 16, "maps:serve",
    "Show a project, or a run with its maps, in the browser: layers, thresholds, areas; draw labels, train and map.",
    "serve trees/ --open",
)  # fmt: skip

add_command(
    qgis, 1, "maps:install",
    "Install the plugin of QGIS: Processing algorithms that call this program. QGIS's own Python stays as it is.",
    "qgis install",
)  # fmt: skip


GDAL_OPTIONS = {"GDAL_CACHEMAX": "64", "CPL_LOG": os.devnull}
"""GDAL's block cache in MB, for all threads of a process. It fits two rows of blocks under the panels that `predict`
reads, so that no block is decoded twice. GDAL's default is 5 % of the machine's memory, in every worker process.
Its warnings, which it would print on stderr beside our line, go to the null device; its errors are raised as ours."""


SPIN_COUNT = "1000"
"""How often a thread of GNU's OpenMP looks for work before it sleeps. With the default of some milliseconds, beside
another process, the spinning thread keeps the core that the others wait for (`make bench-threads`)."""


def limit_spinning() -> None:
    """Let the threads of torch sleep soon when they wait, unless the user set how they wait in the environment.

    OpenMP reads it when torch is imported. In this process and its children.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def set_gdal_options() -> None:
    """Set GDAL's options for this process and its children, except those that the user set in the environment.

    GDAL reads them at its first use, so this comes before rasterio is imported.
    """
    for name, value in GDAL_OPTIONS.items():
        os.environ.setdefault(name, value)


def hide_library_warnings() -> None:
    """Hide the warnings of Python libraries and of torch's C++ code, in this process and its children.

    They are for developers. `python -W`, PYTHONWARNINGS and TORCH_CPP_LOG_LEVEL show them.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        # multiprocessing passes these options to its processes.
        sys.warnoptions.append("ignore")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on `arguments` (default: the process's own).

    Errors that the user can fix print one line on stderr and exit with code 1. At SIGINT (Ctrl-C) and SIGTERM the
    command saves what it has, prints one line on stderr that says what is kept, and exits with code 130 or 143.
    With `--progress json`, these lines are JSON too, and closing standard input has the effect of SIGTERM.
    """
    set_gdal_options()
    limit_spinning()
    if arguments is None:
        hide_library_warnings()
    given = sys.argv[1:] if arguments is None else arguments
    as_json = wants_json(given)
    with report_as_json(as_json), handle_signals(), cancel_at_end_of_input(as_json):
        try:
            if as_json:
                write_event("start", command=given[0], schema=1)
            app(given, exit_on_error=False, print_error=False)
        except (GeograftError, CycloptsError) as error:
            message = " ".join(f"{error_text(error)} {command_hint(error, given)}".split())
            if not as_json:
                sys.exit(f"geograft: {message}")
            write_event("error", exit_code=1, text=message)
            sys.exit(1)
        except Interrupted as error:
            message, code = interrupt_message(error, given[0] if given else ""), 128 + received_signal()
            if as_json:
                write_event("interrupted", exit_code=code, text=message)
            else:
                sys.stderr.write(f"geograft: {message}\n")
            sys.exit(code)
        except KeyboardInterrupt:
            sys.exit(130)


def error_text(error: Exception) -> str:
    """Return the message of an error; of a list with an invalid value, without the text for developers."""
    if isinstance(error, InvalidValueError) and error.argument and error.__cause__:
        from pydantic import ValidationError

        from geograft.config import describe_value

        if isinstance(error.__cause__, ValidationError):
            return f"{describe_value(error.__cause__, error.argument.name, ' {}')}."
    return str(error)


def command_hint(error: Exception, arguments: Sequence[str]) -> str:
    """Return how to call `prepare` if an unknown command may mean it; empty if not."""
    if not isinstance(error, UnknownCommandError):
        return ""
    subcommands = [name for name in prepare if not name.startswith("-")]
    if arguments[0] in subcommands:
        return f'Did you mean "prepare {arguments[0]}"?'
    return f"Call prepare {', '.join(subcommands[:-1])} or {subcommands[-1]}." if arguments[0] == "prepare" else ""


def wants_json(arguments: Sequence[str]) -> bool:
    """Return whether the arguments ask for progress as JSON. Known before they are parsed, for errors in them."""
    return "--progress=json" in arguments or ("--progress", "json") in pairwise(arguments)


HOW_TO_RESUME = {"train": "continue with --resume"} | dict.fromkeys(
    ("predict", "polygons", "compare", "curve", "find", "adapt", "demo", "go"), "run the same command again to resume"
)
"""What an interrupted command says, by name. All others write their result in one piece at the end."""


def interrupt_message(error: Interrupted, command: str) -> str:
    """Return what `command` kept when it was interrupted, and how to resume it."""
    kept = "; ".join(getattr(error, "__notes__", ())) or "Stopped"
    return f"{kept}; {HOW_TO_RESUME.get(command, 'nothing was written')}."
