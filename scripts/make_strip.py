"""Draw docs/strip.png, the picture at the top of the README, from the folder of a finished `geograft demo`."""

import sys
from pathlib import Path

import geopandas
import numpy as np
import rasterio
from matplotlib.figure import Figure
from shapely import box

from geograft.legend import PALETTE

SCENES = Path(__file__).parents[1] / "src" / "geograft" / "data" / "yellowstone"
PICTURE = Path(__file__).parents[1] / "docs" / "strip.png"
EDGE_PX = 420
ROW, COL = 30, 60


def strip(demo: Path) -> Figure:
    """Return a figure of image, reference crowns, map and polygons in one corner of the scene not used in training."""
    window = rasterio.windows.Window(COL, ROW, EDGE_PX, EDGE_PX)
    with rasterio.open(SCENES / "elsewhere.tif") as scene, rasterio.open(demo / "map.tif") as map_raster:
        image, classes = scene.read(window=window).transpose(1, 2, 0), map_raster.read(1, window=window)
        west, south, east, north = scene.window_bounds(window)
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2) / 255
    green = np.array([int(PALETTE[0][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    overlay = np.where((classes == 1)[..., None], 0.35 * grey + 0.65 * green, grey)
    figure = Figure(figsize=(12, 3.3), layout="constrained")
    panels = figure.subplots(1, 4)
    titles = ("image", "reference crowns", "map", "polygons")
    for panel, title, picture in zip(panels, titles, (image, image, overlay, image), strict=True):
        panel.imshow(picture, extent=(west, east, south, north))
        panel.set_title(title, fontsize=11)
        panel.set_xticks([])
        panel.set_yticks([])
    for panel, layer in ((panels[1], SCENES / "elsewhere.gpkg"), (panels[3], demo / "map.gpkg")):
        crowns = geopandas.read_file(layer).clip(box(west, south, east, north))
        crowns.boundary.plot(ax=panel, color=PALETTE[5], linewidth=1.1)
        panel.set(xlim=(west, east), ylim=(south, north), xlabel="", ylabel="")
    return figure


if __name__ == "__main__":
    strip(Path(sys.argv[1])).savefig(PICTURE, dpi=100)
