"""Pictures: arrays in, bytes of a picture out. Opens no file.

* colours   what every colour stands for, and the looks for light and dark paper
* pictures  tiles and scenes as RGB arrays: stretched, painted, shrunk, encoded
* curves    losses and scores over the epochs
* samples   image, label and what each network makes of it, side by side
"""

from tilth.figures.curves import curves_figure, loss_figure
from tilth.figures.pictures import stretch_limits, stretched
from tilth.figures.samples import Sample, samples_figure

__all__ = ["Sample", "curves_figure", "loss_figure", "samples_figure", "stretch_limits", "stretched"]
