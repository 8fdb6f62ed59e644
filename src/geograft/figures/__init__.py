"""Figures: arrays in, the bytes of an image file out. Opens no file.

* style     colours, light and dark themes, and encoding of figures
* axes      pictures and scores on matplotlib Axes, for notebooks
* pictures  tiles and scenes as RGB arrays: stretch, draw classes and errors, downsample, encode
* curves    training and learning curves, precision and recall, reliability diagrams, variograms
* graph     the architecture of a U-Net
"""

from geograft.figures.curves import curves_figure, loss_figure
from geograft.figures.pictures import ExampleTile, examples_figure, stretch, stretch_limits

__all__ = ["ExampleTile", "curves_figure", "examples_figure", "loss_figure", "stretch", "stretch_limits"]
