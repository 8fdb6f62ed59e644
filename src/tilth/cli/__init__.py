"""The command line: thin functions that parse, call one verb and print what it returns.

Nothing heavy is imported before a verb is chosen, so that `tilth --help` answers at once.
"""

import sys
from importlib.metadata import version

from cyclopts import App, CycloptsError

from tilth.errors import TilthError

app = App(
    name="tilth",
    help="Maps from satellite and aerial images with few labels, by transfer learning.\n\n"
    "images + labels -> prepare -> train -> evaluate -> predict -> polygons",
    version=version("tilth"),
)

prepare = App(name="prepare", help="Turn images and labels into a tile set.")
prepare.command("tilth.cli.data:vector", name="vector", help="Images and polygons.")
prepare.command("tilth.cli.data:masks", name="masks", help="Images and mask images, paired by name.")
prepare.command("tilth.cli.data:dstl", name="dstl", help="The DSTL competition's folder.")
app.command(prepare)

app.command("tilth.cli.data:audit", name="audit", help="Say whether the split of a tile set leaks.")
app.command("tilth.cli.learning:model", name="model", help="Show a network's stages, size, cost and graph.")
app.command("tilth.cli.learning:train", name="train", help="Train a network on a tile set.")
app.command("tilth.cli.learning:compare", name="compare", help="Train several configurations on the same tiles.")
app.command("tilth.cli.learning:evaluate", name="evaluate", help="Score a run on tiles it was not trained on.")
app.command("tilth.cli.maps:predict", name="predict", help="Map whole rasters with a run.")
app.command("tilth.cli.maps:polygons", name="polygons", help="Turn a class map into polygons.")
app.command("tilth.cli.maps:report", name="report", help="Write one HTML page about a run or a comparison.")
app.command("tilth.cli.maps:demo", name="demo", help="Do all of it on the scenes inside the package.")


def main() -> None:
    """Run the command line; what a user can mend ends in one line on stderr and exit code 1."""
    try:
        app(exit_on_error=False, print_error=False)
    except (TilthError, CycloptsError) as error:
        sys.exit(f"tilth: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
