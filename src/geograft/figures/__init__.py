"""Figures: arrays in, the bytes of an image file out. Opens no file.

* style        colours, light and dark themes, axes, and encoding of figures
* pictures     tiles and scenes as RGB arrays: stretch, draw classes and errors, downsample, encode
* curves       training curves over the epochs, and learning curves over the number of training tiles
* calibration  reliability diagram and precision-recall curve
* variogram    variograms, and the distances of held-out tiles from training tiles
* graph        the architecture of a U-Net
"""

from geograft.figures.curves import curves_figure, loss_figure
from geograft.figures.pictures import ExampleTile, examples_figure, stretch, stretch_limits

__all__ = ["ExampleTile", "curves_figure", "examples_figure", "loss_figure", "stretch", "stretch_limits"]
